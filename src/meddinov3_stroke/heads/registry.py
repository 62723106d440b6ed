"""The kinds of head, by the name that checkpoints give them. A new kind is one file, and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from meddinov3_stroke.heads.architectures import MLP, Architecture
from meddinov3_stroke.heads.bags import BAG_HEADS
from meddinov3_stroke.heads.shallow import KNN, PROBE

ARCHITECTURES: Mapping[str, Architecture] = {"mlp": MLP, "probe": PROBE, "knn": KNN, **BAG_HEADS}
"""`mlp`, `probe` (linear, its cost chosen by cross-validation) and `knn` take one vector a case; `slices`, `mil` and
`gru` the vectors of its slices; `evidence` the patches."""
