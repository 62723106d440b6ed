"""What runs the transformer: one protocol, and torch as the engine that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from meddinov3_stroke.backbone.vit import VisionTransformer
from meddinov3_stroke.errors import UsageError

ENGINES = ("torch",)
"""Engines that exist; `auto` takes the first."""
PRECISIONS = ("fp32", "bf16")
"""Arithmetics of the torch engine; `auto` takes the first, the reference."""


@runtime_checkable
class Engine(Protocol):
    """Runs a backbone on prepared pixels."""

    def tokens(self, pixels: Float32[Tensor, "n 3 row col"]) -> tuple[Tensor, Tensor]:
        """Class tokens [n, d] and patch tokens [n, h*w, d] after the final norm, float32 on the CPU."""
        ...


class TorchEngine:
    """The module itself on a torch device.

    `bf16` is torch's autocast: matrix products in bf16, norms and the residual stream in float32. The weights of the
    products are rounded once here and not in every pass, which gives the same bits.
    """

    def __init__(self, vit: VisionTransformer, device: torch.device, precision: str) -> None:
        if precision == "bf16":
            for module in vit.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.to(torch.bfloat16)
        self._vit = vit.eval().to(device)
        self._device, self._precision = device, precision

    def tokens(self, pixels: Float32[Tensor, "n 3 row col"]) -> tuple[Tensor, Tensor]:
        """Class tokens [n, d] and patch tokens [n, h*w, d] after the final norm, float32 on the CPU."""
        with torch.inference_mode(), self._arithmetic():
            features = self._vit.forward_features(pixels.to(self._device))
        cls, patches = features["x_norm_clstoken"], features["x_norm_patchtokens"]
        assert cls is not None  # forward_features always fills both
        assert patches is not None
        return cls.float().cpu(), patches.float().cpu()

    def _arithmetic(self) -> AbstractContextManager[object]:
        if self._precision == "bf16":
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return full_float32_convolutions() if self._device.type == "cuda" else nullcontext()


@contextmanager
def full_float32_convolutions() -> Iterator[None]:
    """Keep cuDNN from rounding the patch projection to TF32, which is its default and costs three digits."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def resolve_engine(engine: str) -> str:
    """The engine a name stands for.

    Raises:
        UsageError: no such engine.
    """
    return _resolve("--engine", engine, ENGINES)


def resolve_precision(precision: str) -> str:
    """The precision a name stands for.

    Raises:
        UsageError: no such precision.
    """
    return _resolve("--precision", precision, PRECISIONS)


def _resolve(flag: str, name: str, known: tuple[str, ...]) -> str:
    if name != "auto" and name not in known:
        raise UsageError(f"{flag} {name}: found {name!r}, expected one of auto, {', '.join(known)}")
    return known[0] if name == "auto" else name
