"""embed and predict on DICOM: the outputs point back to the very images."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from dicom_writer import DicomOptions, DicomSeriesTruth, axial_geometry, write_dicom_series
from meddinov3_stroke import cli, read_volume
from meddinov3_stroke.backbone import load_backbone

PLAIN = ("--device", "cpu", "--engine", "torch", "--precision", "fp32", "--quiet")
GEOMETRY = axial_geometry([5.0] * 7, (64, 64), pixel_spacing_mm=(3, 3))


@pytest.fixture
def make_series(tmp_path: Path, head_nifti: Callable[..., Path]) -> Callable[..., DicomSeriesTruth]:
    """Writes the head of `head_nifti` as a DICOM series."""

    def make(name: str = "study", **options: Any) -> DicomSeriesTruth:
        hu = read_volume(head_nifti("source/case.nii.gz")).hu
        return write_dicom_series(tmp_path / name, hu, GEOMETRY, DicomOptions(**({"names": "shuffled"} | options)))

    return make


@pytest.fixture
def predict(
    tmp_path: Path, random_weights: Callable[..., Path], random_head: Callable[..., Path]
) -> Callable[..., dict[str, Any]]:
    """The summary of a run of `predict` on a path."""

    def run(path: Path, *flags: str) -> dict[str, Any]:
        weights = random_weights()
        head = random_head(load_backbone(weights, engine="torch", precision="fp32", device="cpu"))
        words = [
            "--input",
            str(path),
            "--checkpoint",
            str(head),
            "--backbone",
            str(weights),
            "--top-k",
            "3",
            "--overwrite",
        ]
        out = tmp_path / "out"
        assert cli.main(["predict", *words, "--output-dir", str(out), "--overwrite", *PLAIN, *flags]) == 0
        return json.loads((out / "summary.json").read_text(encoding="utf-8"))

    return run


@pytest.fixture
def embed(tmp_path: Path, random_weights: Callable[..., Path]) -> Callable[..., tuple[np.ndarray, dict[str, Any]]]:
    """Slice embeddings and summary of a run of `embed` on a path."""

    def run(path: Path, *flags: str, backbone: str | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        out = tmp_path / "embedded" / path.name
        words = [
            "--input",
            str(path),
            "--backbone",
            backbone or str(random_weights()),
            "--output-dir",
            str(out),
            "--overwrite",
        ]
        assert cli.main(["embed", *words, "--resize", "64", "--overwrite", *PLAIN, *flags]) == 0
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        return np.load(out / "meddinov3_slice_embeddings.npy"), summary

    return run


@pytest.mark.parametrize("layout", ["single", "enhanced"])
def test_the_summary_names_study_series_and_the_image_of_each_slice(make_series, predict, layout: str) -> None:
    truth = make_series(layout=layout)
    found = predict(truth.folder)["dicom"]
    assert found["study_instance_uid"] == truth.identity.study_uid
    assert found["series_instance_uid"] == truth.identity.series_uid
    assert found["sop_instance_uids"] == [image.sop_instance_uid for image in truth.used]
    frames = [image.frame_number for image in truth.used]
    assert found["frame_numbers"] == (None if layout == "single" else frames)


def test_each_top_slice_points_to_the_image_that_lies_there(make_series, predict) -> None:
    truth = make_series(copied_slices=(2,), companions=("localizer",))
    top = predict(truth.folder)["top_slices"]
    assert len(top) == 3
    files = {image.sop_instance_uid: image.file for image in truth.used}
    for one in top:
        dataset = pydicom.dcmread(truth.folder / files[one["sop_instance_uid"]])
        assert float(dataset.ImagePositionPatient[2]) == pytest.approx(one["position_mm"][2], abs=1e-6)
        assert one["sop_instance_uid"] == truth.used[one["slice_index"]].sop_instance_uid


def test_each_top_slice_of_a_multi_frame_object_points_to_its_frame(make_series, predict) -> None:
    truth = make_series(layout="enhanced")
    for one in predict(truth.folder / "FRAMES.dcm")["top_slices"]:
        assert one["frame_number"] == truth.used[one["slice_index"]].frame_number


def test_dicom_and_nifti_of_one_head_give_the_same_probabilities(make_series, predict, tmp_path: Path) -> None:
    truth = make_series()
    from_dicom, from_nifti = predict(truth.folder), predict(tmp_path / "source" / "case.nii.gz")
    assert from_dicom["probabilities"] == from_nifti["probabilities"]
    assert from_dicom["pixels_sha256"] == from_nifti["pixels_sha256"]
    assert from_nifti["dicom"] is None


def test_series_names_the_one_to_read(make_series, embed, tmp_path: Path) -> None:
    make_series("study/a")
    other = make_series("study/b", seed=1, study_seed=0, kernel="H70h")
    _, summary = embed(tmp_path / "study", "--series", other.identity.series_uid)
    assert summary["dicom"]["series_instance_uid"] == other.identity.series_uid


def test_without_series_the_rule_decides_and_says_what_it_left(make_series, embed, tmp_path: Path) -> None:
    soft = make_series("study/a")
    make_series("study/b", seed=1, study_seed=0, kernel="H70h")
    _, summary = embed(tmp_path / "study")
    assert summary["dicom"]["series_instance_uid"] == soft.identity.series_uid
    assert "8 other images were set aside: another usable series (8)" in summary["warnings"]


def test_a_zip_gives_the_embeddings_of_its_folder(make_series, embed, tmp_path: Path) -> None:
    truth = make_series()
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for path in truth.folder.iterdir():
            archive.write(path, path.name)
    (packed, about), (plain, expected) = embed(tmp_path / "study.zip"), embed(truth.folder)
    np.testing.assert_array_equal(packed, plain)
    assert about["input_sha256"] == expected["input_sha256"]


def test_two_studies_are_two_cases(make_series, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_series("study/a")
    make_series("study/b", seed=1)
    flags = ["--input", str(tmp_path / "study"), "--output-dir", str(tmp_path / "out"), "--backbone", "demo"]
    assert cli.main(["embed", *flags]) == 0
    assert "2 cases: 2 done" in capsys.readouterr().out
    assert len([path for path in (tmp_path / "out").iterdir() if path.is_dir()]) == 2


def test_no_patient_attribute_reaches_an_output(make_series, predict, tmp_path: Path, capsys) -> None:
    predict(make_series(patient_id="CANARY").folder)
    printed = capsys.readouterr()
    assert "CANARY" not in printed.out + printed.err + (tmp_path / "out" / "summary.json").read_text()


@pytest.mark.shared_data
def test_the_real_head_ct_as_dicom_and_as_nifti_has_the_same_embeddings(shared_data_dir: Path, embed) -> None:
    slices = ["--max-slices", "5"]
    from_dicom, _ = embed(shared_data_dir / "head_ncct_dicom", *slices, backbone="demo")
    from_nifti, _ = embed(shared_data_dir / "head_ncct_nifti" / "head_ncct.nii.gz", *slices, backbone="demo")
    norms = np.linalg.norm(from_dicom, axis=1) * np.linalg.norm(from_nifti, axis=1)
    cosines = (from_dicom * from_nifti).sum(axis=1) / norms
    assert len(cosines) == 5
    assert cosines.min() >= 0.99999


def two_kernels(folder: Path) -> None:
    """Every other slice of another kernel, under one series UID."""
    for path in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(path)
        dataset.ConvolutionKernel = "H60s" if dataset.InstanceNumber % 2 else "H31s"
        dataset.save_as(path)


def test_a_volume_of_a_series_is_named_alike_by_inspect_embed_and_convert(
    make_series, embed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = make_series()
    two_kernels(truth.folder)
    assert cli.main(["inspect", str(truth.folder), "--output-json", str(tmp_path / "found.json")]) == 0
    names = [one["name"] for one in json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["series"]]
    assert sorted(names) == [f"{truth.identity.series_uid}#{k}" for k in (1, 2)]
    shown = capsys.readouterr().out
    assert all(f"UID {name}" in shown for name in names)
    assert "UID#1, UID#2, ...: volumes of one series, in order of phase" in shown
    found = {}
    for name in names:
        _, summary = embed(truth.folder, "--series", name)
        found[name] = summary["dicom"]["instance_numbers"]
        out = tmp_path / f"{name[-1]}.nii.gz"
        assert cli.main(["convert", "-i", str(truth.folder), "--output", str(out), "--series", name, "--quiet"]) == 0
        slices = json.loads((tmp_path / f"{name[-1]}.slices.json").read_text(encoding="utf-8"))
        assert slices["instance_numbers"] == found[name]
    assert sorted(found.values()) == [[1, 3, 5, 7], [2, 4, 6, 8]]


def test_images_with_a_series_uid_each_are_predicted_and_converted_joined(make_series, predict, tmp_path: Path) -> None:
    truth = make_series()
    whole = predict(truth.folder)
    for k, path in enumerate(sorted(truth.folder.iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID = f"2.25.{k + 1}"
        dataset.save_as(path)
    out = ["--output", str(tmp_path / "out.nii.gz"), "--quiet"]
    assert cli.main(["convert", "-i", str(truth.folder), *out]) == 3
    assert cli.main(["convert", "-i", str(truth.folder), *out, "--join-series"]) == 0
    assert cli.main(["inspect", str(truth.folder), "--join-series", "--quiet"]) == 0
    joined = predict(truth.folder, "--join-series")
    assert joined["probabilities"] == whole["probabilities"]
    assert joined["dicom"]["series_instance_uid"] == "2.25.1"
    assert "images of 8 series UIDs are read as one series, 2.25.1 (--join-series)" in joined["warnings"]
    assert [one["instance_number"] for one in joined["top_slices"]] == [
        joined["dicom"]["instance_numbers"][one["slice_index"]] for one in joined["top_slices"]
    ]
