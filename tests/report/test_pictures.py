"""What the pictures show, and where."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from scipy.ndimage import binary_fill_holes

from meddinov3_stroke.explain import REFERENCE_RULE
from meddinov3_stroke.report.pictures import (
    MARK,
    SliceMap,
    brain_window,
    case_picture,
    drawable,
    head_pixels,
    similarity_colours,
    slice_picture,
    stretch,
)
from meddinov3_stroke.types import (
    BackboneIdentity,
    CaseFindings,
    Preprocessing,
    SliceEmbeddings,
    SliceSelection,
    Threshold,
    TopSlice,
    VolumeSource,
)

IDENTITY = BackboneIdentity(
    "model.pth", "ab" * 32, 8, 16, "bf16", Preprocessing(-1000.0, 1000.0, 65.0, 178.0, "fake-1"), "torch", "fp32"
)


def slice_map(hu: np.ndarray | None = None, **changes) -> SliceMap:
    """Brain everywhere but for blood in the corner that is anterior and to the patient's left."""
    if hu is None:
        hu = np.full((64, 64), 20.0, dtype=np.float32)
        hu[:32, 32:] = 80
    shown = SliceMap(
        hu=hu,
        spacing_mm=(5.0, 3.0, 3.0),
        similarity=np.linspace(-0.5, 1, 16, dtype=np.float32).reshape(4, 4),
        patch=(1, 2),
        slice_index=3,
        n_slices=8,
        position_mm=(10.0, 20.0, -12.3),
    )
    return replace(shown, **changes)


def findings(n_shown: int = 3, **changes) -> CaseFindings:
    labels = changes.pop("labels", ("any", "epidural"))
    top = tuple(
        TopSlice(k, 0.9 - k / 100, (0.0, 0.0, 5.0 * k), dict.fromkeys(labels, 0.5), (1, 1)) for k in range(n_shown)
    )
    cls = np.zeros((n_shown, 8), dtype=np.float32)
    source = VolumeSource(Path("case.nii.gz"), "nifti", "cd" * 32, "ef" * 32)
    embeddings = SliceEmbeddings(cls, np.arange(n_shown), n_shown, 64, SliceSelection(), IDENTITY, source)
    case = CaseFindings(
        probabilities=dict.fromkeys(labels, 0.75),
        thresholds=dict.fromkeys(labels, Threshold(0.5, "validation Youden (12 positive of 60)")),
        decisions=dict.fromkeys(labels, True),
        top_slices=top,
        embeddings=embeddings,
        volume_embedding=cls.mean(axis=0),
        slice_probabilities=np.full((n_shown, len(labels)), 0.5),
        map_slices=top,
        similarity=np.zeros((n_shown, 4, 4), dtype=np.float32),
        map_hu=np.full((n_shown, 64, 64), 30.0, dtype=np.float32),
        spacing_mm=(5.0, 3.0, 3.0),
        ranking="Slices ranked by P(any)",
        reference_rule=REFERENCE_RULE,
        head={"sha256": "12" * 32, "applied_as": "mean", "seed": 42},
        device="cpu",
        elapsed_s=1.0,
    )
    return replace(case, **changes)


def test_the_window_is_level_40_width_80() -> None:
    hu = np.array([[-1000, 0, 40, 80, 1000]], dtype=np.float32)
    assert brain_window(hu).tolist() == [[0, 0, 0.5, 1, 1]]


def test_anterior_is_up_and_the_patients_left_at_the_right_of_the_picture(drawn) -> None:
    panel = drawn(lambda: slice_picture(slice_map())).panel(0)[..., 0].astype(float)
    half = panel.shape[0] // 2
    quarters = [panel[:half, :half], panel[:half, half:], panel[half:, :half], panel[half:, half:]]
    assert int(np.argmax([quarter.mean() for quarter in quarters])) == 1


def test_r_is_at_the_left_edge_l_at_the_right_and_a_at_the_top(drawn) -> None:
    shown = drawn(lambda: slice_picture(slice_map()))
    (left, top), (width, height) = shown.pastes[0]
    boxes = {text: box for text, box in shown.texts[::-1] if text in "RLA" and box[0] < left + width}
    assert left <= boxes["R"][0] < left + 0.1 * width
    assert left + 0.9 * width < boxes["L"][2] <= left + width
    assert top <= boxes["A"][1] < top + 0.1 * height


@pytest.mark.parametrize(
    ("spacing_mm", "expected"), [((5.0, 1.0, 1.0), 1.0), ((5.0, 2.0, 1.0), 2.0), ((5.0, 0.5, 1.0), 0.5)]
)
def test_pixels_keep_their_true_shape(drawn, spacing_mm, expected) -> None:
    _, (width, height) = drawn(lambda: slice_picture(slice_map(spacing_mm=spacing_mm))).pastes[0]
    assert height / width == pytest.approx(expected, rel=2e-3)


def test_the_reference_patch_is_outlined_in_both_panels(drawn) -> None:
    shown = drawn(lambda: slice_picture(slice_map()))
    outlines = [box for box, colour in shown.rectangles if colour == MARK]
    for outline, ((left, top), (width, height)) in zip(outlines, shown.pastes[:2], strict=True):
        expected = (left + width * 2 / 4, top + height * 1 / 4, left + width * 3 / 4, top + height * 2 / 4)
        np.testing.assert_allclose(outline, expected, atol=1.5)


def test_no_similarity_has_the_colour_of_the_outline() -> None:
    outline = np.array([int(MARK[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    assert np.abs(similarity_colours(np.linspace(0, 1, 256))[:, :3] - outline).max(axis=1).min() > 0.3


def test_the_colours_are_the_middle_of_matplotlibs_inferno() -> None:
    expected = colormaps["inferno"](np.linspace(0.25, 0.9, 256))[:, :3]
    np.testing.assert_allclose(similarity_colours(np.linspace(0, 1, 256))[:, :3], expected, atol=4 / 255)


def test_the_grid_of_a_slice_that_is_not_square_is_stretched_over_it(drawn) -> None:
    shown = drawn(lambda: slice_picture(slice_map(hu=np.full((32, 64), 30, dtype=np.float32))))
    _, (width, height) = shown.pastes[1]
    box = [box for box, colour in shown.rectangles if colour == MARK][1]
    np.testing.assert_allclose((box[2] - box[0], box[3] - box[1]), (width / 4, height / 4), atol=1.5)
    assert width == pytest.approx(2 * height, rel=5e-3)


def test_the_overlay_is_bilinear_between_patches_as_in_torch() -> None:
    similarity = np.random.default_rng(0).uniform(0, 1, (4, 5)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(similarity)[None, None].double(), size=(33, 47), mode="bilinear", align_corners=False
    )[0, 0]
    np.testing.assert_allclose(stretch(similarity, (33, 47)), expected.numpy(), atol=1e-12)


def test_the_colour_scale_is_fixed_and_not_stretched_to_the_map() -> None:
    low, high = (np.full((2, 2), value, dtype=np.float32) for value in (0.25, 0.5))
    assert stretch(low, (4, 4)).max() == pytest.approx(0.25)
    assert stretch(high, (4, 4)).max() == pytest.approx(0.5)


def test_similarities_below_zero_are_drawn_as_zero() -> None:
    assert stretch(np.full((2, 2), -0.7, dtype=np.float32), (4, 4)).max() == 0


def test_similarity_zero_leaves_the_ct_as_it_is_and_one_lets_it_through() -> None:
    opacity = similarity_colours(np.array([0.0, 1.0]))[:, 3]
    assert opacity[0] == 0
    assert 0.4 < opacity[1] < 0.8


def test_air_around_the_head_is_not_coloured(drawn) -> None:
    hu = np.full((64, 64), -1000, dtype=np.float32)
    hu[16:48, 16:48] = 30
    shown = slice_map(hu=hu, similarity=np.ones((4, 4), dtype=np.float32), patch=(2, 2))
    panel = drawn(lambda: slice_picture(shown)).panel(1).astype(int)
    colour = np.ptp(panel, axis=-1)
    assert colour[20:60, 20:60].max() == 0
    assert colour[panel.shape[0] // 2 - 60, panel.shape[1] // 2 - 60] > 50


@pytest.mark.parametrize("share_of_air", [0.2, 0.4, 0.6])
def test_enclosed_air_belongs_to_the_head_as_scipy_fills_it(share_of_air: float) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        hu = np.where(rng.random((40, 37)) < share_of_air, -1000.0, 30.0).astype(np.float32)
        np.testing.assert_array_equal(head_pixels(hu), binary_fill_holes(hu > -300))


def test_the_slice_picture_says_all_a_reader_needs(drawn) -> None:
    said = drawn(lambda: slice_picture(slice_map())).words
    for expected in (
        *("Slice 3", "z = -12.3 mm", "row 1, column 2 of 4 × 4", "Brain window L 40 W 80 HU"),
        *("cosine similarity", "fixed scale 0 to 1", "not for clinical diagnosis", "5 cm", "not a lesion map"),
    ):
        assert expected in said


def test_a_demonstration_says_so_on_the_slice_picture(drawn) -> None:
    assert "demonstration backbone" in drawn(lambda: slice_picture(slice_map(), demo=True)).words


def test_any_other_slice_picture_does_not_speak_of_a_demonstration(drawn) -> None:
    assert "demonstration" not in drawn(lambda: slice_picture(slice_map())).words


def test_the_case_picture_says_all_a_reader_needs(drawn) -> None:
    said = drawn(lambda: case_picture(findings())).words
    for expected in (
        *("P(any) = 0.750", "at or above the threshold 0.500", "epidural 0.750 (positive)", "validation Youden"),
        *("slice 2", "score 0.880", "z = 10.0 mm", "Brain window L 40 W 80", "cosine similarity", "not a lesion map"),
        *("Slices ranked by P(any)", "not for clinical diagnosis"),
    ):
        assert expected in said


def test_a_demonstration_says_so_on_the_case_picture(drawn) -> None:
    case = findings()
    demo = replace(case.embeddings, backbone=replace(IDENTITY, name="demo"))
    assert "demonstration backbone" in drawn(lambda: case_picture(replace(case, embeddings=demo))).words


@pytest.mark.parametrize("n_shown", [1, 5, 7])
def test_every_suspicious_slice_is_drawn_with_and_without_overlay(drawn, n_shown) -> None:
    similarity = np.ones((n_shown, 4, 4), dtype=np.float32)
    shown = drawn(lambda: case_picture(findings(n_shown, similarity=similarity)))
    assert len(shown.pastes) == 2 * n_shown + 2
    coloured = [
        bool((np.ptp(shown.panel(k)[-60:-50, 20:60].astype(int), axis=-1) > 50).all()) for k in range(2 * n_shown)
    ]
    assert coloured == [False, True] * n_shown


@pytest.mark.parametrize("n_shown", [1, 5])
def test_no_text_crosses_the_edge_of_the_page(drawn, n_shown) -> None:
    labels = ("any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
    shown = drawn(lambda: case_picture(findings(n_shown, labels=labels)))
    height, width = shown.page.shape[:2]
    assert len(shown.texts) > 10
    for text, (left, top, right, bottom) in shown.texts:
        assert 0 <= left <= right <= width, text
        assert 0 <= top <= bottom <= height, text


def test_labels_of_any_script_are_drawn() -> None:
    picture = case_picture(findings(1, labels=("any", "硬膜下 $x_1$")))
    assert Image.open(io.BytesIO(picture)).size[0] > 1000


def test_what_the_font_lacks_becomes_a_question_mark() -> None:
    assert drawable("病例 × ·") == "?? × ·"


def test_equal_findings_give_equal_bytes() -> None:
    assert slice_picture(slice_map()) == slice_picture(slice_map())


def test_pictures_import_neither_matplotlib_nor_scipy() -> None:
    probe = (
        "import sys, meddinov3_stroke.report.pictures as p; p.font_of(9.0);"
        "sys.exit(any(name in sys.modules for name in ('matplotlib', 'scipy', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", probe], timeout=120, check=False).returncode == 0
