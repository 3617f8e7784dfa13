"""What tests share: a tiny model and adapters for it, made only when a test asks for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from serve.feedback.store import Store
from serve.folder import DataFolder
from tests import tiny
from tests.scenes import Clock

if TYPE_CHECKING:
    from serve.engine.local import LocalEngine


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a seeded 4-layer LlamaForCausalLM with a byte tokenizer; pad = eos = `<|im_end|>` (2), context 1024."""
    import torch

    torch.set_num_threads(1)  # at this size threads only get in each other's way
    folder = tmp_path_factory.mktemp("tiny-model")
    tiny.write_model(folder)
    return folder


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., Path]:
    """`make_adapter(path, base_folder, *, rank=4, layers=(2, 3), seed=1, scale=0.5)` writes a PEFT LoRA → its path.

    A `scale` of 0.5 changes greedy answers of `tiny_model` at once.
    """
    return tiny.write_adapter


@pytest.fixture
def slow_engine(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalEngine]:
    """The real engine on `tiny_model` with room for two answers, which never end by themselves; a step takes 20 ms."""
    from serve.engine.local import LocalEngine
    from serve.policy.base import load_backbone, resolve_model

    backbone = load_backbone(resolve_model(str(tiny_model), tiny_model / "cache"), dtype="float32")
    engine = LocalEngine(replace(backbone, eos_token_ids=frozenset()), batch_rows=2)
    forward = engine._decoder.forward

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.02)
        return forward(*arguments)

    monkeypatch.setattr(engine._decoder, "forward", slowly)
    yield engine
    engine.close()


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    """An empty data folder."""
    return DataFolder(tmp_path / "data" / "feedback.db")


@pytest.fixture
def clock() -> Clock:
    """A clock that a test moves."""
    return Clock()


@pytest.fixture
def store(folder: DataFolder, clock: Clock) -> Iterator[Store]:
    """A new record, open."""
    with Store.open(folder, clock=clock) as store:
        yield store
