"""Patches of air left out: a view of its own from the loop over inputs to heads, and what `calibrate` says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from meddinov3_stroke.backbone import Backbone, load_backbone
from meddinov3_stroke.backbone.head_patches import kept_patches
from meddinov3_stroke.commands import calibrate
from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.errors import CheckpointError, UsageError
from meddinov3_stroke.features import EmbeddingStore, FeatureExtractor, extract
from meddinov3_stroke.features.basis import with_views
from meddinov3_stroke.heads import check_backbone, load_checkpoint
from meddinov3_stroke.meddinov3_infer import Args, run
from meddinov3_stroke.predictor import ICHPredictor
from meddinov3_stroke.types import LABELS
from meddinov3_stroke.views import PatchBasis, View

SIDE = 128
"""Pixels; the corners of the 8 x 8 patches are air."""


@pytest.fixture(scope="module", params=["openvino", "torch"])
def backbone(request: Any, random_weights: Callable[..., Path]) -> Backbone:
    return load_backbone(random_weights(), engine=request.param, precision="fp32", device="cpu")


def entries(backbone: Backbone, path: Path, *names: str, batch: int = 3, **rest: Any) -> dict[str, np.ndarray]:
    """View -> array of the volume."""
    extractor = with_views(FeatureExtractor(backbone, resize=SIDE, batch=batch), names, **rest)
    (found,) = extract([path], extractor, keep_views=True)
    return {name: one.arrays.get("patches", one.arrays.get("cls")) for name, one in found.entries.items()}


def test_each_view_is_of_the_shortened_sequence_and_the_full_ones_keep_their_bits(backbone, head_nifti) -> None:
    hu = read_volume(head_nifti()).hu
    found = entries(backbone, head_nifti(), "cls", "cls+head", "patches+head", "stats+head", "blocks+head")
    kept = kept_patches(hu, SIDE, 16)
    parts = [backbone.tokens(backbone.without_air(backbone.prepare(one[None], SIDE), one[None])) for one in hu]
    cls, patches = (np.concatenate(some) for some in zip(*parts, strict=True))
    np.testing.assert_allclose(found["cls+head"], cls, atol=1e-5)
    np.testing.assert_allclose(found["patches+head"], patches, atol=2e-3)
    np.testing.assert_allclose(found["blocks+head"][:, -cls.shape[1] :], cls, atol=1e-5)
    means = np.stack([one[some].mean(axis=0) for one, some in zip(patches, kept, strict=True)])
    np.testing.assert_allclose(found["stats+head"][:, : cls.shape[1]], means, atol=1e-5)
    assert 0 < kept.mean() < 0.9
    assert np.array_equal(found["cls"], entries(backbone, head_nifti(), "cls")["cls"])
    assert np.abs(found["cls"] - cls).max() > 1e-2


def test_codes_of_patches_left_out_are_zero(backbone, head_nifti) -> None:
    dim = backbone.identity.embed_dim
    basis = PatchBasis(np.ones(dim, np.float32), np.eye(dim, 4, dtype=np.float32), np.full(4, 0.01, np.float32))
    extractor = FeatureExtractor(backbone, SIDE)
    compressed = replace(View.parse("patches4+head"), basis=basis)
    (found,) = extract([head_nifti()], replace(extractor, views=(View(), compressed)), keep_views=True)
    codes = found.entries["patches4+head"].arrays["patches"]
    kept = kept_patches(read_volume(head_nifti()).hu, SIDE, 16)
    assert not codes[~kept].any()
    assert codes[kept].any(axis=1).all()


@pytest.mark.parametrize("batch", [1, 8])
def test_neither_batch_nor_other_volumes_change_an_embedding(backbone, head_nifti, batch) -> None:
    paths = [head_nifti(f"{k}.nii.gz", seed=k) for k in range(3)]
    extractor = with_views(FeatureExtractor(backbone, resize=SIDE, batch=batch), ["cls+head"])
    together = [one.embeddings.cls for one in extract(paths, extractor)]
    for path, found in zip(paths, together, strict=True):
        alone = entries(backbone, path, "cls+head")["cls+head"]
        np.testing.assert_allclose(found, alone, rtol=0, atol=0 if backbone.independent_rows else 1e-5)


def test_the_cache_keeps_it_apart_from_full_embeddings(backbone, head_nifti, tmp_path) -> None:
    store, plain = EmbeddingStore(tmp_path / "cache"), FeatureExtractor(backbone, resize=SIDE)
    short = with_views(plain, ["cls+head"])
    (first,) = extract([head_nifti()], plain, store)
    (second,) = extract([head_nifti()], short, store)
    (again,) = extract([head_nifti()], short, store)
    assert (second.from_cache, again.from_cache) == (False, True)
    assert (first.embeddings.backbone.tokens, again.embeddings.backbone.tokens) == ("all", "head")
    assert np.array_equal(again.embeddings.cls, second.embeddings.cls)


def test_embed_states_the_tokens_and_its_map_is_zero_where_patches_were_left_out(
    head_nifti, random_weights, tmp_path
) -> None:
    fixed = {"output_dir": tmp_path / "out", "resize": SIDE, "device": "cpu", "quiet": True, "sim_slice": 4}
    summary = run(Args(input=(head_nifti(),), backbone=str(random_weights()), tokens="head", **fixed))
    similar = np.load(tmp_path / "out" / "similarity_map.npy")
    kept = kept_patches(read_volume(head_nifti()).hu[[4]], SIDE, 16).reshape(similar.shape)
    assert summary["backbone"]["tokens"] == "head"
    assert np.array_equal(similar != 0, kept)


def test_a_head_is_refused_on_embeddings_of_other_tokens(backbone, random_head, head_nifti) -> None:
    identity = replace(backbone.identity, tokens="head")
    of_all = random_head(backbone, resize=SIDE)
    with pytest.raises(CheckpointError, match="tokens: expected all, found head"):
        ICHPredictor.load(of_all, backbone=backbone, tokens="head")
    of_head = random_head(SimpleNamespace(identity=identity), name="head.pt", resize=SIDE)
    with pytest.raises(CheckpointError, match=r"tokens: expected head, found all.*--tokens head"):
        ICHPredictor.load(of_head, backbone=backbone)
    case = ICHPredictor.load(of_head, backbone=backbone, tokens="head")(head_nifti())
    assert case.findings.embeddings.backbone.tokens == "head"


def test_a_head_of_an_earlier_version_was_trained_on_all_tokens(backbone, random_head) -> None:
    checkpoint = load_checkpoint(random_head(backbone))
    del checkpoint.backbone["tokens"]
    assert check_backbone(checkpoint, backbone.identity, 64) == []


@pytest.fixture
def table(head_nifti: Callable[..., Path], tmp_path: Path) -> Path:
    """A series CSV of twelve volumes of six patients, of whom three bleed."""
    rows = []
    for k in range(12):
        labels = dict.fromkeys(LABELS, 0) | {"any": int(k % 6 < 3), "subdural": int(k % 6 < 3)}
        path = head_nifti(f"{k}.nii.gz", seed=k)
        rows.append({"nifti_path": str(path), "patient_id": f"P{k % 6}", "study_uid": f"S{k}"} | labels)
    pd.DataFrame(rows).to_csv(tmp_path / "series.csv", index=False)
    return tmp_path / "series.csv"


def test_calibrate_gives_the_paired_difference_of_both_ways(table, random_weights, capsys) -> None:
    weights = str(random_weights())
    args = calibrate.Args(series_csv=table, backbone=weights, tokens="head", resize=SIDE, quiet=True, force=True)
    document = calibrate.run(args)
    found = document["labels"]["any"]["auroc"]
    assert found["difference"] == pytest.approx(found["first"] - found["second"])
    assert {"low", "high", "reason"} <= set(found["interval"])
    assert (document["n_volumes"], document["n_patients"]) == (12, 6)
    assert "epidural" in document["not_judged"]
    assert "research use only" in json.dumps(document)
    assert "any: AUROC" in capsys.readouterr().out


def test_the_folds_of_the_comparison_keep_patients_together() -> None:
    groups = [f"P{k % 7}" for k in range(50)]
    folds = calibrate._folds(groups, seed=1)
    assert len(set(folds)) == calibrate.N_FOLDS
    assert len({(group, fold) for group, fold in zip(groups, folds, strict=True)}) == 7


def test_held_out_scores_see_no_label_of_their_own_fold() -> None:
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(40, 4)).astype(np.float32), rng.integers(0, 2, size=(40, 1)).astype(np.int8)
    folds = np.arange(40) % 5
    changed = labels.copy()
    changed[folds == 2] = 1 - changed[folds == 2]
    once, again = (calibrate._held_out_scores(rows, one, folds, 0) for one in (labels, changed))
    assert np.array_equal(once[folds == 2], again[folds == 2])
    assert not np.array_equal(once, again)


def test_the_comparison_needs_labels() -> None:
    with pytest.raises(UsageError, match="--series-csv"):
        calibrate.run(calibrate.Args(input=(Path("a.nii.gz"), Path("b.nii.gz")), tokens="head"))


def test_extract_writes_rows_of_the_head_and_says_so(table, random_weights, tmp_path) -> None:
    from meddinov3_stroke import head_train
    from meddinov3_stroke.commands import extract as extract_features

    fixed = ["--series-csv", str(table), "--backbone", str(random_weights()), "--device", "cpu", "--quiet"]
    fixed += ["--resize", str(SIDE), "--cache-dir", str(tmp_path / "cache"), "--views", "cls", "stats"]
    assert extract_features.main([*fixed, "--tokens", "head", "--output-dir", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["backbone"]["tokens"] == "head"
    assert [view["name"] for view in summary["views"]] == ["cls+head", "stats+head"]
    rows, labels = (tmp_path / "out" / f"cohort_{what}.npy" for what in ("embeddings", "labels"))
    np.save(labels, np.load(labels)[:, :1])
    head_train.run(head_train.Args(train_embeddings=rows, train_labels=labels, output_dir=tmp_path / "head"))
    assert load_checkpoint(tmp_path / "head" / "last.pt").backbone["tokens"] == "head"
