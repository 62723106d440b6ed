"""OpenVINO as the engine: the fastest on a CPU, and the only one for int8. Its graph is built from the weights.

The sines and cosines are bf16 values kept as float32 constants, and the rotation is computed in float32: bf16
operations double the difference to the published arithmetic (3.5e-3 against 1.9e-3), because engines round them
differently.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from meddinov3_stroke.backbone.architecture import (
    NORM_EPS,
    ClassTokens,
    Features,
    Kept,
    PatchTokens,
    Pixels,
    evenly_spaced,
    rope_tables,
)
from meddinov3_stroke.backbone.weights import PERIODS, Weights, fold
from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.system.devices import bf16_flag, cpu_threads

if TYPE_CHECKING:
    import openvino

ALL_TOKENS = 2**31 - 1
"""More than any grid has; the CPU plugin reads larger ends of a slice as -1."""


class OpenVINOEngine:
    """Graphs compiled at first use, one for each size; any number of slices in a pass.

    `graph_of` gives the graph for a side in pixels and the keywords of `build_graph`. With `int8_graph_of` class tokens
    come from that quantized graph; patch tokens and blocks, which calibration does not measure, come from the plain one
    in bf16 if the CPU has it, else fp32.
    """

    def __init__(
        self, graph_of: Callable[..., Any], precision: str, int8_graph_of: Callable[[int], Any] | None = None
    ) -> None:
        self._graph_of, self._int8_graph_of, self._precision = graph_of, int8_graph_of, precision
        self._requests: dict[tuple[Any, ...], Any] = {}
        self._lock = Lock()

    def class_tokens(self, pixels: Pixels, kept: Kept | None = None) -> ClassTokens:
        """The class token of each slice; the last block computes nothing else. `kept`: the patches in the sequence."""
        if self._int8_graph_of is None:
            return self._infer(self._graph_of, pixels, kept, 1)[0]
        if pixels.shape[1] != 1:
            raise UsageError(f"{pixels.shape[1]} different channels in int8, which is calibrated for one; use bf16")
        if kept is not None:
            raise UsageError("some patches of a slice in int8, which is calibrated for all; use --precision bf16")
        return self._infer(self._int8_graph_of, pixels, None)[0]

    def tokens(self, pixels: Pixels, kept: Kept | None = None) -> tuple[ClassTokens, PatchTokens]:
        """The class token and the patch tokens, row-major (or in the order of `kept`), of each slice."""
        cls, patches = self._infer(self._graph_of, pixels, kept, ALL_TOKENS)
        return cls, patches

    def features(self, pixels: Pixels, kept: Kept | None = None) -> Features:
        """Class tokens as `class_tokens` gives them (but of int8), patch tokens, class tokens after four blocks."""
        cls, patches, blocks = self._infer(self._graph_of, pixels, kept, 1, features=True)
        return cls, patches, blocks

    def _infer(
        self,
        graph_of: Callable[..., Any],
        pixels: np.ndarray,
        kept: Kept | None,
        *n_tokens: int,
        features: bool = False,
    ) -> list[np.ndarray]:
        side, channels = pixels.shape[-1], pixels.shape[1]
        kind = {"features": features, "some_patches": kept is not None, "equal_channels": channels == 1}
        kind = {name: is_on for name, is_on in kind.items() if is_on != (name == "equal_channels")}  # the unusual ones
        inputs = [np.ascontiguousarray(pixels), *(np.array([n]) for n in n_tokens), *([] if kept is None else [kept])]
        with self._lock:
            if (key := (side, graph_of, *kind)) not in self._requests:
                graph = graph_of(side, **kind)
                if graph.input(0).partial_shape[1].get_length() != channels:
                    raise UsageError(f"{channels} different channels: these weights take fewer; use another view")
                self._requests[key] = self._compiled(graph).create_infer_request()
            found = self._requests[key].infer(inputs)
            return [np.array(found[k], dtype=np.float32) for k in range(len(found))]

    def _compiled(self, graph: Any) -> Any:
        options = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[plain_precision(self._precision)],
            "INFERENCE_NUM_THREADS": cpu_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        return import_openvino().Core().compile_model(graph, "CPU", options)


def plain_precision(precision: str) -> str:
    """The arithmetic of everything that is not quantized: the precision itself; for int8 the best the CPU has."""
    if precision != "int8":
        return precision
    return "bf16" if bf16_flag() else "fp32"


def import_openvino() -> Any:
    """The module `openvino` without its telemetry, which would write files under the home folder."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def build_graph(
    weights: Weights,
    side: int,
    *,
    class_tokens_only: bool = False,
    features: bool = False,
    equal_channels: bool = True,
    some_patches: bool = False,
) -> openvino.Model:
    """The transformer at `side` pixels: float32 [n, 1, side, side] -> class tokens [n, dim], patch tokens [n, p, dim].

    A second input [1] int64 is the number of tokens that the last block computes: 1 gives the class token and no
    patches. With `class_tokens_only` there is neither that input nor the second output. With `features` the class
    tokens are of that number of tokens, the patch tokens of all, and a third output holds the class tokens after the
    blocks of `evenly_spaced` [n, 4 dim]. Unless `equal_channels`, the slices have the channels of the weights.
    With `some_patches` the last input [n, k] int64 names the patches that make up the sequence of each slice.
    """
    return _Graph(fold(weights, equal_channels=equal_channels), side).model(class_tokens_only, features, some_patches)


class _Graph:
    """The operations of a folded transformer; constants share the memory of the weights."""

    def __init__(self, weights: Weights, side: int) -> None:
        self.ov = import_openvino()
        self.ops = self.ov.opset13
        self.state, self.shape, self.side = weights.state, weights.architecture, side
        prefix = [self.state[name] for name in ("cls_token", "storage_tokens") if name in self.state]
        self.prefix = np.concatenate(prefix, axis=1)
        self.grid = side // self.shape.patch_size
        tables = rope_tables((self.grid, self.grid), self.state[PERIODS], self.shape.rope_dtype)
        still = (np.zeros, np.ones)  # the prefix tokens are not rotated
        self.sin, self.cos = (
            self._constant(np.concatenate((fill((self.prefix.shape[1], table.shape[1]), np.float32), table)))
            for fill, table in zip(still, tables, strict=True)
        )

    def model(self, class_tokens_only: bool, features: bool, some_patches: bool) -> Any:
        ops, depth = self.ops, self.shape.depth
        pixels = ops.parameter([-1, self.shape.in_chans, self.side, self.side], np.float32, name="pixels")
        n_out = self._ints(1) if class_tokens_only else ops.parameter([1], np.int64, name="n_tokens")
        kept = ops.parameter([-1, -1], np.int64, name="kept") if some_patches else None
        x, stages = self._embed(pixels, kept), {}
        for i in range(depth - 1):
            x = self._block(x, f"blocks.{i}.", None)
            stages[i] = x
        last = self._norm(self._block(x, f"blocks.{depth - 1}.", n_out), "norm")
        cls = self._class_token(last)
        if class_tokens_only:
            return self.ov.Model([cls], [pixels], "vit")
        if features:
            last = self._norm(self._block(x, f"blocks.{depth - 1}.", None), "norm")
        start, step, axis = (self._ints(k) for k in (self.prefix.shape[1], 1, 1))
        outputs = [cls, ops.slice(last, start, self._ints(ALL_TOKENS), step, axis)]
        if features:
            wanted = [stages.get(i) for i in evenly_spaced(depth)]
            outputs.append(
                ops.concat([cls if x is None else self._class_token(self._norm(x, "norm")) for x in wanted], 1)
            )
        return self.ov.Model(outputs, [pixels, n_out, *([kept] if some_patches else [])], "vit")

    def _class_token(self, x: Any) -> Any:
        return self.ops.squeeze(self._first(x, self._ints(1), 1), self._ints(1))

    def _embed(self, pixels: Any, kept: Any | None) -> Any:
        """Prefix and patch tokens; the patches are cut by reshaping, so that their projection is a matrix product."""
        ops, p, h, dim, c = self.ops, self.shape.patch_size, self.grid, self.shape.embed_dim, self.shape.in_chans
        if self.side % p:
            whole = self._ints(h * p, h * p)
            pixels = ops.slice(pixels, self._ints(0, 0), whole, self._ints(1, 1), self._ints(2, 3))
        cut = ops.reshape(pixels, self._ints(-1, c, h, p, h, p), False)
        patches = ops.reshape(ops.transpose(cut, self._ints(0, 2, 4, 1, 3, 5)), self._ints(-1, h * h, c * p * p), False)
        if kept is not None:
            patches = ops.gather(patches, kept, self._constant(np.array(1)), batch_dims=1)
        weight = self.state["patch_embed.proj.weight"].reshape(dim, c * p * p)
        projected = self._product(patches, weight, self.state["patch_embed.proj.bias"])
        n = ops.gather(ops.shape_of(pixels), self._ints(0), self._constant(np.array(0)))
        if kept is not None:
            self._take_positions(kept, n)
        shape = ops.concat([n, self._ints(*self.prefix.shape[1:])], 0)
        return ops.concat([ops.broadcast(self._constant(self.prefix), shape), projected], 1)

    def _take_positions(self, kept: Any, n: Any) -> None:
        """Make the tables of the rotation those of each slice's own tokens [n, 1, token, head_dim]."""
        ops, n_prefix = self.ops, self.prefix.shape[1]
        prefix = ops.broadcast(self._constant(np.arange(n_prefix)[None]), ops.concat([n, self._ints(n_prefix)], 0))
        rows = ops.concat([prefix, ops.add(kept, self._ints(n_prefix))], 1)
        first = self._constant(np.array(0))
        self.sin, self.cos = (
            ops.unsqueeze(ops.gather(table, rows, first), self._ints(1)) for table in (self.sin, self.cos)
        )

    def _block(self, x: Any, name: str, n_out: Any | None) -> Any:
        """The next tokens, or the first `n_out` of them alone; keys and values are still needed of every token."""
        dim = self.shape.embed_dim
        weight, bias = self.state[f"{name}attn.qkv.weight"], self.state.get(f"{name}attn.qkv.bias")
        normed, sin, cos = self._norm(x, f"{name}norm1"), self.sin, self.cos
        if n_out is None:
            q, k, v = self._heads(self._product(normed, weight, bias), 3)
        else:
            parts = [(weight[rows], None if bias is None else bias[rows]) for rows in (slice(dim), slice(dim, None))]
            (q,) = self._heads(self._product(self._first(normed, n_out, 1), *parts[0]), 1)
            k, v = self._heads(self._product(normed, *parts[1]), 2)
            sin, cos, x = self._first(sin, n_out, -2), self._first(cos, n_out, -2), self._first(x, n_out, 1)
        q, k = self._rotated(q, sin, cos), self._rotated(k, self.sin, self.cos)
        attended = self.ops.transpose(self.ops.scaled_dot_product_attention(q, k, v), self._ints(0, 2, 1, 3))
        attended = self.ops.reshape(attended, self._ints(0, 0, dim), True)  # [n, t, heads, d] -> [n, t, heads*d]
        x = self.ops.add(x, self._linear(attended, f"{name}attn.proj"))
        hidden = self.ops.gelu(self._linear(self._norm(x, f"{name}norm2"), f"{name}mlp.fc1"), "ERF")
        return self.ops.add(x, self._linear(hidden, f"{name}mlp.fc2"))

    def _heads(self, x: Any, parts: int) -> list[Any]:
        ops, heads = self.ops, self.shape.num_heads
        x = ops.reshape(x, self._ints(0, 0, parts, heads, self.shape.embed_dim // heads), True)
        x = ops.split(ops.transpose(x, self._ints(2, 0, 3, 1, 4)), self._constant(np.array(0)), parts)
        return [ops.squeeze(x.output(i), self._ints(0)) for i in range(parts)]

    def _rotated(self, x: Any, sin: Any, cos: Any) -> Any:
        ops, half = self.ops, self.shape.embed_dim // self.shape.num_heads // 2
        halves = ops.variadic_split(x, self._constant(np.array(-1)), self._ints(half, half))
        turned = ops.concat([ops.negative(halves.output(1)), halves.output(0)], -1)
        return ops.add(ops.multiply(x, cos), ops.multiply(turned, sin))

    def _norm(self, x: Any, name: str) -> Any:
        normed = self.ops.mvn(x, self._ints(-1), True, NORM_EPS[self.shape.norm_layer], "INSIDE_SQRT")
        weight, bias = (self._constant(self.state[f"{name}.{part}"][None, None]) for part in ("weight", "bias"))
        return self.ops.add(self.ops.multiply(normed, weight), bias)

    def _linear(self, x: Any, name: str) -> Any:
        return self._product(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def _product(self, x: Any, weight: np.ndarray, bias: np.ndarray | None) -> Any:
        product = self.ops.matmul(x, self._constant(weight), False, True)
        return product if bias is None else self.ops.add(product, self._constant(bias[None, None]))

    def _first(self, x: Any, n: Any, axis: int) -> Any:
        return self.ops.slice(x, self._ints(0), n, self._ints(1), self._ints(axis))

    def _constant(self, array: np.ndarray) -> Any:
        """The array as a constant that shares its memory, for which OpenVINO wants it writable."""
        return self.ops.constant(np.require(array, requirements=["C", "W", "A"]), shared_memory=True)

    def _ints(self, *values: int) -> Any:
        return self._constant(np.array(values))
