"""What a drawing function puts on its page."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image, ImageDraw


@dataclass
class Drawn:
    """What a drawing function put on its page."""

    page: np.ndarray
    """Pixels [row, column, rgb]."""
    texts: list[tuple[str, tuple[float, float, float, float]]] = field(default_factory=list)
    """(text, (left, top, right, bottom)) in pixels of the image it was drawn on."""
    rectangles: list[tuple[tuple[int, ...], str]] = field(default_factory=list)
    """(box, colour)."""
    pastes: list[tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=list)
    """((left, top), (width, height)) of images put on the page: panels, then the colour bar and its label."""

    def panel(self, number: int) -> np.ndarray:
        """Pixels of a panel."""
        (left, top), (width, height) = self.pastes[number]
        return self.page[top : top + height, left : left + width]

    @property
    def words(self) -> str:
        """All texts, in the order of drawing."""
        return " ".join(text for text, _ in self.texts)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], bytes]], Drawn]:
    """Draws, and records the texts, rectangles and images that reach the page."""

    def record(draw: Callable[[], bytes]) -> Drawn:
        found = Drawn(np.empty(0))
        text, rectangle, paste = ImageDraw.ImageDraw.text, ImageDraw.ImageDraw.rectangle, Image.Image.paste

        def on_text(self, xy, content, fill=None, font=None, anchor=None, **more) -> None:
            box = self.textbbox(xy, content, font, anchor=anchor, stroke_width=more.get("stroke_width", 0))
            found.texts.append((content, box))
            text(self, xy, content, fill, font, anchor=anchor, **more)

        def on_rectangle(self, xy, fill=None, outline=None, width=1) -> None:
            found.rectangles.append((tuple(xy), outline))
            rectangle(self, xy, fill, outline, width)

        def on_paste(self, im, box=None, mask=None) -> None:
            if isinstance(im, Image.Image) and mask is None and isinstance(box, tuple) and len(box) == 2:
                found.pastes.append((box, im.size))
            paste(self, im, box, mask)

        with monkeypatch.context() as patched:
            patched.setattr(ImageDraw.ImageDraw, "text", on_text)
            patched.setattr(ImageDraw.ImageDraw, "rectangle", on_rectangle)
            patched.setattr(Image.Image, "paste", on_paste)
            png = draw()
        found.page = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        return found

    return record
