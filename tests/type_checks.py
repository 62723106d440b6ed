"""Run-time checks of the package's signatures: shapes by jaxtyping where a signature states one, types by beartype.

jaxtyping's wrapper binds every call twice, which takes most of the time of small functions that have no arrays, so
those get beartype's alone.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, get_type_hints

import jaxtyping
from beartype import beartype

_jaxtyped = jaxtyping.jaxtyped


def _hint(annotation: Any, names: dict[str, Any]) -> Any:
    """The type an annotation names; Any where it cannot be evaluated."""

    def holder() -> None: ...

    holder.__annotations__ = {"value": annotation}
    try:
        return get_type_hints(holder, names, include_extras=True)["value"]
    except Exception:  # as jaxtyping does: names that are defined later, or imported for type checkers only
        return Any


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    hints = {name: _hint(one, function.__globals__) for name, one in function.__annotations__.items()}
    if "jaxtyping" in repr(hints):
        return _jaxtyped(function, typechecker=beartype)
    function.__annotations__ = hints
    return beartype(function)


def _check(item: Any = None, *, typechecker: Any = None) -> Any:
    """In place of `jaxtyping.jaxtyped`, as the import hook calls it on functions and classes."""
    if item is None:
        return functools.partial(_check, typechecker=typechecker)
    if inspect.isfunction(item):
        return _checked(item)
    if isinstance(item, (classmethod, staticmethod)):
        return type(item)(_checked(item.__func__))
    if inspect.isclass(item) and is_dataclass(item) and "__init__" in vars(item):
        item.__init__ = _checked(item.__init__)
        return item
    return _jaxtyped(item, typechecker=typechecker)


def install(packages: list[str]) -> None:
    """Check the functions and dataclasses of these packages, which are not imported yet."""
    jaxtyping.jaxtyped = _check
    jaxtyping.install_import_hook(packages, "beartype.beartype")
