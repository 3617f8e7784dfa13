"""How far our figures lie from a peer's, and whether that was a test: what could differ must have occurred."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from benchmarks.record import Row

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Findings:
    """The largest difference in each quantity, and how often each case occurred."""

    differences: dict[tuple[str, str], float] = field(default_factory=dict)
    """By quantity, and by what was switched to the peer's way (empty: nothing); the last of a quantity counts."""
    cases: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """(how often, of how many, how often at least)."""

    def compare(
        self, what: str, ours: Tensor, theirs: Tensor, where: Tensor | None = None, convention: str = ""
    ) -> None:
        """Of a quantity compared more than once the largest difference stays; NaN is an infinite one."""
        assert ours.shape == theirs.shape, f"{what}: {tuple(ours.shape)} is not {tuple(theirs.shape)}"
        difference = (ours.detach() - theirs).abs().nan_to_num(math.inf)
        largest = float((difference if where is None else difference[where]).max())
        self.differences[what, convention] = max(largest, self.differences.get((what, convention), 0.0))

    def compare_gradient(
        self, of: str, ours: Tensor, theirs: Tensor, where: Tensor | None = None, convention: str = ""
    ) -> None:
        """In units of its largest number: a gradient's size depends on how much a mean is over."""
        size = theirs.abs().max()
        self.compare(f"gradient of {of}, over its largest", ours / size, theirs / size, where, convention)

    def occurs(self, case: str, where: Tensor, least: int = 1) -> None:
        """Count the True places of a mask, over all calls."""
        count, total, _ = self.cases.get(case, (0, 0, 0))
        self.cases[case] = (count + int(where.sum()), total + where.numel(), least)

    def rows(self, title: str) -> list[Row]:
        """A row for each quantity and convention, and for each case."""
        differences = [
            Row(
                f"{title}: {what}" + (f" ({convention})" if convention else ""),
                "largest difference",
                float(f"{difference:.2g}"),
            )
            for (what, convention), difference in self.differences.items()
        ]
        return differences + [
            Row(f"{title}: {case}", f"of {total}", count) for case, (count, total, _) in self.cases.items()
        ]

    @property
    def hold(self) -> bool:
        """Whether each quantity, with all conventions switched, is within the tolerance, and each case occurred."""
        last = {what: difference for (what, _), difference in self.differences.items()}
        return all(d <= TOLERANCE for d in last.values()) and all(n >= least for n, _, least in self.cases.values())
