"""Slices a second without the patches of pure air (`--tokens head`) against all patches, taking turns."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from benchmarks.bars import Bar, judged
from benchmarks.heads import noisy_head
from benchmarks.rounds import Seconds, median, take_turns, times_as_fast
from benchmarks.table import Table
from benchmarks.workspace import RESIZE, workspace
from meddinov3_stroke.backbone.architecture import Pixels
from meddinov3_stroke.backbone.head_patches import kept_patches
from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.system.devices import use_available_cpus

REAL_CT = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Real head CTs beside the checkout, where there are any: every `head_ncct.nii.gz` and the volumes of `phe_sich`."""

BATCH = 8
"""Slices in a pass at most."""

MOST_SLICES, QUICK_SLICES = 128, 8
"""Slices that are timed, evenly spaced over those of all volumes; a window of `--tokens head` has as many."""

ENGINES = (("openvino", "fp32"), ("openvino", "bf16"), ("torch", "fp32"))
"""Engines and precisions."""

HEAD_OVER_ALL = Bar(1.7, "x")


def measure(quick: bool) -> Table:
    """Slices a second of both ways by engine, and the ratio."""
    rounds = 2 if quick else 3
    hu, origin = head_slices(QUICK_SLICES if quick else MOST_SLICES)
    place = workspace(quick)
    auto = place.load().identity
    rows = []
    for engine, precision in ENGINES if quick else ((auto.engine, auto.precision),):
        backbone = place.load(engine, precision)
        use_available_cpus()
        pixels = np.concatenate([backbone.prepare(one[None], RESIZE) for one in hu])
        short = np.concatenate(
            [backbone.without_air(each[None], one[None]) for each, one in zip(pixels, hu, strict=True)]
        )
        given = {"all": pixels, "head": short}
        ways = {name: partial(backbone.class_tokens, one, BATCH) for name, one in given.items()}
        seconds = take_turns(ways, rounds)
        rows += [row(f"{engine} {precision}", name, seconds, one) for name, one in given.items()]
    kept = np.concatenate([kept_patches(one[None], RESIZE, auto.patch_size) for one in hu])
    ratio = float(rows[1]["over_all"])
    notes = [
        *judged(quick, [HEAD_OVER_ALL.verdict(f"head over all tokens ({rows[1]['engine']})", ratio)]),
        f"{len(hu)} slices of {origin}; {kept.mean():.1%} of the patches stay, in {len(np.unique(kept.sum(axis=1)))} "
        f"lengths; at most {BATCH} slices a pass; {rounds} rounds that take turns; ratios are medians within a round",
    ]
    return Table("tokens", "Tokens of the head", rows, notes)


def head_slices(n: int) -> tuple[list[Float32[np.ndarray, "row col"]], str]:
    """(slices in HU, what they are of)."""
    paths = [*REAL_CT.glob("*/head_ncct.nii.gz"), *REAL_CT.glob("phe_sich/**/*.nii.gz")]
    volumes = [read_volume(path) for path in sorted(paths) if not path.name.endswith("_region.nii.gz")]
    if not volumes:
        return [*noisy_head(n, 512, seed=3).astype(np.float32)], "a generated head: no real CT beside the checkout"
    places = [(volume, k) for volume in volumes for k in range(volume.n_slices)]
    chosen = [places[k] for k in np.linspace(0, len(places) - 1, min(n, len(places))).round().astype(int)]
    return [volume.hu_slices([k])[0] for volume, k in chosen], f"{len(volumes)} real head CTs"


def row(engine: str, tokens: str, seconds: Seconds, pixels: Pixels) -> dict[str, Any]:
    """A row of the table."""
    return {
        "engine": engine,
        "tokens": tokens,
        "slices_per_s": len(pixels) / median(seconds, tokens),
        "over_all": times_as_fast(seconds, tokens, "all"),
    }
