"""What an input holds, series by series, with a verdict that reading bears out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from rich.console import Console

from dicom_writer import DicomOptions, DicomSeriesTruth, axial_geometry, write_dicom_series
from meddinov3_stroke import read_volume
from meddinov3_stroke.commands.inspect import print_inspection
from meddinov3_stroke.ct.dicom.choice import Inspection, SeriesFacts, inspect_dicom
from meddinov3_stroke.errors import InputError, MedDINOError, MissingInput

GEOMETRY = axial_geometry([5.0] * 9, (9, 11), tilt_degrees=12)
HU = np.random.default_rng(0).integers(-1000, 2500, (10, 9, 11))


def written(folder: Path, **options: Any) -> DicomSeriesTruth:
    return write_dicom_series(folder, HU, GEOMETRY, DicomOptions(**options))


def by_reason(found: Inspection) -> dict[str, SeriesFacts]:
    return {one.reason: one for one in found.series}


def shown(found: Inspection, width: int = 80) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        print_inspection(found, "the rule", console)
    return capture.get()


def test_a_sound_series_is_used_and_its_facts_are_told(tmp_path: Path) -> None:
    truth = written(tmp_path, transfer_syntax="jpeg_ls", kernel="H30s", description="Head 5.0")
    (one,) = inspect_dicom(tmp_path).series
    assert (one.verdict, one.reason) == ("used", "")
    assert one.series_instance_uid == truth.identity.series_uid
    assert (one.modality, one.description, one.kernel, one.series_number) == ("CT", "Head 5.0", "H30S", 2)
    assert (one.n_images, one.rows, one.columns) == (10, 9, 11)
    assert one.spacing_mm == pytest.approx((5 * np.cos(np.radians(12)), 3.5, 3.5))
    assert one.tilt_degrees == pytest.approx(12, abs=1e-3)
    assert one.transfer_syntax == "JPEG-LS Lossless Image Compression"
    assert one.notes == ("gantry tilt of +12.0 degrees; slices stay as acquired",)


def test_what_is_set_aside_says_why(tmp_path: Path) -> None:
    written(tmp_path, companions=("localizer", "secondary_capture", "rgb_summary", "dose_report"), n_coronal=3)
    found = by_reason(inspect_dicom(tmp_path))
    assert {reason: one.verdict for reason, one in found.items() if reason} == {
        "a localizer": "set aside",
        "modality OT, not CT": "set aside",
        "a colour picture (RGB)": "set aside",
        "no image, a document or another object": "set aside",
        "slices are 78 degrees off axial; at most 45 are accepted": "set aside",
    }


def test_pictures_of_two_sizes_are_told_apart(tmp_path: Path) -> None:
    truth = written(tmp_path, companions=("rgb_summary",))
    dataset = pydicom.dcmread(tmp_path / "RGB_SUMMARY.dcm")
    dataset.Rows, dataset.SOPInstanceUID = dataset.Rows // 2, f"{truth.images[-1].sop_instance_uid}1"
    dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // 2]
    dataset.save_as(tmp_path / "SECOND.dcm")
    sizes = [(one.rows, one.columns) for one in inspect_dicom(tmp_path).series if "colour" in one.reason]
    assert sorted(sizes) == [(24, 64), (48, 64)]


def test_a_series_that_the_rule_passes_over_says_how_to_read_it(tmp_path: Path) -> None:
    written(tmp_path / "a")
    written(tmp_path / "b", seed=1, study_seed=0, kernel="H70h", series_number=1)
    sharp, soft = inspect_dicom(tmp_path).series
    assert (sharp.verdict, soft.verdict) == ("set aside", "used")
    assert sharp.reason == "the rule selects another series; name this one with --series"
    assert read_volume(tmp_path, series=sharp.series_instance_uid).n_slices == 10


def test_one_series_is_used_of_each_study(tmp_path: Path) -> None:
    written(tmp_path / "a")
    written(tmp_path / "b", seed=1)
    found = inspect_dicom(tmp_path)
    assert found.n_used == 2
    assert "several patients or studies: to read one, name its series with --series UID" in shown(found)


def test_one_series_is_used_of_each_patient_of_a_study(tmp_path: Path) -> None:
    written(tmp_path / "a")
    written(tmp_path / "b", seed=1, study_seed=0, patient_id="OTHER")
    assert inspect_dicom(tmp_path).n_used == 2


def undecodable(folder: Path) -> None:
    for image in written(folder, transfer_syntax="jpeg_ls").images:
        content = (folder / image.file).read_bytes()
        (folder / image.file).write_bytes(content.replace(b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.4.51"))


def impossible_scaling(folder: Path) -> None:
    path = folder / written(folder).images[4].file
    dataset = pydicom.dcmread(path)
    dataset.RescaleSlope = "1e9"
    dataset.save_as(path)


def clashing(folder: Path) -> None:
    path = folder / written(folder, repeated_slices=(3,)).images[4].file
    path.write_bytes(path.read_bytes()[:-1] + b"\x03")


@pytest.mark.parametrize("spoil", [undecodable, impossible_scaling, clashing], ids=lambda spoil: spoil.__name__)
def test_what_is_refused_is_refused_by_reading_too_with_the_same_words(tmp_path: Path, spoil: Any) -> None:
    spoil(tmp_path)
    (one,) = inspect_dicom(tmp_path).series
    assert one.verdict == "refused"
    with pytest.raises(InputError) as caught:
        read_volume(tmp_path)
    assert one.reason in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "status", "code"),
    [
        (undecodable, "rejected", "E-INPUT-UNSUPPORTED"),
        (impossible_scaling, "rejected", "E-INPUT-CORRUPT"),
        (clashing, "rejected", "E-INPUT-UNSUPPORTED"),
        (lambda folder: written(folder, missing_slices=tuple(range(1, 10))), "refused", "E-SCOPE"),
        (written, "done", ""),
    ],
    ids=["undecodable", "scaling", "clash", "single slice", "sound"],
)
def test_the_outcome_has_the_status_and_code_of_the_error(tmp_path: Path, spoil: Any, status: str, code: str) -> None:
    spoil(tmp_path)
    (one,) = inspect_dicom(tmp_path).series
    assert (one.outcome.status, one.outcome.code) == (status, code)
    if status != "done":
        with pytest.raises(MedDINOError) as caught:
            read_volume(tmp_path)
        assert caught.value.code == code


def test_copies_are_listed(tmp_path: Path) -> None:
    written(tmp_path, copied_slices=(0,), repeated_slices=(5,))
    (one,) = inspect_dicom(tmp_path).series
    assert len(one.duplicates) == 2
    assert "IM0002.dcm" in one.duplicates
    assert "2 duplicates dropped: IM0002.dcm, " in shown(inspect_dicom(tmp_path))


def test_damaged_files_are_listed_and_their_consequence_told(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "IM0004.dcm").write_bytes((tmp_path / "IM0004.dcm").read_bytes()[:-20])
    found = inspect_dicom(tmp_path)
    ((name, reason),) = found.damaged
    assert name == "IM0004.dcm"
    assert "truncated" in reason
    assert "a damaged file makes its series unreadable" in shown(found)


def test_contrast_is_told(tmp_path: Path) -> None:
    written(tmp_path, contrast_agent="OMNIPAQUE")
    assert inspect_dicom(tmp_path).series[0].contrast == "agent 'OMNIPAQUE'"


def test_nothing_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingInput):
        inspect_dicom(tmp_path / "gone")
    with pytest.raises(MissingInput):
        inspect_dicom(tmp_path)


def messy(folder: Path) -> Inspection:
    """A study with everything in it."""
    everything = ("localizer", "secondary_capture", "rgb_summary", "dose_report", "clutter")
    written(
        folder / "a", companions=everything, copied_slices=(1, 2), description="[bold]Head[/bold] [1] " + "long " * 8
    )
    written(folder / "b", seed=1, study_seed=0, kernel="H70h", series_number=1)
    (folder / "a" / "IM0004.dcm").write_bytes((folder / "a" / "IM0004.dcm").read_bytes()[:-20])
    return inspect_dicom(folder)


def test_no_line_is_wider_than_the_terminal_and_all_lines_of_a_block_are_indented(tmp_path: Path) -> None:
    text = shown(messy(tmp_path))
    assert max(map(len, text.splitlines())) <= 80
    start, end = text.index("used  "), text.index(" files without an image")
    blocks = text[start:end].splitlines()[:-1]
    assert all(line.startswith(("used", "set aside", "refused", " " * 11)) for line in blocks)


def test_the_series_that_is_used_comes_first(tmp_path: Path) -> None:
    lines = shown(messy(tmp_path)).splitlines()
    assert lines[0].startswith("Study ")
    assert lines[1].startswith("used ")


def test_square_brackets_in_a_description_are_shown_as_they_are(tmp_path: Path) -> None:
    assert "[bold]Head[/bold] [1] long" in shown(messy(tmp_path), width=200)


def test_the_summary_counts_files_series_and_those_used(tmp_path: Path) -> None:
    """The localizer lies in the series of the slices."""
    assert "\n32 files, 5 series, 1 used\n" in shown(messy(tmp_path))
    assert shown(messy(tmp_path)).rstrip().endswith("rule: the rule")


@pytest.mark.shared_data
def test_of_the_real_phantom_study_seven_images_are_set_aside_with_reasons(shared_data_dir: Path) -> None:
    found = inspect_dicom(shared_data_dir / "head_phantom_dicom")
    (used,) = [one for one in found.series if one.verdict == "used"]
    assert (used.n_images, used.spacing_mm[0] if used.spacing_mm else 0) == (28, pytest.approx(5.0))
    aside = {(one.reason, one.n_images, one.rows) for one in found.series if one.verdict == "set aside"}
    assert aside == {
        ("a localizer", 1, 256),
        ("a secondary capture", 3, 256),
        ("a colour picture (RGB)", 2, 512),
        ("a colour picture (RGB)", 1, 741),
    }


def test_what_volumes_of_one_series_differ_in_is_shown(tmp_path: Path) -> None:
    truth = written(tmp_path)
    for image in truth.images[6:]:
        dataset = pydicom.dcmread(tmp_path / image.file)
        dataset.ConvolutionKernel = "H60s"
        dataset.save_as(tmp_path / image.file)
    text = shown(inspect_dicom(tmp_path), width=200)
    assert "differs from #1 in kernel H30S / H60S" in text
    assert f"UID {truth.identity.series_uid}#2" in text
    assert "UID#1, UID#2, ...: volumes of one series, in order of phase" in text


def test_images_with_a_series_uid_each_are_said_to_be_so_with_the_flag_that_joins_them(tmp_path: Path) -> None:
    for k, image in enumerate(written(tmp_path).images):
        dataset = pydicom.dcmread(tmp_path / image.file)
        dataset.SeriesInstanceUID = f"2.25.{k + 1}"
        dataset.save_as(tmp_path / image.file)
    said = "every image has a series UID of its own: --join-series lists and reads them as one series"
    assert said in shown(inspect_dicom(tmp_path), width=200)
    joined = inspect_dicom(tmp_path, join_series=True)
    assert said not in shown(joined, width=200)
    assert [one.n_images for one in joined.series] == [10]
