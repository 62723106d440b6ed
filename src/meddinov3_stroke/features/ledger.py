"""The ledger of a run: every input and how it ended, appended to a file of JSON lines as it happens.

The first kind of line announces a run: its settings and inputs. The second records how one input ended. The state of an
input is its last record under the settings of the last run; without one it is pending, so that totals always add up.

Each shard of a run has a ledger of its own in the same folder, and `shards.json` says which shard an input belongs to.
The ledger of the whole run reads them all.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from meddinov3_stroke.ct import OpenedInput
from meddinov3_stroke.errors import STATUSES, Outcome, PartialFailure, UsageError, WorkerLost
from meddinov3_stroke.features.memory import SETTLED_S
from meddinov3_stroke.features.shards import Shard, shard_ranks
from meddinov3_stroke.system import names
from meddinov3_stroke.system.atomic import append_line, write_json
from meddinov3_stroke.system.command import this_command
from meddinov3_stroke.types import VolumeInput

LOGGER = logging.getLogger("meddinov3_stroke")

LEDGER_NAME = "ledger.jsonl"
SHARD_LEDGER = re.compile(r"ledger\.(\d+)-of-(\d+)\.jsonl")
SHARDS_NAME = "shards.json"
PENDING = "pending"  # state of an input of the last run without a record


class Ledger:
    """The ledger of a run, or of one shard of it, in a folder; reads what earlier runs wrote.

    That of the whole run also has the records of its shards.
    """

    def __init__(self, folder: Path, shard: Shard | None = None) -> None:
        self.folder, self.shard = Path(folder), shard
        self.path = self.folder / (LEDGER_NAME if shard is None else f"ledger.{shard.rank}-of-{shard.of}.jsonl")
        self.is_hidden = True  # whether no run wrote names
        self.settings: str | None = None  # of the last run; None if there was none
        self.inputs: list[str] = []  # names of the inputs of the last run, in order
        self.records: dict[str, dict[str, Any]] = {}  # input -> last record under those settings
        self.shards: dict[str, Shard] = {}  # input -> shard, where the last run has shards
        self.command = ""  # what computes a shard, without its number
        self.latest = ""  # time of the last line
        for line in self._lines():
            self._take(line)
        if shard is None and (self.folder / SHARDS_NAME).exists():
            self._read_shards()

    def _read_shards(self) -> None:
        """Take over the records of the shards, unless this file is of another run and newer."""
        plan = json.loads((self.folder / SHARDS_NAME).read_text(encoding="utf-8"))
        files = [re.fullmatch(SHARD_LEDGER, path.name) for path in self.folder.iterdir()]
        ledgers = [Ledger(self.folder, Shard(int(match[1]), int(match[2]))) for match in files if match]
        is_newer = self.settings is not None and self.latest > max((one.latest for one in ledgers), default="")
        if plan["settings"] != self.settings:
            if is_newer:
                return
            self.settings, self.records = plan["settings"], {}
        if not is_newer:
            self.inputs = plan["inputs"]
        self.shards = {name: Shard(rank, plan["of"]) for name, rank in zip(plan["inputs"], plan["ranks"], strict=True)}
        self.command = plan["command"]
        for ledger in ledgers:
            for name, record in ledger.records.items() if ledger.settings == self.settings else ():
                if name not in self.records or record["time"] > self.records[name]["time"]:
                    self.records[name] = record

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
        self.latest = max(self.latest, str(line.get("time", "")))
        if "inputs" in line:
            self.is_hidden = self.is_hidden and "hidden" in line
            if line["settings"] != self.settings:
                self.records = {}
            self.settings, self.inputs = line["settings"], line["inputs"]
        elif line.get("settings") == self.settings:
            self.records[line["input"]] = line

    def begin(self, settings: str, inputs: Sequence[str], keys: Sequence[str] | None = None) -> list[int]:
        """Announce a run over these inputs; gives the positions of those to work on: all, or those of the shard.

        Records of other settings no longer count. Shards are formed by `keys`, by default the inputs. The run without
        shards puts theirs together: `PartialFailure` names those that have inputs without a record. Raises UsageError
        where names are hidden, but not in what earlier runs wrote, or where the run has another number of shards.
        """
        if names.are_hidden() and not self.is_hidden:
            raise UsageError(f"{self.path} holds names of an earlier run; choose another folder for --hide-names")
        hidden = {"hidden": True} if names.are_hidden() else {}
        positions = list(range(len(inputs)))
        if self.shard is None:
            if settings == self.settings:
                self._require_shards(inputs)
        else:
            ranks = shard_ranks(inputs if keys is None else keys, self.shard.of)
            self._require_same_number(self.shard, settings, inputs)
            plan = {"settings": settings, "of": self.shard.of, "command": this_command("--shard")}
            write_json(self.folder / SHARDS_NAME, {**plan, "inputs": list(inputs), "ranks": ranks})
            positions = [k for k in positions if ranks[k] == self.shard.rank]
        self._append({"time": _now(), "settings": settings, **hidden, "inputs": [inputs[k] for k in positions]})
        return positions

    def open_shards(self, settings: str, inputs: Sequence[str], of: int) -> list[Shard]:
        """The shards, `of` in all, with inputs that have no result, or failed for a reason worth another try."""
        shards = [Shard(rank, of) for rank in range(of)]
        self._require_same_number(shards[0], settings, inputs)
        if self.settings != settings or set(self.shards) != set(inputs):
            return shards
        ended = {name for name, record in self.records.items() if record["status"] != "failed"}
        unfinished = {shard for name, shard in self.shards.items() if name not in ended}
        return [shard for shard in shards if shard in unfinished]

    def _require_same_number(self, shard: Shard, settings: str, inputs: Sequence[str]) -> None:
        # resubmitting part of a Slurm array changes rank and count
        path = self.folder / SHARDS_NAME
        plan = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if (plan.get("settings"), plan.get("inputs")) == (settings, list(inputs)) and plan["of"] != shard.of:
            raise UsageError(
                f"--shard {shard}: {self.folder} holds {plan['of']} shards of this run; pass --shard I/{plan['of']}, "
                f"or delete {path} to start over with another number"
            )

    def _require_shards(self, inputs: Iterable[str]) -> None:
        if missing := self.missing_shards(inputs):
            raise PartialFailure(
                f"{self.folder}: {'; '.join(missing)}; then run this again, which computes nothing itself; to compute "
                "everything here instead, choose another --output-dir"
            )

    def missing_shards(self, inputs: Iterable[str]) -> list[str]:
        """For each shard with inputs that have no record, a line with their number and the command that does them."""
        all_of = Counter(self.shards.values())
        pending = Counter(self.shards[name] for name in inputs if name in self.shards and name not in self.records)
        return [
            f"shard {one} has no result for {count} of {all_of[one]} inputs; run {self.command} --shard {one}"
            for one, count in sorted(pending.items(), key=lambda item: item[0].rank)
        ]

    def lost(self, names: Sequence[str]) -> dict[int, WorkerLost]:
        """Position -> error of inputs of shards that every worker was lost over; putting together does not retry."""
        records = {k: self.records.get(name, {}) for k, name in enumerate(names) if name in self.shards}
        return {k: WorkerLost(one["message"]) for k, one in records.items() if one.get("code") == WorkerLost.code}

    def add(self, name: str, outcome: Outcome, **facts: Any) -> None:
        """Record how an input ended, with further facts (JSON)."""
        self._append({"time": _now(), "settings": self.settings, "input": name, **asdict(outcome), **facts})

    def _append(self, line: dict[str, Any]) -> None:
        append_line(self.path, json.dumps(names.public_document(line), allow_nan=False))
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
    path = names.public_document(str(source.path), "input")
    return f"{path} series {source.series_uid}" if source.series_uid else str(path)


def settled_state(opened: OpenedInput) -> str | None:
    """What identifies the files of an input; None if they changed a moment ago, or cannot be examined."""
    state = opened.state()
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
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
