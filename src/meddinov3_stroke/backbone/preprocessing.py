"""What MedDINOv3's weights expect of a slice; these numbers belong to the weights, not to the configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Int64

from meddinov3_stroke.errors import WeightsMismatch
from meddinov3_stroke.types import Preprocessing

PREPROCESSING = Preprocessing(
    hu_min=-1000.0, hu_max=1000.0, mean=65.1084213256836, std=178.01663208007812, version="meddinov3-1"
)
"""Clip, z-score, three equal channels, resize (ricklisz/MedDINOv3, `inference/demo.ipynb`)."""

METADATA_KEY = "preprocessing"
"""Key in the header of our safetensors for a range, mean and deviation other than MedDINOv3's."""

Taps = tuple[Int64[np.ndarray, "tap out"], Float32[np.ndarray, "tap out"]]


def preprocessing_of(metadata: Mapping[str, str], where: str) -> Preprocessing:
    """The preprocessing in the header of a weights file, MedDINOv3's own by default; raises WeightsMismatch."""
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


def prepare_channel(
    hu: Float32[np.ndarray, "n row col"], resize: int, preprocessing: Preprocessing = PREPROCESSING
) -> Float32[np.ndarray, "n 1 resize resize"]:
    """The one channel that stands for the three equal ones: clip, z-score and resize of HU in canonical orientation.

    Slices are squashed to a square: bilinear with antialias, corners not aligned. Without BLAS, whose threads would
    compete with the engine's, and slice by slice, so that no slice depends on the others.
    """
    rows, columns = (_resize_taps(n, resize) for n in hu.shape[1:])
    pixels = np.empty((len(hu), 1, resize, resize), dtype=np.float32)
    for one, out in zip(hu, pixels[:, 0], strict=True):
        normalised = np.clip(one, preprocessing.hu_min, preprocessing.hu_max)
        normalised -= np.float32(preprocessing.mean)
        normalised /= np.float32(preprocessing.std)
        out[:] = _resized(_resized(normalised, *rows).T, *columns).T
    return pixels


def prepare_slices(
    hu: Float32[np.ndarray, "n row col"], resize: int, preprocessing: Preprocessing = PREPROCESSING
) -> Float32[np.ndarray, "n 3 resize resize"]:
    """Pixels as the published backbone takes them: `prepare_channel` three times (a read-only view)."""
    return np.broadcast_to(prepare_channel(hu, resize, preprocessing), (len(hu), 3, resize, resize))


def _resized(image: np.ndarray, indices: np.ndarray, weights: np.ndarray) -> Float32[np.ndarray, "out col"]:
    image = np.ascontiguousarray(image)
    resized = image[indices[0]] * weights[0][:, None]
    for index, weight in zip(indices[1:], weights[1:], strict=True):
        resized += image[index] * weight[:, None]
    return np.asarray(resized)


@lru_cache(maxsize=16)
def _resize_taps(n_in: int, n_out: int) -> Taps:
    """Which inputs make each output of an antialiased bilinear resize (a triangle filter cut off at the border), and
    their weights, which sum to 1.
    """
    scale = np.float32(n_in) / np.float32(n_out)  # in float32 throughout, as torch does it
    reach = max(scale, np.float32(1))
    centres = scale * (np.arange(n_out, dtype=np.float32) + np.float32(0.5))
    indices = np.floor(centres - reach).astype(np.int64) + np.arange(int(2 * reach) + 2)[:, None]
    distances = np.abs(indices.astype(np.float32) - centres + np.float32(0.5)) * (1 / reach)
    weights = np.maximum(np.float32(0), 1 - distances)
    weights[(indices < 0) | (indices >= n_in)] = 0
    used = weights.any(axis=1)
    weights = (weights / weights.sum(axis=0))[used]
    return np.clip(indices[used], 0, n_in - 1), weights
