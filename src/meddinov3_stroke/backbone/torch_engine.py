"""torch as the engine: CPU, CUDA and Metal; in fp32 the reference for every other engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from meddinov3_stroke.backbone.architecture import ClassTokens, Features, Kept, PatchTokens, Pixels, evenly_spaced
from meddinov3_stroke.backbone.vit import Rope, VisionTransformer
from meddinov3_stroke.errors import UsageError


class TorchEngine:
    """A transformer on a torch device.

    `bf16` is torch's autocast: matrix products in bf16, norms and the residual stream in float32. The weights of the
    products are rounded once here instead of in every pass, which gives the same bits. `compiled` sends the module
    through `torch.compile`, whose first pass takes minutes. `kernel` projects three different channels where the module
    takes one.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        device: str,
        precision: str,
        *,
        compiled: bool = False,
        kernel: np.ndarray | None = None,
    ) -> None:
        self._vit = vit.eval().to(device)
        if precision == "bf16":
            for part in self._vit.modules():
                if isinstance(part, nn.Linear | nn.Conv2d):
                    part.to(torch.bfloat16)
        self._device, self._precision = torch.device(device), precision
        self._kernel = (
            None if kernel is None else torch.tensor(kernel).to(self._vit.get_parameter("patch_embed.proj.weight"))
        )
        self._ropes: dict[tuple[int, int], Rope] = {}
        self._normed: Callable[..., Tensor] = torch.compile(self._forward, dynamic=True) if compiled else self._forward

    def class_tokens(self, pixels: Pixels, kept: Kept | None = None) -> ClassTokens:
        """The class token of each slice; the last block computes nothing else. `kept`: the patches in the sequence."""
        return self._infer(pixels, kept, 1)[:, 0]

    def tokens(self, pixels: Pixels, kept: Kept | None = None) -> tuple[ClassTokens, PatchTokens]:
        """The class token and the patch tokens, row-major (or in the order of `kept`), of each slice."""
        tokens = self._infer(pixels, kept)
        return tokens[:, 0], tokens[:, 1 + self._vit.n_storage_tokens :]

    def features(self, pixels: Pixels, kept: Kept | None = None) -> Features:
        """Class tokens as `class_tokens` gives them, patch tokens, and class tokens after four blocks."""
        with torch.inference_mode(), self._arithmetic():
            cls, patches, blocks = (
                np.asarray(part.float().cpu()) for part in self._features(*self._inputs(pixels, kept))
            )
        return cls, patches, blocks

    def _features(self, x: Tensor, kept: Tensor | None, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        *earlier, last = self._vit.blocks
        tokens, norm, stages = self._embed(x, kept), self._vit.norm, {}
        for i, block in enumerate(earlier):
            tokens = block(tokens, rope)
            stages[i] = norm(tokens[:, :1])[:, 0]
        cls = norm(last(tokens, rope, 1))[:, 0]
        blocks = torch.cat([stages.get(i, cls) for i in evenly_spaced(len(earlier) + 1)], dim=1)
        return cls, norm(last(tokens, rope))[:, 1 + self._vit.n_storage_tokens :], blocks

    def _infer(self, pixels: np.ndarray, kept: Kept | None, *n_out: int) -> np.ndarray:
        with torch.inference_mode(), self._arithmetic():
            return np.asarray(self._normed(*self._inputs(pixels, kept), *n_out).float().cpu())

    def _forward(self, x: Tensor, kept: Tensor | None, rope: Rope, n_out: int | None = None) -> Tensor:
        *earlier, last = self._vit.blocks
        tokens = self._embed(x, kept)
        for block in earlier:
            tokens = block(tokens, rope)
        normed: Tensor = self._vit.norm(last(tokens, rope, n_out))
        return normed

    def _embed(self, x: Tensor, kept: Tensor | None) -> Tensor:
        """The tokens that enter the first block: the prefix and all patches, or those of `kept`."""
        tokens, n_prefix = self._embed_all(x), 1 + self._vit.n_storage_tokens
        if kept is None:
            return tokens
        patches = tokens[:, n_prefix:].gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
        return torch.cat((tokens[:, :n_prefix], patches), dim=1)

    def _embed_all(self, x: Tensor) -> Tensor:
        if x.shape[1] == self._vit.in_chans:
            return self._vit.embed(x)
        if self._kernel is None or x.shape[1] != self._kernel.shape[1]:
            raise UsageError(f"{x.shape[1]} different channels: these weights take fewer; use another view")
        kernel, bias = self._kernel, self._vit.get_parameter("patch_embed.proj.bias")
        return self._vit.embed(x, projection=lambda y: functional.conv2d(y, kernel, bias, self._vit.patch_size))

    def _inputs(self, pixels: np.ndarray, kept: Kept | None) -> tuple[Tensor, Tensor | None, Rope]:
        """The slices on the device, and the tables of their grid, which are made once: no pass waits for them; those
        of `kept` patches are of each slice [n, 1, patch, head_dim]."""
        x = torch.from_numpy(np.ascontiguousarray(pixels))
        on_gpu = self._device.type == "cuda"
        x = (x.pin_memory() if on_gpu else x).to(self._device, non_blocking=on_gpu)
        grid = self._vit.patch_grid(x)
        if grid not in self._ropes:
            self._ropes[grid] = self._vit.rope_embed(grid)
        x = x if x.shape[1] > 1 else x.expand(-1, self._vit.in_chans, -1, -1)
        if kept is None:
            return x, None, self._ropes[grid]
        rows, (sin, cos) = torch.from_numpy(kept).to(self._device), self._ropes[grid]
        return x, rows, (sin[rows][:, None], cos[rows][:, None])

    def _arithmetic(self) -> AbstractContextManager[object]:
        if self._precision == "bf16":
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return full_float32_products() if self._device.type == "cuda" else nullcontext()


@contextmanager
def full_float32_products() -> Iterator[None]:
    """Keep CUDA from rounding the products of float32 to TF32, which costs three digits."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = False
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
