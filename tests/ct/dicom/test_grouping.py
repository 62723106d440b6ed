"""Which images of a series become one volume, how several are told apart, and how one is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from dicom_writer import DicomOptions, DicomSeriesTruth, axial_geometry, write_dicom_series
from meddinov3_stroke import read_volume
from meddinov3_stroke.ct import open_input
from meddinov3_stroke.ct.dicom.choice import inspect_dicom
from meddinov3_stroke.errors import AmbiguousInput, CorruptInput, MissingInput, OutOfScope, UnsupportedInput, UsageError
from meddinov3_stroke.types import Volume, VolumeInput

HU = np.random.default_rng(0).integers(-1000, 2500, (10, 9, 11))
Change = Callable[[int, pydicom.Dataset], Any]


def written(folder: Path, hu: np.ndarray = HU, gap_mm: float = 5.0, **options: Any) -> DicomSeriesTruth:
    return write_dicom_series(folder, hu, axial_geometry([gap_mm] * (len(hu) - 1), (9, 11)), DicomOptions(**options))


def change(folder: Path, each: Change) -> None:
    """Change file k of the folder, in the order of slices."""
    for k, path in enumerate(sorted(folder.glob("IM*.dcm"))):
        dataset = pydicom.dcmread(path)
        each(k, dataset)
        dataset.save_as(path)


def change_half(folder: Path, keyword: str, value: Any, *, which: str = "every other") -> None:
    def each(k: int, dataset: pydicom.Dataset) -> None:
        if k % 2 if which == "every other" else k < 5:
            setattr(dataset, keyword, value)

    change(folder, each)


def moved(dataset: pydicom.Dataset, dz_mm: float) -> None:
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, y, round(float(z) + dz_mm, 6)]


def several(folder: Path, keyword: str, n: int = 2, apart_mm: float = 0.0) -> list[Volume]:
    """Writes `n` volumes under one series UID, `keyword` 1 to n, and returns what each holds."""
    uid, alone = "", []
    for k in range(n):
        part = folder / str(k)
        truth = written(part, np.roll(HU, 3 * k, axis=2), seed=k)
        uid, study, frame = uid or truth.identity.series_uid, "2.25.1", "2.25.2"

        def each(_: int, dataset: pydicom.Dataset, k: int = k, ids: Any = (uid, study, frame)) -> None:
            dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = ids
            dataset.PatientID, dataset.AcquisitionNumber = "P", 1
            setattr(dataset, keyword, k + 1)
            moved(dataset, k * apart_mm)

        change(part, each)
        alone.append(read_volume(part))
    return alone


def turned(radians: float) -> list[float]:
    return [1.0, 0.0, 0.0, 0.0, float(np.cos(radians)), float(np.sin(radians))]


TRIFLES: dict[str, tuple[str, Any, Any]] = {
    "orientation": ("ImageOrientationPatient", turned(0.0015), turned(0)),
    "pixel spacing": ("PixelSpacing", [3.5003, 3.5003], [3.5, 3.5]),
    "agent NONE": ("ContrastBolusAgent", "NONE", ""),
    "agent ohne KM": ("ContrastBolusAgent", "ohne KM", "N/A"),
    "agent keine": ("ContrastBolusAgent", "Keine", ""),
    "case of an agent": ("ContrastBolusAgent", "OMNIPAQUE  350", "Omnipaque 350"),
    "frame of reference": ("FrameOfReferenceUID", "", "2.25.9"),
    "kernel": ("ConvolutionKernel", "", "H31s"),
    "derived": ("ImageType", ["DERIVED", "SECONDARY", "AXIAL"], ["ORIGINAL", "PRIMARY", "AXIAL"]),
}


@pytest.mark.parametrize("which", ["every other", "the lower half"])
@pytest.mark.parametrize(("keyword", "value", "else_value"), TRIFLES.values(), ids=TRIFLES.keys())
def test_a_trifle_splits_no_head(tmp_path: Path, which: str, keyword: str, value: Any, else_value: Any) -> None:
    written(tmp_path)
    change(tmp_path, lambda _, dataset: setattr(dataset, keyword, else_value))
    whole = read_volume(tmp_path)
    change_half(tmp_path, keyword, value, which=which)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, whole.hu)
    assert volume.source.images == whole.source.images
    name = {"ConvolutionKernel": "kernel", "FrameOfReferenceUID": "frame of reference", "ImageType": "image type"}
    name["ImageOrientationPatient"] = "orientation"
    said = [f"slices that differ in {name[keyword]} (" in one for one in volume.warnings]
    assert said == ([True] if keyword in name else [])


@pytest.mark.parametrize("z_mm", [50.0, 22.5, 120.0], ids=["the next slice", "between two", "far above"])
def test_a_derived_image_among_slices_is_no_slice(tmp_path: Path, z_mm: float) -> None:
    written(tmp_path)
    whole = read_volume(tmp_path)
    dataset = pydicom.dcmread(min(tmp_path.glob("*.dcm")))
    dataset.ImageType, dataset.SOPInstanceUID = ["DERIVED", "SECONDARY", "AXIAL"], "2.25.77"
    dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.77"
    x, y, _ = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, y, z_mm]
    dataset.save_as(tmp_path / "derived.dcm")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, whole.hu)
    assert any("a single image (1)" in one for one in volume.warnings)


def test_volumes_of_one_series_have_digests_of_their_own_even_in_the_same_files(tmp_path: Path) -> None:
    """Digests cover which frame is of which file: two objects with the halves of two phases in turn."""
    written(tmp_path)
    digests = set()
    for k in range(2):
        volume = read_volume(sorted(tmp_path.glob("*.dcm"))[k : k + 3])
        digests.add(volume.source.sha256)
    assert len(digests) == 2


def test_a_part_of_a_series_and_the_same_part_beside_the_rest_have_digests_of_their_own(tmp_path: Path) -> None:
    """What is said about the rest of an input is cached with what is computed."""
    written(tmp_path)
    alone = read_volume(sorted(tmp_path.glob("*.dcm")))
    change_half(tmp_path, "ConvolutionKernel", "H60s", which="the lower half")
    files = sorted(tmp_path.glob("*.dcm"))
    both = read_volume(files)
    part = [
        path
        for path in files
        if pydicom.dcmread(path).SOPInstanceUID in {i.sop_instance_uid for i in both.source.images}
    ]
    assert read_volume(part).source.sha256 not in (both.source.sha256, alone.source.sha256)


@pytest.mark.parametrize(
    ("keyword", "value", "difference"),
    [
        ("ConvolutionKernel", "H60s", "kernel H30S / H60S"),
        ("ContrastBolusAgent", "OMNIPAQUE", "contrast agent none / stated"),
        ("FrameOfReferenceUID", "2.25.9", r"frame of reference [\d.]+ / 2\.25\.9"),
        ("ImageType", ["DERIVED", "SECONDARY", "MPR"], "image type ORIGINAL / DERIVED, reformat none / MPR"),
        ("ImageOrientationPatient", turned(0.1), "orientation turned by 5.7 degrees"),
        ("PixelSpacing", [3.4, 3.4], "pixel spacing 3.5 x 3.5 mm / 3.4 x 3.4 mm"),
    ],
)
def test_what_is_left_out_is_told_by_key_and_both_values(
    tmp_path: Path, keyword: str, value: Any, difference: str
) -> None:
    uid = written(tmp_path, missing_slices=(9,)).identity.series_uid
    whole = read_volume(tmp_path).hu
    change_half(tmp_path, keyword, value)
    first, second = (read_volume(tmp_path, series=f"{uid}#{k}") for k in (1, 2))
    np.testing.assert_array_equal(first.hu, whole[::2])
    np.testing.assert_array_equal(second.hu, whole[1::2])
    expected = rf"only 5 of the 9 slices of this series are read \({uid}#1\); not read: {uid}#2 \({difference}\)"
    assert re.match(expected, first.warnings[0]), first.warnings[0]


@pytest.mark.parametrize("apart_mm", [1.3, 0.4, 4.9, 0.0])
def test_two_passes_under_one_series_uid_are_two_volumes(tmp_path: Path, apart_mm: float) -> None:
    alone = several(tmp_path, "AcquisitionNumber", apart_mm=apart_mm)
    uid = alone[0].source.series_instance_uid
    for k, expected in enumerate(alone):
        found = read_volume(tmp_path, series=f"{uid}#{k + 1}")
        np.testing.assert_array_equal(found.hu, expected.hu)
        np.testing.assert_allclose(found.slice_positions_mm, expected.slice_positions_mm)
        assert f"(acquisition number {k + 1} / {2 - k})" in found.warnings[0]
    assert [one.name for one in inspect_dicom(tmp_path).series] == [f"{uid}#1", f"{uid}#2"]


def test_two_passes_that_make_one_even_comb_are_warned_of(tmp_path: Path) -> None:
    several(tmp_path, "AcquisitionNumber", apart_mm=2.5)
    volume = read_volume(tmp_path)
    assert volume.n_slices == 20
    (warning,) = volume.warnings
    assert "slices of several acquisitions alternate" in warning
    assert "list the files of one in a .txt" in warning
    (tmp_path / "one.txt").write_text("\n".join(map(str, (tmp_path / "0").iterdir())))
    assert read_volume(tmp_path / "one.txt").warnings == ()


@pytest.mark.parametrize("n_per_rotation", [1, 2, 5])
@pytest.mark.parametrize("is_uneven", [False, True], ids=["even", "2.5 then 5 mm"])
def test_rotations_that_continue_each_other_are_one_volume(
    tmp_path: Path, n_per_rotation: int, is_uneven: bool
) -> None:
    written(tmp_path)

    def each(k: int, dataset: pydicom.Dataset) -> None:
        dataset.AcquisitionNumber = k // n_per_rotation + 1
        moved(dataset, 2.5 * min(5 - k, 0) if is_uneven else 0.0)

    change(tmp_path, each)
    assert read_volume(tmp_path).n_slices == 10


def test_rounded_positions_are_no_two_passes(tmp_path: Path) -> None:
    written(tmp_path, gap_mm=4.85)

    def each(k: int, dataset: pydicom.Dataset) -> None:
        dataset.AcquisitionNumber = k % 2 + 1
        dataset.ImagePositionPatient = [0, 0, round(4.85 * k, 1)]

    change(tmp_path, each)
    assert read_volume(tmp_path).n_slices == 10


def test_a_slice_scanned_again_leaves_the_rotations_together(tmp_path: Path) -> None:
    written(tmp_path, repeated_slices=(3,))

    def each(k: int, dataset: pydicom.Dataset) -> None:
        dataset.AcquisitionNumber = k + 1
        dataset.PixelData = dataset.PixelData[:-1] + bytes([k])

    change(tmp_path, each)
    assert read_volume(tmp_path).n_slices == 10


@pytest.mark.parametrize(
    "keyword",
    [
        "TemporalPositionIndex",
        "TemporalPositionIdentifier",
        "FrameAcquisitionNumber",
        "AcquisitionNumber",
        "SeriesNumber",
    ],
)
def test_each_phase_of_a_series_over_time_is_read_by_its_number(tmp_path: Path, keyword: str) -> None:
    alone = several(tmp_path, keyword, n=4)
    uid = alone[0].source.series_instance_uid
    names = [one.name for one in inspect_dicom(tmp_path).series]
    assert sorted(names) == [f"{uid}#{k}" for k in (1, 2, 3, 4)]
    for k, expected in enumerate(alone):
        np.testing.assert_array_equal(read_volume(tmp_path, series=f"{uid}#{k + 1}").hu, expected.hu)
    np.testing.assert_array_equal(read_volume(tmp_path).hu, alone[0].hu)
    digests = {open_input(tmp_path, series=name).digest for name in names}
    assert len(digests) == 4


def test_phases_of_an_enhanced_object_are_told_apart(tmp_path: Path) -> None:
    written(tmp_path, np.concatenate([HU, HU + 1]), layout="enhanced")
    (path,) = tmp_path.glob("*.dcm")
    dataset = pydicom.dcmread(path)
    groups = dataset.PerFrameFunctionalGroupsSequence
    for k, group in enumerate(groups):
        group.FrameContentSequence[0].TemporalPositionIndex = k // 10 + 1
        group.PlanePositionSequence = groups[k % 10].PlanePositionSequence
    dataset.save_as(path)
    uid = str(dataset.SeriesInstanceUID)
    found = [read_volume(path, series=f"{uid}#{k}") for k in (1, 2)]
    np.testing.assert_array_equal(found[0].hu + 1, found[1].hu)
    assert found[0].source.sha256 != found[1].source.sha256


def test_a_volume_that_a_series_has_not_is_missing_with_those_there_are(tmp_path: Path) -> None:
    uid = several(tmp_path, "AcquisitionNumber")[0].source.series_instance_uid
    with pytest.raises(MissingInput, match=rf"has no series {uid}#3; found {uid}#1, {uid}#2; "):
        read_volume(tmp_path, series=f"{uid}#3")
    assert read_volume(tmp_path / "0", series=f"{uid}#1").warnings == ()


def test_two_patients_under_one_series_uid_are_named_and_read(tmp_path: Path) -> None:
    uid = written(tmp_path).identity.series_uid
    change_half(tmp_path, "PatientID", "another")
    with pytest.raises(AmbiguousInput, match=rf"2 patients.*one of {uid}#1, {uid}#2;"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, series=f"{uid}#2")
    assert volume.n_slices == 5
    assert f"{uid}#1 (patient)" in volume.warnings[0]


@pytest.mark.parametrize("patient_id", ["p1", "P 1"])
def test_patient_ids_that_differ_in_case_or_blanks_are_one_patient(tmp_path: Path, patient_id: str) -> None:
    written(tmp_path, patient_id="P1")
    change_half(tmp_path, "PatientID", patient_id)
    volume = read_volume(tmp_path)
    assert volume.n_slices == 10
    assert volume.warnings == ("patient IDs that differ in case or blanks only are taken as one patient",)


def own_uids(folder: Path) -> None:
    change(folder, lambda k, dataset: setattr(dataset, "SeriesInstanceUID", f"2.25.7{k:02d}"))


def test_images_with_a_series_uid_each_are_joined_when_asked_for(tmp_path: Path) -> None:
    written(tmp_path)
    whole = read_volume(tmp_path)
    own_uids(tmp_path)
    with pytest.raises(
        UnsupportedInput, match=r"every image has a series UID of its own \(10 images\);.*--join-series"
    ):
        read_volume(tmp_path)
    joined = read_volume(tmp_path, join_series=True)
    np.testing.assert_array_equal(joined.hu, whole.hu)
    assert joined.source.series_instance_uid == "2.25.700"
    assert joined.warnings == ("images of 10 series UIDs are read as one series, 2.25.700 (--join-series)",)
    assert read_volume(VolumeInput(tmp_path, join_series=True)).warnings == joined.warnings
    (one,) = inspect_dicom(tmp_path, join_series=True).series
    assert (one.name, one.verdict, one.n_images) == ("2.25.700", "used", 10)


def test_what_does_not_fit_is_not_joined(tmp_path: Path) -> None:
    written(tmp_path)
    own_uids(tmp_path)
    change_half(tmp_path, "ConvolutionKernel", "H70h")
    (soft, sharp) = inspect_dicom(tmp_path, join_series=True).series
    assert (soft.name, soft.verdict, sharp.name) == ("2.25.700", "used", "2.25.701")
    assert read_volume(tmp_path, series="2.25.701", join_series=True).n_slices == 5


def test_images_with_a_study_uid_each_cannot_be_joined_and_say_so(tmp_path: Path) -> None:
    written(tmp_path)
    own_uids(tmp_path)
    change(tmp_path, lambda k, dataset: setattr(dataset, "StudyInstanceUID", f"2.25.8{k:02d}"))
    with pytest.raises(UnsupportedInput, match=r"\(10 images\) and a study UID too; export the study again"):
        read_volume(tmp_path)


def test_single_images_that_were_joined_in_vain_are_single_images(tmp_path: Path) -> None:
    written(tmp_path)
    own_uids(tmp_path)
    change(tmp_path, lambda k, dataset: setattr(dataset, "ConvolutionKernel", f"K{k}"))
    with pytest.raises(OutOfScope, match="a single image"):
        read_volume(tmp_path, join_series=True)


def test_two_agents_are_two_volumes_and_no_agent_is_quoted(tmp_path: Path) -> None:
    written(tmp_path)
    change(tmp_path, lambda k, dataset: setattr(dataset, "ContrastBolusAgent", f"CANARY {k % 2}"))
    (warning,) = [one for one in read_volume(tmp_path).warnings if one.startswith("only 5 of the 10")]
    assert "(another contrast agent)" in warning
    assert "CANARY" not in warning


def test_joining_is_no_matter_of_nifti(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="omit --join-series"):
        read_volume(tmp_path / "a.nii.gz", join_series=True)


def cut(folder: Path, name: str, **changes: Any) -> None:
    dataset = pydicom.dcmread(sorted(folder.glob("IM*.dcm"))[0])
    dataset.SOPInstanceUID = "2.25.5"
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    dataset.save_as(folder / name)
    (folder / name).write_bytes((folder / name).read_bytes()[:-40])


LOCALIZER = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
LEFT_OUT = "1 damaged file of another series or kind left out (inspect lists them)"


@pytest.mark.parametrize("changes", [{}, {"SeriesInstanceUID": "2.25.6"}], ids=["of the series", "of its own"])
def test_a_truncated_localizer_is_warned_of(tmp_path: Path, changes: dict[str, Any]) -> None:
    written(tmp_path)
    cut(tmp_path, "CUT.dcm", **LOCALIZER, **changes)
    volume = read_volume(tmp_path)
    assert volume.n_slices == 10
    assert volume.warnings == (LEFT_OUT,)
    assert [name for name, _ in inspect_dicom(tmp_path).damaged] == ["CUT.dcm"]


def test_a_truncated_slice_of_a_series_that_is_not_read_is_warned_of(tmp_path: Path) -> None:
    written(tmp_path)
    written(tmp_path / "other", seed=1, study_seed=0, kernel="H70h")
    sharp = read_volume(tmp_path / "other").source.series_instance_uid
    cut(tmp_path, "CUT.dcm", SeriesInstanceUID=sharp)
    assert LEFT_OUT in read_volume(tmp_path).warnings
    with pytest.raises(CorruptInput, match="truncated"):
        read_volume(tmp_path, series=sharp)


def test_a_series_of_damaged_files_alone_is_passed_over_only_by_naming_another(tmp_path: Path) -> None:
    uid = written(tmp_path).identity.series_uid
    cut(tmp_path, "CUT.dcm", SeriesInstanceUID="2.25.6")
    with pytest.raises(CorruptInput, match=rf"truncated.*; or name the series to read: --series {uid}$"):
        read_volume(tmp_path)
    assert read_volume(tmp_path, series=uid).warnings == (LEFT_OUT,)


@pytest.mark.parametrize("changes", [{}, {"SeriesInstanceUID": ""}], ids=["of the series", "of an unknown one"])
def test_a_truncated_slice_is_an_error_until_the_good_files_are_listed(tmp_path: Path, changes: dict[str, Any]) -> None:
    written(tmp_path)
    cut(tmp_path, "CUT.dcm", **changes)
    with pytest.raises(CorruptInput, match=r"CUT\.dcm.*truncated"):
        read_volume(tmp_path)
    (tmp_path / "good.txt").write_text("\n".join(str(path) for path in tmp_path.glob("IM*.dcm")))
    assert read_volume(tmp_path / "good.txt").n_slices == 10


def test_with_joined_series_a_truncated_slice_of_any_of_them_is_an_error(tmp_path: Path) -> None:
    written(tmp_path)
    own_uids(tmp_path)
    cut(tmp_path, "CUT.dcm", SeriesInstanceUID="2.25.6")
    with pytest.raises(CorruptInput, match="truncated"):
        read_volume(tmp_path, join_series=True)


def test_different_images_at_one_position_are_read_from_a_list_of_one_volume(tmp_path: Path) -> None:
    several(tmp_path, "InstanceNumber")
    with pytest.raises(UnsupportedInput, match=r"no phase or acquisition separates them; list the files of one volume"):
        read_volume(tmp_path)
    (tmp_path / "one.txt").write_text("\n".join(map(str, (tmp_path / "1").iterdir())))
    assert read_volume(tmp_path / "one.txt").n_slices == 10


def test_notes_give_the_instance_number_beside_the_index(tmp_path: Path) -> None:
    written(tmp_path, missing_slices=(4,))
    change(tmp_path, lambda k, dataset: setattr(dataset, "InstanceNumber", 100 - k))
    volume = read_volume(tmp_path)
    assert volume.warnings[-1] == "a slice may be missing after slice 3 (Instance Number 97)"
    assert [image.instance_number for image in volume.source.images] == [100 - k for k in range(9)]


def test_notes_of_multi_frame_objects_give_no_number_of_the_object(tmp_path: Path) -> None:
    written(tmp_path, missing_slices=(4,), layout="enhanced")
    assert read_volume(tmp_path).warnings[-1] == "a slice may be missing after slice 3"
