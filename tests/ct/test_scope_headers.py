"""The intended-use rules on the text of DICOM headers, on a series whose pixels are accepted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from dicom_writer import DicomOptions, write_dicom_phantom
from meddinov3_stroke import load_backbone
from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.ct.scope import judge
from meddinov3_stroke.ich_infer import main as predict
from meddinov3_stroke.phantom import draw_spec, make_phantom

pytestmark = pytest.mark.scope


@pytest.fixture(scope="module")
def phantom():  # noqa: ANN201 - a Phantom
    return make_phantom(draw_spec(3))


@pytest.fixture
def findings(phantom, tmp_path: Path) -> Callable[..., dict[str, tuple[bool, str]]]:
    """Rule -> (whether it refuses, message) of the phantom as DICOM with some options."""

    def of(**options: str) -> dict[str, tuple[bool, str]]:
        write_dicom_phantom(tmp_path / "series", phantom, DicomOptions(**options))
        found = judge(read_volume(tmp_path / "series")).findings
        return {one.rule: (one.is_refusal, one.message) for one in found}

    return of


REFUSED = {
    "body part": ("body_part", "CHEST ABDOMEN LSPINE PELVIS THORAX KNEE FOOT"),
    "contrast in the header": ("contrast_agent", "OMNIPAQUE IV Ultravist"),
    "kernel": ("kernel", "BONE H70h EDGE FC81 YE Hr68"),
}
CONTRAST = ("4cc sec 150cc", "CTA", "post", "Head 70 cc", "80 mL", "HEAD POST CONTRAST", "ANGIO 0.75", "Schädel mit KM")


@pytest.mark.parametrize(
    ("rule", "option", "text"),
    [(rule, option, text) for rule, (option, texts) in REFUSED.items() for text in texts.split()],
)
def test_a_header_field_refuses(findings: Callable[..., dict], rule: str, option: str, text: str) -> None:
    refuses, message = findings(**{option: text})[rule]
    assert refuses
    assert (re.search(r"\((.+?)\)", message) is None) == (rule == "contrast in the header")  # an agent is free text


@pytest.mark.parametrize("description", CONTRAST)
def test_a_description_that_suggests_contrast_warns(findings: Callable[..., dict], description: str) -> None:
    refuses, message = findings(description=description)["contrast in a description"]
    word = re.search(r"suggests contrast \((.+)\)", message)
    assert not refuses
    assert word is not None
    assert word[1] in description


@pytest.mark.parametrize("description", ["Thorax 5.0", "C-spine", "ABDOMEN 3 mm"])
def test_a_description_of_another_region_warns(findings: Callable[..., dict], description: str) -> None:
    assert [refuses for refuses, _ in findings(description=description).values()] == [False]


@pytest.mark.parametrize(
    ("option", "text"),
    [
        *(("body_part", part) for part in ("HEAD", "BRAIN", "SKULL", "HEADNECK", "")),
        *(
            ("contrast_agent", agent)
            for agent in ("NONE", "N.A.", "Non", "sin contraste", "senza mdc", "UNKNOWN", "0 ml")
        ),
        *(("kernel", kernel) for kernel in ("H31s", "STANDARD", "SOFT", "FC21", "UB", "Hr38", "DETAIL", "D")),
        *(("description", text) for text in ("Head 5mm", "HEAD W/O CONTRAST", "POST OP HEAD", "Schädel nativ", "")),
    ],
)
def test_a_routine_head_is_accepted_without_a_word(findings: Callable[..., dict], option: str, text: str) -> None:
    assert findings(**{option: text}) == {}


def test_a_description_is_repeated_where_the_result_stands(
    phantom,
    random_weights: Callable[..., Path],
    random_head: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_dicom_phantom(tmp_path / "series", phantom, DicomOptions(description="4cc sec 150cc"))
    weights = random_weights()
    head = random_head(load_backbone(weights, engine="torch", precision="fp32", device="cpu"))
    flags = {"--input": tmp_path / "series", "--backbone": weights, "--checkpoint": head, "--engine": "torch"}
    flags |= {"--precision": "fp32", "--device": "cpu", "--output-dir": tmp_path / "out"}
    assert predict([str(word) for pair in flags.items() for word in pair]) == 0
    warning = "check the intended use: SeriesDescription suggests contrast (4cc)"
    assert warning in " ".join(capsys.readouterr().out.split())
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert warning in summary["warnings"]
    assert summary["verdicts"]["in_scope"] is True


def test_slices_are_named_by_the_number_that_viewers_show_too(phantom, tmp_path: Path) -> None:
    options = DicomOptions(instance_numbers="shuffled")
    dead = replace(phantom, hu=phantom.hu.copy())
    dead.hu[9] = -1000
    write_dicom_phantom(tmp_path / "series", dead, options)
    volume = read_volume(tmp_path / "series")
    (message,) = [one.message for one in judge(volume).findings if one.rule == "dead slices"]
    number = volume.source.images[9].instance_number
    assert number not in (None, 9, 10)
    assert message.endswith(f": 9 (Instance Number {number})")


def test_fields_are_read_whatever_wrote_them(phantom, tmp_path: Path) -> None:
    """Set by pydicom in every file, as a de-identification tool or a PACS would."""
    write_dicom_phantom(tmp_path / "series", phantom)
    for path in (tmp_path / "series").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.BodyPartExamined, dataset.ConvolutionKernel = "CHEST", ["B70f", "1"]
        dataset.save_as(path)
    rules = {one.rule for one in judge(read_volume(tmp_path / "series")).findings}
    assert rules == {"body part", "kernel"}
