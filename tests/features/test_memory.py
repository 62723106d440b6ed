"""An unchanged input is not hashed again; a changed one is, whatever of it changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest

from meddinov3_stroke.errors import CorruptInput, StorageError
from meddinov3_stroke.features import EmbeddingStore, InputMemory, extract
from meddinov3_stroke.system.digest import sha256_of_bytes
from meddinov3_stroke.types import VolumeInput
from stored_entries import stored_keys

OLD_S = 1_600_000_000


@pytest.fixture
def memory(tmp_path: Path) -> InputMemory:
    return InputMemory(tmp_path / "cache" / "inputs")


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is an hour ahead of the files, so that none of them is fresh."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)


@pytest.fixture
def run(extractor: Any, reader: Any, store: EmbeddingStore, memory: InputMemory) -> Callable[..., list[Any]]:
    """Extracts with memory; gives the extractions."""

    def extract_all(*inputs: Path | VolumeInput, verify: bool = False) -> list[Any]:
        reader.hashed.clear()
        reader.calls.clear()
        return list(extract(inputs, extractor, store, memory=memory, verify_inputs=verify))

    return extract_all


def record_in(memory: InputMemory) -> dict[str, Any]:
    (path,) = memory.folder.rglob("*.json")
    return dict(json.loads(path.read_bytes().split(b"\n")[1]))


@pytest.mark.usefixtures("later")
def test_an_unchanged_input_is_neither_hashed_nor_read_again(run, reader, scan) -> None:
    path = scan("a.nii", "5")
    run(path)
    assert reader.hashed == [path]
    (found,) = run(path)
    assert (found.from_cache, reader.hashed, reader.calls) == (True, [], [])


@pytest.mark.usefixtures("later")
def test_an_unchanged_file_is_not_even_opened(extractor, store, memory, head_nifti) -> None:
    path = head_nifti()
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    list(extract([path], extractor, store, memory=memory))
    assert str(path) in opened
    opened.clear()
    (found,) = extract([path], extractor, store, memory=memory)
    assert found.from_cache
    assert str(path) not in opened


def rewritten(path: Path) -> None:
    path.write_text("6")


def rewritten_with_its_old_mtime(path: Path) -> None:
    path.write_text("6")
    os.utime(path, (OLD_S, OLD_S))


def replaced_by_a_file_of_its_size_and_mtime(path: Path) -> None:
    aside = path.with_suffix(".new")
    rewritten_with_its_old_mtime(aside)
    aside.replace(path)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("change", [rewritten, rewritten_with_its_old_mtime, replaced_by_a_file_of_its_size_and_mtime])
def test_a_changed_input_is_hashed_and_computed(run, scan, change: Callable[[Path], None]) -> None:
    path = scan("a.nii", "5")
    os.utime(path, (OLD_S, OLD_S))
    run(path)
    time.sleep(0.02)  # longer than a tick of the file system's clock
    change(path)
    (found,) = run(path)
    assert not found.from_cache
    assert found.embeddings.n_slices == 6


@pytest.mark.usefixtures("later")
def test_verifying_hashes_every_input_and_finds_an_edit_that_restored_all_times(run, reader, scan, memory) -> None:
    path = scan("a.nii", "5")
    run(path)
    before = record_in(memory)
    run(path, verify=True)
    assert reader.hashed == [path]
    scan("a.nii", "6")
    run(path)
    body = json.dumps(before | {"files_sha256": record_in(memory)["files_sha256"]}, sort_keys=True).encode()
    next(memory.folder.rglob("*.json")).write_bytes(sha256_of_bytes(body).encode() + b"\n" + body)
    assert [run(path, verify=verify)[0].embeddings.n_slices for verify in (False, True, False)] == [5, 6, 6]


def test_a_file_that_has_just_changed_is_not_remembered(run, reader, scan, memory) -> None:
    path = scan("a.nii", "5")
    run(path)
    assert list(memory.folder.rglob("*.json")) == []
    run(path)
    assert reader.hashed == [path]


@pytest.mark.usefixtures("later")
def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(scan, reader, memory) -> None:
    path = scan("a.nii", "5")

    class Changing(type(reader(path))):  # type: ignore[misc]
        @property
        def digest(self) -> str:
            scan("a.nii", "6 slices")
            return "ab" * 32

    memory.digest(Changing(path, None, reader), None)
    assert list(memory.folder.rglob("*.json")) == []


@pytest.fixture
def dicom_folder(head_nifti: Callable[..., Path], tmp_path: Path) -> Path:
    from dicom_writer import DicomOptions, axial_geometry, write_dicom_series
    from meddinov3_stroke.ct import read_volume

    folder = tmp_path / "study"
    write_dicom_series(folder, read_volume(head_nifti()).hu, axial_geometry([5.0] * 7, (64, 64)), DicomOptions())
    return folder


@pytest.mark.usefixtures("later")
def test_a_digest_of_another_dicom_reader_is_not_used(extractor, store, memory, dicom_folder, monkeypatch) -> None:
    found = [next(extract([dicom_folder], extractor, store, memory=memory)) for _ in range(2)]
    monkeypatch.setattr("meddinov3_stroke.ct.dicom.read.READER_VERSION", 1_000_000)
    found += [next(extract([dicom_folder], extractor, store, memory=memory)) for _ in range(2)]
    assert [one.from_cache for one in found] == [False, True, False, True]
    assert found[1].embeddings.source.sha256 != found[3].embeddings.source.sha256


@pytest.mark.usefixtures("later")
def test_what_is_read_joined_or_by_another_name_is_never_taken_for_the_other(
    extractor, store, memory, dicom_folder
) -> None:
    for k, path in enumerate(sorted(dicom_folder.iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID = f"2.25.{1 + k % 2}"
        dataset.save_as(path)
    ways = [{}, {"join_series": True}, {"series_uid": "2.25.2"}]
    inputs = [VolumeInput(dicom_folder, **how) for how in ways] * 2
    found = [next(extract([one], extractor, store, memory=memory, force=True)) for one in inputs]
    assert [one.from_cache for one in found] == [False] * 3 + [True] * 3
    assert [one.embeddings.n_slices for one in found] == [4, 8, 4] * 2


@pytest.mark.usefixtures("later")
def test_a_file_taken_from_a_folder_is_missed(extractor, store, memory, dicom_folder) -> None:
    folder = dicom_folder
    found = [next(extract([folder], extractor, store, memory=memory)) for _ in range(2)]
    assert [one.from_cache for one in found] == [False, True]
    next(path for path in folder.rglob("*") if path.is_file()).unlink()
    assert not next(extract([folder], extractor, store, memory=memory)).from_cache


@pytest.mark.usefixtures("later")
def test_a_damaged_record_is_ignored_with_a_warning(run, reader, scan, memory, caplog) -> None:
    path = scan("a.nii", "5")
    run(path)
    (record,) = memory.folder.rglob("*.json")
    record.write_bytes(record.read_bytes().replace(b'"schema": "1', b'"schema": "2'))
    assert run(path)[0].from_cache
    assert reader.hashed == [path]
    assert "damaged record" in caplog.text


@pytest.mark.usefixtures("later")
def test_two_series_of_a_path_are_remembered_apart(run, reader, scan) -> None:
    inputs = [VolumeInput(scan("index.parquet", "5"), uid) for uid in ("1.7", "1.8")]
    first, second = run(*inputs), run(*inputs)
    assert reader.hashed == []
    digests = [[one.embeddings.source.sha256 for one in found] for found in (first, second)]
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[0][1]


@pytest.mark.usefixtures("later")
def test_a_remembered_input_without_its_entry_is_computed_again(run, reader, scan, store) -> None:
    path = scan("a.nii", "5")
    run(path)
    shutil.rmtree(store.path(stored_keys(store)[0]).parent)
    (found,) = run(path)
    assert (found.from_cache, reader.calls) == (False, [path])


@pytest.mark.usefixtures("later")
def test_records_hold_no_path(run, scan, memory) -> None:
    run(scan("Canary-Patient.nii", "5"))
    (record,) = memory.folder.rglob("*.json")
    assert b"Canary" not in record.read_bytes()
    assert "Canary" not in record.name


@pytest.mark.usefixtures("later")
def test_a_memory_that_cannot_be_written_costs_a_warning_not_the_run(run, scan, monkeypatch, caplog) -> None:
    def fail(path: Path, content: bytes) -> None:
        raise StorageError(f"cannot write {path}: Read-only file system")

    monkeypatch.setattr("meddinov3_stroke.features.memory.write_bytes", fail)
    assert [one.outcome.status for one in run(scan("a.nii", "5"), scan("b.nii", "6"))] == ["done", "done"]
    assert caplog.text.count("input digests are not remembered") == 1


WARM = """
import json, sys, time
from pathlib import Path
import numpy as np
from meddinov3_stroke.backbone import Backbone
from meddinov3_stroke.features import EmbeddingStore, FeatureExtractor, InputMemory, extract
from meddinov3_stroke.types import BackboneIdentity, Preprocessing
recipe = Preprocessing(-1000.0, 1000.0, 65.0, 178.0, "f")
identity = BackboneIdentity("f", "ab" * 32, 768, 16, "bf16", recipe, "openvino", "fp32")

class Fake(Backbone):
    def __init__(self): self.identity, self.device, self.warnings = identity, "cpu", ()
    def prepare(self, hu, resize): return hu[:, None]
    def class_tokens(self, pixels): return np.ones((len(pixels), 768), np.float32)

now = time.time
time.time = lambda: now() + 3600
paths, cache = [Path(path) for path in sys.argv[2:]], Path(sys.argv[1])
seconds = []
for _ in range(4):
    start = time.process_time()
    run = extract(paths, FeatureExtractor(Fake()), EmbeddingStore(cache), memory=InputMemory(cache / "inputs"))
    n_cached = sum(one.from_cache for one in run)
    seconds.append(time.process_time() - start)
print(json.dumps({"n_cached": n_cached, "seconds": min(seconds)}))
"""


def test_a_cached_volume_takes_at_most_two_milliseconds(head_nifti: Callable[..., Path], tmp_path: Path) -> None:
    paths = [str(head_nifti(f"v/{k}.nii", seed=k)) for k in range(60)]
    command = [sys.executable, "-c", WARM, str(tmp_path / "cache"), *paths]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    found = json.loads(result.stdout)
    assert found["n_cached"] == 60
    assert found["seconds"] / 60 < 0.002  # of processor time, which other work on the machine does not count into


@pytest.mark.usefixtures("later")
def test_a_fault_in_listing_the_files_of_a_remembered_input_ends_that_input_alone(
    run, reader, scan, monkeypatch
) -> None:
    bad, good = scan("bad.nii", "5"), scan("good.nii", "6")
    run(bad, good)

    def files(opened: Any) -> tuple[Path, ...]:
        if opened.path == bad:
            raise CorruptInput(f"{bad}: the index is damaged")
        return (opened.path,)

    monkeypatch.setattr(type(reader(good)), "files", property(files, lambda opened, value: None))
    first, second = run(bad, good)
    assert (first.outcome.status, first.outcome.code) == ("rejected", "E-INPUT-CORRUPT")
    assert second.from_cache
