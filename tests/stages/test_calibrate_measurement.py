"""The change in AUROC that int8 brings a head."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from meddinov3_stroke.backbone.loading import cosines
from meddinov3_stroke.commands.calibrate import auroc_change
from meddinov3_stroke.errors import CheckpointError
from meddinov3_stroke.heads import HeadCheckpoint
from meddinov3_stroke.types import LABELS, Threshold


def head(pool_mode: str = "mean") -> HeadCheckpoint:
    """A linear head that reads each label off its own dimension."""
    return HeadCheckpoint(
        state_dict={"weight": np.eye(6, dtype=np.float32), "bias": np.zeros(6, dtype=np.float32)},
        arch="mlp",
        params={"hidden_dim": 0, "dropout": 0.0},
        labels=LABELS,
        input_dim=6,
        pool_mode=pool_mode,
        resize=64,
        backbone=None,
        thresholds={label: Threshold(0.5, "default") for label in LABELS},
        pos_weight=dict.fromkeys(LABELS, 1.0),
        seed=0,
        epoch=1,
        metric_name="val_macro_auroc",
        best_metric=None,
    )


def measured(n: int = 30) -> tuple[dict[str, list[np.ndarray]], np.ndarray]:
    """Class tokens of four slices of `n` volumes in fp32 and int8, and the labels of the volumes."""
    rng = np.random.default_rng(0)
    tokens: dict[str, list[np.ndarray]] = {"fp32": [], "int8": []}
    rows = []
    for _ in range(n):
        labels = (rng.random(6) < 0.5).astype(np.int8)
        tokens["fp32"].append((labels + rng.normal(0, 1, (4, 6))).astype(np.float32))
        tokens["int8"].append((tokens["fp32"][-1] + rng.normal(0, 1, (4, 6))).astype(np.float32))
        rows.append(labels)
    return tokens, np.stack(rows)


@pytest.mark.parametrize("way", ["mean", "slice"])
def test_auroc_both_ways_is_scikit_learns(way: str) -> None:
    tokens, labels = measured()
    change = auroc_change(head(way), tokens, labels)
    for name in ("fp32", "int8"):
        pooled = np.stack([cls.mean(0) if way == "mean" else cls.max(0) for cls in tokens[name]])
        expected = np.mean([roc_auc_score(labels[:, k], pooled[:, k]) for k in range(6)])
        assert change[name]["macro"] == pytest.approx(expected)
    assert change["macro_change"] == pytest.approx(change["int8"]["macro"] - change["fp32"]["macro"])
    assert change["macro_change"] != 0


def test_one_class_only_leaves_the_change_undefined() -> None:
    assert auroc_change(head(), *measured(1))["macro_change"] is None


def test_a_head_that_does_not_say_its_pooling_is_refused() -> None:
    with pytest.raises(CheckpointError, match="pool mode 'unknown'"):
        auroc_change(head("unknown"), *measured(3))


def test_the_cosine_is_of_each_slice() -> None:
    (int8,), (fp32,) = (measured(1)[0][name] for name in ("int8", "fp32"))
    expected = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in zip(int8.astype(float), fp32.astype(float), strict=True)
    ]
    np.testing.assert_allclose(cosines(int8, fp32), expected, rtol=1e-12)
