"""What a figure has to reach, and whether it does; nothing is rounded in its own favour."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

SHOWN_DIGITS = 4
"""Significant digits of a figure beside its bar; cosines near 1 get six decimals."""


@dataclass(frozen=True)
class Bar:
    """A bound that a figure must keep."""

    bound: float
    unit: str = ""
    kind: str = "at least"
    """`at least`, `less than`."""

    def is_met(self, figure: float) -> bool:
        """Whether the figure itself, not what is shown of it, keeps the bound."""
        return figure < self.bound if self.kind == "less than" else figure >= self.bound

    def verdict(self, what: str, figure: float) -> str:
        """A note: the bar, the figure and `met` or `missed`."""
        met = "met" if self.is_met(figure) else "missed"
        return f"{what}: {self.shown(figure)}{self.unit}; bar {self.kind} {self.bound:g}{self.unit}: {met}"

    def shown(self, figure: float) -> str:
        """The figure cut, not rounded, towards missing the bar."""
        exact = Decimal(figure)
        places = 6 if 0.99 < abs(figure) < 1 else SHOWN_DIGITS - 1 - exact.adjusted() if figure else 0
        rounding = ROUND_CEILING if self.kind == "less than" else ROUND_FLOOR
        return f"{exact.quantize(Decimal(1).scaleb(-places), rounding=rounding):f}"


QUICK_NOTE = "quick run: a small transformer or little work shows that the benchmark runs; the bars are not judged"


def judged(quick: bool, verdicts: list[str]) -> list[str]:
    """The verdicts, or for a quick run why there are none."""
    return [QUICK_NOTE] if quick else verdicts
