"""The tests check the package's signatures while they run."""

from __future__ import annotations

import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from meddinov3_stroke.features.shards import Shard, shard_ranks
from meddinov3_stroke.metrics import auroc_report
from meddinov3_stroke.types import SliceImage


def test_a_shape_is_checked_across_arguments() -> None:
    labels = np.zeros((4, 1), dtype=np.int8)
    with pytest.raises(TypeCheckError):
        auroc_report(labels, np.zeros((4, 1), dtype=np.int64), ["any"])
    with pytest.raises(TypeCheckError):
        auroc_report(labels, np.zeros((4, 2)), ["any"])


def test_types_without_shapes_are_checked() -> None:
    with pytest.raises(BeartypeCallHintViolation):
        shard_ranks(["a"], "2")  # type: ignore[arg-type]
    with pytest.raises(BeartypeCallHintViolation):
        Shard.parse(3)  # type: ignore[arg-type]
    with pytest.raises(BeartypeCallHintViolation):
        SliceImage(5)  # type: ignore[arg-type]
