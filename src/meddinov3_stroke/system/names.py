"""Names of inputs, which may identify a patient: what stands for them in JSON logs, and with `--hide-names` everywhere.

In a JSON log the case id replaces a path. `--hide-names` replaces the paths of inputs in all that a command writes and
prints by digests under a key of the user's own, who also keeps the list of names.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import json
import logging
import os
import re
import secrets
import stat
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from meddinov3_stroke.config import user_config
from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.types import CASE_ID_DIGITS

KEY_NAME, LIST_NAME = "names.key", "case_names.csv"
"""In the user's configuration folder, readable by that user alone: the key, and the path behind each digest."""

LOGGER = logging.getLogger("meddinov3_stroke")

DIGITS = 12  # of a digest
LEAST_CHARACTERS = 4  # of a file's name; shorter ones could be any word or number of a message

_PREFIX = 3  # first characters of a name, by which a text is searched
_UID = re.compile(r"[0-9]+(?:\.[0-9]+){3,}(?:\.dcm)?")  # a DICOM UID, which stays
_PATH_KEYS = ("input", "inputs", "path")  # of documents; under others a name of fewer characters is not replaced

_REST = re.compile(r"[/\\](?:[^:;,\"\n()]*[/\\])?[^\s:;,\"\n()]*")
"""What follows a known path and lies below it: to its last separator, and one word."""


class _Names:
    """The names that a command has met."""

    def __init__(self, key: bytes, is_hidden: bool) -> None:
        self.key, self.is_hidden = key, is_hidden
        self.case_ids: dict[str, str] = {}  # path as given -> case id
        self.listed = _listed() if is_hidden else set()
        self._known: dict[str, tuple[str, str]] = {}  # form of a name -> (the name as given, its kind)
        self._prefixes: set[str] = set()
        self._lengths: list[int] = []

    def add(self, name: str, kind: str, *forms: str) -> None:
        for form in (name, *forms):
            for one in (form, " ".join(form.split()), repr(form)[1:-1]):  # as a path, in one line, in a traceback
                if one in self._known or not one.strip("./\\") or _UID.fullmatch(one):
                    continue
                self._known[one] = name, kind
                if len(one) >= LEAST_CHARACTERS:
                    self._prefixes.add(one[:_PREFIX])
                    if len(one) not in self._lengths:
                        self._lengths = sorted([*self._lengths, len(one)], reverse=True)

    def known(self, text: str) -> tuple[str, str] | None:
        return self._known.get(text)

    def digest(self, name: str, kind: str) -> str:
        code = hmac.new(self.key, name.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()
        return f"{kind}-{code[:DIGITS]}"

    def replaced(self, text: str, stand_in: Callable[[str, str], str]) -> str:
        """The text with `stand_in` of (name, kind) for every known name, and for every path below one."""
        parts, end = [], 0
        for start in (k for k in range(len(text)) if text[k : k + _PREFIX] in self._prefixes):
            if start < end or (text[start] != "/" and start and _continues(text[start - 1])):
                continue
            for stop in (start + length for length in self._lengths):
                found = self._known.get(text[start:stop])
                if found is None or (_continues(text[stop : stop + 1]) and text[stop] not in "./\\"):
                    continue
                if below := _REST.match(text, stop):
                    stop, found = below.end(), (found[0] + below.group(), found[1])
                parts += [text[end:start], stand_in(*found)]
                end = stop
                break
        return "".join([*parts, text[end:]])


def _continues(character: str) -> bool:
    return character.isalnum() or (character != "" and character in "_-./\\")


_names: _Names | None = None
_stdout: Any = None
"""Of the command that runs; None replaces nothing."""


def begin(*, is_hidden: bool, in_logs: bool) -> None:
    """Replace names until `end`. Raises UsageError where the user's key is damaged or readable by others."""
    global _names, _stdout
    if is_hidden or in_logs:
        _names = _Names(_users_key() if is_hidden else secrets.token_bytes(), is_hidden)
    if is_hidden:
        _stdout, sys.stdout = sys.stdout, Rewritten(sys.stdout, public)
        LOGGER.info("names of inputs are hidden; %s tells you what each digest stands for", user_config() / LIST_NAME)


def end() -> None:
    """Replace nothing any more."""
    global _names, _stdout
    if _stdout is not None:
        sys.stdout = _stdout
    _names = _stdout = None


class Rewritten:
    """A stream that writes every text as `rewrite` gives it."""

    def __init__(self, stream: Any, rewrite: Callable[[str], str]) -> None:
        self._stream, self._rewrite = stream, rewrite

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return int(self._stream.write(self._rewrite(text)))


def know(*paths: Path | str) -> None:
    """Inputs of the command, as given."""
    if (names := _names) is None:
        return
    from meddinov3_stroke.system.atomic import append_line, located  # it writes `public` text

    for path in (located(Path(one)) for one in paths):
        base = [path.name] if len(path.name) >= LEAST_CHARACTERS else []
        names.add(str(path), "input", str(path.absolute()), *base)
        if names.is_hidden and (row := (names.digest(str(path), "input"), str(path))) not in names.listed:
            names.listed.add(row)
            csv.writer(buffer := io.StringIO(), lineterminator="").writerow(row)
            append_line(user_config() / LIST_NAME, buffer.getvalue(), private=True)


def known_file(name: str, path: Path | None = None) -> str:
    """The name of a file within an input, which is known from now on, as is its path."""
    if _names is not None and len(name) >= LEAST_CHARACTERS:
        _names.add(name, "file", *([] if path is None else [str(path)]))
    return name


def know_case(path: Path, sha256: str) -> None:
    """The digest of an input, whose start is the case id."""
    if _names is not None:
        _names.case_ids[str(path)] = sha256[:CASE_ID_DIGITS]


def are_hidden() -> bool:
    """Whether names are replaced everywhere."""
    return _names is not None and _names.is_hidden


def public(text: str) -> str:
    """The text as it may be written or printed: without names, if they are hidden."""
    return _names.replaced(text, _names.digest) if _names is not None and _names.is_hidden else text


def public_document(value: Any, key: str = "") -> Any:
    """A JSON document, or a value of it, with `public` strings; its keys and numbers stay."""
    if _names is None or not _names.is_hidden:
        return value
    if isinstance(value, Mapping):
        return {name: public_document(one, str(name)) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [public_document(one, key) for one in value]
    if not isinstance(value, str | Path):
        return value
    if key in _PATH_KEYS and (known := _names.known(str(value))) is not None:
        return _names.digest(*known)
    return public(str(value))


def print_document(document: Any) -> None:
    """Print a JSON document on standard output."""
    text = json.dumps(public_document(document), ensure_ascii=False)
    print(text, file=sys.stdout if _stdout is None else _stdout)


def logged(text: str) -> str:
    """The text as a JSON log may hold it: a case id, or a digest where that is not known, for each name."""
    if (names := _names) is None:
        return text

    def stand_in(name: str, kind: str) -> str:
        return f"case {names.case_ids[name]}" if name in names.case_ids else names.digest(name, kind)

    return names.replaced(text, stand_in)


def _listed() -> set[tuple[str, ...]]:
    try:
        with (user_config() / LIST_NAME).open(newline="", encoding="utf-8", errors="surrogateescape") as handle:
            return {tuple(row) for row in csv.reader(handle)}
    except FileNotFoundError:
        return set()


def _users_key() -> bytes:
    from meddinov3_stroke.system.atomic import storage_error

    path = user_config() / KEY_NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with tempfile.NamedTemporaryFile("w", dir=path.parent) as handle:  # created with mode 0600
                handle.write(secrets.token_hex())
                handle.flush()
                with suppress(FileExistsError):  # another process was faster
                    os.link(handle.name, path)
        text, mode = path.read_text(encoding="ascii", errors="replace"), stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise storage_error(path, error) from error
    if os.name != "nt" and mode & 0o077:
        raise UsageError(f"{path}: others may read the key of --hide-names (mode {mode:04o}); run chmod 600 {path}")
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise UsageError(f"{path} is not a key of --hide-names; remove it to get a new one, which gives new digests")
    return bytes.fromhex(text)
