"""Which series is read where nobody names one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dicom_writer import axial_geometry, write_dicom_series
from meddinov3_stroke.ct.dicom.choice import choose, contrast_hint, is_sharp, region_of
from meddinov3_stroke.ct.dicom.files import open_files
from meddinov3_stroke.ct.dicom.series import SINGLE_IMAGE, Stack
from meddinov3_stroke.ct.dicom.survey import survey
from meddinov3_stroke.errors import AmbiguousInput, MedDINOError, MissingInput, OutOfScope, UnsupportedInput

MakeStack = Callable[..., Stack]


@pytest.fixture(scope="module")
def make_stack(tmp_path_factory: pytest.TempPathFactory) -> MakeStack:
    """An axial head series of 20 slices of 5 mm; keywords replace fields of its headers, `n_slices` and `gap_mm`."""
    folder = tmp_path_factory.mktemp("series")
    write_dicom_series(folder, np.zeros((20, 4, 5)), axial_geometry([5.0] * 19, (4, 5)))
    with open_files(folder) as files:
        (whole,) = survey(files).stacks

    def make(
        n_slices: int = 20, gap_mm: float = 5.0, verdict: Any = "usable", reason: str = "", **fields: Any
    ) -> Stack:
        fields = {"kernel": "", "series_description": ""} | fields
        images = [
            replace(image, **fields, position_mm=np.array([0, 0, k * gap_mm]))
            for k, image in enumerate(whole.images[:n_slices])
        ]
        return Stack(tuple(images), verdict=verdict, reason=reason)

    return make


SHARP_KERNELS = (
    *("BONE", "BONEPLUS", "EDGE", "LUNG", "DETAIL", "ULTRA"),  # GE
    *("H60s", "H70h", "B70f", "B80f", "U90u", "Hr60f\\3", "Hr64h", "Br64d", "J70h\\2", "I70f\\3", "Bl57d", "Hc69"),
    *("D", "E", "L", "YA", "YB", "YC", "YD", "YE"),  # Philips
    *("FC30", "FC31", "FC35", "FC50", "FC52", "FC80", "FC81", "FC86"),  # Canon, Toshiba
)
SOFT_KERNELS = (
    *("STANDARD", "SOFT", "STND", "BRAIN"),
    *(
        "H20s",
        "H30s",
        "H31s",
        "H40s",
        "H48s",
        "Hr32d",
        "Hr38f\\3",
        "Hr40h",
        "J30s\\2",
        "J40s\\3",
        "B30f",
        "Br40",
        "Qr40d",
    ),
    *("UA", "UB", "UC", "A", "B", "C", "EB", "EC"),
    *("FC20", "FC21", "FC23", "FC26", "FC62", "FC64", "FC67", "FC08", "FC13", "FC43"),
    "",
)


@pytest.mark.parametrize("kernel", SHARP_KERNELS)
def test_sharp_kernels_of_every_vendor_are_known(make_stack: MakeStack, kernel: str) -> None:
    assert is_sharp(make_stack(kernel=kernel.upper()))


@pytest.mark.parametrize("kernel", SOFT_KERNELS)
def test_soft_kernels_of_every_vendor_are_soft(make_stack: MakeStack, kernel: str) -> None:
    assert not is_sharp(make_stack(kernel=kernel.upper()))


@pytest.mark.parametrize(
    "description",
    ["Head 1.0 H70h", "BONE THIN", "HEAD BONE", "Knochen 1,5", "Head Bone 0.625", "CRANE OS", "FC81 HEAD", "头 骨窗"],
)
def test_a_description_may_tell_a_sharp_kernel(make_stack: MakeStack, description: str) -> None:
    assert is_sharp(make_stack(series_description=description))


@pytest.mark.parametrize(
    "description", ["Head 5.0 H30s", "BRAIN STANDARD", "Schädel 5.0", "POST OP", "WITHOUT", "STD ROUTINE"]
)
def test_other_descriptions_tell_none(make_stack: MakeStack, description: str) -> None:
    assert not is_sharp(make_stack(series_description=description))


@pytest.mark.parametrize(
    "description",
    [
        *(
            "CTA HEAD",
            "CTA CAROTID 0.625",
            "HEAD POST CONTRAST",
            "Head +C",
            "HEAD C+",
            "CT HEAD W CONTRAST",
            "POST-CON",
        ),
        *("Angio 0.75 H20f", "PERFUSION 5.0", "CTP MIP", "CT VENOGRAM", "HEAD WITH CONTRAST", "Head CE", "ANGIO COW"),
        *(
            "CTA HEAD W/WO",
            "HEAD WITH AND WITHOUT CONTRAST",
            "HEAD W/O & W CONTRAST",
            "CTA C-SPINE",
            "CT HEAD W/WO CONTRAST",
        ),
        *("Schädel mit KM", "头 增强", "arterial phase"),
    ],
)
def test_descriptions_of_contrast_are_known(make_stack: MakeStack, description: str) -> None:
    assert contrast_hint(make_stack(series_description=description)) == f"description {description!r}"


@pytest.mark.parametrize(
    "description",
    [
        *(
            "HEAD W/O CONTRAST",
            "CT HEAD WO CONTRAST",
            "CT HEAD WITHOUT CONTRAST",
            "NON-CONTRAST HEAD",
            "NON CON",
            "NCCT",
        ),
        *("PRE CONTRAST", "PRECON", "HEAD C-", "Head 5.0 H30s", "ROUTINE HEAD", "Brain plain", "Schädel nativ", "NECT"),
        *("CT HEAD NO CONTRAST", "NO IV CONTRAST", "Schädel ohne KM", "头 平扫", "POST OP HEAD", "C-SPINE", ""),
    ],
)
def test_descriptions_without_contrast_give_no_hint(make_stack: MakeStack, description: str) -> None:
    assert contrast_hint(make_stack(series_description=description)) == ""


@pytest.mark.parametrize("agent", ["OMNIPAQUE 350", "IV", "Iohexol", "Ultravist", "APPLIED"])
def test_an_agent_is_a_hint_of_contrast(make_stack: MakeStack, agent: str) -> None:
    assert contrast_hint(make_stack(contrast=agent)) == f"agent {agent!r}"


@pytest.mark.parametrize("agent", ["", "NONE", "None", "NO", "N/A", "no contrast", "Without", "-", "0", "not given"])
def test_what_denies_an_agent_is_no_hint(make_stack: MakeStack, agent: str) -> None:
    assert contrast_hint(make_stack(contrast=agent)) == ""


@pytest.mark.parametrize(
    "words",
    ["HEAD", "Brain 5mm", "CRANIO", "Schädel", "Schaedel", "TÊTE", "TETE", "Kopf", "头颅", "CRÂNE", "Cabeza", "NEURO"],
)
def test_words_for_a_head_are_known(make_stack: MakeStack, words: str) -> None:
    assert region_of(make_stack(series_description=words, body_part="")) == "head"
    assert region_of(make_stack(body_part=words)) == "head"


def test_head_and_neck_is_a_head_and_a_chest_is_elsewhere(make_stack: MakeStack) -> None:
    assert region_of(make_stack(series_description="CTA HEAD AND NECK")) == "head"
    assert region_of(make_stack(series_description="Thorax 5.0", body_part="CHEST")) == "elsewhere"


BETTER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "at least 8 slices": ({"n_slices": 8, "image_type": ("DERIVED",)}, {"n_slices": 7}),
    "original": ({"contrast": "IV"}, {"image_type": ("DERIVED", "SECONDARY")}),
    "without contrast": ({"body_part": "", "series_description": "x"}, {"contrast": "OMNIPAQUE"}),
    "a head": ({"kernel": "BONE"}, {"body_part": ""}),
    "not elsewhere": ({"body_part": "", "kernel": "BONE"}, {"body_part": "CHEST"}),
    "a soft kernel": ({"gap_mm": 0.6}, {"kernel": "BONE"}),
    "usual spacing, not thinner": ({"gap_mm": 2.0, "n_slices": 9}, {"gap_mm": 1.9}),
    "usual spacing, not thicker": ({"gap_mm": 6.0, "n_slices": 9}, {"gap_mm": 6.1}),
    "more slices": ({"series_number": 9}, {"n_slices": 19, "series_number": 1}),
    "the lower number": (
        {"series_number": 1, "series_instance_uid": "9"},
        {"series_number": 2, "series_instance_uid": "1"},
    ),
    "a number": ({"series_number": 9}, {"series_number": None}),
    "the smaller UID": ({"series_instance_uid": "1"}, {"series_instance_uid": "2"}),
}
"""What of two series is preferred, each against one that is better in everything the rule looks at later."""


@pytest.mark.parametrize(("better", "worse"), BETTER.values(), ids=BETTER.keys())
@pytest.mark.parametrize("turn", [1, -1])
def test_the_rule_prefers_in_its_order(
    make_stack: MakeStack, better: dict[str, Any], worse: dict[str, Any], turn: int
) -> None:
    stacks = [make_stack(**better), make_stack(**worse)]
    assert choose(stacks[::turn], None, "study") is stacks[0]


def test_a_series_set_aside_is_never_chosen_by_the_rule(make_stack: MakeStack) -> None:
    stacks = [make_stack(verdict="set aside", reason="a localizer"), make_stack(n_slices=2)]
    assert choose(stacks, None, "study") is stacks[1]


def test_a_named_series_is_read_whatever_the_rule_says(make_stack: MakeStack) -> None:
    stacks = [make_stack(series_instance_uid="1"), make_stack(series_instance_uid="2", kernel="BONE", contrast="IV")]
    assert choose(stacks, "2", "study") is stacks[1]


@pytest.mark.parametrize(
    ("verdict", "reason", "error"),
    [
        ("set aside", "a localizer", UnsupportedInput),
        ("refused", "different images at one position", UnsupportedInput),
        ("set aside", "slices are 90 degrees off axial; at most 45 are accepted", OutOfScope),
        ("set aside", SINGLE_IMAGE, OutOfScope),
    ],
)
def test_a_named_series_that_is_no_volume_is_refused_with_the_reason(
    make_stack: MakeStack, verdict: str, reason: str, error: type[MedDINOError]
) -> None:
    stacks = [make_stack(series_instance_uid="1"), make_stack(series_instance_uid="2", verdict=verdict, reason=reason)]
    with pytest.raises(error, match=f"study, series 2 has no readable axial CT series: 2: {reason}"):
        choose(stacks, "2", "study")


def test_an_unknown_series_names_those_there_are(make_stack: MakeStack) -> None:
    stacks = [make_stack(series_instance_uid=uid) for uid in ("1.2", "1.3")]
    with pytest.raises(MissingInput, match=r"study has no series 9; found 1\.2, 1\.3; list them with inspect"):
        choose(stacks, "9", "study")


@pytest.mark.parametrize(
    ("fields", "kind"), [({"patient_id": "P2"}, "2 patients"), ({"study_instance_uid": "2.25.9"}, "2 studies")]
)
def test_several_patients_or_studies_are_never_chosen_among(
    make_stack: MakeStack, fields: dict[str, Any], kind: str
) -> None:
    stacks = [make_stack(series_instance_uid="1"), make_stack(series_instance_uid="2", **fields)]
    with pytest.raises(AmbiguousInput, match=f"study holds {kind}; expected one study.*--series UID .one of 1, 2; "):
        choose(stacks, None, "study")
    assert choose(stacks, "2", "study") is stacks[1]


def test_a_single_image_is_taken_only_where_it_is_asked_for_and_nothing_else_is_there(make_stack: MakeStack) -> None:
    single = make_stack(n_slices=1, verdict="set aside", reason=SINGLE_IMAGE)
    with pytest.raises(OutOfScope, match="a single image"):
        choose([single], None, "study")
    assert choose([single], None, "study", allow_single_slice=True) is single
    whole = make_stack()
    assert choose([single, whole], None, "study", allow_single_slice=True) is whole


def test_many_reasons_are_cut_short(make_stack: MakeStack) -> None:
    stacks = [make_stack(series_instance_uid=str(k), verdict="set aside", reason="a localizer") for k in range(9)]
    with pytest.raises(UnsupportedInput, match="3: a localizer and 5 more; list them with inspect"):
        choose(stacks, None, "study")
