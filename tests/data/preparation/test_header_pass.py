"""Headers are read once, from few bytes, by several processes; a pass that was killed resumes."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dicom_writer import TRANSFER_SYNTAXES, DicomOptions, axial_geometry, write_dicom_series
from dicom_writer.reading import read_headers
from meddinov3_stroke.ct.dicom.files import InputFile
from meddinov3_stroke.ct.dicom.header import ImageHeader
from meddinov3_stroke.ct.dicom.survey import read_file_headers
from meddinov3_stroke.data import header_pass
from meddinov3_stroke.data.header_pass import read_headers_of_folder
from meddinov3_stroke.data.header_rows import SCHEMA, header_cells, headers_of_rows, read_files
from meddinov3_stroke.errors import CorruptInput, LockTimeout, StorageError, UnsupportedInput

Kaggle = Callable[..., Any]


def assert_same(first: ImageHeader, second: ImageHeader) -> None:
    for field in fields(ImageHeader):
        np.testing.assert_equal(getattr(first, field.name), getattr(second, field.name), err_msg=field.name)


def headers_in(folder: Path) -> Iterator[ImageHeader]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield from read_headers(path.read_bytes(), path.name) or ()


def assert_survives_a_table(folder: Path) -> None:
    headers = list(headers_in(folder))
    assert headers
    table = pa.Table.from_pylist([header_cells(header) for header in headers], schema=SCHEMA)
    for header, again in zip(headers, headers_of_rows(table), strict=True):
        assert_same(again, header)


@pytest.mark.parametrize(
    "options",
    [
        {"padding_value": -2000, "padding_limit": -1990},
        {"layout": "enhanced"},
        {"header": "stripped", "companions": ("localizer", "secondary_capture")},
    ],
)
def test_a_header_survives_a_table(tmp_path: Path, options: dict[str, Any]) -> None:
    hu = np.zeros((3, 8, 8), np.float32)
    write_dicom_series(tmp_path, hu, axial_geometry([5.0, 5.0], (8, 8)), DicomOptions(**options))
    assert_survives_a_table(tmp_path)


def test_every_declared_field_has_its_columns_and_there_are_no_others() -> None:
    def columns_of(kind: type) -> Iterator[str]:
        for field in fields(kind):
            nested = {"pixels": "PixelFormat", "rescale": "Rescale"}.get(field.name)
            if nested is not None:
                yield from columns_of(getattr(sys.modules[ImageHeader.__module__], nested))
            else:
                yield from field.metadata.get("columns", (field.name,))

    assert is_dataclass(ImageHeader)
    assert SCHEMA.names == ["n_bytes", "mtime_ns", "status", "reason", *columns_of(ImageHeader)]


@pytest.mark.shared_data
def test_headers_of_a_scanner_survive_a_table(shared_data_dir: Path) -> None:
    assert_survives_a_table(shared_data_dir / "head_ncct_dicom")


@pytest.fixture
def large_image(tmp_path: Path) -> Callable[..., InputFile]:
    """One image of 128 x 128 pixels, twice as long as what is read of a file at first."""

    def write(**options: Any) -> InputFile:
        hu = np.random.default_rng(0).integers(0, 99, (1, 128, 128)).astype(np.float32)
        write_dicom_series(tmp_path, hu, axial_geometry([], (128, 128)), DicomOptions(names="ordered", **options))
        (path,) = tmp_path.iterdir()
        return InputFile(path.name, path, path.stat().st_size)

    return write


@pytest.mark.parametrize("syntax", sorted(TRANSFER_SYNTAXES))
def test_a_header_from_the_head_is_that_of_the_whole_file(large_image: Callable[..., InputFile], syntax: str) -> None:
    file = large_image(transfer_syntax=syntax)
    (header,), (whole,) = read_file_headers(file) or (), read_headers(file.read(), file.name) or ()
    assert_same(header, whole)


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big_endian"])
def test_native_pixels_are_not_read(
    large_image: Callable[..., InputFile], monkeypatch: pytest.MonkeyPatch, syntax: str
) -> None:
    file = large_image(transfer_syntax=syntax)
    monkeypatch.setattr(InputFile, "read", lambda file: pytest.fail("the whole file was read"))
    assert len(read_file_headers(file) or ()) == 1


@pytest.mark.parametrize("n_lost", [2, 100, 20_000])
def test_a_cut_file_is_found_out_without_its_pixels(large_image: Callable[..., InputFile], n_lost: int) -> None:
    file = large_image()
    file.path.write_bytes(file.read()[:-n_lost])
    with pytest.raises(CorruptInput, match=file.name):
        read_file_headers(InputFile(file.name, file.path, file.n_bytes - n_lost))


def test_pixel_data_shorter_than_the_header_says_is_corrupt(large_image: Callable[..., InputFile]) -> None:
    import pydicom

    file = large_image()
    dataset = pydicom.dcmread(file.path)
    dataset.PixelData = dataset.PixelData[:-600]
    dataset.save_as(file.path)
    with pytest.raises(CorruptInput, match=r"32168 bytes of pixel data; expected 32768"):
        read_file_headers(InputFile(file.name, file.path, file.path.stat().st_size))


def test_elements_behind_the_pixels_are_walked_too(large_image: Callable[..., InputFile]) -> None:
    import pydicom

    file = large_image()
    dataset = pydicom.dcmread(file.path)
    dataset.add_new(0xFFFCFFFC, "OB", b"\0" * 500)
    dataset.save_as(file.path)
    whole = file.path.stat().st_size
    assert read_file_headers(InputFile(file.name, file.path, whole))
    file.path.write_bytes(file.path.read_bytes()[:-10])
    with pytest.raises(CorruptInput):
        read_file_headers(InputFile(file.name, file.path, whole - 10))


@pytest.fixture
def folder(kaggle: Kaggle) -> Path:
    """Thirty files."""
    cohort = kaggle()
    for k in range(6):
        cohort.add(str(k), n_slices=5)
    return cohort.images


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_pass, "CHUNK_FILES", 4)


def read(folder: Path, parts: Path, workers: int = 1) -> header_pass.HeaderPass:
    return read_headers_of_folder(folder, parts, workers=workers, show_progress=False)


def saved(parts: Path) -> Path:
    """The one file of a finished pass."""
    (path,) = parts.glob(header_pass.TABLES)
    return path


def test_a_second_pass_reads_no_header(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(folder, tmp_path / "parts")
    monkeypatch.setattr(header_pass, "read_files", lambda *args: pytest.fail("a file was read again"))
    again = read(folder, tmp_path / "parts")
    assert (first.n_read_now, again.n_read_now) == (30, 0)
    assert again.rows.to_pylist() == first.rows.to_pylist()


@pytest.mark.usefixtures("small_chunks")
def test_several_processes_give_the_same_rows(folder: Path, tmp_path: Path) -> None:
    alone = read(folder, tmp_path / "one")
    together = read(folder, tmp_path / "two", workers=2)
    assert together.rows.to_pylist() == alone.rows.to_pylist()


def stopped(folder: Path, parts: Path, monkeypatch: pytest.MonkeyPatch, after: int = 3) -> None:
    """A pass that ends after some chunks."""
    asked: list[int] = []

    def dies(folder: Path, files: list[dict[str, Any]]) -> Any:
        asked.append(len(files))
        if len(asked) > after:
            raise KeyboardInterrupt
        return read_files(folder, files)

    with monkeypatch.context() as patch:
        patch.setattr(header_pass, "read_files", dies)
        patch.setattr(header_pass, "CHUNK_FILES", 4)
        with pytest.raises(KeyboardInterrupt):
            read(folder, parts)


def test_a_pass_that_stops_keeps_what_it_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(folder, tmp_path / "parts", monkeypatch)
    whole = read(folder, tmp_path / "whole")
    resumed = read(folder, tmp_path / "parts")
    assert resumed.n_read_now == 30 - 12
    assert resumed.rows.to_pylist() == whole.rows.to_pylist()
    assert pq.read_table(saved(tmp_path / "parts")).num_rows == 30


def test_a_pass_may_stop_many_times(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        stopped(folder, tmp_path / "parts", monkeypatch, after=2)
    assert read(folder, tmp_path / "parts").n_read_now == 30 - 3 * 8


@pytest.fixture
def saves_each_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_pass, "SAVE_CHUNKS", 1)


@pytest.mark.usefixtures("saves_each_chunk")
@pytest.mark.parametrize("share", [0.0, 0.05, 0.4, 0.7, 0.95, 0.999])
def test_a_truncated_part_costs_only_its_own_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    stopped(folder, tmp_path / "parts", monkeypatch, after=6)
    part = min((tmp_path / "parts").glob(header_pass.TABLES))
    content = part.read_bytes()
    part.write_bytes(content[: int(share * len(content))])
    resumed = read(folder, tmp_path / "parts")
    assert resumed.n_read_now == 30 - 6 * 4 + 4
    assert resumed.rows.to_pylist() == read(folder, tmp_path / "whole").rows.to_pylist()


@pytest.mark.usefixtures("saves_each_chunk")
@pytest.mark.parametrize("seed", range(20))
def test_a_part_with_a_flipped_bit_gives_no_wrong_row(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    stopped(folder, tmp_path / "parts", monkeypatch)
    flip_a_bit(min((tmp_path / "parts").glob(header_pass.TABLES)), seed)
    resumed = read(folder, tmp_path / "parts")
    assert resumed.n_read_now == 30 - 3 * 4 + 4
    assert resumed.rows.to_pylist() == read(folder, tmp_path / "whole").rows.to_pylist()


def test_a_part_beside_the_finished_pass_gives_each_row_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between the last save and the removal of the parts."""
    stopped(folder, tmp_path / "parts", monkeypatch)
    part = saved(tmp_path / "parts")
    content = part.read_bytes()
    whole = read(folder, tmp_path / "parts")
    part.write_bytes(content)
    again = read(folder, tmp_path / "parts")
    assert (again.n_read_now, again.rows.to_pylist()) == (0, whole.rows.to_pylist())


def test_only_a_changed_file_is_read_again(folder: Path, tmp_path: Path) -> None:
    read(folder, tmp_path / "parts")
    changed, gone = sorted(folder.iterdir())[:2]
    os.utime(changed, ns=(1, 1))
    gone.unlink()
    again = read(folder, tmp_path / "parts")
    assert again.n_read_now == 1
    assert sorted(again.rows["file"].to_pylist()) == sorted(path.name for path in folder.iterdir())


def flip_a_bit(path: Path, seed: int) -> None:
    content = bytearray(path.read_bytes())
    generator = np.random.default_rng(seed)
    content[generator.integers(len(content))] ^= 1 << generator.integers(8)
    path.write_bytes(content)


def test_a_damaged_file_of_rows_is_reported_and_its_files_read_again(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read(folder, tmp_path / "parts")
    part = saved(tmp_path / "parts")
    part.write_bytes(part.read_bytes()[:-100])
    assert read(folder, tmp_path / "parts").n_read_now == 30
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("seed", range(20))
def test_rows_with_a_flipped_bit_are_reported_and_read_again(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    first = read(folder, tmp_path / "parts")
    flip_a_bit(saved(tmp_path / "parts"), seed)
    again = read(folder, tmp_path / "parts")
    assert again.n_read_now == 30
    assert again.rows.to_pylist() == first.rows.to_pylist()
    assert "is damaged" in caplog.text
    assert read(folder, tmp_path / "parts").n_read_now == 0


def test_rows_of_another_version_are_not_trusted(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read(folder, tmp_path / "parts")
    part = saved(tmp_path / "parts")
    table = pq.read_table(part)
    pq.write_table(table.replace_schema_metadata({"header_pass": "0"}), part)
    part.rename(part.with_name(f"headers-{header_pass._digest(part.read_bytes())}.parquet"))
    assert read(folder, tmp_path / "parts").n_read_now == 30
    assert "another version" in caplog.text


def test_a_file_the_machine_does_not_give_is_asked_for_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = sorted(folder.iterdir())[3]
    opened = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path == bad:
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        rows = read(folder, tmp_path / "parts").rows.to_pylist()
    assert [(row["file"], row["status"]) for row in rows if row["status"] != "read"] == [(bad.name, "failed")]
    again = read(folder, tmp_path / "parts")
    assert (again.n_read_now, len(again.rows)) == (1, 30)
    assert set(again.rows["status"].to_pylist()) == {"read"}


def test_two_passes_into_one_folder_do_not_mix(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    with filelock.FileLock(tmp_path / "parts" / ".lock"), pytest.raises(LockTimeout, match="another process"):
        read(folder, tmp_path / "parts")


def test_a_folder_that_cannot_be_written_is_the_machines_fault(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "parts").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        read(folder, tmp_path / "parts")


def test_a_name_that_is_no_text_is_refused_and_named(folder: Path, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.dcm")).write_bytes(b"")
    with pytest.raises(UnsupportedInput, match="xff"):
        read(folder, tmp_path / "parts")


KILLED = """
import sys, time
from pathlib import Path
from meddinov3_stroke.data import header_pass
from meddinov3_stroke.data.header_rows import read_files
def slow(folder, files):
    time.sleep(0.05)
    return read_files(folder, files)
header_pass.CHUNK_FILES, header_pass.SAVE_CHUNKS, header_pass.read_files = 2, 1, slow
header_pass.read_headers_of_folder(Path(sys.argv[1]), Path(sys.argv[2]), workers=1, show_progress=False)
"""


def test_a_killed_pass_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    process = subprocess.Popen([sys.executable, "-c", KILLED, folder, parts])
    deadline = time.monotonic() + 60
    while len(list(parts.glob(header_pass.TABLES))) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    n_kept = sum(pq.read_table(path).num_rows for path in parts.glob(header_pass.TABLES))
    assert 8 <= n_kept < 30
    resumed = read(folder, parts)
    assert resumed.n_read_now == 30 - n_kept
    assert resumed.rows.sort_by("file").to_pylist() == read(folder, tmp_path / "whole").rows.sort_by("file").to_pylist()


@pytest.mark.parametrize("say", [warnings.warn, logging.warning])
def test_what_libraries_say_in_a_process_of_the_pass_is_not_shown(say, capfd: pytest.CaptureFixture[str]) -> None:
    assert list(header_pass.in_processes(say, ["noise", "noise"], 2)) == [None, None]
    assert capfd.readouterr().err == ""
