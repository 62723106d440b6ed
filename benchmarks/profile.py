"""Where the time of an OpenVINO graph goes, by kind of node."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from jaxtyping import Float32

from benchmarks.workspace import RESIZE, Workspace
from meddinov3_stroke.backbone.openvino_engine import OpenVINOEngine, import_openvino, plain_precision
from meddinov3_stroke.system.devices import cpu_threads


class ProfiledEngine(OpenVINOEngine):
    """The engine with OpenVINO's counters on."""

    def seconds_by_kind(self, pixels: Float32[np.ndarray, "n 1 row col"]) -> Counter[str]:
        """Seconds of one pass by kind of node and the kernel that ran it."""
        self.class_tokens(pixels)
        self.class_tokens(pixels)
        (request,) = self._requests.values()
        seconds: Counter[str] = Counter()
        for node in request.get_profiling_info():
            seconds[f"{node.node_type} ({node.exec_type})"] += node.real_time.total_seconds()
        return seconds

    def _compiled(self, graph: Any) -> Any:
        hint = {"fp32": "f32", "bf16": "bf16"}[plain_precision(self._precision)]
        options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": cpu_threads(), "PERF_COUNT": True}
        return import_openvino().Core().compile_model(graph, "CPU", options)


def profiled(place: Workspace, precision: str) -> ProfiledEngine:
    """The engine of the workspace's weights in this precision, counting."""
    return ProfiledEngine(place.graph, precision, (lambda side: place.int8_graph) if precision == "int8" else None)


def told_profile(place: Workspace, precision: str, pixels: Float32[np.ndarray, "n 1 row col"], top: int = 6) -> str:
    """A note: the kinds of node that take the most time, with their shares."""
    assert pixels.shape[-1] == RESIZE
    seconds = profiled(place, precision).seconds_by_kind(pixels)
    shares = (f"{kind} {share / seconds.total():.1%}" for kind, share in seconds.most_common(top))
    return f"openvino {precision} spends its time in {', '.join(shares)}"
