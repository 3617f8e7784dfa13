"""A benchmark's finished cells: kept, found again, and made anew when the code has changed."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ppo
from benchmarks.cells import Cells


def test_a_cell_is_made_once_for_the_same_code(tmp_path: Path) -> None:
    def value_of(made_by: str, cell: dict[str, Any], value: int) -> int:
        return int(Cells("grid", tmp_path / "grid.json", made_by).found(cell, lambda: {"value": value})["value"])

    assert value_of("a", {"votes": 100}, 1) == 1
    assert value_of("a", {"votes": 100}, 2) == 1, "the same cell, in another process"
    assert value_of("a", {"votes": 300}, 3) == 3
    assert value_of("b", {"votes": 100}, 4) == 4, "other code"


def test_a_kill_between_two_cells_loses_none(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise KeyboardInterrupt

    cells = Cells("grid", tmp_path / "grid.json", "a")
    cells.found({"n": 1}, lambda: {"value": 1})
    with pytest.raises(KeyboardInterrupt):
        cells.found({"n": 2}, fail)
    file = tmp_path / "grid.cells.jsonl"
    file.write_bytes(file.read_bytes() + b'{"made_by": "a", "ce')  # a power cut while a line is written
    again = Cells("grid", tmp_path / "grid.json", "a")
    assert again.found({"n": 1}, fail) == {"value": 1}
    assert again.found({"n": 2}, lambda: {"value": 2}) == {"value": 2}
    assert len(again.made) == 2 and again.made[0]["machine"]["cores"] >= 1


def test_ppos_seconds_are_kept_as_they_were_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {"ours": ppo.Measured({phase: [1.0, 2.0] for phase in ppo.PHASES}, 5e8)}
    monkeypatch.setattr(ppo, "contenders", lambda settings, chosen: nullcontext({}))
    monkeypatch.setattr(ppo, "measure", lambda found, runs: measured)
    settings = {
        "dtype": "float32",
        "threads": 1,
        "tokens": 32,
        "episodes": 8,
        "epochs": 4,
        "minibatches": 2,
        "prompts": [[1]],
    }
    chosen: dict[str, tuple[list[str], dict[str, Any]]] = {"ours": (["python"], {})}
    cells = Cells("ppo", tmp_path / "ppo.json", "a")
    assert ppo.kept(cells, {"prompt": 32}, settings, chosen, 2) == measured
    monkeypatch.setattr(ppo, "measure", lambda found, runs: {})
    assert ppo.kept(cells, {"prompt": 32}, settings, chosen, 2) == measured
    assert ppo.kept(cells, {"prompt": 64}, settings, chosen, 2) == {}
    assert ppo.kept(cells, {"prompt": 32}, settings, chosen, 3) == {}, "fewer repeats do not stand for more"
