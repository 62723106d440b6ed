"""What MedDINOv3's weights expect of a slice; these numbers belong to the weights, not to a configuration."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

from meddinov3_stroke.types import Preprocessing

PREPROCESSING = Preprocessing(
    hu_min=-1000.0, hu_max=1000.0, mean=65.1084213256836, std=178.01663208007812, version="meddinov3-1"
)
"""Clip, z-score, three equal channels, resize (ricklisz/MedDINOv3, `inference/demo.ipynb`)."""


def normalise_hu(
    hu: Float32[Tensor, "n row col"], preprocessing: Preprocessing = PREPROCESSING
) -> Float32[Tensor, "n row col"]:
    """HU clipped to the weights' range, minus their mean, over their standard deviation; the input is not modified."""
    return (hu.clamp(preprocessing.hu_min, preprocessing.hu_max) - preprocessing.mean) / preprocessing.std


def resize_pixels(
    pixels: Float32[Tensor, "n channel row col"], resize: int
) -> Float32[Tensor, "n channel resize resize"]:
    """Slices squashed to a square of `resize` pixels: bilinear with antialias, corners not aligned."""
    return functional.interpolate(pixels, size=(resize, resize), mode="bilinear", align_corners=False, antialias=True)


def prepare_slices(hu: Float32[np.ndarray, "n row col"], resize: int) -> Float32[Tensor, "n 3 resize resize"]:
    """Pixels as the backbone takes them, from HU in canonical orientation: clip, z-score, resize, three channels.

    The published order repeats the channel before the resize; as the resize treats channels alike, doing it on one and
    repeating after gives the same bits for a third of the work.
    """
    normalised = normalise_hu(torch.from_numpy(np.ascontiguousarray(hu)))
    return resize_pixels(normalised[:, None], resize).expand(-1, 3, -1, -1)
