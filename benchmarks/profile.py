"""Where the time of an OpenVINO graph goes, by kind of node."""

from __future__ import annotations

from collections import Counter

import numpy as np
from jaxtyping import Float32

from benchmarks.workspace import RESIZE, Workspace
from meddinov3_stroke.backbone import GraphSource
from meddinov3_stroke.backbone.engines.openvino_engine import OpenVINOEngine


class ProfiledEngine(OpenVINOEngine):
    """The engine as it is, with OpenVINO's counters on."""

    def seconds_by_kind(self, pixels: Float32[np.ndarray, "n 1 row col"]) -> Counter[str]:
        """Seconds of one pass by kind of node and the kernel that ran it."""
        request = self._request(pixels.shape[-1], "cls")
        request.infer([pixels])
        request.infer([pixels])
        seconds: Counter[str] = Counter()
        for node in request.get_profiling_info():
            seconds[f"{node.node_type} ({node.exec_type})"] += node.real_time.total_seconds()
        return seconds

    def _options(self) -> dict[str, object]:
        return super()._options() | {"PERF_COUNT": True}


def profiled(place: Workspace, precision: str) -> ProfiledEngine:
    """The engine of the workspace's weights in this precision, counting."""
    if precision == "int8":
        return ProfiledEngine(lambda side, view: place.int8_graph, precision)
    return ProfiledEngine(GraphSource(place.plan("openvino", precision), place.facts, None), precision)


def told_profile(place: Workspace, precision: str, pixels: Float32[np.ndarray, "n 1 row col"], top: int = 6) -> str:
    """A note: the kinds of node that take the most time, with their shares."""
    assert pixels.shape[-1] == RESIZE
    seconds = profiled(place, precision).seconds_by_kind(pixels)
    shares = (f"{kind} {share / seconds.total():.1%}" for kind, share in seconds.most_common(top))
    return f"openvino {precision} spends its time in {', '.join(shares)}"
