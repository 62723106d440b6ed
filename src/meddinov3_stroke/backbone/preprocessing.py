"""What MedDINOv3's weights expect of a slice; these numbers belong to the weights, not to a configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

from meddinov3_stroke.errors import WeightsMismatch
from meddinov3_stroke.types import Preprocessing

PREPROCESSING = Preprocessing(
    hu_min=-1000.0, hu_max=1000.0, mean=65.1084213256836, std=178.01663208007812, version="meddinov3-1"
)
"""Clip, z-score, three equal channels, resize (ricklisz/MedDINOv3, `inference/demo.ipynb`)."""


METADATA_KEY = "preprocessing"
"""Under which the header of our safetensors states another range, mean and deviation than MedDINOv3's."""


def preprocessing_of(metadata: Mapping[str, str], where: str) -> Preprocessing:
    """What the header of a weights file states, or MedDINOv3's own where it states nothing.

    Raises:
        WeightsMismatch: the statement cannot be read, or makes no sense.
    """
    if METADATA_KEY not in metadata:
        return PREPROCESSING
    try:
        stated = Preprocessing(**json.loads(metadata[METADATA_KEY]))
        valid = stated.hu_min < stated.hu_max and stated.std > 0 and math.isfinite(stated.mean)
    except (ValueError, TypeError) as error:
        raise WeightsMismatch(f"{where}: metadata states no readable preprocessing: {error}; convert again") from error
    if not valid:
        raise WeightsMismatch(f"{where}: metadata states {stated}; expected hu_min < hu_max and std > 0; convert again")
    return stated


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


def prepare_channel(
    hu: Float32[np.ndarray, "n row col"], resize: int, preprocessing: Preprocessing = PREPROCESSING
) -> Float32[Tensor, "n 1 resize resize"]:
    """The one channel that stands for the three equal ones: clip, z-score, resize of HU in canonical orientation."""
    normalised = normalise_hu(torch.from_numpy(np.ascontiguousarray(hu)), preprocessing)
    return resize_pixels(normalised[:, None], resize)


def prepare_slices(
    hu: Float32[np.ndarray, "n row col"], resize: int, preprocessing: Preprocessing = PREPROCESSING
) -> Float32[Tensor, "n 3 resize resize"]:
    """Pixels as the published backbone takes them: `prepare_channel` three times.

    The published order repeats the channel before the resize; as the resize treats channels alike, doing it on one and
    repeating after gives the same bits for a third of the work.
    """
    return prepare_channel(hu, resize, preprocessing).expand(-1, 3, -1, -1)
