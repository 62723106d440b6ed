"""The picture of a case: every suspicious slice, its CT above and the similarity of its patches beneath."""

from __future__ import annotations

from matplotlib.figure import Figure

from meddinov3_stroke.explain.notices import is_demo
from meddinov3_stroke.explain.suspicion import REFERENCE_RULE
from meddinov3_stroke.report.panel import draw_colour_bar, draw_ct, draw_similarity, mark_patch
from meddinov3_stroke.report.picture_of_slice import panel_size
from meddinov3_stroke.report.style import (
    MUTED,
    SCALE_NOTE,
    TEXT,
    WINDOW_NOTE,
    new_figure,
    png_bytes,
    write,
    write_disclaimer,
)
from meddinov3_stroke.report.text import Line, height_of, wrap, write_lines
from meddinov3_stroke.types import CaseFindings

COLUMNS = 5
"""Slices side by side; more go below."""
PANEL_IN = 2.7
TALLEST_PANEL_IN = 5.4
GAP_IN = 0.08
MARGIN_IN = 0.3
CAPTION_IN = 0.5
BAR_IN = 0.95
"""Width taken by the colour bar and its labels."""
NARROWEST_IN = 8.4
"""So that the header fits beside few slices."""


def case_picture(findings: CaseFindings) -> bytes:
    """PNG of the suspicious slices, most suspicious first, with the probabilities of the case above."""
    pixel_mm = (findings.spacing_mm[1], findings.spacing_mm[2])
    panel = panel_size(findings.top_hu[0], pixel_mm, PANEL_IN, TALLEST_PANEL_IN)
    n_shown = len(findings.top_slices)
    n_columns, n_rows = min(n_shown, COLUMNS), -(-n_shown // COLUMNS)
    width = max(2 * MARGIN_IN + n_columns * (panel[0] + GAP_IN) + BAR_IN, NARROWEST_IN)
    header, footer = _header(findings, width), _footer(findings, width)
    header_in, footer_in = height_of(header) + 1.6 * MARGIN_IN, height_of(footer) + 1.5 * MARGIN_IN
    block_in = CAPTION_IN + 2 * panel[1] + 2 * GAP_IN
    height = header_in + n_rows * block_in + footer_in
    figure = new_figure(width, height)
    write_lines(figure, MARGIN_IN, height - MARGIN_IN, header)
    write_lines(figure, MARGIN_IN, footer_in - 0.05, footer)
    write_disclaimer(figure, MARGIN_IN, is_demo(findings.embeddings.backbone))
    for k in range(n_shown):
        left = MARGIN_IN + (k % COLUMNS) * (panel[0] + GAP_IN)
        _draw_slice(figure, findings, k, (left, height - header_in - (k // COLUMNS) * block_in), panel)
    bar_left = MARGIN_IN + n_columns * (panel[0] + GAP_IN) + 0.1
    bar_bottom = height - header_in - CAPTION_IN - 2 * panel[1] - GAP_IN
    draw_colour_bar(figure, (bar_left, bar_bottom + 0.05, 0.14, panel[1] - 0.1))
    return png_bytes(figure)


def _draw_slice(
    figure: Figure, findings: CaseFindings, k: int, corner: tuple[float, float], panel: tuple[float, float]
) -> None:
    """Caption, CT and overlay of the k-th suspicious slice; `corner` is the block's upper left one, in inches."""
    shown, hu, similarity = findings.top_slices[k], findings.top_hu[k], findings.similarity[k]
    pixel_mm = (findings.spacing_mm[1], findings.spacing_mm[2])
    left, top = corner
    write(figure, left, top - 0.2, f"{k + 1}.  slice {shown.slice_index}   score {shown.score:.3f}", 9.5, weight="bold")
    write(figure, left, top - 0.38, f"z = {shown.position_mm[2]:.1f} mm", 8.0, MUTED)
    upper = top - CAPTION_IN - panel[1]
    above = draw_ct(figure, (left, upper, *panel), hu, pixel_mm)
    below = draw_ct(figure, (left, upper - GAP_IN - panel[1], *panel), hu, pixel_mm)
    draw_similarity(below, similarity, hu)
    if shown.reference_patch is not None:
        for axes in (above, below):
            mark_patch(axes, shown.reference_patch, similarity.shape)


def _header(findings: CaseFindings, width_in: float) -> list[Line]:
    named = findings.probabilities
    label = "any" if "any" in named else max(named, key=named.__getitem__)
    threshold = findings.thresholds[label]
    side = "at or above" if findings.decisions[label] else "below"
    others = [
        f"{name} {value:.3f}{' (positive)' if findings.decisions[name] else ''}"
        for name, value in named.items()
        if name != label
    ]
    room_in = width_in - 2 * MARGIN_IN
    return [
        *wrap(
            f"P({label}) = {named[label]:.3f}, {side} the threshold {threshold.value:.3f}", 14.0, room_in, TEXT, "bold"
        ),
        *wrap("  ·  ".join(others), 9.5, room_in, TEXT),
        *wrap(f"Threshold: {threshold.origin}. {findings.ranking}.", 7.5, room_in, MUTED),
    ]


def _footer(findings: CaseFindings, width_in: float) -> list[Line]:
    grid = findings.similarity.shape[1:]
    notes = f"{WINDOW_NOTE}. {grid[0]} × {grid[1]} patches. {SCALE_NOTE}. {REFERENCE_RULE}."
    return wrap(notes, 7.5, width_in - 2 * MARGIN_IN, MUTED)
