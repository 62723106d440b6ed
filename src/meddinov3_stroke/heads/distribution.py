"""How far embeddings lie from those a head was trained on: a Gaussian fitted to the training rows, and its limit.

Probabilistic PCA (Tipping and Bishop 1999): principal components with their variances, and one variance for all other
directions. The distance of a row is its Mahalanobis distance over the root of its width, so about 1 is usual. The limit
comes from rows held out of the fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from meddinov3_stroke.errors import OutOfScope

LEAST_ROWS = 100
"""Training rows below which a head gets no rule."""

NO_RULE: Mapping[str, Any] = {
    "in_distribution": None,
    "reason": f"the head carries no rule: trained on fewer than {LEAST_ROWS} rows, or by an earlier version",
}
NO_HEAD: Mapping[str, Any] = {"in_distribution": None, "reason": "no head was applied"}


@dataclass(frozen=True, eq=False)
class TrainingDistribution:
    """The Gaussian of a head's training rows; stored in its checkpoint."""

    mean: Float32[np.ndarray, " dim"]
    components: Float32[np.ndarray, "dim component"]  # orthonormal columns
    variances: Float32[np.ndarray, " component"]  # along each component
    residual_variance: float  # along every other direction
    limit: float  # distance above which a row is out of distribution
    n_rows: int  # training rows behind it

    def distances(self, rows: Float32[np.ndarray, "n dim"]) -> Float64[np.ndarray, " n"]:
        """The distance of each row."""
        away = rows.astype(np.float64) - self.mean
        along = away @ self.components
        beside = np.maximum(np.square(away).sum(axis=1) - np.square(along).sum(axis=1), 0)
        squared = (np.square(along) / self.variances).sum(axis=1) + beside / self.residual_variance
        return np.asarray(np.sqrt(squared / rows.shape[1]))

    def judge(self, rows: Float32[np.ndarray, "n dim"]) -> dict[str, Any]:
        """The verdict on a case, with its figures; of several slices, the median distance counts."""
        distance = float(np.median(self.distances(rows)))
        return {"in_distribution": distance <= self.limit, "distance": round(distance, 4), **self.figures()}

    def measure(self, rows: Float32[np.ndarray, "n dim"]) -> dict[str, Any]:
        """How many rows lie beyond the limit, with the figures behind it, as JSON."""
        distances = self.distances(rows)
        n_outside = int((distances > self.limit).sum())
        return {"n_outside": n_outside, "median_distance": round(float(np.median(distances)), 4), **self.figures()}

    def figures(self) -> dict[str, Any]:
        """The limit and the number of training rows behind it, as JSON."""
        return {"limit": round(self.limit, 4), "n_training_rows": self.n_rows}

    def document(self) -> dict[str, Any]:
        """The fields, for a checkpoint."""
        return asdict(self)


def distribution_of(document: Any) -> TrainingDistribution:
    """The distribution stored in a checkpoint; raises ValueError where it is incomplete or out of range."""
    names = [one.name for one in fields(TrainingDistribution)]
    found: dict[str, Any] = dict.fromkeys(names)
    found |= {name: document.get(name) for name in names} if isinstance(document, Mapping) else {}
    arrays, numbers = [found[name] for name in names[:3]], [found[name] for name in names[3:]]
    if not all(isinstance(one, np.ndarray) and one.dtype == np.float32 and np.isfinite(one).all() for one in arrays):
        raise ValueError(f"{', '.join(names[:3])}: expected finite float32 arrays")
    if not all(isinstance(one, int | float) and 0 < one < np.inf for one in (*numbers, *arrays[2].ravel().tolist())):
        raise ValueError(f"variances, {', '.join(names[3:])}: expected positive numbers")
    if arrays[0].ndim != 1 or arrays[1].shape != (len(arrays[0]), arrays[2].size):
        raise ValueError(f"components {list(arrays[1].shape)} do not fit the mean {list(arrays[0].shape)}")
    return TrainingDistribution(**found)


def require_in_distribution(verdict: Mapping[str, Any], where: object) -> None:
    """Raise `OutOfScope` for a verdict of out of distribution."""
    for message in distribution_warnings(verdict):
        error = OutOfScope(f"{where}: {message}; use a head trained on such CT, or pass --force to compute anyway")
        error.rules = ("distribution",)
        raise error


def distribution_warnings(verdict: Mapping[str, Any]) -> tuple[str, ...]:
    """The warning about a case out of distribution; none otherwise."""
    if verdict["in_distribution"] is not False:
        return ()
    return (
        f"unlike the CTs that the head was trained on: distance {verdict['distance']:.2f} from the training set, "
        f"expected at most {verdict['limit']:.2f}",
    )
