"""What stands on the pictures, and where."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from meddinov3_stroke.report import SliceMap, case_picture, slice_picture
from meddinov3_stroke.report.panel import head_pixels, stretch
from meddinov3_stroke.report.style import MARK, brain_window, drawable, similarity_colours
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
        slice_probabilities=np.full((n_shown, len(labels)), 0.5),
        similarity=np.zeros((n_shown, 4, 4), dtype=np.float32),
        top_hu=np.full((n_shown, 64, 64), 30.0, dtype=np.float32),
        spacing_mm=(5.0, 3.0, 3.0),
        ranking="Slices ranked by P(any)",
        head={"sha256": "12" * 32, "applied_as": "mean", "seed": 42},
        device="cpu",
        elapsed_s=1.0,
    )
    return replace(case, **changes)


@pytest.fixture
def figure_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], bytes]], Figure]:
    """The figure that a drawing function turns into PNG."""

    def capture(draw: Callable[[], bytes]) -> Figure:
        found: list[Figure] = []
        for module in ("picture_of_slice", "picture_of_case"):
            room = importlib.import_module(f"meddinov3_stroke.report.{module}")
            monkeypatch.setattr(room, "png_bytes", lambda figure: found.append(figure) or b"")
        draw()
        return found[0]

    return capture


def panel_of(figure: Figure, number: int) -> np.ndarray:
    """Pixels [row, column, rgba] of an axes as drawn."""
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())
    box = figure.axes[number].get_window_extent()
    height = drawn.shape[0]
    return drawn[round(height - box.y1) : round(height - box.y0), round(box.x0) : round(box.x1)]


def texts_of(figure: Figure) -> str:
    """All that is written on a figure, with line breaks as blanks."""
    on_axes = [text.get_text() for axes in figure.axes for text in (*axes.texts, axes.yaxis.label)]
    return " ".join([text.get_text() for text in figure.texts] + on_axes)


def test_the_window_is_level_40_width_80() -> None:
    hu = np.array([[-1000, 0, 40, 80, 1000]], dtype=np.float32)
    assert brain_window(hu).tolist() == [[0, 0, 0.5, 1, 1]]


def test_anterior_is_up_and_the_patients_left_at_the_right_of_the_picture(figure_of) -> None:
    panel = panel_of(figure_of(lambda: slice_picture(slice_map())), 0)[..., 0].astype(float)
    half = panel.shape[0] // 2
    quarters = [panel[:half, :half], panel[:half, half:], panel[half:, :half], panel[half:, half:]]
    assert int(np.argmax([quarter.mean() for quarter in quarters])) == 1


def test_r_stands_at_the_left_and_l_at_the_right_edge(figure_of) -> None:
    places = {
        text.get_text(): text.get_position() for text in figure_of(lambda: slice_picture(slice_map())).axes[0].texts
    }
    assert places["R"][0] < 0.1 < 0.9 < places["L"][0]
    assert places["A"][1] > 0.9


@pytest.mark.parametrize(
    ("spacing_mm", "expected"), [((5.0, 1.0, 1.0), 1.0), ((5.0, 2.0, 1.0), 2.0), ((5.0, 0.5, 1.0), 0.5)]
)
def test_pixels_keep_their_true_shape(figure_of, spacing_mm, expected) -> None:
    box = figure_of(lambda: slice_picture(slice_map(spacing_mm=spacing_mm))).axes[0].get_window_extent()
    assert box.height / box.width == pytest.approx(expected, rel=1e-6)


def test_the_reference_patch_is_outlined_where_it_is(figure_of) -> None:
    figure = figure_of(lambda: slice_picture(slice_map()))
    for axes in figure.axes[:2]:
        outlines = [patch for patch in axes.patches if patch.get_edgecolor()[:3] != (0, 0, 0)]
        assert [(patch.get_xy(), patch.get_width(), patch.get_height()) for patch in outlines] == [
            ((96.0, 48.0), 48, 48)
        ]


def test_no_similarity_has_the_colour_of_the_outline() -> None:
    outline = np.array([int(MARK[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    assert np.abs(similarity_colours()(np.linspace(0, 1, 256))[:, :3] - outline).max(axis=1).min() > 0.3


def test_the_grid_of_a_slice_that_is_not_square_is_stretched_over_it(figure_of) -> None:
    shown = slice_map(hu=np.full((32, 64), 30, dtype=np.float32))
    outline = figure_of(lambda: slice_picture(shown)).axes[1].patches[-1]
    assert (outline.get_width(), outline.get_height()) == (64 * 3 / 4, 32 * 3 / 4)


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
    opacity = similarity_colours()(np.array([0.0, 1.0]))[:, 3]
    assert opacity[0] == 0
    assert 0.4 < opacity[1] < 0.8


def test_air_around_the_head_is_not_coloured(figure_of) -> None:
    hu = np.full((64, 64), -1000, dtype=np.float32)
    hu[16:48, 16:48] = 30
    shown = slice_map(hu=hu, similarity=np.ones((4, 4), dtype=np.float32), patch=(2, 2))
    panel = panel_of(figure_of(lambda: slice_picture(shown)), 1).astype(int)
    colour = np.ptp(panel[..., :3], axis=-1)
    assert colour[20:60, 20:60].max() == 0
    assert colour[panel.shape[0] // 2 - 60, panel.shape[1] // 2 - 60] > 50


def test_air_inside_the_head_belongs_to_it() -> None:
    hu = np.full((20, 20), -1000, dtype=np.float32)
    hu[4:16, 4:16] = 30
    hu[8:12, 8:12] = -1000
    assert head_pixels(hu).sum() == 144


def test_the_slice_picture_says_all_a_reader_needs(figure_of) -> None:
    said = texts_of(figure_of(lambda: slice_picture(slice_map())))
    for expected in (
        *("Slice 3", "z = -12.3 mm", "row 1, column 2 of 4 × 4", "Brain window L 40 W 80 HU"),
        *("cosine similarity", "fixed scale 0 to 1", "not for clinical diagnosis", "5 cm"),
    ):
        assert expected in said


def test_a_demonstration_says_so_on_the_slice_picture(figure_of) -> None:
    assert "demonstration backbone" in texts_of(figure_of(lambda: slice_picture(slice_map(), demo=True)))


def test_any_other_slice_picture_does_not_speak_of_a_demonstration(figure_of) -> None:
    assert "demonstration" not in texts_of(figure_of(lambda: slice_picture(slice_map())))


def test_the_case_picture_says_all_a_reader_needs(figure_of) -> None:
    said = texts_of(figure_of(lambda: case_picture(findings())))
    for expected in (
        *("P(any) = 0.750", "at or above the threshold 0.500", "epidural 0.750 (positive)", "validation Youden"),
        *("slice 2", "score 0.880", "z = 10.0 mm", "Brain window L 40 W 80", "cosine similarity", "no localisation"),
        *("Slices ranked by P(any)", "not for clinical diagnosis"),
    ):
        assert expected in said


def test_a_demonstration_says_so_on_the_case_picture(figure_of) -> None:
    case = findings()
    demo = replace(case.embeddings, backbone=replace(IDENTITY, name="demo"))
    assert "demonstration backbone" in texts_of(figure_of(lambda: case_picture(replace(case, embeddings=demo))))


@pytest.mark.parametrize("n_shown", [1, 5, 7])
def test_every_suspicious_slice_is_drawn_with_and_without_overlay(figure_of, n_shown) -> None:
    figure = figure_of(lambda: case_picture(findings(n_shown)))
    assert len(figure.axes) == 2 * n_shown + 1
    assert [len(axes.images) for axes in figure.axes[:-1]] == [1, 2] * n_shown


@pytest.mark.parametrize("n_shown", [1, 5])
def test_nothing_is_written_beyond_the_edge(figure_of, n_shown) -> None:
    labels = ("any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
    figure = figure_of(lambda: case_picture(findings(n_shown, labels=labels)))
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    for text in (*figure.texts, *(text for axes in figure.axes for text in axes.texts)):
        box = text.get_window_extent()
        assert 0 <= box.x0 <= box.x1 <= width, text.get_text()
        assert 0 <= box.y0 <= box.y1 <= height, text.get_text()


def test_labels_of_any_script_are_drawn_without_a_warning() -> None:
    picture = case_picture(findings(1, labels=("any", "硬膜下 $x_1$")))
    assert imread(io.BytesIO(picture)).ndim == 3


def test_what_the_font_lacks_becomes_a_question_mark() -> None:
    assert drawable("病例 × ·") == "?? × ·"


def test_equal_findings_give_equal_bytes() -> None:
    assert slice_picture(slice_map()) == slice_picture(slice_map())
