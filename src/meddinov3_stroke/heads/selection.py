"""Which epoch of a training is the best, and when to give up waiting for a better one."""

from __future__ import annotations


class BestEpoch:
    """The best epoch so far: highest macro AUROC and, among equals, lowest loss; the lowest loss where none is ranked.

    Patience counts epochs since the metric itself was last bettered; a lower loss at the same AUROC does not renew it.
    """

    def __init__(self, ranked: bool) -> None:
        self.ranked = ranked
        """Whether validation has an AUROC for any label."""
        self.epoch = 0
        self._best: tuple[float, float] | None = None
        self._waited = 0

    @property
    def metric_name(self) -> str:
        """What decides: `val_macro_auroc`, or `val_loss` where no label has an AUROC on validation."""
        return "val_macro_auroc" if self.ranked else "val_loss"

    def metric_of(self, macro_auroc: float | None, val_loss: float) -> float:
        """The deciding figure of an epoch."""
        return val_loss if macro_auroc is None else macro_auroc

    def offer(self, epoch: int, macro_auroc: float | None, val_loss: float) -> bool:
        """Whether this epoch is the best so far."""
        score = -self.metric_of(macro_auroc, val_loss) if not self.ranked else self.metric_of(macro_auroc, val_loss)
        candidate = (score, -val_loss)
        self._waited = 0 if self._best is None or candidate[0] > self._best[0] else self._waited + 1
        if self._best is not None and candidate <= self._best:
            return False
        self._best, self.epoch = candidate, epoch
        return True

    def is_stale(self, patience: int) -> bool:
        """Whether `patience` epochs (0: never) have passed without a better metric."""
        return 0 < patience <= self._waited
