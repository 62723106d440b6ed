"""Many heads on cached features: fits a minute of pooled heads, of heads on slices, and of an evidence head."""

from __future__ import annotations

import numpy as np

from benchmarks.bars import Bar, judged
from benchmarks.table import Table
from meddinov3_stroke.config import AnyHeadConfig
from meddinov3_stroke.system.provenance import Stopwatch
from meddinov3_stroke.types import HeadData

POOLED, EVIDENCE = Bar(600, "s", "less than"), Bar(900, "s", "less than")
N_SERIES, N_SLICES, N_PATCHES, N_COMPONENTS, DIM = 2000, 35, 196, 64, 768


def measure(quick: bool) -> Table:
    """Seconds of 500 pooled fits (300 MLP of 256 hidden units, 200 linear), and of one fit of each other kind."""
    from meddinov3_stroke.heads.fitting import Fit, fit_heads

    n, epochs = (60, 2) if quick else (N_SERIES, 30)
    random = np.random.default_rng(0)
    labels = (random.random((n, 6)) < 0.3).astype(np.int8)
    starts = np.arange(n + 1) * N_SLICES
    rows = HeadData(random.normal(size=(n, DIM)).astype(np.float32), labels)
    slices = HeadData(random.normal(size=(n * N_SLICES, DIM)).astype(np.float32), labels, starts=starts)
    codes = random.integers(-127, 128, (n * N_SLICES, N_PATCHES, N_COMPONENTS), dtype=np.int8)
    scale = np.full(N_COMPONENTS, 0.02, dtype=np.float32)
    patches = HeadData(codes, labels, starts=starts, scale=scale)
    numbers = {"mlp": (300, 256, rows), "linear": (200, 0, rows), "slices": (1, 0, slices), "mil": (1, 256, slices)}
    numbers |= {"gru": (1, 0, slices), "evidence": (1, 0, patches)}
    found = []
    for name, (count, hidden, data) in numbers.items():
        kind, size = ("mlp", 64) if data is rows else (name, 8)
        count = min(count, 2) if quick else count
        configs = [
            AnyHeadConfig(head=kind, hidden_dim=hidden, epochs=epochs, batch_size=size, seed=k) for k in range(count)
        ]
        watch = Stopwatch()
        fit_heads([Fit(config, np.arange(n)) for config in configs], data)
        found.append({"head": name, "fits": count, "seconds": watch.elapsed_s})
    pooled = sum(row["seconds"] for row in found[:2])
    verdicts = [POOLED.verdict("500 pooled fits", pooled), EVIDENCE.verdict("evidence fit", found[-1]["seconds"])]
    notes = [*judged(quick, verdicts), f"{n} series, {epochs} epochs; {N_SLICES} slices of {N_PATCHES} patches each"]
    return Table("fits", "Heads fitted together", found, notes)
