from __future__ import annotations

from dataclasses import replace

import pytest

from meddinov3_stroke.features import embedding_key
from meddinov3_stroke.types import BackboneIdentity, Preprocessing, SliceSelection

PREPROCESSING = Preprocessing(hu_min=-1000.0, hu_max=1000.0, mean=65.0, std=178.0, version="v-1")
IDENTITY = BackboneIdentity("a.pth", "ab" * 32, 768, 16, "bf16", PREPROCESSING, "torch", "fp32")
BASE = {"source_sha256": "cd" * 32, "backbone": IDENTITY, "resize": 224, "selection": SliceSelection()}

CHANGES = {
    "other file": {"source_sha256": "ce" * 32},
    "other weights": {"backbone": replace(IDENTITY, weights_sha256="ac" * 32)},
    "other precision": {"backbone": replace(IDENTITY, precision="bf16")},
    "other engine": {"backbone": replace(IDENTITY, engine="openvino")},
    "other rotation dtype": {"backbone": replace(IDENTITY, rope_dtype="fp32")},
    "other calibration": {"backbone": replace(IDENTITY, calibration_sha256="cd" * 32)},
    "other recipe": {"backbone": replace(IDENTITY, preprocessing=replace(PREPROCESSING, version="v-2"))},
    "other mean": {"backbone": replace(IDENTITY, preprocessing=replace(PREPROCESSING, mean=65.1))},
    "other side": {"resize": 240},
    "other stride": {"selection": SliceSelection(stride=2)},
    "other limit": {"selection": SliceSelection(max_slices=2)},
    "other view": {"view": "layers-2-5-8-11"},
}


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_whatever_decides_the_embedding_changes_the_key(change: str) -> None:
    assert embedding_key(**{**BASE, **CHANGES[change]}) != embedding_key(**BASE)


def test_all_changes_give_distinct_keys() -> None:
    assert len({embedding_key(**{**BASE, **change}) for change in CHANGES.values()}) == len(CHANGES)


def test_the_display_name_of_the_weights_stays_out_of_the_key() -> None:
    renamed = {**BASE, "backbone": replace(IDENTITY, name="b.safetensors")}
    assert embedding_key(**renamed) == embedding_key(**BASE)


def test_the_key_is_the_same_in_every_process_and_release() -> None:
    assert embedding_key(**BASE) == "02cd268c8243b46f50cc9c08d2d02f742f74d8ff37cf50c14d8e7039d79b0f62"
