"""The record an int8 graph has to show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meddinov3_stroke.errors import WeightsMismatch
from meddinov3_stroke.models import (
    LEAST_INT8_COSINE,
    Calibration,
    calibration_folder,
    read_calibration,
    write_calibration,
)
from meddinov3_stroke.models import calibration as calibration_module
from meddinov3_stroke.models.documents import read_document, write_document

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
    monkeypatch.setattr(calibration_module, "CALIBRATION_SCHEMA", calibration_module.CALIBRATION_SCHEMA + 1)
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
