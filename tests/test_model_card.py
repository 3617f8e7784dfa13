"""A version to take away."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM

from serve.feedback.store import Store
from serve.folder import DataFolder
from serve.policy.adapters import Registry
from serve.policy.model_card import archive


def test_a_version_loads_in_peft_and_its_card_says_what_it_is(
    store: Store, folder: DataFolder, tiny_model: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    report = {
        "gate": {"win_rate": {"value": 0.75, "low": 0.6, "high": 0.9}, "new": {"kl": 5.25, "length": 31}},
        "reward": {"accuracy": {"value": 0.7, "low": 0.6, "high": 0.8}},
    }
    registry = Registry(folder, store, base_hash="abc", base_name="tiny")
    source = make_adapter(tmp_path / "made", tiny_model)
    version = registry.publish(source, run=None, parent=0, status="staged", report=report)
    place = registry.path(version.number)
    assert place is not None
    with zipfile.ZipFile(io.BytesIO(archive(place, version, votes=41))) as file:
        file.extractall(tmp_path / "taken")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(tmp_path / "taken"))
    assert any("lora" in name for name, _ in model.named_parameters())
    card = (tmp_path / "taken" / "README.md").read_text()
    for told in ("base_model: tiny", "# Version 1,", "from 41 votes", "parent: 75% (60% to 90%)", "right: 70%", "5.2"):
        assert told in card, told
    assert json.loads((tmp_path / "taken" / "manifest.json").read_text())["version"] == 1
