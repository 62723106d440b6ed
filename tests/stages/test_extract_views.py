"""`extract --views --basis`: what is written, and what a basis may learn from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from meddinov3_stroke.commands import extract as extract_features
from meddinov3_stroke.features import EmbeddingStore
from meddinov3_stroke.features.basis import FittedBasis
from meddinov3_stroke.head_train import main as train_head
from meddinov3_stroke.types import LABELS

VIEWS = ("cls", "stats", "patches4", "patches6@brain")


@pytest.fixture
def table(head_nifti: Callable[..., Path]) -> pd.DataFrame:
    """Four series of four patients: two of training, one of validation, one of test."""
    rows = []
    for k, split in enumerate(("train", "train", "val", "test")):
        labels = dict.fromkeys(LABELS, k % 2)
        path = head_nifti(f"{k}.nii.gz", seed=k)
        rows.append({"nifti_path": str(path), "patient_id": f"P{k}", "study_uid": f"S{k}", "Split": split} | labels)
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def weights(random_weights: Callable[..., Path]) -> Path:
    return random_weights()


@pytest.fixture
def extract(weights: Path, tmp_path: Path) -> Callable[..., int]:
    """Runs the command on a table in the folder `out`; gives its exit code."""

    def run(table: pd.DataFrame, *flags: str, out: str = "out", resize: int = 64) -> int:
        csv = tmp_path / f"{out}.csv"
        table.to_csv(csv, index=False)
        fixed = ["--backbone", str(weights), "--engine", "torch", "--precision", "fp32", "--device", "cpu"]
        fixed += ["--resize", str(resize), "--cache-dir", str(tmp_path / "cache"), "--output-dir", str(tmp_path / out)]
        return extract_features.main(["--series-csv", str(csv), "--quiet", *fixed, *flags])

    return run


def basis(tmp_path: Path, view: str = "patches4", out: str = "out") -> FittedBasis:
    return FittedBasis.read(tmp_path / out / f"patch_basis_{view}.safetensors")


def test_every_view_is_stored_and_the_summary_says_what_a_basis_was_fitted_on(extract, table, tmp_path) -> None:
    assert extract(table, "--views", *VIEWS, "--basis", "fit") == 0
    summary = json.loads((tmp_path / "out" / "extraction_summary.json").read_text())
    assert [one["name"] for one in summary["views"]] == list(VIEWS)
    assert [one["bytes_of_slice"] for one in summary["views"]] == [64 * 4, 3 * 64 * 4, 16 * 4, 16 * 6]
    assert len(list(tmp_path.glob("cache/??/*.emb"))) == len(VIEWS) * len(table)
    fitted = summary["patch_bases"][0]
    assert fitted["fitted_on"]["rows"] == "column split says train"
    assert (fitted["fitted_on"]["n_rows"], fitted["n_series"], fitted["n_patches"]) == (2, 2, 2 * 8 * 16)
    assert 0 < fitted["loss"]["explained_variance"] < 1
    assert fitted["disclaimer"] == "research use only, not for clinical diagnosis"
    assert fitted["sha256"] == basis(tmp_path).view.basis.sha256 == summary["views"][2]["basis_sha256"]


def test_a_basis_learns_nothing_from_validation_and_test_series(extract, table, head_nifti, tmp_path) -> None:
    extract(table, "--views", "cls", "patches4", "--basis", "fit")
    others = [str(head_nifti(f"other{k}.nii.gz", seed=50 + k)) for k in range(2)]
    changed = table.assign(nifti_path=[*table["nifti_path"][:2], *others])
    extract(changed, "--views", "cls", "patches4", "--basis", "fit", out="changed")
    extract(table, "--views", "cls", "patches4", "--basis", "fit-all", out="all")
    digests = [basis(tmp_path, out=out).view.basis.sha256 for out in ("out", "changed", "all")]
    assert digests[0] == digests[1] != digests[2]


def test_an_interrupted_run_keeps_its_basis_and_its_cache(extract, table, tmp_path) -> None:
    flags = ("--views", *VIEWS, "--basis", "fit")
    extract(table, *flags)
    before = {path: path.read_bytes() for path in tmp_path.glob("out/*.safetensors")}
    extract(table, *flags)
    assert {path: path.read_bytes() for path in tmp_path.glob("out/*.safetensors")} == before
    assert json.loads((tmp_path / "out" / "extraction_summary.json").read_text())["extraction"]["n_from_cache"] == 4


def test_a_basis_file_serves_another_table(extract, table, tmp_path) -> None:
    extract(table, "--views", "cls", "patches4", "--basis", "fit")
    file = str(tmp_path / "out" / "patch_basis_patches4.safetensors")
    assert extract(table[2:], "--views", "patches4", "--basis", file, out="other") == 0
    assert json.loads((tmp_path / "other" / "extraction_summary.json").read_text())["extraction"]["n_from_cache"] == 2


def test_stored_codes_are_those_of_the_basis(extract, table, weights, tmp_path) -> None:
    from meddinov3_stroke import load_backbone, read_volume
    from meddinov3_stroke.features.compacted import header_of

    extract(table[:1], "--views", "cls", "patches4", "--basis", "fit")
    store = EmbeddingStore(tmp_path / "cache")
    (key,) = [one.stem for one in store.folder.glob("??/*.emb") if header_of(one)["view"] == "patches4"]
    arrays, fitted = store.get(key).arrays, basis(tmp_path).view.basis
    backbone = load_backbone(weights, engine="torch", precision="fp32", device="cpu")
    patches = backbone.embed(read_volume(Path(table["nifti_path"][0])).hu, resize=64, batch=8, patches=True).patches
    np.testing.assert_array_equal(arrays["scale"], fitted.scale)
    steps = (patches - fitted.mean) @ fitted.components / fitted.scale
    np.testing.assert_allclose(arrays["patches"], steps.clip(-127, 127), atol=0.51)


@pytest.mark.parametrize(
    ("flags", "drop", "code", "message"),
    [
        (("--views", "patches4"), False, 2, "no basis for view patches4"),
        (("--views", "patches4", "--basis", "fit"), True, 2, "no row of"),
        (("--views", "patches4", "--basis", "fit", "--shard", "0/2"), False, 2, "--basis fit beside"),
        (("--views", "patches999", "--basis", "fit"), False, 2, "too few for its components"),
        (("--views", "patches4", "--basis", "nowhere.safetensors"), False, 6, "no readable patch basis"),
        (("--views", "bones"), False, 2, "view 'bones': expected cls"),
    ],
)
def test_a_basis_that_cannot_be_had_ends_the_run(extract, table, capsys, flags, drop, code, message) -> None:
    assert extract(table.drop(columns="Split") if drop else table, *flags) == code
    assert message in capsys.readouterr().err


def test_a_basis_that_was_changed_or_is_of_another_side_is_refused(extract, table, tmp_path, capsys) -> None:
    extract(table, "--views", "cls", "patches4", "--basis", "fit")
    file = tmp_path / "out" / "patch_basis_patches4.safetensors"
    flags = ("--views", "patches4", "--basis", str(file))
    assert extract(table, *flags, out="other", resize=32) == 6
    assert "resize: found 64, expected 32" in capsys.readouterr().err
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert extract(table, *flags, out="other") == 6
    assert "does not match its sha256" in capsys.readouterr().err


def test_a_head_on_class_tokens_refuses_rows_of_another_view(extract, table, tmp_path, capsys) -> None:
    extract(table, "--views", "stats", "cls")
    out = tmp_path / "out"
    assert np.load(out / "cohort_embeddings.npy").shape == (4, 3 * 64)
    given = [f"--{name}-{what}" for name in ("train", "val") for what in ("embeddings", "labels")]
    files = [str(out / f"cohort_{what}.npy") for _ in range(2) for what in ("embeddings", "labels")]
    flags: list[Any] = [word for pair in zip(given, files, strict=True) for word in pair]
    assert train_head([*flags, "--output-dir", str(tmp_path / "head"), "--quiet"]) == 5
    assert "embeddings are of the view stats" in capsys.readouterr().err
