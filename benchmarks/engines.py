"""Every engine and precision against transformers' DINOv3 on the same weights and slices, taking turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from benchmarks.bars import Bar, judged
from benchmarks.rounds import Seconds, median, take_turns, times_as_fast
from benchmarks.table import Table
from benchmarks.weights import transformers_model
from benchmarks.workspace import BATCH, Workspace, prepared, workspace
from meddinov3_stroke.backbone.loading import cosines
from meddinov3_stroke.system.devices import use_available_cpus

OURS = (("torch", "fp32"), ("torch", "bf16"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"))
"""Engines and precisions of this package."""

REFERENCE = "torch fp32"
"""Whose class tokens the cosines are to."""

OTHER_FP32, OTHER_BF16 = "transformers fp32", "transformers bf16"

AUTO_OVER_FP32, AUTO_OVER_BF16, AUTO_COSINE = Bar(4.3, "x"), Bar(1.3, "x"), Bar(0.9999)
INT8_OVER_FP32, INT8_COSINE = Bar(7.5, "x"), Bar(0.999)

ClassTokens = Callable[[Float32[np.ndarray, "n 1 row col"]], Float32[np.ndarray, "n dim"]]
"""Class tokens of prepared slices."""


def measure(quick: bool) -> Table:
    """Slices a second, ratios to transformers in fp32 and in bf16, and the least cosine to the fp32 reference."""
    rounds, n_slices = (3, 4) if quick else (7, BATCH)
    place, pixels = workspace(quick), prepared(n_slices)
    auto = place.load().identity
    ways = all_ways(place)
    tokens = {name: way(pixels) for name, way in ways.items()}
    seconds = take_turns({name: lambda way=way: way(pixels) for name, way in ways.items()}, rounds, warm_ups=0)
    auto_name = f"{auto.engine} {auto.precision}"
    rows = [row(name, n_slices, seconds, tokens, name == auto_name) for name in ways]
    notes = [
        *judged(quick, verdicts({each["engine"]: each for each in rows}, auto_name)),
        f"{n_slices} slices a pass, {rounds} rounds that take turns, {torch.get_num_threads()} threads; ratios are "
        "medians of the ratios within a round; the cosine is the least over the slices, to torch fp32",
        f"transformers bf16 is the model cast to bf16; int8 was made on {place.n_calibration_slices} slices of another "
        "head",
    ]
    return Table("engines", "Engines", rows, notes)


def all_ways(place: Workspace) -> dict[str, ClassTokens]:
    """Name -> class tokens, transformers first."""
    model = transformers_model(place.weights)
    ways: dict[str, ClassTokens] = {OTHER_FP32: by_transformers(model, torch.float32)}
    half = transformers_model(place.weights).to(torch.bfloat16)
    ways[OTHER_BF16] = by_transformers(half, torch.bfloat16)
    for engine, precision in OURS:
        ways[f"{engine} {precision}"] = place.load(engine, precision).class_tokens
    use_available_cpus()
    return ways


def by_transformers(model: Any, dtype: torch.dtype) -> ClassTokens:
    """The class tokens of a `DINOv3ViTModel`, which takes three channels."""

    def class_tokens(pixels: Float32[np.ndarray, "n 1 row col"]) -> Float32[np.ndarray, "n dim"]:
        with torch.inference_mode():
            images = torch.from_numpy(pixels).to(dtype).expand(-1, 3, -1, -1)
            tokens = model(pixel_values=images).last_hidden_state[:, 0]
            return np.asarray(tokens.float().numpy())

    return class_tokens


def row(name: str, n_slices: int, seconds: Seconds, tokens: Mapping[str, np.ndarray], is_auto: bool) -> dict[str, Any]:
    """A row of the table."""
    return {
        "engine": name,
        "auto": "yes" if is_auto else "",
        "slices_per_s": n_slices / median(seconds, name),
        "over_transformers_fp32": times_as_fast(seconds, name, OTHER_FP32),
        "over_transformers_bf16": times_as_fast(seconds, name, OTHER_BF16),
        "cls_cosine_min": float(cosines(tokens[name], tokens[REFERENCE]).min()),
    }


def verdicts(rows: Mapping[str, Mapping[str, Any]], auto_name: str) -> list[str]:
    """What the bars come to."""
    auto, int8 = rows[auto_name], rows["openvino int8"]
    return [
        AUTO_OVER_FP32.verdict(f"auto ({auto_name}) over transformers fp32", auto["over_transformers_fp32"]),
        AUTO_OVER_BF16.verdict("auto over transformers bf16", auto["over_transformers_bf16"]),
        AUTO_COSINE.verdict("auto, least CLS cosine", auto["cls_cosine_min"]),
        INT8_OVER_FP32.verdict("int8 over transformers fp32", int8["over_transformers_fp32"]),
        INT8_COSINE.verdict("int8, least CLS cosine", int8["cls_cosine_min"]),
    ]
