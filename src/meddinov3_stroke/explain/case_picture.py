"""The picture of a case: every suspicious slice, its CT above and the similarity of its patches beneath."""

from __future__ import annotations

import textwrap

from matplotlib.figure import Figure

from meddinov3_stroke.explain.notices import is_demo
from meddinov3_stroke.explain.panel import draw_colour_bar, draw_ct, draw_similarity, mark_patch
from meddinov3_stroke.explain.slice_picture import panel_size
from meddinov3_stroke.explain.style import (
    MUTED,
    SCALE_NOTE,
    TEXT,
    WINDOW_NOTE,
    new_figure,
    png_bytes,
    write,
    write_disclaimer,
)
from meddinov3_stroke.types import CaseFindings

COLUMNS = 5
"""Slices side by side; more go below."""
PANEL_IN = 2.7
TALLEST_PANEL_IN = 5.4
GAP_IN = 0.08
MARGIN_IN = 0.3
HEADER_IN = 1.15
CAPTION_IN = 0.5
FOOTER_IN = 0.95
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
    block_in = CAPTION_IN + 2 * panel[1] + 2 * GAP_IN
    width = max(2 * MARGIN_IN + n_columns * (panel[0] + GAP_IN) + BAR_IN, NARROWEST_IN)
    height = HEADER_IN + n_rows * block_in + FOOTER_IN
    figure = new_figure(width, height)
    _write_header(figure, findings)
    _write_footer(figure, findings)
    for k in range(n_shown):
        left = MARGIN_IN + (k % COLUMNS) * (panel[0] + GAP_IN)
        top = height - HEADER_IN - (k // COLUMNS) * block_in
        _draw_slice(figure, findings, k, (left, top), panel)
    bar_left = MARGIN_IN + n_columns * (panel[0] + GAP_IN) + 0.1
    bar_bottom = height - HEADER_IN - CAPTION_IN - 2 * panel[1] - GAP_IN
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
    write(figure, left, top - 0.38, f"z = {shown.position_mm[2]:.1f} mm", 8, MUTED)
    upper = top - CAPTION_IN - panel[1]
    above = draw_ct(figure, (left, upper, *panel), hu, pixel_mm)
    below = draw_ct(figure, (left, upper - GAP_IN - panel[1], *panel), hu, pixel_mm)
    draw_similarity(below, similarity)
    if shown.reference_patch is not None:
        for axes in (above, below):
            mark_patch(axes, shown.reference_patch, similarity.shape)


def _write_header(figure: Figure, findings: CaseFindings) -> None:
    width, height = map(float, figure.get_size_inches())
    label = "any" if "any" in findings.probabilities else max(findings.probabilities, key=findings.probabilities.get)  # type: ignore[arg-type]
    threshold = findings.thresholds[label]
    side = "at or above" if findings.decisions[label] else "below"
    title = f"P({label}) = {findings.probabilities[label]:.3f}, {side} the threshold {threshold.value:.3f}"
    write(figure, MARGIN_IN, height - 0.4, title, 14, TEXT, weight="bold")
    others = [f"{name} {value:.3f}" for name, value in findings.probabilities.items() if name != label]
    write(figure, MARGIN_IN, height - 0.67, "   ·   ".join(others), 9.5, TEXT)
    ranking = textwrap.wrap(f"Threshold: {threshold.origin}. {findings.ranking}.", int(width * 15.5))
    write(figure, MARGIN_IN, height - 0.8, "\n".join(ranking[:2]), 7.5, MUTED, va="top", linespacing=1.35)


def _write_footer(figure: Figure, findings: CaseFindings) -> None:
    width = float(figure.get_size_inches()[0])
    grid = findings.similarity.shape[1:]
    notes = (
        f"{WINDOW_NOTE}. {SCALE_NOTE} ({grid[0]} × {grid[1]}). Reference patch: highest head score among soft-tissue "
        "patches of the slice; the head was not trained on patches, so it is no localisation."
    )
    lines = textwrap.wrap(notes, int(width * 15.5))
    write(figure, MARGIN_IN, 0.75, "\n".join(lines), 7.5, MUTED, va="top", linespacing=1.35)
    write_disclaimer(figure, MARGIN_IN, is_demo(findings.embeddings.backbone))
