"""How much of the fastest matrix product of this machine the engine reaches, counting only arithmetic really done."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from benchmarks.bars import Bar, judged
from benchmarks.products import QUICK_SHAPES, SHAPES, OpenVINOProduct, Shape, torch_product
from benchmarks.profile import told_profile
from benchmarks.rounds import Seconds, median, seconds_of, timed_turns
from benchmarks.table import Table
from benchmarks.weights import SMALL
from benchmarks.work import VIT_B, Transformer, flops_of_slice
from benchmarks.workspace import BATCH, RESIZE, prepared, workspace

PRECISIONS = ("fp32", "bf16", "int8")

BF16_SHARE, INT8_SHARE = Bar(90, " %"), Bar(70, " %")

REPEATS = 5
"""Calls of a product in a round, of which the fastest counts: caches are warm then, as within a network."""


def measure(quick: bool) -> Table:
    """Peak and engine in 10^9 operations a second, and the engine's share, for each precision."""
    rounds, n_slices, shapes = (2, 4, QUICK_SHAPES) if quick else (7, BATCH, SHAPES)
    place, pixels = workspace(quick), prepared(n_slices)
    ways = product_ways(shapes)
    for precision in PRECISIONS:
        backbone = place.load("openvino", precision)
        ways[precision] = lambda backbone=backbone: seconds_of(lambda: backbone.class_tokens(pixels))
    seconds = timed_turns(ways, rounds)
    work = n_slices * flops_of_slice(RESIZE, small_transformer() if quick else VIT_B)
    rows = [row(precision, seconds, shapes, work, n_slices) for precision in PRECISIONS]
    notes = [
        *judged(quick, verdicts({each["precision"]: each["share_percent"] for each in rows})),
        *(told_profile(place, precision, pixels) for precision in PRECISIONS[1:]),
        f"peak: the fastest of {len(shapes)} products (rows, inner, columns), fp32 and bf16 by torch's linear layer, "
        f"int8 by OpenVINO's own time of an i8 product; best of {REPEATS} in a round, then the median of {rounds} "
        "rounds; OpenVINO's own fp32 and bf16 products stand beside",
        f"engine: median of the same rounds, {n_slices} slices a pass, {work / n_slices / 1e9:.3f} GFLOP a slice; "
        "norms, rotation, softmax and GELU take time and count as no work; attention's products are not int8",
    ]
    return Table("peak", "Share of the machine's peak", rows, notes)


def product_ways(shapes: tuple[Shape, ...]) -> dict[str, Callable[[], float]]:
    """Name -> seconds of the fastest of some calls, for every shape in every precision, by torch and by OpenVINO."""
    ways: dict[str, Callable[[], float]] = {}
    for shape, precision in itertools.product(shapes, PRECISIONS):
        if precision != "int8":
            product = partial(seconds_of, torch_product(shape, precision))
            ways[name_of(shape, precision, "torch")] = partial(fastest, product)
        product = OpenVINOProduct(shape, precision).seconds
        ways[name_of(shape, precision, "openvino")] = partial(fastest, product)
    return ways


def name_of(shape: Shape, precision: str, library: str) -> str:
    """Under which the seconds of a product stand."""
    return f"{shape} {precision} {library}"


def fastest(timed: Callable[[], float]) -> float:
    """Least seconds of some calls."""
    return min(timed() for _ in range(REPEATS))


def row(precision: str, seconds: Seconds, shapes: tuple[Shape, ...], work: int, n_slices: int) -> dict[str, Any]:
    """A row of the table; the peak is torch's in fp32 and bf16, OpenVINO's own stands beside it."""
    library = "openvino" if precision == "int8" else "torch"
    shape, peak = fastest_product(seconds, shapes, precision, library)
    _, openvino_peak = fastest_product(seconds, shapes, precision, "openvino")
    reached = work / median(seconds, precision)
    return {
        "precision": precision,
        "peak_gop_per_s": peak / 1e9,
        "fastest_product": f"{library} {shape}",
        "engine_gop_per_s": reached / 1e9,
        "slices_per_s": n_slices / median(seconds, precision),
        "share_percent": 100 * reached / peak,
        "openvino_product_gop_per_s": openvino_peak / 1e9,
        "share_of_it_percent": 100 * reached / openvino_peak,
    }


def fastest_product(seconds: Seconds, shapes: tuple[Shape, ...], precision: str, library: str) -> tuple[Shape, float]:
    """The shape whose product is the fastest, and its operations a second."""
    speeds = {shape: product_speed(seconds[name_of(shape, precision, library)], shape) for shape in shapes}
    best = max(speeds, key=lambda shape: speeds[shape])
    return best, speeds[best]


def product_speed(seconds: list[float], shape: Shape) -> float:
    """Operations a second of a product, two for each multiply-add."""
    rows, inner, columns = shape
    return 2 * rows * inner * columns / statistics.median(seconds)


def small_transformer() -> Transformer:
    """Sizes of the transformer of quick runs."""
    return Transformer(dim=SMALL["embed_dim"], depth=SMALL["depth"], ffn=4 * SMALL["embed_dim"])


def verdicts(shares: Mapping[str, float]) -> list[str]:
    """What the bars come to."""
    return [
        BF16_SHARE.verdict("bf16, share of the peak", shares["bf16"]),
        INT8_SHARE.verdict("int8, share of the peak", shares["int8"]),
    ]
