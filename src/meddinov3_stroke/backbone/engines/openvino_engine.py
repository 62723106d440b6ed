"""OpenVINO as the engine: the fastest on a CPU, and the only one for int8."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.backbone.engines.openvino_graph import View, import_openvino
from meddinov3_stroke.system.cpu import bf16_flag
from meddinov3_stroke.system.device import cpu_threads

if TYPE_CHECKING:
    import openvino

GraphOf = Callable[[int, View], "openvino.Model"]
"""Gives the graph of a view at a side in pixels."""

HINTS = {"fp32": "f32", "bf16": "bf16"}
"""OpenVINO's names of the arithmetic outside quantized products."""


class OpenVINOEngine:
    """Graphs compiled when first asked for, one for each size and view; any number of slices in a pass.

    In `int8` the class tokens come from the quantized graph; patch tokens, which calibration does not measure, come
    from the plain graph in bf16 where the CPU has it, else fp32.
    """

    independent_rows = True

    def __init__(self, graph_of: GraphOf, precision: str) -> None:
        self._graph_of, self._precision = graph_of, precision
        self._requests: dict[tuple[int, View], Any] = {}
        self._lock = Lock()

    def class_tokens(self, pixels: Float32[np.ndarray, "n 1 row col"]) -> Float32[np.ndarray, "n dim"]:
        """The class token of each slice."""
        (cls,) = self._infer(pixels, "cls")
        return cls

    def class_and_patch_tokens(
        self, pixels: Float32[np.ndarray, "n 1 row col"]
    ) -> tuple[Float32[np.ndarray, "n dim"], Float32[np.ndarray, "n patch dim"]]:
        """The class token and the patch tokens, row-major, of each slice."""
        cls, patches = self._infer(pixels, "patches")
        return cls, patches

    def _infer(self, pixels: np.ndarray, view: View) -> tuple[np.ndarray, ...]:
        with self._lock:
            request = self._request(pixels.shape[-1], view)
            found = request.infer([np.ascontiguousarray(pixels)])
            return tuple(np.array(found[k], dtype=np.float32) for k in range(len(found)))

    def _request(self, side: int, view: View) -> Any:
        if (side, view) not in self._requests:
            compiled = import_openvino().Core().compile_model(self._graph_of(side, view), "CPU", self._options())
            self._requests[side, view] = compiled.create_infer_request()
        return self._requests[side, view]

    def _options(self) -> dict[str, object]:
        return {
            "INFERENCE_PRECISION_HINT": HINTS[plain_precision(self._precision)],
            "INFERENCE_NUM_THREADS": cpu_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }


def plain_precision(precision: str) -> str:
    """The arithmetic of everything that is not quantized: the precision itself, for int8 the best the CPU has."""
    if precision != "int8":
        return precision
    return "bf16" if bf16_flag() else "fp32"
