"""The ledger of a run: every input and how it ended, appended to a file of JSON lines as it happens.

The first kind of line announces a run: its settings and inputs. The second records how one input ended. The state of an
input is its last record under the settings of the last run; without one it is pending, so that totals always add up.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from meddinov3_stroke.ct import OpenedInput
from meddinov3_stroke.errors import STATUSES, Outcome, UsageError
from meddinov3_stroke.features.memory import SETTLED_S, files_state
from meddinov3_stroke.system import names
from meddinov3_stroke.system.atomic import append_line
from meddinov3_stroke.types import VolumeInput

LOGGER = logging.getLogger("meddinov3_stroke")

LEDGER_NAME = "ledger.jsonl"
PENDING = "pending"  # state of an input of the last run without a record


class Ledger:
    """The ledger in a folder; reads what earlier runs wrote."""

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / LEDGER_NAME
        self.is_hidden = True  # whether no run wrote names
        self.settings: str | None = None  # of the last run; None if there was none
        self.inputs: list[str] = []  # names of the inputs of the last run, in order
        self.records: dict[str, dict[str, Any]] = {}  # input -> last record under those settings
        for line in self._lines():
            self._take(line)

    def _lines(self) -> list[dict[str, Any]]:
        try:
            texts = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        lines = []
        for number, text in enumerate(texts, start=1):
            try:
                lines.append(dict(json.loads(text)))
            except ValueError:  # cut off when its writer was killed
                LOGGER.warning("%s line %d is damaged and ignored; its input counts as pending", self.path, number)
        return lines

    def _take(self, line: dict[str, Any]) -> None:
        if "inputs" in line:
            self.is_hidden = self.is_hidden and "hidden" in line
            if line["settings"] != self.settings:
                self.records = {}
            self.settings, self.inputs = line["settings"], line["inputs"]
        elif line.get("settings") == self.settings:
            self.records[line["input"]] = line

    def begin(self, settings: str, inputs: Iterable[str]) -> None:
        """Announce a run over these inputs; records of other settings no longer count.

        Raises UsageError where names are hidden, but not in what earlier runs wrote.
        """
        if names.are_hidden() and not self.is_hidden:
            raise UsageError(f"{self.path} holds names of an earlier run; choose another folder for --hide-names")
        hidden = {"hidden": True} if names.are_hidden() else {}
        self._append({"time": _now(), "settings": settings, **hidden, "inputs": list(inputs)})

    def add(self, name: str, outcome: Outcome, **facts: Any) -> None:
        """Record how an input ended, with further facts (JSON)."""
        self._append({"time": _now(), "settings": self.settings, "input": name, **asdict(outcome), **facts})

    def _append(self, line: dict[str, Any]) -> None:
        append_line(self.path, json.dumps(line, allow_nan=False))
        self._take(line)

    def finished(self, name: str, opened: OpenedInput) -> bool:
        """Whether the input ended as `done` and its files, or at least their content, are unchanged since."""
        record = self.records.get(name, {})
        if record.get("status") != "done":
            return False
        return record.get("files") == settled_state(opened) is not None or record.get("sha256") == opened.digest

    def totals(self) -> dict[str, int]:
        """Number of inputs of the last run in all, by state, and pending."""
        states = Counter(self.records.get(name, {}).get("status", PENDING) for name in self.inputs)
        return {"total": len(self.inputs), **{state: states[state] for state in (*STATUSES, PENDING)}}


def input_name(source: VolumeInput) -> str:
    """The name of an input in a ledger: its path as given unless names are hidden, and the series if one is named."""
    names.know(source.path)
    return names.public(str(source.path)) + (f" series {source.series_uid}" if source.series_uid else "")


def settled_state(opened: OpenedInput) -> str | None:
    """What identifies the files of an input; None if they changed a moment ago, or cannot be examined."""
    state = files_state(opened.files)
    return None if state is None or time.time() - state[1] < SETTLED_S else state[0]


def read_ledger(folder: Path) -> Ledger:
    """The ledger in a folder; `UsageError` if it has none."""
    ledger = Ledger(folder)
    if ledger.settings is None:
        raise UsageError(
            f"{folder} holds no {LEDGER_NAME}; expected the output folder of several cases, of extract or of train-rsna"
        )
    return ledger


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
