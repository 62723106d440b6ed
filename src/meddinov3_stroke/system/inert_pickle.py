"""Reading a pickle without running any of it: what it names becomes an inert stand-in.

Used to say what a file asks for, and to take the tensors out of a file that holds more than tensors.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

Rebuilders = Mapping[str, Callable[..., Any]]
"""Dotted name in the pickle -> our own function or class that takes its place."""


class Inert:
    """Stands for a class or function that a pickle names; takes any arguments and does nothing with them."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        """A stand-in, whatever it is called with."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        """Another stand-in: pickles may call what they built."""
        return Inert()

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Takes the items of a pickled list subclass and drops them."""

    def extend(self, items: Any) -> None:
        """Takes the items of a pickled list subclass and drops them."""

    def add(self, item: Any) -> None:
        """Takes the items of a pickled set subclass and drops them."""


class InertUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers and text; every named class or function is a rebuilder of ours or an `Inert`.

    `found` collects the dotted names that the pickle asked for.
    """

    def __init__(
        self,
        handle: io.BufferedIOBase,
        rebuilders: Rebuilders | None = None,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(handle)
        self.found: set[str] = set()
        self._rebuilders = rebuilders or {}
        self._persistent = persistent

    def find_class(self, module: str, name: str) -> Any:
        """Our stand-in for `module.name`; nothing is imported."""
        dotted = f"{module}.{name}"
        self.found.add(dotted)
        return self._rebuilders.get(dotted) or type("Inert", (Inert,), {"stands_for": dotted})

    def persistent_load(self, pid: Any) -> Any:
        """What the reader makes of a storage reference; an `Inert` where it reads no storages."""
        return self._persistent(pid) if self._persistent else Inert()
