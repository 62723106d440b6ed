"""One stack as a volume: what is in it, where each slice came from, and what is told of it."""

from __future__ import annotations

import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
import SimpleITK

from dicom_writer import DicomOptions, DicomSeriesTruth, SliceGeometry, axial_geometry, write_dicom_series
from meddinov3_stroke import read_volume
from meddinov3_stroke.ct.dicom import survey as survey_module
from meddinov3_stroke.ct.dicom.read import DicomInput
from meddinov3_stroke.ct.geometry import MAX_TILT_DEGREES
from meddinov3_stroke.ct.scope import judge
from meddinov3_stroke.errors import CorruptInput, OutOfScope, UnsupportedInput
from meddinov3_stroke.types import SliceImage, Volume

GEOMETRY = axial_geometry([5.0] * 9, (9, 11))
HU = np.random.default_rng(0).integers(-1000, 2500, (10, 9, 11))


def written(folder: Path, geometry: SliceGeometry = GEOMETRY, hu: np.ndarray = HU, **options: Any) -> DicomSeriesTruth:
    return write_dicom_series(folder, hu, geometry, DicomOptions(**options))


def warnings_of(folder: Path, **options: Any) -> tuple[str, ...]:
    written(folder, **options)
    return read_volume(folder).warnings


def edit(path: Path, change: Callable[[pydicom.Dataset], Any]) -> None:
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def test_a_sound_series_gives_no_warning(tmp_path: Path) -> None:
    assert warnings_of(tmp_path) == ()


@pytest.mark.parametrize("is_turned", [False, True], ids=["upright", "turned"])
@pytest.mark.parametrize("names", ["ordered", "shuffled"])
def test_each_slice_names_the_image_that_it_shows(tmp_path: Path, names: Any, is_turned: bool) -> None:
    truth = written(tmp_path, axial_geometry([5.0] * 9, (9, 11), is_turned=is_turned), names=names)
    assert_images_are_right(read_volume(tmp_path), truth)


def test_images_are_right_where_slices_are_stored_downwards(tmp_path: Path) -> None:
    """A normal that points down: rows to the left, columns to the front."""
    upwards = axial_geometry([5.0] * 9, (9, 11))
    downwards = replace(
        upwards,
        positions_mm=upwards.positions_mm + np.array([0, 3.5 * 8, 0]),
        column_direction=-upwards.column_direction,
    )
    truth = written(tmp_path, downwards, names="shuffled")
    volume = read_volume(tmp_path)
    assert_images_are_right(volume, truth)
    assert (np.diff(volume.slice_positions_mm[:, 2]) > 0).all()


@pytest.mark.parametrize("layout", ["enhanced", "legacy"])
def test_each_slice_names_its_frame_counted_from_one(tmp_path: Path, layout: Any) -> None:
    truth = written(tmp_path, layout=layout, names="shuffled")
    volume = read_volume(tmp_path)
    assert_images_are_right(volume, truth)
    frames = [image.frame_number or 0 for image in volume.source.images]
    assert sorted(frames) == list(range(1, 11))
    assert frames != sorted(frames)


def assert_images_are_right(volume: Volume, truth: DicomSeriesTruth) -> None:
    """The image named for a slice has that slice's pixels and lies where the slice does."""
    by_image = {(image.sop_instance_uid, image.frame_number): image for image in truth.images}
    for k in range(volume.n_slices):
        named = volume.source.image_of(k)
        assert named is not None
        image = by_image[named.sop_instance_uid, named.frame_number]
        assert image.hu is not None
        assert image.plane is not None
        assert sorted(image.hu.ravel()) == sorted(volume.hu[k].ravel())
        assert image.plane.position_mm[2] == pytest.approx(volume.slice_positions_mm[k, 2], abs=1e-6)


def test_a_nifti_knows_no_image(head_nifti: Callable[..., Path]) -> None:
    assert read_volume(head_nifti()).source.image_of(0) is None


def test_a_regular_series_is_what_simpleitk_reads(tmp_path: Path) -> None:
    """Voxels, spacing, origin and directions of its ImageSeriesReader; LPS there, RAS+ here."""
    geometry = axial_geometry([4.0] * 9, (9, 11), pixel_spacing_mm=(0.75, 0.5), centre_mm=(3.5, -20.25, 41.0))
    truth = written(tmp_path, geometry, names="shuffled", extension="")
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path), truth.identity.series_uid)
    expected = SimpleITK.ReadImage(names)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, SimpleITK.GetArrayFromImage(expected))
    assert volume.spacing_mm == pytest.approx(expected.GetSpacing()[::-1])
    for index in [(0, 0, 0), (10, 8, 9), (3, 5, 2)]:
        x, y, z = expected.TransformIndexToPhysicalPoint(index)
        column, row, k = index
        np.testing.assert_allclose(volume.affine @ [k, row, column, 1], [-x, -y, z, 1], atol=1e-6)


def test_copies_are_left_out_and_counted(tmp_path: Path) -> None:
    told = "2 duplicate images were left out (inspect lists them)"
    assert told in warnings_of(tmp_path, copied_slices=(0,), repeated_slices=(4,))
    shutil.rmtree(tmp_path)
    assert "1 duplicate image was left out (inspect lists them)" in warnings_of(tmp_path, copied_slices=(0,))


def test_images_set_aside_are_counted_by_reason(tmp_path: Path) -> None:
    warnings = warnings_of(
        tmp_path, companions=("localizer", "secondary_capture", "rgb_summary", "dose_report"), n_coronal=3
    )
    (told,) = [one for one in warnings if "set aside" in one]
    assert told.startswith(
        "7 other images were set aside: slices are 90 degrees off axial; at most 45 are accepted (3), "
    )


def test_one_image_set_aside_is_told_in_the_singular(tmp_path: Path) -> None:
    assert "1 other image was set aside: a localizer (1)" in warnings_of(tmp_path, companions=("localizer",))


def test_another_usable_series_of_the_study_is_told(tmp_path: Path) -> None:
    written(tmp_path / "a", kernel="H30s")
    written(tmp_path / "b", kernel="H70h", seed=1, study_seed=0)
    volume = read_volume(tmp_path)
    assert "10 other images were set aside: another usable series (10)" in volume.warnings


def test_gaps_tilt_and_missing_slices_are_told(tmp_path: Path) -> None:
    written(tmp_path, axial_geometry([5.0] * 9, (9, 11), tilt_degrees=-18), missing_slices=(4,))
    assert read_volume(tmp_path).warnings == (
        "gantry tilt of -18.0 degrees; slices stay as acquired",
        "slices are not evenly spaced: gaps 4.755 mm x3, 9.511 mm x1, 4.755 mm x4; each slice keeps its own position",
        "a slice may be missing after slice 3 (Instance Number 4)",
    )


def test_slopes_that_differ_are_told_and_each_slice_is_read_by_its_own(tmp_path: Path) -> None:
    truth = written(tmp_path, rescale="per_slice")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, truth.hu)
    assert volume.stored.dtype == np.float32
    (told,) = [one for one in volume.warnings if "slope" in one]
    assert told.endswith("pairs of slope and intercept in one series; each slice is scaled by its own")


def test_a_slope_that_is_no_whole_number_gives_float32(tmp_path: Path) -> None:
    written(tmp_path, slope=1.5)
    volume = read_volume(tmp_path)
    assert volume.stored.dtype == np.float32
    assert np.abs(volume.hu - HU).max() <= 0.75


def test_one_slice_that_needs_float_makes_the_volume_float_and_no_other_slice_changes(tmp_path: Path) -> None:
    truth = written(tmp_path)

    def shift(dataset: pydicom.Dataset) -> None:
        dataset.RescaleIntercept = "-1024.5"

    edit(tmp_path / truth.images[6].file, shift)
    volume = read_volume(tmp_path)
    assert volume.stored.dtype == np.float32
    np.testing.assert_array_equal(volume.hu[6], np.maximum(HU[6] - 0.5, -1024))
    np.testing.assert_array_equal(np.delete(volume.hu, 6, 0), np.delete(HU, 6, 0))


def test_the_repair_of_wrapped_values_is_exact_and_told(tmp_path: Path) -> None:
    truth = written(tmp_path, pixels="wrapped12", header="stripped", names="sop_uid")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, truth.hu)
    assert any(one.startswith("10 of 10 slices had a wrong intercept") for one in volume.warnings)


def test_a_header_without_slope_and_intercept_is_told(tmp_path: Path) -> None:
    def bare(dataset: pydicom.Dataset) -> None:
        del dataset.RescaleSlope, dataset.RescaleIntercept

    truth = written(tmp_path, intercept=0.0)
    for image in truth.images:
        edit(tmp_path / image.file, bare)
    volume = read_volume(tmp_path)
    assert "no rescale slope or intercept in the header; stored values are taken as HU" in volume.warnings
    np.testing.assert_array_equal(volume.hu, HU)


def test_declared_padding_is_counted(tmp_path: Path) -> None:
    truth = written(tmp_path, padding_value=14)  # -1010 HU
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, truth.hu)
    n_padding = int((truth.hu == -1000).sum())
    assert volume.n_padding_voxels >= n_padding - int((HU == -1000).sum()) > 0
    assert any(one.endswith("pixels of declared padding read as air") for one in volume.warnings)


def test_a_modality_lut_is_applied(tmp_path: Path) -> None:
    truth = written(tmp_path, pixels="unsigned12", rescale="lut")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, truth.hu)
    assert not any("rescale slope" in one for one in volume.warnings)


@pytest.mark.parametrize("transfer_syntax", ["jpeg_ls_near", "jpeg_2000"])
def test_a_lossy_transfer_syntax_is_told(tmp_path: Path, transfer_syntax: str) -> None:
    geometry = axial_geometry([5.0] * 2, (32, 32))
    hu = np.random.default_rng(0).integers(-1000, 2500, (3, 32, 32))
    written(tmp_path, geometry, hu, transfer_syntax=transfer_syntax)
    assert any(one.endswith("which may have changed values") for one in read_volume(tmp_path).warnings)


def test_contrast_in_the_headers_of_what_is_read_is_judged_without_their_text(tmp_path: Path) -> None:
    written(tmp_path, contrast_agent="OMNIPAQUE")
    volume = read_volume(tmp_path)
    (found,) = judge(volume).refusals
    assert (found.rule, found.message) == ("contrast in the header", "ContrastBolusAgent names a contrast agent")
    assert "OMNIPAQUE" not in " ".join(volume.warnings)  # free text may name a patient


def test_different_pixels_at_one_position_are_refused_and_both_files_named(tmp_path: Path) -> None:
    truth = written(tmp_path, repeated_slices=(4,))
    first, second = [image.file for image in truth.images if image.slice_index == 4]
    (tmp_path / second).write_bytes((tmp_path / second).read_bytes()[:-1] + b"\x03")
    with pytest.raises(UnsupportedInput, match=f"different images at one position.*{first}.*{second}"):
        read_volume(tmp_path)


def test_acquisitions_at_the_same_positions_are_parted_and_one_is_read(tmp_path: Path) -> None:
    truth = written(tmp_path)
    again = written(tmp_path / "again", hu=HU + 7, names="sop_uid")
    for image in again.images:

        def second(dataset: pydicom.Dataset) -> None:
            dataset.AcquisitionNumber = 2
            dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID}1"

        edit(tmp_path / "again" / image.file, second)
    volume = read_volume(tmp_path)
    assert sorted(np.unique(volume.hu - truth.hu)) in ([0], [7])
    assert any(one.startswith("only 10 of the 20 slices of this series are read") for one in volume.warnings)


def test_a_named_series_that_was_set_aside_says_why(tmp_path: Path) -> None:
    written(tmp_path, companions=("secondary_capture",))
    uid = str(pydicom.dcmread(tmp_path / "SECONDARY_CAPTURE.dcm").SeriesInstanceUID)
    with pytest.raises(UnsupportedInput, match=f"series {uid} has no readable axial CT series.*modality OT"):
        read_volume(tmp_path, series=uid)


def test_an_undecodable_transfer_syntax_is_named(tmp_path: Path) -> None:
    truth = written(tmp_path, transfer_syntax="jpeg_ls")
    for image in truth.images:
        content = (tmp_path / image.file).read_bytes()
        (tmp_path / image.file).write_bytes(content.replace(b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.4.51"))
    with pytest.raises(
        UnsupportedInput, match=r"1\.2\.840\.10008\.1\.2\.4\.51 \(JPEG Extended.*export the series uncompressed"
    ):
        read_volume(tmp_path)


def test_a_single_slice_is_out_of_scope_unless_it_is_asked_for(tmp_path: Path) -> None:
    truth = written(tmp_path, axial_geometry([], (9, 11)), HU[:1])
    path = tmp_path / truth.images[0].file
    with pytest.raises(OutOfScope, match="a single image"):
        read_volume(path)
    volume = read_volume(path, allow_single_slice=True)
    np.testing.assert_array_equal(volume.hu, HU[:1])
    assert volume.spacing_mm == pytest.approx((5.0, 3.5, 3.5))
    assert volume.source.images == (SliceImage(truth.images[0].sop_instance_uid, instance_number=1),)


def test_a_series_that_is_not_axial_is_out_of_scope(tmp_path: Path) -> None:
    geometry = axial_geometry([5.0] * 9, (9, 11), tilt_degrees=MAX_TILT_DEGREES + 5)
    written(tmp_path, geometry)
    with pytest.raises(OutOfScope, match="slices are 50 degrees off axial; at most 45 are accepted"):
        read_volume(tmp_path)


@pytest.mark.parametrize(("slope", "intercept"), [("1e9", "-1024"), ("-1", "0"), ("1", "1e9"), ("1e-9", "0")])
def test_a_scaling_that_cannot_be_is_damage(tmp_path: Path, slope: str, intercept: str) -> None:
    def spoil(dataset: pydicom.Dataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept

    truth = written(tmp_path)
    edit(tmp_path / truth.images[5].file, spoil)
    with pytest.raises(CorruptInput, match=f"{truth.images[5].file}: Rescale Slope .* are impossible for CT"):
        read_volume(tmp_path)


def test_more_voxels_than_asked_for_are_refused_before_any_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path)
    monkeypatch.setattr("meddinov3_stroke.ct.dicom.read.decode_frame", None)
    with pytest.raises(UnsupportedInput, match="10 slices of 9 x 11 pixels; at most 989 voxels are read"):
        read_volume(tmp_path, max_voxels=989)


@pytest.mark.parametrize("name", ["IM0005.dcm", "gone.dcm"])
def test_a_file_that_changes_between_header_and_pixels_of_a_large_input_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Where nothing is kept, files are opened again for their pixels."""
    monkeypatch.setattr("meddinov3_stroke.ct.dicom.survey.KEEP_BYTES", 0)
    written(tmp_path)
    opened = DicomInput(tmp_path)
    assert opened.digest
    (tmp_path / "IM0005.dcm").write_bytes((tmp_path / "IM0005.dcm").read_bytes()[:-1] + b"\x07")
    (tmp_path / "IM0005.dcm").rename(tmp_path / name)
    with pytest.raises(CorruptInput, match=r"IM0005\.dcm changed while it was read"):
        opened.volume()


def test_the_bytes_that_gave_the_digest_are_those_that_are_decoded(tmp_path: Path) -> None:
    written(tmp_path)
    expected = read_volume(tmp_path)
    opened = DicomInput(tmp_path)
    digest = opened.digest
    for path in tmp_path.glob("*.dcm"):
        path.write_bytes(b"changed")
    volume = opened.volume()
    np.testing.assert_array_equal(volume.stored, expected.stored)
    assert digest == volume.source.sha256 == expected.source.sha256


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often each file was opened, hashed, walked and parsed, by (what, file)."""
    counted: Counter[tuple[str, str]] = Counter()
    path_open, digest = Path.open, survey_module.sha256

    def count_open(path: Path, *args: Any, **options: Any) -> Any:
        counted["opened", path.name] += 1
        return path_open(path, *args, **options)

    def count_hash(content: bytes) -> Any:
        counted["hashed", digest(content).hexdigest()] += 1
        return digest(content)

    def counting(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(content: Any, name: str) -> Any:
            counted[what, name] += 1
            return function(content, name)

        return call

    monkeypatch.setattr(Path, "open", count_open)
    monkeypatch.setattr(survey_module, "sha256", count_hash)
    for what in ("read_structure", "headers_of"):
        monkeypatch.setattr(survey_module, what, counting(what, getattr(survey_module, what)))
    return counted


def test_each_file_is_opened_hashed_walked_and_parsed_once_for_digest_and_volume(
    tmp_path: Path, counts: Counter[tuple[str, str]]
) -> None:
    hu = np.random.default_rng(1).integers(-1000, 2500, (50, 9, 11))
    truth = written(tmp_path, axial_geometry([5.0] * 49, (9, 11)), hu)
    counts.clear()
    opened = DicomInput(tmp_path)
    assert (len(opened.files), counts) == (50, Counter())
    assert opened.digest == opened.volume().source.sha256
    names = [image.file for image in truth.images]
    for what in ("opened", "read_structure", "headers_of"):
        assert {name: n for (kind, name), n in counts.items() if kind == what} == dict.fromkeys(names, 1)
    assert [n for (kind, _), n in counts.items() if kind == "hashed"] == [1] * 50


def test_of_a_header_index_only_the_files_of_the_series_are_opened(
    tmp_path: Path, counts: Counter[tuple[str, str]]
) -> None:
    wanted, other = written(tmp_path / "a"), written(tmp_path / "b", seed=1)
    rows = [
        (truth.identity.series_uid, f"{folder}/{image.file}")
        for folder, truth in (("a", wanted), ("b", other))
        for image in truth.images
    ]
    path = tmp_path / "index.parquet"
    pq.write_table(pa.table({"series_uid": [uid for uid, _ in rows], "file": [file for _, file in rows]}), path)
    counts.clear()
    opened = DicomInput(path, wanted.identity.series_uid)
    assert opened.files == (path, *(tmp_path / "a" / image.file for image in wanted.images))
    assert opened.volume().n_slices == 10
    assert sum(n for (kind, _), n in counts.items() if kind == "read_structure") == 10
    (tmp_path / "b" / other.images[0].file).unlink()
    assert DicomInput(path, wanted.identity.series_uid).digest == opened.digest


def test_the_files_of_an_input_are_those_that_it_depends_on(tmp_path: Path) -> None:
    truth = written(tmp_path / "study", names="ordered")
    images = tuple(tmp_path / "study" / image.file for image in truth.images)
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for path in images:
            archive.write(path, path.name)
    (tmp_path / "list.txt").write_text("\n".join(f"study/{path.name}" for path in images))
    assert DicomInput(tmp_path / "study").files == tuple(sorted(images))
    assert DicomInput(images).files == images
    assert DicomInput(tmp_path / "study.zip").files == (tmp_path / "study.zip",)
    assert DicomInput(tmp_path / "list.txt").files == (tmp_path / "list.txt", *images)
    assert len({DicomInput(tmp_path / name).digest for name in ("study", "study.zip", "list.txt")}) == 1


def test_bytes_of_files_are_dropped_when_they_are_decoded(tmp_path: Path) -> None:
    written(tmp_path / "a")
    written(tmp_path / "b", kernel="H70h", seed=1, study_seed=0)
    opened = DicomInput(tmp_path)
    assert opened.digest
    assert sorted(opened._kept.contents) == sorted(f"a/{path.name}" for path in (tmp_path / "a").iterdir())
    opened.volume()
    assert opened._kept.contents == {}
    assert opened.volume().source.sha256 == opened.digest  # read again


@pytest.mark.parametrize("layout", ["single", "enhanced"])
def test_an_input_too_large_to_keep_gives_the_same_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    written(tmp_path / "a", layout=layout)
    written(tmp_path / "b", kernel="H70h", seed=1, study_seed=0)
    kept = read_volume(tmp_path)
    monkeypatch.setattr("meddinov3_stroke.ct.dicom.survey.KEEP_BYTES", 5000)
    opened = DicomInput(tmp_path)
    volume = opened.volume()
    np.testing.assert_array_equal(volume.stored, kept.stored)
    assert (asdict(volume.source), volume.warnings) == (asdict(kept.source), kept.warnings)


def test_the_stored_voxels_cannot_be_written_to(tmp_path: Path) -> None:
    written(tmp_path)
    assert not read_volume(tmp_path).stored.flags.writeable


def test_no_patient_attribute_is_in_the_volume(tmp_path: Path) -> None:
    truth = written(tmp_path, patient_id="CANARY-1")
    volume = read_volume(tmp_path)
    assert "CANARY" not in repr(volume.source) + " ".join(volume.warnings)
    assert truth.identity.patient_id == "CANARY-1"


@pytest.fixture(scope="module")
def real_dicom(shared_data_dir: Path) -> Volume:
    return read_volume(shared_data_dir / "head_ncct_dicom")


@pytest.mark.shared_data
def test_the_real_head_ct_is_one_volume_with_its_tilt_and_gaps_told(real_dicom: Volume) -> None:
    assert real_dicom.stored.shape == (28, 512, 512)
    assert real_dicom.warnings[:2] == (
        "gantry tilt of +18.5 degrees; slices stay as acquired",
        "slices are not evenly spaced: gaps 4.002 mm x13, 1.081 mm x1, 6.999 mm x13; each slice keeps its own position",
    )


@pytest.mark.shared_data
def test_the_real_head_ct_as_dicom_and_as_nifti_is_the_same_voxels(real_dicom: Volume, shared_data_dir: Path) -> None:
    nifti = read_volume(shared_data_dir / "head_ncct_nifti" / "head_ncct.nii.gz")
    np.testing.assert_array_equal(real_dicom.stored, nifti.stored)
    assert real_dicom.source.pixels_sha256 == nifti.source.pixels_sha256


@pytest.mark.shared_data
def test_each_slice_of_the_real_head_ct_lies_where_its_image_says(real_dicom: Volume, shared_data_dir: Path) -> None:
    datasets = [pydicom.dcmread(path) for path in (shared_data_dir / "head_ncct_dicom").glob("*.dcm")]
    by_uid = {str(dataset.SOPInstanceUID): dataset for dataset in datasets}
    for k, image in enumerate(real_dicom.source.images):
        dataset = by_uid[image.sop_instance_uid]
        x, y, z = (float(value) for value in dataset.ImagePositionPatient)
        np.testing.assert_allclose(real_dicom.slice_positions_mm[k], [-x, -y, z], atol=1e-6)
        np.testing.assert_array_equal(real_dicom.stored[k], dataset.pixel_array)


@pytest.mark.shared_data
def test_of_the_real_phantom_study_exactly_the_axial_series_is_read(shared_data_dir: Path) -> None:
    volume = read_volume(shared_data_dir / "head_phantom_dicom")
    assert volume.stored.shape == (28, 512, 512)
    assert volume.spacing_mm[0] == pytest.approx(5.0)
    headers = [pydicom.dcmread(path) for path in (shared_data_dir / "head_phantom_dicom" / "S2010").iterdir()]
    expected = {str(header.SOPInstanceUID) for header in headers if "PixelData" in header}
    assert {image.sop_instance_uid for image in volume.source.images} == expected
    assert any(one.startswith("7 other images were set aside: ") for one in volume.warnings)
