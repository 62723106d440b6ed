"""The most confident errors of an evaluation: where they stand in its table, and a picture of their slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.data.predictions import PredictionTable
from meddinov3_stroke.errors import MedDINOError
from meddinov3_stroke.report.pictures import DPI, MARGIN, MUTED, WINDOW_NOTE, Page, SliceMap, wrap
from meddinov3_stroke.system.atomic import write_bytes
from meddinov3_stroke.types import VolumeInput

_SIDE, _GAP, _CAPTION = (round(inches * DPI) for inches in (2.1, 0.1, 0.56))
_COLUMNS = 5

Errors = Mapping[str, Mapping[str, list[dict[str, Any]]]]


def errors_png(errors: Errors, table: PredictionTable) -> tuple[bytes | None, list[str]]:
    """(PNG of the slices of the errors, of a series the middle one; None if no volume can be read; warnings).

    Adds to each error its row in the table (the header is row 1), its slice, and its volume where one is named.
    """
    drawn: list[tuple[SliceMap, str, str]] = []
    failed: dict[str, str] = {}
    rows = table.csv.cells.index.tolist()
    try:
        inputs = table.inputs
    except MedDINOError as error:
        return None, [f"the most confident errors are not drawn: {error}"]
    for label, sides in errors.items():
        for kind, one in ((kind, one) for kind, side in sides.items() for one in side):
            source, k = inputs[one["index"]], one["index"]
            at = None if table.slice_indices is None else int(table.slice_indices[k])
            one |= {"row": rows[k], "slice_index": at, "input": source and str(source.path)}
            if source is None:
                continue
            try:
                shown = _slice_of(source, at)
            except MedDINOError as error:
                failed[str(source.path)] = str(error)
                continue
            what = f"{kind.removesuffix('s').replace('_', ' ')}, score {one['score']:.3f}"
            which = "middle slice" if at is None else "slice"
            drawn.append((shown, label, f"{what}\nrow {rows[k]}, {which} {shown.slice_index}"))
    warning = f"{len(failed)} volumes of the most confident errors are not drawn: {next(iter(failed.values()), '')}"
    return _page(drawn) if drawn else None, [warning] if failed else []


def replace_picture(path: Path, png: bytes | None) -> list[Path]:
    """The path, if there is a picture to write; that of an earlier evaluation is removed otherwise."""
    if png is None:
        path.unlink(missing_ok=True)
        return []
    write_bytes(path, png)
    return [path]


def _slice_of(source: VolumeInput, slice_index: int | None) -> SliceMap:
    volume = read_volume(source)
    k = min(volume.n_slices // 2 if slice_index is None else slice_index, volume.n_slices - 1)
    x, y, z = volume.slice_positions_mm[k].tolist()
    no_similarity = np.zeros((1, 1), dtype=np.float32)
    return SliceMap(volume.hu_slices([k])[0], volume.spacing_mm, no_similarity, None, k, volume.n_slices, (x, y, z))


def _page(drawn: Sequence[tuple[SliceMap, str, str]]) -> bytes:
    width = 2 * MARGIN + _COLUMNS * (_SIDE + _GAP)
    block = _CAPTION + _SIDE + _GAP
    header = wrap("Most confident errors", 13.0, width, style="Bold")
    footer = wrap(f"{WINDOW_NOTE}.", 7.5, width, MUTED)
    page = Page(width, header, -(-len(drawn) // _COLUMNS) * block, footer, demo=False)
    for k, (shown, title, place) in enumerate(drawn):
        left, top = MARGIN + k % _COLUMNS * (_SIDE + _GAP), page.top + k // _COLUMNS * block
        page.text(left, top, title, 8.5, style="Bold")
        page.text(left, top + round(0.17 * DPI), place, 7.5, MUTED)
        height_mm, width_mm = shown.extent_mm
        scale = _SIDE / max(height_mm, width_mm)
        page.panel(left, top + _CAPTION, (round(scale * width_mm), round(scale * height_mm)), shown)
    return page.png()
