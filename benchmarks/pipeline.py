"""What reading, preparing and storing cost beside the bare engine on slices that are ready: shares of its rate."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from benchmarks.bars import Bar, judged
from benchmarks.heads import write_volume, write_volumes
from benchmarks.rounds import Seconds, median, take_turns
from benchmarks.table import Table
from benchmarks.workspace import workspace
from meddinov3_stroke import config
from meddinov3_stroke.backbone import Backbone
from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.feature_extractor import FeatureExtractor
from meddinov3_stroke.features import EmbeddingStore, extract
from meddinov3_stroke.system.atomic import write_npy

VOLUME_SHARE, COHORT_SHARE = Bar(95, " %"), Bar(90, " %")

BARE, WHOLE = "bare engine", "pipeline"


def measure(quick: bool) -> Table:
    """Slices a second of the bare engine and of the pipeline around it, and their ratio, for each kind of input."""
    rounds = 2 if quick else 3
    n_slices, n_volumes, n_each, side = (12, 4, 3, 128) if quick else (300, 16, 11, 512)
    place = workspace(quick)
    folder = place.folder / "pipeline"
    volumes = write_volumes(folder / "cohort", n_volumes, n_each, side)
    large = write_volume(folder / "large.nii.gz", n_slices, side, seed=7)
    auto = place.load()
    name = f"auto ({auto.identity.engine} {auto.identity.precision})"
    rows = [
        row(name, "one volume", n_slices, volume_turns(auto, large, rounds)),
        row(name, f"{n_volumes} volumes of {n_each}", n_volumes * n_each, cohort_turns(auto, volumes, rounds)),
    ]
    if not quick:
        int8 = place.load("openvino", "int8")
        rows += [row("openvino int8", "one volume", n_slices, volume_turns(int8, large, 2))]
    notes = [
        *judged(quick, verdicts(rows)),
        f"{side} x {side} int16 .nii.gz of noisy heads; passes of {config.BATCH} slices both ways; engine warm; median "
        f"of the ratios within {rounds} rounds that take turns",
        "one volume: extract, .npy; several: extract into an empty store",
    ]
    return Table("pipeline", "The pipeline around the engine", rows, notes)


def volume_turns(backbone: Backbone, path: Path, rounds: int) -> Seconds:
    """Seconds of the bare engine and of read, embed and write, for one volume."""
    extractor = FeatureExtractor(backbone)
    outcome = path.with_suffix(".npy")
    pixels = list(prepared_windows(extractor, [path]))
    backbone.class_tokens(pixels[0])

    def whole() -> None:
        (found,) = extract([path], extractor)
        assert found.embeddings is not None
        write_npy(outcome, found.embeddings.cls)

    return take_turns({BARE: bare(backbone, pixels), WHOLE: whole}, rounds, warm_ups=0)


def cohort_turns(backbone: Backbone, paths: list[Path], rounds: int) -> Seconds:
    """Seconds of the bare engine and of the cohort's loop into an empty store, for several volumes."""
    extractor = FeatureExtractor(backbone)
    ready = np.concatenate(list(prepared_windows(extractor, paths)))
    pixels = [ready[start : start + extractor.batch] for start in range(0, len(ready), extractor.batch)]
    stores = count()
    backbone.class_tokens(pixels[0])

    def whole() -> None:
        store = EmbeddingStore(paths[0].parent / f"store-{backbone.identity.precision}-{next(stores)}")
        found = list(extract(paths, extractor, store))
        assert all(one.error is None and not one.from_cache for one in found)

    return take_turns({BARE: bare(backbone, pixels), WHOLE: whole}, rounds, warm_ups=0)


def prepared_windows(extractor: FeatureExtractor, paths: list[Path]) -> Iterator[Float32[np.ndarray, "n 1 row col"]]:
    """All slices of the volumes as the engine takes them."""
    for path in paths:
        volume = read_volume(path)
        yield from extractor.windows(volume, extractor.chosen(volume))


def bare(backbone: Backbone, windows: list[Float32[np.ndarray, "n 1 row col"]]) -> Callable[[], None]:
    """The engine alone over prepared slices."""

    def way() -> None:
        for pixels in windows:
            backbone.class_tokens(pixels)

    return way


def row(engine: str, of: str, n_slices: int, seconds: Seconds) -> dict[str, Any]:
    """A row of the table."""
    shares = [b / w for b, w in zip(seconds[BARE], seconds[WHOLE], strict=True)]
    return {
        "engine": engine,
        "input": of,
        "slices": n_slices,
        "bare_slices_per_s": n_slices / median(seconds, BARE),
        "pipeline_slices_per_s": n_slices / median(seconds, WHOLE),
        "share_percent": 100 * statistics.median(shares),
        "least_percent": 100 * min(shares),
        "most_percent": 100 * max(shares),
    }


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """What the bars come to."""
    return [
        (VOLUME_SHARE if row["input"] == "one volume" else COHORT_SHARE).verdict(
            f"{row['engine']}, {row['input']}, share of the bare engine's rate", row["share_percent"]
        )
        for row in rows
    ]
