"""Full passes for the engine from volumes of any size."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.features.extractor import Extractor
from meddinov3_stroke.features.reading import OpenVolume, Window


class Packer:
    """Gathers windows into passes of `batch` slices and hands the class tokens back to their volumes.

    A pass crosses from one volume into the next unless that would change bits: on a CPU whose engine lets a slice's
    last bits depend on its neighbours, windows are passed as they come, and a full pass would gain nothing there.
    """

    def __init__(self, extractor: Extractor, on_tokens: Callable[[OpenVolume], None]) -> None:
        self._extractor, self._on_tokens = extractor, on_tokens
        self._waiting: deque[Window] = deque()

    def add(self, window: Window) -> None:
        """Take a window; runs the engine where a pass is full. `on_tokens` is told each volume that got tokens."""
        self._waiting.append(window)
        backbone = self._extractor.backbone
        if backbone.device == "cpu" and not backbone.independent_rows:
            self.flush()
        while sum(len(waiting.pixels) for waiting in self._waiting) >= self._extractor.batch:
            self._run(self._taken(self._extractor.batch))

    def flush(self) -> None:
        """Run the engine on what is left."""
        if self._waiting:
            self._run(list(self._waiting))
            self._waiting.clear()

    def _taken(self, n_slices: int) -> list[Window]:
        """The first `n_slices` that wait; the last window of them may be cut in two."""
        taken: list[Window] = []
        while n_slices:
            window = self._waiting.popleft()
            if len(window.pixels) > n_slices:
                self._waiting.appendleft(Window(window.volume, window.pixels[n_slices:]))
                window = Window(window.volume, window.pixels[:n_slices])
            taken.append(window)
            n_slices -= len(window.pixels)
        return taken

    def _run(self, windows: list[Window]) -> None:
        pixels = windows[0].pixels if len(windows) == 1 else np.concatenate([window.pixels for window in windows])
        cls = self._extractor.backbone.class_tokens(pixels)
        for window, tokens in zip(windows, _split(cls, windows), strict=True):
            window.volume.cls.append(tokens)
            self._on_tokens(window.volume)


def _split(cls: Float32[np.ndarray, "n dim"], windows: list[Window]) -> Iterator[Float32[np.ndarray, "some dim"]]:
    start = 0
    for window in windows:
        yield cls[start : start + len(window.pixels)]
        start += len(window.pixels)
