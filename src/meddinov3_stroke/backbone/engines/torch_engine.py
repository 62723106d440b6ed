"""torch as the engine: CPU, CUDA and Metal; in fp32 the reference that every other engine is held to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from meddinov3_stroke.backbone.folding import FoldedTransformer
from meddinov3_stroke.backbone.layers import Rope
from meddinov3_stroke.backbone.vit import VisionTransformer


class TorchEngine:
    """The folded module on a torch device.

    `bf16` is torch's autocast: matrix products in bf16, norms and the residual stream in float32. The weights of the
    products are rounded once here and not in every pass, which gives the same bits. `compiled` sends the module
    through `torch.compile`, whose first pass takes minutes.
    """

    independent_rows = False
    """A product's last bits depend on how its rows are tiled: 3e-7 between a slice in one batch and in another."""

    def __init__(self, vit: VisionTransformer, device: str, precision: str, *, compiled: bool = False) -> None:
        module = FoldedTransformer(vit).eval()
        if precision == "bf16":
            round_products(module)
        self._module = module.to(device)
        self._device, self._precision = torch.device(device), precision
        self._class_tokens = _maybe_compiled(self._module.class_tokens, compiled)
        self._class_and_patch_tokens = _maybe_compiled(self._module.class_and_patch_tokens, compiled)

    def class_tokens(self, pixels: Float32[np.ndarray, "n 1 row col"]) -> Float32[np.ndarray, "n dim"]:
        """The class token of each slice."""
        with torch.inference_mode(), self._arithmetic():
            on_device = self._on_device(pixels)
            return to_numpy(self._class_tokens(on_device, self._rope(on_device)))

    def class_and_patch_tokens(
        self, pixels: Float32[np.ndarray, "n 1 row col"]
    ) -> tuple[Float32[np.ndarray, "n dim"], Float32[np.ndarray, "n patch dim"]]:
        """The class token and the patch tokens, row-major, of each slice."""
        with torch.inference_mode(), self._arithmetic():
            on_device = self._on_device(pixels)
            cls, patches = self._class_and_patch_tokens(on_device, self._rope(on_device))
            return to_numpy(cls), to_numpy(patches)

    def _rope(self, pixels: Tensor) -> Rope:
        rope: Rope = self._module.rope_embed(self._module.grid(pixels))
        return rope

    def _on_device(self, pixels: np.ndarray) -> Tensor:
        on_host = torch.from_numpy(np.ascontiguousarray(pixels))
        if self._device.type != "cuda":
            return on_host.to(self._device)
        return on_host.pin_memory().to(self._device, non_blocking=True)

    def _arithmetic(self) -> AbstractContextManager[object]:
        if self._precision == "bf16":
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return full_float32_products() if self._device.type == "cuda" else nullcontext()


def round_products(module: FoldedTransformer) -> None:
    """Round the weights of all matrix products to bf16, in place; norms and prefix tokens stay float32."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.to(torch.bfloat16)
    module.patch_weight.data = module.patch_weight.data.to(torch.bfloat16)
    if module.patch_bias is not None:
        module.patch_bias.data = module.patch_bias.data.to(torch.bfloat16)


@contextmanager
def full_float32_products() -> Iterator[None]:
    """Keep CUDA from rounding the products of float32 to TF32, which costs three digits."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def to_numpy(tokens: Tensor) -> np.ndarray:
    """Tokens as a float32 array in the host's memory."""
    return np.asarray(tokens.float().cpu().numpy())


def _maybe_compiled(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True) if compiled else function
