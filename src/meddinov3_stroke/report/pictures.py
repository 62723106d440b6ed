"""PNG pictures of slices: CT in a brain window, patch similarity over it. Drawn with Pillow, which imports quickly."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64
from PIL import Image, ImageColor, ImageDraw, ImageFont

from meddinov3_stroke.explain import (
    AID_NOTE,
    DEMO_NOTICE,
    HEAD_ABOVE_HU,
    SIMILARITY_RANGE,
    WINDOW_CENTER,
    WINDOW_WIDTH,
    is_demo,
)
from meddinov3_stroke.system.provenance import DISCLAIMER
from meddinov3_stroke.types import CaseFindings

LARGEST_OPACITY = 0.6  # of the overlay at similarity 1, falling to 0 at 0, so that the CT stays readable
_COLOURS = (
    *("#57106e", "#6a176e", "#7f1e6c", "#932667", "#a82e5f", "#bc3754", "#cc4248"),
    *("#dd513a", "#ea632a", "#f37819", "#f98e09", "#fca50a", "#fbbe23", "#f6d746"),
)
"""Middle part of matplotlib's inferno map (CC0): its black end hides the CT, its pale end looks like bone."""

BACKGROUND = "#0b0d10"
TEXT = "#eceff1"
MUTED = "#9aa4ad"
WARNING = "#ffb74d"
MARK = "#40e0ff"  # outline of the reference patch; unlike every colour of the overlay
_BAR_BACKGROUND = "#3c3c3c"

DPI = 150
SCALE_BAR_MM = 50.0
MARGIN = round(0.3 * DPI)
_GAP = round(0.08 * DPI)
_BAR = round(0.95 * DPI)  # width of the colour bar with its labels
_CAPTION = round(0.5 * DPI)
_COLUMNS = 5  # slices side by side in a case picture; further ones go below

OVER_BONE: dict[str, Any] = {"stroke_width": 2, "stroke_fill": "black"}  # keeps letters on a slice readable

WINDOW_NOTE = f"Brain window L {WINDOW_CENTER:.0f} W {WINDOW_WIDTH:.0f} HU"
_SCALE_NOTE = (
    f"Colour: cosine similarity to the outlined patch, fixed scale {SIMILARITY_RANGE[0]:g} to {SIMILARITY_RANGE[1]:g} "
    "(negative values drawn as 0), interpolated between patches, air not coloured"
)


Number = int | float  # the run-time checks in the tests do not accept an int for a float


@dataclass(frozen=True, eq=False)
class SliceMap:
    """A slice and the similarity of its patches to one of them."""

    hu: Float32[np.ndarray, "row col"]
    spacing_mm: tuple[float, float, float]  # (slice, row, column)
    similarity: Float32[np.ndarray, "h w"]
    patch: tuple[int, int] | None  # (row, column) of the reference patch in the grid
    slice_index: int
    n_slices: int
    position_mm: tuple[float, float, float]  # RAS+ mm of the slice's first voxel centre

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the patch grid."""
        return self.similarity.shape[0], self.similarity.shape[1]

    @property
    def extent_mm(self) -> tuple[float, float]:
        """(height, width) of the slice."""
        return self.hu.shape[0] * self.spacing_mm[1], self.hu.shape[1] * self.spacing_mm[2]


def slice_picture(shown: SliceMap, demo: bool = False, notices: Sequence[str] = (), label: str = "") -> bytes:
    """PNG of a slice in the brain window (left) and with its patch similarity over it (right).

    `demo` marks the picture as made with the demonstration backbone; `notices` are warnings that stand below it,
    `label` names the case.
    """
    panel = _panel_size(shown, width_in=4.6, height_in=9.0)
    width = max(2 * panel[0] + 3 * MARGIN + _BAR, round(7.5 * DPI))
    patch = "none" if shown.patch is None else "row {}, column {} of {} × {}".format(*shown.patch, *shown.grid)
    place = f"of 0 to {shown.n_slices - 1}, inferior to superior   ·   z = {shown.position_mm[2]:.1f} mm"
    header = wrap(f"Slice {shown.slice_index}", 13.0, width, style="Bold")
    header += wrap(f"{place}   ·   reference patch: {patch}", 9.0, width, MUTED)
    header += wrap(label, 7.5, width, MUTED) if label else []
    footer = wrap(f"{WINDOW_NOTE}. {AID_NOTE}. {_SCALE_NOTE}.", 7.5, width, MUTED)
    page = Page(width, header, panel[1], _notices(notices, width) + footer, demo)
    page.panel(MARGIN, page.top, panel, shown)
    left = MARGIN + panel[0] + MARGIN
    page.panel(left, page.top, panel, shown, overlay=True)
    page.colour_bar(left + panel[0] + _GAP, page.top, panel[1])
    return page.png()


def _notices(notices: Sequence[str], width: int) -> list[_Line]:
    return [line for notice in notices for line in wrap(f"{notice[0].upper()}{notice[1:]}.", 9.0, width, WARNING)]


def case_picture(findings: CaseFindings) -> bytes:
    """PNG of the most suspicious slices, highest score first, each without and with its patch similarity."""
    spacing, n_slices = findings.spacing_mm, findings.embeddings.n_slices
    maps = [
        SliceMap(hu, spacing, similarity, one.reference_patch, one.slice_index, n_slices, one.position_mm)
        for hu, similarity, one in zip(findings.map_hu, findings.similarity, findings.map_slices, strict=True)
    ]
    panel = _panel_size(maps[0], width_in=2.7, height_in=5.4)
    n_columns, n_rows = min(len(maps), _COLUMNS), -(-len(maps) // _COLUMNS)
    width = max(2 * MARGIN + n_columns * (panel[0] + _GAP) + _BAR, round(8.4 * DPI))
    block = _CAPTION + 2 * (panel[1] + _GAP)
    grid = findings.similarity.shape[1:]
    notes = f"{WINDOW_NOTE}. {AID_NOTE}. {grid[0]} × {grid[1]} patches. {_SCALE_NOTE}. {findings.reference_rule}."
    footer = wrap(notes, 7.5, width, MUTED)
    footer = _notices(findings.notices, width) + footer
    page = Page(
        width, _case_header(findings, width), n_rows * block, footer, is_demo(findings.embeddings.backbone.name)
    )
    for k, shown in enumerate(maps):
        left, top = MARGIN + k % _COLUMNS * (panel[0] + _GAP), page.top + k // _COLUMNS * block
        score, number = findings.map_slices[k].score, findings.map_slices[k].instance_number
        place = f"z = {shown.position_mm[2]:.1f} mm" + ("" if number is None else f"   Instance Number {number}")
        page.text(left, top, f"{k + 1}.  slice {shown.slice_index}   score {score:.3f}", 9.5, style="Bold")
        page.text(left, top + round(0.2 * DPI), place, 8.0, MUTED)
        page.panel(left, top + _CAPTION, panel, shown)
        page.panel(left, top + _CAPTION + panel[1] + _GAP, panel, shown, overlay=True)
    page.colour_bar(MARGIN + n_columns * (panel[0] + _GAP), page.top + _CAPTION + panel[1] + _GAP, panel[1])
    return page.png()


def brain_window(hu: Float32[np.ndarray, "row col"]) -> Float32[np.ndarray, "row col"]:
    """Grey values in [0, 1]: 0 at and below the window's lower end, 1 at and above its upper end."""
    low = WINDOW_CENTER - WINDOW_WIDTH / 2
    return np.asarray(np.clip((hu - low) / WINDOW_WIDTH, 0.0, 1.0).astype(np.float32))


def similarity_colours(share: Float[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape 4"]:
    """Red, green, blue and opacity in [0, 1] for shares of `SIMILARITY_RANGE`."""
    table = np.array([ImageColor.getrgb(colour) for colour in _COLOURS]) / 255.0
    stops = np.linspace(0.0, 1.0, len(table))
    channels = [np.interp(share, stops, table[:, k]) for k in range(3)]
    return np.stack([*channels, np.asarray(share) * LARGEST_OPACITY], axis=-1)


def stretch(similarity: Float32[np.ndarray, "h w"], shape: tuple[int, ...]) -> Float64[np.ndarray, "row col"]:
    """The map at `shape` pixels as a share of `SIMILARITY_RANGE`: bilinear between the centres of patches."""
    low, high = SIMILARITY_RANGE
    share = np.clip((similarity.astype(np.float64) - low) / (high - low), 0.0, 1.0)
    weights = []
    for n_patches, n_pixels in zip(similarity.shape, shape, strict=True):
        centres = np.clip((np.arange(n_pixels) + 0.5) * n_patches / n_pixels - 0.5, 0, n_patches - 1)
        weights.append(np.clip(1.0 - np.abs(centres[:, None] - np.arange(n_patches)), 0.0, None))
    return np.asarray(weights[0] @ share @ weights[1].T)


def head_pixels(hu: Float32[np.ndarray, "row col"]) -> Bool[np.ndarray, "row col"]:
    """Pixels above `HEAD_ABOVE_HU`, and the air they enclose (in the sense of 4-connectivity)."""
    air = hu <= HEAD_ABOVE_HU
    outside = air.copy()
    outside[1:-1, 1:-1] = False
    n_outside = -1
    while n_outside != (n_outside := int(outside.sum())):
        outside = _spread_along_rows(outside, air)
        outside = _spread_along_rows(outside.T, air.T).T
    return ~outside


def _spread_along_rows(seeds: Bool[np.ndarray, "row col"], area: Bool[np.ndarray, "row col"]) -> np.ndarray:
    # every run of `area` within a row that holds a seed, whole
    padded = np.pad(area, ((0, 0), (1, 0)))
    run = np.cumsum((padded[:, 1:] != padded[:, :-1]).ravel()) + np.repeat(np.arange(len(area)), area.shape[1])
    seeded = np.bincount(run, weights=seeds.ravel()) > 0
    return np.asarray(seeded[run].reshape(area.shape) & area)


@dataclass(frozen=True)
class _Line:
    text: str
    size: float  # in points
    colour: str
    style: str

    @property
    def height(self) -> int:
        return round(1.45 * self.size * DPI / 72)


class Page:
    """A dark page: header lines, room for panels from `top` on, footer lines, disclaimer."""

    def __init__(self, width: int, header: Sequence[_Line], body: int, footer: Sequence[_Line], demo: bool) -> None:
        self.top = MARGIN + sum(line.height for line in header) + round(0.15 * DPI)
        below = self.top + body + round(0.1 * DPI)
        height = below + sum(line.height for line in footer) + round(0.32 * DPI)
        self.image = Image.new("RGB", (width, height), BACKGROUND)
        self.draw = ImageDraw.Draw(self.image)
        for lines, top in ((header, MARGIN), (footer, below)):
            for line in lines:
                self.text(MARGIN, top, line.text, line.size, line.colour, line.style)
                top += line.height
        bottom = height - round(0.08 * DPI)
        self.text(MARGIN, bottom, f"{DISCLAIMER.capitalize()}.", 7.5, MUTED, "Oblique", anchor="ld")
        if demo:
            self.text(width - MARGIN, bottom, DEMO_NOTICE, 7.5, WARNING, anchor="rd")

    def text(
        self, x: Number, y: Number, text: str, size: float, colour: str = TEXT, style: str = "", **options: Any
    ) -> None:
        self.draw.text((x, y), drawable(text), colour, font_of(size, style), **options)

    def panel(self, left: int, top: int, size: tuple[int, int], shown: SliceMap, overlay: bool = False) -> None:
        """The slice with its reference patch, sides and scale bar; rows downwards, the patient's right at the left."""
        grey = Image.fromarray((brain_window(shown.hu) * 255).round().astype(np.uint8))
        pixels = np.asarray(grey.resize(size, Image.Resampling.BILINEAR), dtype=np.float64)[..., None].repeat(3, axis=2)
        if overlay:
            colours = similarity_colours(stretch(shown.similarity, size[::-1]))
            head = Image.fromarray(head_pixels(shown.hu)).resize(size, Image.Resampling.NEAREST)
            opacity = colours[..., 3:] * np.asarray(head)[..., None]
            pixels = pixels * (1 - opacity) + 255 * colours[..., :3] * opacity
        self.image.paste(Image.fromarray(pixels.round().astype(np.uint8)), (left, top))
        self._outline(left, top, size, shown)
        for x, y, side, anchor in ((0.02, 0.5, "R", "lm"), (0.98, 0.5, "L", "rm"), (0.5, 0.015, "A", "ma")):
            place = (left + x * size[0], top + y * size[1])
            self.text(*place, side, 9.0, style="Bold", anchor=anchor, **OVER_BONE)
        self._scale_bar(left, top, size, shown.extent_mm[1])

    def _outline(self, left: int, top: int, size: tuple[int, int], shown: SliceMap) -> None:
        if shown.patch is None:
            return
        width, height = size[0] / shown.grid[1], size[1] / shown.grid[0]
        x, y = left + shown.patch[1] * width, top + shown.patch[0] * height
        box = (round(x), round(y), round(x + width) - 1, round(y + height) - 1)
        self.draw.rectangle((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1), None, "black", 5)
        self.draw.rectangle(box, None, MARK, 3)

    def _scale_bar(self, left: int, top: int, size: tuple[int, int], width_mm: float) -> None:
        if width_mm < 2 * SCALE_BAR_MM:
            return
        right, y, length = left + 0.97 * size[0], top + 0.965 * size[1], SCALE_BAR_MM * size[0] / width_mm
        for colour, line in (("black", 7), (TEXT, 3)):
            self.draw.line((right - length, y, right, y), colour, line)
        middle, above = right - length / 2, y - 0.012 * size[1]
        self.text(middle, above, f"{SCALE_BAR_MM / 10:.0f} cm", 6.5, anchor="md", **OVER_BONE)

    def colour_bar(self, left: int, top: int, height: int) -> None:
        """The scale of the overlay, with ticks and a label."""
        width, tick = round(0.16 * DPI), round(0.03 * DPI)
        colours = similarity_colours(np.linspace(1.0, 0.0, height))
        column = (
            np.array(ImageColor.getrgb(_BAR_BACKGROUND)) * (1 - colours[:, 3:]) + 255 * colours[:, :3] * colours[:, 3:]
        )
        bar = np.repeat(column.round().astype(np.uint8)[:, None], width, axis=1)
        self.image.paste(Image.fromarray(bar), (left, top))
        low, high = SIMILARITY_RANGE
        for share in np.linspace(0.0, 1.0, 6):
            y = top + (height - 1) * (1 - share)
            self.draw.line((left + width, y, left + width + tick, y), MUTED, 1)
            anchor = "la" if share == 1 else "ld" if share == 0 else "lm"
            self.text(left + width + 2 * tick, y, f"{low + share * (high - low):.1f}", 7.0, anchor=anchor)
        label, font = "cosine similarity to outlined patch", font_of(8.0)
        upright = Image.new("RGB", (round(font.getlength(label)), round(0.18 * DPI)), BACKGROUND)
        ImageDraw.Draw(upright).text((0, 0), label, TEXT, font)
        turned = upright.rotate(90, expand=True)
        shrunk = turned.resize((turned.width, min(turned.height, height)))
        self.image.paste(shrunk, (left + round(0.5 * DPI), top + (height - shrunk.height) // 2))

    def png(self) -> bytes:
        """The page as PNG; equal pages give equal bytes."""
        self.image.save(buffer := io.BytesIO(), format="PNG", dpi=(DPI, DPI))
        return buffer.getvalue()


def _case_header(findings: CaseFindings, width: int) -> list[_Line]:
    named, after = findings.probabilities, {name: one.value for name, one in findings.calibrated.items()}
    label = "any" if "any" in named else max(named, key=named.__getitem__)
    threshold, words = findings.thresholds[label], findings.classification
    side = f"{'at or above' if findings.decisions[label] else 'below'} the threshold {threshold.value:.3f}"
    side += " (indeterminate)" if words[label] == "indeterminate" else ""
    sign = {name: "" if word == "negative" else f" ({word})" for name, word in words.items()}
    shown = {
        name: f"{value:.3f}" + (f", calibrated {after[name]:.3f}" if after.get(name) is not None else "")
        for name, value in named.items()
    }
    others = [f"{name} {text}{sign[name]}" for name, text in shown.items() if name != label]
    answer = f"P({label}) = {shown[label]}, {side}"
    header = [*wrap(answer, 14.0, width, style="Bold"), *wrap("  ·  ".join(others), 9.5, width)]
    label = findings.embeddings.source.label
    return header + wrap(f"{label}. Threshold: {threshold.origin}. {findings.ranking}.", 7.5, width, MUTED)


def _panel_size(shown: SliceMap, width_in: float, height_in: float) -> tuple[int, int]:
    # (width, height) in pixels of a panel in the slice's true proportions, within both limits in inches
    height_mm, width_mm = shown.extent_mm
    scale = DPI * min(width_in / width_mm, height_in / height_mm)
    return max(1, round(scale * width_mm)), max(1, round(scale * height_mm))


def wrap(text: str, size: float, page_width: int, colour: str = TEXT, style: str = "") -> list[_Line]:
    # lines that fit between the page's margins
    font, lines = font_of(size, style), [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and font.getlength(drawable(longer)) > page_width - 2 * MARGIN:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_Line(line, size, colour, style) for line in lines]


def drawable(text: str) -> str:
    """`text` with characters beyond Latin-1 as `?`: the font has no CJK glyphs."""
    return text.encode("latin-1", "replace").decode("latin-1")


@cache
def font_of(size: float, style: str = "") -> ImageFont.FreeTypeFont:
    """DejaVu Sans from matplotlib's files, found without importing matplotlib: the same letters everywhere."""
    folder = Path(str(getattr(find_spec("matplotlib"), "origin", ""))).parent / "mpl-data" / "fonts" / "ttf"
    name = f"DejaVuSans-{style}.ttf" if style else "DejaVuSans.ttf"
    return ImageFont.truetype(str(folder / name), round(size * DPI / 72))
