"""The rule for the distance to the training set: fit, limit, checkpoint, verdict and what outputs say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from meddinov3_stroke import load_backbone
from meddinov3_stroke.config import HeadConfig
from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.errors import CheckpointError, OutOfScope
from meddinov3_stroke.features import FeatureExtractor
from meddinov3_stroke.head_eval import evaluate_head
from meddinov3_stroke.head_train import train_head
from meddinov3_stroke.heads import HeadCheckpoint, HeadContext, TrainingDistribution, load_checkpoint, save_checkpoint
from meddinov3_stroke.heads.training import fit_distribution
from meddinov3_stroke.ich_infer import main as predict
from meddinov3_stroke.predictor import ICHPredictor
from meddinov3_stroke.types import HeadData


def correlated(n: int, seed: int, width: int = 40, rank: int = 6) -> np.ndarray:
    mixing = np.random.default_rng(99).normal(size=(rank, width))
    rng = np.random.default_rng(seed)
    rows = 3 + rng.normal(size=(n, rank)) @ mixing + 0.3 * rng.normal(size=(n, width))
    return rows.astype(np.float32)


@pytest.fixture
def fitted() -> TrainingDistribution:
    found = fit_distribution(correlated(400, 0))
    assert found is not None
    return found


def test_the_gaussian_is_that_of_probabilistic_pca() -> None:
    rows = correlated(400, 0, rank=16)
    fitted = fit_distribution(rows)
    assert fitted is not None
    reference = PCA(n_components=16).fit(rows.astype(np.float64))
    away = rows - rows.mean(axis=0, dtype=np.float64)
    exact = np.sqrt(np.einsum("ij,jk,ik->i", away, reference.get_precision(), away) / rows.shape[1] * 400 / 399)
    assert np.allclose(fitted.variances, reference.explained_variance_ * 399 / 400, rtol=1e-3)
    assert np.allclose(fitted.distances(rows), exact, rtol=2e-3)


@pytest.mark.parametrize("n", [120, 400, 3000])
def test_few_new_rows_of_the_same_kind_lie_beyond_the_limit(n: int) -> None:
    found = fit_distribution(correlated(n, 1))
    assert found is not None
    assert (found.distances(correlated(2000, 2)) > found.limit).mean() <= 0.005


def test_rows_off_the_training_directions_lie_beyond_the_limit(fitted: TrainingDistribution) -> None:
    aside = np.random.default_rng(5).normal(size=(200, 40)).astype(np.float32)
    assert (fitted.distances(correlated(200, 3) + 1.5 * aside) > fitted.limit).mean() >= 0.99


def test_a_limit_from_the_fitted_rows_themselves_would_be_lower(fitted: TrainingDistribution) -> None:
    wide = fit_distribution(correlated(110, 0, width=400))
    assert wide is not None
    assert wide.limit > 1.1 * wide.distances(correlated(110, 0, width=400)).max()


def test_the_same_rows_give_the_same_rule_on_any_number_of_threads() -> None:
    rows, before = correlated(400, 0), torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(fit_distribution(rows))
    torch.set_num_threads(before)
    one, two = found
    assert one is not None
    assert two is not None
    assert np.array_equal(one.components, two.components)
    assert (one.limit, one.residual_variance) == (two.limit, two.residual_variance)


def test_training_draws_the_same_numbers_as_without_a_rule() -> None:
    torch.manual_seed(7)
    fit_distribution(correlated(400, 0))
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))


ONE_DIFFERS = np.ones((100, 40), np.float32)
ONE_DIFFERS[3] = 2


@pytest.mark.parametrize(
    "rows",
    [
        correlated(99, 0),
        np.ones((200, 40), np.float32),
        ONE_DIFFERS,
        correlated(200, 0) * 1e-24,
        correlated(200, 0) * 1e36,
    ],
    ids=["few", "equal", "one differs", "tiny", "huge"],
)
def test_rows_that_give_no_sound_rule_give_none(rows: np.ndarray) -> None:
    assert fit_distribution(rows) is None


def with_rule(checkpoint: HeadCheckpoint, width: int = 8) -> HeadCheckpoint:
    return replace(checkpoint, distribution=fit_distribution(correlated(200, 0, width)))


def test_the_rule_comes_back_as_it_was_saved(checkpoint: HeadCheckpoint, tmp_path: Path) -> None:
    saved = with_rule(checkpoint)
    save_checkpoint(tmp_path / "best.pt", saved)
    found = load_checkpoint(tmp_path / "best.pt").distribution
    assert found is not None
    assert saved.distribution is not None
    before, after = ({k: np.asarray(v).tolist() for k, v in asdict(one).items()} for one in (saved.distribution, found))
    assert before == after


@pytest.mark.parametrize(
    "change",
    [
        {"limit": -1.0},
        {"variances": torch.zeros(7)},
        {"variances": torch.ones(7, 1)},
        {"components": torch.ones(3, 3)},
        {"mean": torch.full((8,), torch.nan)},
        {"residual_variance": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_damaged_rule_is_refused(checkpoint: HeadCheckpoint, change: dict[str, Any], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pt", with_rule(checkpoint))
    document = torch.load(tmp_path / "best.pt", weights_only=True)
    document["distribution"] |= change
    torch.save(document, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match="distribution"):
        load_checkpoint(tmp_path / "best.pt")


def test_a_rule_for_rows_of_another_width_is_refused(checkpoint: HeadCheckpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pt", with_rule(checkpoint, width=10))
    with pytest.raises(CheckpointError, match="10 columns, expected 8"):
        load_checkpoint(tmp_path / "best.pt")


def test_training_stores_the_rule_and_a_test_counts_rows_outside(
    separable: Callable[[int, int], HeadData], options: HeadConfig, tmp_path: Path
) -> None:
    context = HeadContext("mean", 224, None, ("class_0", "class_1", "class_2"))
    summary = train_head(separable(200, 0), separable(60, 1), options, context, tmp_path, progress=False)
    head = load_checkpoint(tmp_path / "best.pt")
    assert head.distribution is not None
    assert summary["distribution"] == head.distribution.figures()
    strange = separable(60, 2)
    strange.embeddings[:4] += 30
    metrics, _ = evaluate_head(head, strange)
    assert metrics["distribution"]["n_outside"] == 4
    assert "4 of 60 rows are unlike the CTs the head was trained on" in metrics["warnings"]


@pytest.fixture(params=["mean", "slice"])
def near_and_far(
    request: pytest.FixtureRequest,
    random_weights: Callable[..., Path],
    random_head: Callable[..., Path],
    head_nifti: Callable[..., Path],
    tmp_path: Path,
) -> tuple[Path, Path, list[str]]:
    """A head whose rule accepts the case, one whose rule does not, and the other flags."""
    weights, case = random_weights(), head_nifti()
    backbone = load_backbone(weights, engine="torch", precision="fp32", device="cpu")
    cls = FeatureExtractor(backbone, resize=64).embed(read_volume(case)).cls
    rng, paths = np.random.default_rng(0), []
    for name, middle in (("near", cls.mean(axis=0)), ("far", cls.mean(axis=0) + 9)):
        rule = fit_distribution((middle + rng.normal(size=(200, 64)) * cls.std()).astype(np.float32))
        paths.append(random_head(backbone, request.param, name=f"{name}.pt", distribution=rule))
    flags = ["--input", case, "--backbone", weights, "--output-dir", tmp_path / "out", "--quiet"]
    return paths[0], paths[1], [*map(str, flags), "--engine", "torch", "--precision", "fp32", "--device", "cpu"]


def test_predict_refuses_a_case_unlike_the_training_set(
    near_and_far: tuple[Path, Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    near, far, flags = near_and_far
    assert predict(["--checkpoint", str(near), *flags]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["verdicts"]["in_distribution"] is True
    assert summary["distribution"]["distance"] <= summary["distribution"]["limit"]
    capsys.readouterr()
    assert predict(["--checkpoint", str(far), *flags]) == 4
    assert "unlike the CTs that the head was trained on: distance" in capsys.readouterr().err


def test_a_forced_case_unlike_the_training_set_says_so(
    near_and_far: tuple[Path, Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, far, flags = near_and_far
    assert predict(["--checkpoint", str(far), "--force", *flags]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["verdicts"]["in_distribution"] is False
    assert any("unlike the CTs" in warning for warning in summary["warnings"])
    assert "unlike the CTs" in " ".join(capsys.readouterr().out.split())


def test_a_refusal_by_distance_names_its_rule(near_and_far: tuple[Path, Path, list[str]]) -> None:
    _, far, flags = near_and_far
    predictor = ICHPredictor.load(far, backbone=flags[3], engine="torch", precision="fp32", device="cpu")
    with pytest.raises(OutOfScope) as error:
        predictor(flags[1])
    assert error.value.rules == ("distribution",)
