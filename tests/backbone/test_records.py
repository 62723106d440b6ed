"""What is remembered of a weights file, and documents that carry their own digest."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meddinov3_stroke.backbone import records
from meddinov3_stroke.backbone.records import (
    LEAST_INT8_COSINE,
    Calibration,
    WeightsRecord,
    calibration_folder,
    read_calibration,
    read_document,
    read_record,
    write_calibration,
    write_document,
    write_record,
)
from meddinov3_stroke.errors import WeightsMismatch
from meddinov3_stroke.types import Preprocessing

FILE, WEIGHTS = "ef" * 32, "ab" * 32
RECORD = WeightsRecord(WEIGHTS, 64, 16, "bf16", Preprocessing(-1000.0, 1000.0, 65.1084213256836, 178.01663, "v-1"))


def test_a_record_comes_back_under_the_files_digest_and_under_no_other(tmp_path: Path) -> None:
    written = replace(RECORD, fidelity={"torch-2-bf16-cuda": 0.99995, "openvino-2-bf16-amx_bf16": 0.9})
    write_record(tmp_path, FILE, written)
    assert read_record(tmp_path, FILE) == written
    assert read_record(tmp_path, FILE[:-1] + "0") is None


def test_a_damaged_record_is_reported_and_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_record(tmp_path, FILE, RECORD)
    path = tmp_path / "records" / f"{FILE}.json"
    path.write_text(path.read_text().replace('"bf16"', '"fp32"'))
    assert read_record(tmp_path, FILE) is None
    assert f"{path} is damaged or unreadable" in caplog.text


def test_a_record_of_another_version_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(tmp_path, FILE, RECORD)
    monkeypatch.setattr(records, "RECORD_SCHEMA", records.RECORD_SCHEMA + 1)
    assert read_record(tmp_path, FILE) is None


def test_a_record_that_cannot_be_written_is_reported_and_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "file"
    folder.write_text("a file where the folder should be")
    write_record(folder, FILE, RECORD)
    assert "it will be measured again next time" in caplog.text


@pytest.fixture
def calibration_with() -> Callable[..., Calibration]:
    """Makes a faithful calibration of the same weights; keywords replace its fields."""

    def make(**changes: Any) -> Calibration:
        fields: dict[str, Any] = {
            "weights_sha256": WEIGHTS,
            "resize": 64,
            "graph_sha256": "cd" * 32,
            "cls_cosine_min": 0.9992,
            "cls_cosine_mean": 0.9996,
            "n_calibration_volumes": 4,
            "n_calibration_slices": 32,
            "n_check_volumes": 2,
            "n_check_slices": 16,
            "calibration_inputs_sha256": ("11" * 32, "22" * 32),
            "check_inputs_sha256": ("33" * 32,),
            "settings": {"nncf": "3.4"},
        }
        return Calibration(**(fields | changes))

    return make


Make = Callable[..., Calibration]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(
    cosine=st.floats(-1, 1),
    inputs=st.lists(st.text("0123456789abcdef", min_size=64, max_size=64), max_size=3),
    auroc=st.none() | st.dictionaries(st.text(), st.floats(0, 1) | st.none(), max_size=3),
)
def test_a_record_comes_back_as_it_was(
    tmp_path: Path, calibration_with: Make, cosine: float, inputs: list[str], auroc: dict[str, object] | None
) -> None:
    written = calibration_with(cls_cosine_min=cosine, check_inputs_sha256=tuple(inputs), auroc=auroc)
    write_calibration(tmp_path, written)
    assert read_calibration(tmp_path) == written


@pytest.mark.parametrize(("cosine", "faithful"), [(LEAST_INT8_COSINE, True), (0.99899, False), (float("nan"), False)])
def test_a_calibration_is_faithful_from_the_least_cosine_on(
    calibration_with: Make, cosine: float, faithful: bool
) -> None:
    assert calibration_with(cls_cosine_min=cosine).is_faithful is faithful


def test_no_record_and_a_damaged_one_are_none(
    tmp_path: Path, calibration_with: Make, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_calibration(tmp_path) is None
    write_calibration(tmp_path, calibration_with(cls_cosine_min=0.5))
    path = tmp_path / "calibration.json"
    path.write_text(path.read_text().replace("0.5", "0.9999"))
    assert read_calibration(tmp_path) is None
    assert f"{path} is damaged or unreadable" in caplog.text


def test_a_record_of_another_version_asks_for_calibrating_again(
    tmp_path: Path, calibration_with: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_calibration(tmp_path, calibration_with())
    monkeypatch.setattr(records, "CALIBRATION_SCHEMA", records.CALIBRATION_SCHEMA + 1)
    with pytest.raises(WeightsMismatch, match="of another version of this package; calibrate again"):
        read_calibration(tmp_path)


@pytest.mark.parametrize("change", [{"more": 1}, {"resize": None}], ids=["a field too many", "a field too few"])
def test_a_record_with_other_fields_is_of_another_version(
    tmp_path: Path, calibration_with: Make, change: dict[str, int | None]
) -> None:
    write_calibration(tmp_path, calibration_with())
    document = (read_document(tmp_path / "calibration.json") or {}) | change
    kept = {name: value for name, value in document.items() if name not in change or value is not None}
    write_document(tmp_path / "calibration.json", kept)
    with pytest.raises(WeightsMismatch, match="calibrate again"):
        read_calibration(tmp_path)


def test_weights_have_one_calibration_and_other_weights_another(tmp_path: Path, calibration_with: Make) -> None:
    first, second = calibration_with(), calibration_with(weights_sha256="ba" * 32, resize=32)
    for each in (first, second, replace(first, resize=224)):
        write_calibration(calibration_folder(tmp_path, each.weights_sha256), each)
    assert read_calibration(calibration_folder(tmp_path, first.weights_sha256)) == replace(first, resize=224)
    assert read_calibration(calibration_folder(tmp_path, second.weights_sha256)) == second


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
CONTENT = {"cosine": 0.99995, "name": "Köpfe", "parts": [1, 2]}


@given(document=st.dictionaries(st.text().filter(lambda key: key != "sha256_of_document"), VALUES, max_size=4))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, document: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("documents") / "x.json"
    write_document(path, document)
    assert read_document(path) == document


def test_no_document_is_none_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_document(tmp_path / "x.json") is None
    assert caplog.records == []


def test_every_changed_digit_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.json"
    write_document(path, CONTENT)
    text = path.read_text(encoding="utf-8")
    places = [k for k, letter in enumerate(text) if letter.isdigit()]
    for k in places:
        path.write_text(text[:k] + str((int(text[k]) + 1) % 10) + text[k + 1 :], encoding="utf-8")
        assert read_document(path) is None
    assert len(caplog.records) == len(places) > 30
    assert all(record.levelno == logging.WARNING for record in caplog.records)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"3", b'"text"', b"\xff\xfe", b"{}", json.dumps(CONTENT).encode()],
    ids=["empty", "cut", "list", "null", "number", "text", "binary", "no keys", "no digest"],
)
def test_what_is_no_such_document_reads_as_absent_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert read_document(path) is None
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]
    assert "is damaged or unreadable" in caplog.text


def test_a_folder_in_its_place_reads_as_absent_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "x.json").mkdir()
    assert read_document(tmp_path / "x.json") is None
    assert "is damaged or unreadable" in caplog.text


def test_a_number_that_is_none_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_document(tmp_path / "x.json", {"cosine": float("nan")})
    assert list(tmp_path.iterdir()) == []
