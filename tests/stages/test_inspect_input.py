from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicom_writer import DicomOptions, axial_geometry, write_dicom_series
from meddinov3_stroke import cli
from meddinov3_stroke.commands.inspect import main
from meddinov3_stroke.ct.dicom.choice import RULE


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A tilted series with a copy and a localizer, and a series of a sharp kernel."""
    hu = np.random.default_rng(0).integers(-1000, 2500, (10, 9, 11))
    geometry = axial_geometry([5.0] * 9, (9, 11), tilt_degrees=12)
    folder = tmp_path / "study"
    options: dict[str, Any] = {"companions": ("localizer", "clutter"), "copied_slices": (3,), "patient_id": "CANARY"}
    write_dicom_series(folder, hu, geometry, DicomOptions(**options))
    write_dicom_series(
        folder / "bone",
        hu,
        geometry,
        DicomOptions(seed=1, study_seed=0, kernel="H70h", series_number=3, patient_id="CANARY"),
    )
    return folder


def test_the_verb_prints_verdicts_rule_and_disclaimer(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(study)]) == 0
    text = capsys.readouterr().out
    assert text.count("\nused ") == 1
    assert text.count("\nset aside ") == 2
    assert "gantry tilt of +12.0 degrees" in text
    assert "1 duplicate dropped: IM0005.dcm" in text
    assert f"rule: {RULE}" in " ".join(text.split())
    assert text.endswith("not for clinical diagnosis\n1 of 3 series used · nothing written\n")


def test_the_json_holds_the_same_facts(study: Path, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    assert main([str(study), "--output-json", str(path)]) == 0
    facts = json.loads(path.read_text())
    assert (facts["format"], facts["n_used"], facts["rule"], facts["input"]) == ("dicom", 1, RULE, str(study))
    assert [(one["verdict"], one["n_images"]) for one in facts["series"]] == [
        ("used", 10),
        ("set aside", 1),
        ("set aside", 10),
    ]
    (used,) = [one for one in facts["series"] if one["verdict"] == "used"]
    assert used["tilt_degrees"] == pytest.approx(12, abs=1e-3)
    assert used["duplicates"] == ["IM0005.dcm"]
    assert ["DICOMDIR", "DICOM without an image"] in facts["without_images"]
    assert facts["disclaimer"] == "research use only, not for clinical diagnosis"


def test_no_patient_attribute_is_printed_or_written(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(study), "--output-json", str(tmp_path / "facts.json")])
    printed = capsys.readouterr()
    assert "CANARY" not in printed.out + printed.err + (tmp_path / "facts.json").read_text()


def test_a_nifti_is_described_too(
    head_nifti: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(head_nifti()), "--output-json", str(tmp_path / "facts.json")]) == 0
    assert "NIfTI volume of 8 slices of 64 x 64, 5.000 x 3.000 x 3.000 mm, int16" in capsys.readouterr().out
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert (facts["format"], facts["shape"]) == ("nifti", [8, 64, 64])


@pytest.mark.parametrize("name", ["gone", "empty", "picture.png", "cut.zip"])
def test_what_cannot_be_inspected_exits_with_3(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(600))
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04" + bytes(600))
    assert main([str(tmp_path / name)]) == 3
    printed = capsys.readouterr()
    assert printed.err.startswith("E-INPUT-")
    assert len(printed.err.splitlines()) == 1


def test_a_damaged_file_is_listed_and_the_rest_inspected(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study / "IM0002.dcm").write_bytes((study / "IM0002.dcm").read_bytes()[:-3])
    assert main([str(study)]) == 0
    text = capsys.readouterr().out
    assert "1 file damaged" in text
    assert "IM0002.dcm" in text
    assert "\nused " in text
