"""What tests share: a tiny model and adapters for it, made only when a test asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve.feedback.store import Store
from serve.folder import DataFolder
from tests import tiny
from tests.scenes import Clock


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
