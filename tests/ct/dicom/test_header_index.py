"""A series by the header index of a flat folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest

from dicom_writer import DicomOptions, axial_geometry, write_dicom_series
from meddinov3_stroke import read_volume
from meddinov3_stroke.ct import open_input
from meddinov3_stroke.ct.dicom import files as header_index
from meddinov3_stroke.ct.dicom.files import files_of_series
from meddinov3_stroke.errors import CorruptInput, MissingInput, UnsupportedInput, UsageError
from meddinov3_stroke.types import VolumeInput

GEOMETRY = axial_geometry([5.0] * 8, (6, 7))
HU = np.random.default_rng(0).integers(-1000, 2500, (9, 6, 7))


@pytest.fixture
def index(tmp_path: Path) -> tuple[Path, list[str]]:
    """A flat folder of two series as bare as RSNA's, the index beside it, and their UIDs."""
    rows: dict[str, list[str]] = {"series_uid": [], "file": []}
    uids = []
    for seed in (1, 2):
        truth = write_dicom_series(
            tmp_path / "flat", HU + seed, GEOMETRY, DicomOptions(seed=seed, header="stripped", names="sop_uid")
        )
        uids.append(truth.identity.series_uid)
        for image in truth.images:
            rows["series_uid"].append(truth.identity.series_uid)
            rows["file"].append(f"flat/{image.file}")
    path = tmp_path / "header_index.parquet"
    pq.write_table(pa.table(rows), path)
    return path, uids


def test_a_series_of_the_index_is_read_alone(index: tuple[Path, list[str]]) -> None:
    path, uids = index
    for seed, uid in enumerate(uids, start=1):
        volume = read_volume(path, series=uid)
        np.testing.assert_array_equal(volume.hu, HU + seed)
        assert volume.source.series_instance_uid == uid
        assert volume.source.path == path
        assert volume.source.sha256 == open_input(VolumeInput(path, uid)).digest


def test_one_of_several_volumes_of_a_series_of_the_index_is_read(index: tuple[Path, list[str]]) -> None:
    path, uids = index
    for k, file in enumerate(files_of_series(path, uids[0])):
        dataset = pydicom.dcmread(file)
        dataset.ConvolutionKernel = "H60s" if k > 5 else "H31s"
        dataset.InstanceNumber = k
        dataset.save_as(file)
    sizes = [read_volume(path, series=f"{uids[0]}#{k}").n_slices for k in (1, 2)]
    assert (len(sizes), sum(sizes)) == (2, 9)
    digests = {open_input(VolumeInput(path, f"{uids[0]}#{k}")).digest for k in (1, 2)}
    assert len(digests) == 2


def test_a_relative_file_is_taken_from_the_folder_of_the_index(
    index: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, uids = index
    monkeypatch.chdir("/")
    assert {file.parent for file in files_of_series(path, uids[0])} == {path.parent / "flat"}


def test_a_file_of_many_frames_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "index.parquet"
    pq.write_table(pa.table({"series_uid": ["1", "1", "1"], "file": ["a", "a", None]}), path)
    assert files_of_series(path, "1") == [tmp_path / "a"]


def test_an_index_without_a_series_named_is_a_usage_error(index: tuple[Path, list[str]]) -> None:
    with pytest.raises(UsageError, match="header index of many series; name one with --series UID"):
        read_volume(index[0])


@pytest.mark.parametrize("uid", ["ID_ffffffffff", "../../etc", "'; drop"])
def test_a_series_that_is_not_in_the_index_is_missing(index: tuple[Path, list[str]], uid: str) -> None:
    with pytest.raises(MissingInput, match="has no series"):
        read_volume(index[0], series=uid)


def test_a_file_that_is_gone_is_named(index: tuple[Path, list[str]]) -> None:
    path, uids = index
    gone = files_of_series(path, uids[0])[3]
    gone.unlink()
    with pytest.raises(MissingInput, match=f"{gone.name} does not exist"):
        read_volume(path, series=uids[0])


@pytest.mark.parametrize("content", [b"PAR1 and then nothing", b"\0" * 600, b"series_uid,file\n1,a\n"])
def test_a_file_that_is_no_parquet_is_no_index(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "index.parquet").write_bytes(content)
    with pytest.raises(CorruptInput, match="is not a header index"):
        read_volume(tmp_path / "index.parquet", series="1")


@pytest.mark.parametrize(
    "columns", [{"series_uid": ["1"]}, {"file": ["a"]}, {"series_uid": [1], "file": ["a"]}], ids=str
)
def test_a_table_of_other_columns_is_no_index(tmp_path: Path, columns: dict[str, list[object]]) -> None:
    pq.write_table(pa.table(columns), tmp_path / "index.parquet")
    with pytest.raises(CorruptInput, match="is not a header index"):
        read_volume(tmp_path / "index.parquet", series="1")


NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32).tobytes()), pa.py_buffer(b"\xff\xfe")]
)


@pytest.mark.parametrize(
    "files",
    [pa.array([5]), pa.array([b"\xff\xfe"]), pa.array([["a"]]), pa.array([{"a": 1}]), NOT_UTF8],
    ids=["numbers", "bytes", "lists", "structures", "no UTF-8"],
)
def test_files_that_are_no_text_are_no_index(tmp_path: Path, files: pa.Array) -> None:
    pq.write_table(pa.table({"series_uid": ["1"], "file": files}), tmp_path / "index.parquet")
    with pytest.raises(CorruptInput, match="is not a header index"):
        read_volume(tmp_path / "index.parquet", series="1")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_a_name_that_no_file_can_have_is_missing(tmp_path: Path, name: str) -> None:
    pq.write_table(pa.table({"series_uid": ["1"], "file": [name]}), tmp_path / "index.parquet")
    with pytest.raises(MissingInput):
        read_volume(tmp_path / "index.parquet", series="1")


def test_an_index_of_endless_rows_is_refused_before_they_are_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header_index, "MAX_FILES", 10)
    path = tmp_path / "index.parquet"
    pq.write_table(pa.table({"series_uid": ["1"] * 10 + ["2"] * 11, "file": ["a"] * 21}), path)
    assert files_of_series(path, "1") == [tmp_path / "a"]
    with pytest.raises(UnsupportedInput, match="more than 10 images of series 2"):
        files_of_series(path, "2")


def test_a_folder_called_like_an_index_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "study.parquet"
    write_dicom_series(folder, HU, GEOMETRY, DicomOptions())
    assert read_volume(folder).n_slices == 9


def test_no_index_at_all_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="does not exist"):
        read_volume(tmp_path / "index.parquet", series="1")
