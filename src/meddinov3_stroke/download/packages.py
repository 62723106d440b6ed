"""What can be downloaded, and under which terms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """A set of published weights."""

    name: str
    hub_file: str
    """Its file in the Hugging Face repository."""
    smallest_bytes: int
    """Anything smaller cannot be these weights."""
    licence: str
    """Told to whoever downloads it."""


MEDDINOV3 = Package(
    name="meddinov3",
    hub_file="model.pth",
    smallest_bytes=80_000_000,
    licence=(
        "MedDINOv3 weights: the authors' repository states Apache-2.0, and includes DINOv3 code of Meta, whose DINOv3 "
        "License also binds derivative works. This project neither owns nor redistributes the weights; by downloading "
        "them you accept their terms (https://github.com/ricklisz/MedDINOv3, "
        "https://ai.meta.com/resources/models-and-libraries/dinov3-license)."
    ),
)
"""ViT-B/16 has 85.64 M parameters: 80 MB is less than one byte for each. Names and terms: MedDINOv3 README."""

PACKAGES = {MEDDINOV3.name: MEDDINOV3}
"""By the name that `--package` takes."""
