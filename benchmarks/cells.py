"""A grid's finished cells, kept in a file beside its result: a killed benchmark goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.loop_state import Lines
from benchmarks.record import ROOT, commit, machine


class Cells:
    """Each is a line with the code, the commit and the machine that made it, and is made anew when the code changed."""

    def __init__(self, name: str, result: Path | None, made_by: str) -> None:
        file = (result or ROOT / "benchmarks" / "work" / f"{name}.json").with_suffix(".cells.jsonl")
        file.parent.mkdir(parents=True, exist_ok=True)
        self._lines, self._made_by = Lines(file), made_by
        self.made: list[dict[str, Any]] = []
        """Machine and commits of each cell that was asked for."""

    def found(self, cell: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the cell holds; `make` is called where it is not made yet."""
        key = {"made_by": self._made_by, "cell": dict(cell)}
        line = next((line for line in self._lines.rows if key.items() <= line.items()), None)
        if line is None:
            found = make()
            line = {**key, "commit": commit(), "machine": machine(), "found": found}
            self._lines.add(line)
        self.made.append({"machine": line["machine"], "commits": [line["commit"]]})
        return dict(line["found"])
