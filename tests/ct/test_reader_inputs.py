"""One series, in whatever form it comes, is one volume; anything else is refused by name."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicom_writer import DicomOptions, DicomSeriesTruth, axial_geometry, write_dicom_series
from meddinov3_stroke import read_volume
from meddinov3_stroke.ct import open_input, source_path
from meddinov3_stroke.ct.reader import as_input
from meddinov3_stroke.errors import AmbiguousInput, CorruptInput, InputError, MissingInput, UnsupportedInput, UsageError
from meddinov3_stroke.types import Volume, VolumeInput

GEOMETRY = axial_geometry([5.0] * 9, (9, 11), tilt_degrees=10)
HU = np.random.default_rng(0).integers(-1000, 2500, (10, 9, 11))


def series(folder: Path, **options: Any) -> DicomSeriesTruth:
    return write_dicom_series(folder, HU, GEOMETRY, DicomOptions(**options))


def zipped(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def as_archive(folder: Path) -> Path:
    return zipped(folder, folder.parent / "study.zip", prefix="export/ST1/")


def as_list(folder: Path) -> Path:
    path = folder.parent / "list.txt"
    path.write_text(
        "# one series\n" + "".join(f"{file.relative_to(folder.parent)}\n" for file in sorted(folder.iterdir()))
    )
    return path


def as_paths(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), reverse=True)


def as_names(folder: Path) -> tuple[str, ...]:
    return tuple(str(path) for path in as_paths(folder))


def nested(folder: Path) -> Path:
    for k, file in enumerate(sorted(folder.iterdir())):
        home = folder / f"S{k % 3}" / "deeper"
        home.mkdir(parents=True, exist_ok=True)
        file.rename(home / file.name)
    return folder


def without_extensions(folder: Path) -> Path:
    for file in sorted(folder.iterdir()):
        file.rename(file.with_suffix(""))
    return folder


def beside_clutter(folder: Path) -> Path:
    series(folder, companions=("clutter",))
    return folder


def renamed(folder: Path) -> Path:
    """Last file first by name."""
    for k, file in enumerate(sorted(folder.iterdir(), reverse=True)):
        file.rename(folder / f"x{k:03d}.img")
    return folder


def folder_itself(folder: Path) -> str:
    return str(folder)


def as_volume_input(folder: Path) -> VolumeInput:
    return VolumeInput(folder)


WAYS: tuple[Callable[[Path], Any], ...] = (
    *(folder_itself, as_archive, as_list, as_paths, as_names, nested, without_extensions, beside_clutter, renamed),
    as_volume_input,
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """The series as a plain folder."""
    folder = tmp_path_factory.mktemp("plain")
    series(folder)
    return read_volume(folder)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_one_series_is_one_volume_whatever_it_comes_in(
    tmp_path: Path, plain: Volume, way: Callable[[Path], Any]
) -> None:
    series(tmp_path / "series")
    source = way(tmp_path / "series")
    found = read_volume(source)
    np.testing.assert_array_equal(found.stored, plain.stored)
    np.testing.assert_array_equal(found.slice_positions_mm, plain.slice_positions_mm)
    np.testing.assert_array_equal(found.affine, plain.affine)
    assert found.source.images == plain.source.images
    assert found.source.sha256 == plain.source.sha256 == open_input(source).digest
    assert found.source.pixels_sha256 == plain.source.pixels_sha256


@pytest.mark.parametrize("layout", ["enhanced", "legacy"])
def test_a_single_file_of_many_frames_is_a_volume(tmp_path: Path, plain: Volume, layout: Any) -> None:
    series(tmp_path, layout=layout)
    found = read_volume(tmp_path / "FRAMES.dcm")
    np.testing.assert_array_equal(found.stored, plain.stored)
    assert found.source.sha256 == open_input(tmp_path / "FRAMES.dcm").digest == read_volume(tmp_path).source.sha256


def test_another_byte_in_a_file_is_another_digest(tmp_path: Path, plain: Volume) -> None:
    truth = series(tmp_path)
    path = tmp_path / truth.images[3].file
    path.write_bytes(path.read_bytes().replace(b"Synthetic head", b"Synthetic Head"))
    found = read_volume(tmp_path)
    assert found.source.sha256 != plain.source.sha256
    assert found.source.pixels_sha256 == plain.source.pixels_sha256
    assert found.source.sha256 == open_input(tmp_path).digest


def test_files_of_another_series_do_not_change_the_digest(tmp_path: Path, plain: Volume) -> None:
    series(tmp_path)
    series(tmp_path / "other", seed=5, study_seed=0, kernel="H70h")
    assert read_volume(tmp_path).source.sha256 == plain.source.sha256


def test_clutter_beside_the_series_is_reported(tmp_path: Path) -> None:
    series(tmp_path, companions=("clutter",))
    (warning,) = [one for one in read_volume(tmp_path).warnings if "not DICOM" in one]
    assert warning == "5 files are not DICOM and were set aside (inspect lists them)"


def test_one_file_beside_the_series_is_reported_in_the_singular(tmp_path: Path) -> None:
    series(tmp_path)
    (tmp_path / "notes").write_text("a note")
    assert "1 file is not DICOM and was set aside (inspect lists them)" in read_volume(tmp_path).warnings


def test_a_damaged_file_refuses_the_input_by_name(tmp_path: Path) -> None:
    series(tmp_path)
    path = tmp_path / "IM0004.dcm"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptInput, match=r"^IM0004\.dcm"):
        read_volume(tmp_path)
    with pytest.raises(CorruptInput, match=r"^IM0004\.dcm"):
        assert open_input(tmp_path).digest


def test_several_damaged_files_are_counted(tmp_path: Path) -> None:
    series(tmp_path)
    for name in ("IM0004.dcm", "IM0006.dcm"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
    with pytest.raises(CorruptInput, match=r"IM0004\.dcm.*\(2 such files\)"):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    "options", [{"seed": 7}, {"seed": 7, "study_seed": 0, "patient_id": "PH_OTHER"}], ids=["study", "patient"]
)
def test_another_study_or_patient_is_ambiguous_until_a_series_is_named(
    tmp_path: Path, plain: Volume, options: dict[str, Any]
) -> None:
    truth = series(tmp_path / "a")
    other = series(tmp_path / "b", **options)
    with pytest.raises(AmbiguousInput, match="expected one study") as caught:
        read_volume(tmp_path)
    assert caught.value.exit_code == 3
    for one in (truth, other):
        found = read_volume(tmp_path, series=one.identity.series_uid)
        assert found.source.series_instance_uid == one.identity.series_uid
        assert found.source.study_instance_uid == one.identity.study_uid
        assert found.source.sha256 == open_input(tmp_path, series=one.identity.series_uid).digest


def test_a_uid_that_looks_like_a_path_stays_a_word(tmp_path: Path) -> None:
    truth = series(tmp_path / "in" / "series", header="stripped")
    for path in (tmp_path / "in" / "series").iterdir():
        content = path.read_bytes()
        for uid in (truth.identity.series_uid, truth.identity.study_uid):
            content = content.replace(uid.encode(), b"../../../escd")
        path.write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    volume = read_volume(tmp_path / "in", series="../../../escd")
    assert volume.source.series_instance_uid == "../../../escd"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_series_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    truth = series(tmp_path)
    with pytest.raises(MissingInput, match=f"has no series 1.2.3; found {truth.identity.series_uid}"):
        read_volume(tmp_path, series="1.2.3")


def test_a_folder_without_dicom_names_what_it_holds(tmp_path: Path, head_nifti: Callable[..., Path]) -> None:
    path = head_nifti("study/case.nii.gz")
    words = (
        r"holds no DICOM image \(found case.nii.gz, a gzip stream\).*give a NIfTI volume or an archive by its own path"
    )
    with pytest.raises(MissingInput, match=words):
        read_volume(path.parent)


@pytest.mark.parametrize("content", [b"just some text\n" * 40, b"\0\0\0\1" * 40], ids=["text", "bytes"])
def test_a_file_that_is_neither_nifti_nor_dicom_says_what_is_expected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "case.raw").write_bytes(content)
    with pytest.raises(UnsupportedInput, match=r"case\.raw is not DICOM and not \.nii or \.nii\.gz"):
        read_volume(tmp_path / "case.raw")


@pytest.mark.parametrize("read", [read_volume, open_input])
def test_a_series_named_for_a_nifti_is_a_usage_error(head_nifti: Callable[..., Path], read: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match=r"is NIfTI and has no series 1\.2"):
        read(head_nifti(), series="1.2")


@pytest.mark.parametrize("name", ["a\0b", "gone"])
def test_a_path_that_leads_nowhere_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingInput):
        read_volume(tmp_path / name)
    with pytest.raises(MissingInput):
        read_volume([tmp_path / name])


def test_a_nifti_has_the_digest_of_its_volume(head_nifti: Callable[..., Path]) -> None:
    path = head_nifti()
    assert read_volume(path).source.sha256 == open_input(VolumeInput(path)).digest


@pytest.mark.parametrize(
    ("source", "series_uid"),
    [([], None), (["a.dcm", "b.dcm"], "1.2"), (VolumeInput(Path("a"), "1.3"), "1.2")],
    ids=["no files", "a series beside files", "another series than the input's"],
)
def test_what_cannot_be_asked_is_a_usage_error(source: Any, series_uid: str | None) -> None:
    with pytest.raises(UsageError):
        as_input(source, series_uid)


def test_the_path_of_files_is_their_folder() -> None:
    assert source_path([Path("study/a.dcm"), Path("study/b.dcm")]) == Path("study")
    assert source_path("case.nii.gz") == Path("case.nii.gz")


def test_every_refusal_of_an_input_exits_with_3(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_volume(tmp_path)
    assert caught.value.exit_code == 3
