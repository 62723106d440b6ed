"""Verb `status`: how every input of a run has ended so far, from the ledger in its output folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from meddinov3_stroke.system import names
from meddinov3_stroke.system.command import ConsoleOptions, run_command
from meddinov3_stroke.system.progress import console
from meddinov3_stroke.system.provenance import ending, provenance

if TYPE_CHECKING:
    from meddinov3_stroke.features.ledger import Ledger

LISTED = 20  # inputs without a result that are listed


@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    """Count the inputs of a run by how they ended, and list those without a result; the run may still be going on."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Output folder of several cases (predict, embed, convert), of extract or of train-rsna."""
    json: bool = False
    """Print every input as JSON instead."""


def run(args: Args) -> dict[str, Any]:
    """Totals and records, as printed by `--json`."""
    from meddinov3_stroke.features.ledger import PENDING, read_ledger

    ledger = read_ledger(args.folder)
    records = [ledger.records.get(name, {"input": name, "status": PENDING}) for name in ledger.inputs]
    records = [{**one, **_shard_of(ledger, one["input"])} for one in records]
    document = {**provenance(), "totals": ledger.totals(), "inputs": records}
    if args.json:
        names.print_document(document)
        return document
    bad = [one for one in records if one["status"] not in ("done", PENDING)]
    lines = [f"{one['status']}  {one['code']}: {one['message']}" for one in bad[:LISTED]]
    lines += [f"and {len(bad) - LISTED} more (--json lists all)"] if len(bad) > LISTED else []
    lines += [f"pending  {text}" for text in ledger.missing_shards(ledger.inputs)]
    counts = ", ".join(f"{count} {state}" for state, count in ledger.totals().items())
    for text in (*lines, ending(counts, args.folder)):
        console().print(text, markup=False)
    return document


def _shard_of(ledger: Ledger, name: str) -> dict[str, str]:
    return {"shard": str(ledger.shards[name])} if name in ledger.shards else {}


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
