"""Exports in the libraries that will read them. That they train in TRL is `make ecosystem`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from datasets import load_dataset

from serve.feedback.exchange import export, import_lines
from serve.feedback.store import Store
from serve.records import FORMATS, STYLES
from tests.scenes import assistant, compare, prefer, say, user

TRL = Path(__file__).parents[1] / ".peers" / "trl-reward" / "bin" / "python"
COLUMNS = {
    "trl": {"prompt", "chosen", "rejected"},
    "hh": {"chosen", "rejected"},
    "kto": {"prompt", "completion", "label"},
}


@pytest.fixture
def voted(store: Store) -> Store:
    """Two preferences, one behind several turns, a tie and a demonstration."""
    prefer(store, compare(store), 0)
    prefer(store, compare(store, prompt=[user("Hi"), assistant("Hello."), user("And?")]), 1)
    say(store, compare(store, prompt="Which?"), "tie")
    store.add_demonstration("anna", [user("Say it.")], "Done.")
    return store


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("format", FORMATS)
def test_every_export_loads_in_datasets(format: str, style: str, voted: Store, tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    file.write_text("".join(export(voted, format, style)))
    found = load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(found) == {"trl": 2, "hh": 2, "kto": 4, "sft": 1, "arena": 3}[format]
    if format in COLUMNS:
        assert set(found.column_names) == COLUMNS[format]
    if style == "plain" and format in ("trl", "kto", "sft"):
        assert all(isinstance(value, str | bool) for row in found for value in row.values())


def test_plain_prompts_of_several_turns_stand_under_hhs_marks(voted: Store) -> None:
    rows = [json.loads(line) for line in export(voted, "trl", "plain")]
    assert [row["prompt"] for row in rows] == [
        "Why is the sea blue?",
        "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: And?\n\nAssistant:",
    ]
    assert import_lines(voted, "".join(export(voted, "trl", "plain")), "trl").votes == 2, "and they come in again"


@pytest.mark.ecosystem
def test_exports_train_in_trl(voted: Store, tiny_model: Path, tmp_path: Path) -> None:
    """RewardTrainer, DPOTrainer, KTOTrainer and SFTTrainer, two steps each, on both styles."""
    assert TRL.exists(), "`make peers-trl` makes the environment"
    (tmp_path / "plain").mkdir()
    for format in ("trl", "kto", "sft"):
        (tmp_path / f"{format}.jsonl").write_text("".join(export(voted, format)) * 4)
        (tmp_path / "plain" / f"{format}.jsonl").write_text("".join(export(voted, format, "plain")) * 4)
    script = Path(__file__).parent / "trl_trainers.py"
    done = subprocess.run(
        [str(TRL), str(script), str(tiny_model), str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    trained = [line.partition(": loss")[0] for line in done.stdout.splitlines() if ": loss" in line and line[0] != "{"]
    trainers = ("RewardTrainer", "DPOTrainer", "KTOTrainer", "SFTTrainer")
    assert trained == [f"{trainer}, {style}" for trainer in trainers for style in ("conversational", "plain")]
