"""The fastest matrix products this machine shows, in fp32, bf16 and int8."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from meddinov3_stroke.backbone.openvino_engine import import_openvino
from meddinov3_stroke.system.devices import cpu_threads

Shape = tuple[int, int, int]
"""Rows, inner, columns."""

SHAPES: tuple[Shape, ...] = (
    (3216, 768, 3072),
    (3216, 3072, 768),
    (3216, 768, 2304),
    (3216, 768, 768),
    (2048, 2048, 2048),
)
"""The products of ViT-B/16 over 16 slices of 224 pixels (16 x 201 tokens), and a square one."""

QUICK_SHAPES = SHAPES[3:]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

TYPES = {"fp32": ("f32",), "bf16": ("bf16",), "int8": ("i8", "u8")}
"""OpenVINO's names of the arithmetic of each precision."""


def torch_product(shape: Shape, precision: str) -> Callable[[], Any]:
    """A linear layer of torch."""
    rows, inner, columns = shape
    layer = torch.nn.Linear(inner, columns, bias=False, dtype=DTYPES[precision])
    x = torch.randn(rows, inner).to(DTYPES[precision])

    def product() -> None:
        with torch.inference_mode():
            layer(x)

    return product


class OpenVINOProduct:
    """A matrix product in OpenVINO, timed by OpenVINO itself: the product's node alone, without the conversions around
    it. In int8 the graph is quantized, and runs in int8 or not at all.
    """

    def __init__(self, shape: Shape, precision: str) -> None:
        ov = import_openvino()
        options = {
            "PERF_COUNT": True,
            "INFERENCE_NUM_THREADS": cpu_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        }
        graph = quantized_product(shape) if precision == "int8" else plain_product(shape)
        compiled = ov.Core().compile_model(graph, "CPU", options)
        require_types(compiled, TYPES[precision])
        self._request = compiled.create_infer_request()
        self._x = np.random.default_rng(0).uniform(-1, 1, shape[:2]).astype(np.float32)

    def seconds(self) -> float:
        """Of the product in one pass."""
        self._request.infer([self._x])
        nodes = (node for node in self._request.get_profiling_info() if node.node_type in PRODUCTS)
        return sum(node.real_time.total_seconds() for node in nodes)


PRODUCTS = ("FullyConnected", "MatMul")
"""OpenVINO's names of a matrix product."""


def plain_product(shape: Shape) -> Any:
    """The graph of x @ w in float32."""
    ov = import_openvino()
    from openvino import opset13 as ops

    rows, inner, columns = shape
    x = ops.parameter([rows, inner], ov.Type.f32)
    w = np.random.default_rng(1).standard_normal((columns, inner), dtype=np.float32)
    return ov.Model([ops.relu(ops.matmul(x, ops.constant(w), False, True))], [x])


def quantized_product(shape: Shape) -> Any:
    """The graph of x @ w, both passed through a FakeQuantize, its outcome too, as between the layers of a network."""
    ov = import_openvino()
    from openvino import opset13 as ops

    rows, inner, columns = shape
    x = ops.parameter([rows, inner], ov.Type.f32)
    stored = np.random.default_rng(1).integers(-127, 128, (columns, inner)).astype(np.int8)
    w = ops.multiply(ops.convert(ops.constant(stored), "f32"), ops.constant(np.full((columns, 1), 1 / 127, np.float32)))
    product = ops.matmul(fake_quantize(ops, x, 1.0), w, False, True)
    out = fake_quantize(ops, product, float(np.sqrt(inner)))
    return ov.Model([ops.relu(out)], [x])


def fake_quantize(ops: Any, x: Any, bound: float) -> Any:
    """`x` in 256 steps from -bound to bound."""
    low, high = (ops.constant(np.float32(value)) for value in (-bound, bound * 127 / 128))
    return ops.fake_quantize(x, low, high, low, high, 256)


def require_types(compiled: Any, expected: tuple[str, ...]) -> None:
    """Nothing, where the compiled graph's product runs in one of these types.

    Raises:
        RuntimeError: it does not, so that its speed says nothing of them.
    """
    found = list(_product_types(compiled))
    if not found or any(kind not in expected for kind in found):
        raise RuntimeError(f"OpenVINO runs the product in {found or 'no node of its own'}, expected {expected}")


def _product_types(compiled: Any) -> Iterator[str]:
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        if facts["layerType"].astype(str) in PRODUCTS:
            yield facts["runtimePrecision"].astype(str)
