"""Verb `store`: compact a cache of embeddings into Parquet shards, verify it, or remove what no table names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from meddinov3_stroke import config
from meddinov3_stroke.errors import MedDINOError, PartialFailure, UsageError
from meddinov3_stroke.options import NameOptions
from meddinov3_stroke.system.atomic import require_writable
from meddinov3_stroke.system.command import run_command
from meddinov3_stroke.system.progress import progress_bar
from meddinov3_stroke.system.provenance import ending, provenance

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Args(NameOptions):
    """Compact a cache of embeddings into Parquet shards, verify its digests, or remove what no table names."""

    action: Annotated[Literal["compact", "verify", "gc"], tyro.conf.Positional]
    """compact: move entries into shards, as float16. verify: check every digest. gc: count or remove entries whose
    volume is in none of the tables."""
    cache_dir: Path = config.RSNA_CACHE_DIR
    """Folder of cached embeddings."""
    series_csv: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH")] = ()
    """gc: every series CSV whose volumes are to stay."""
    delete: bool = False
    """gc: remove what is found (default: only count it)."""
    json: bool = False
    """Print the result as JSON on standard output instead of text."""


def run(args: Args) -> dict[str, Any]:
    """What was done, as printed by `--json`."""
    from meddinov3_stroke.features import compacted
    from meddinov3_stroke.features.store import COMPACTED, COMPACTED_INDEX

    if not args.cache_dir.is_dir():
        raise UsageError(f"--cache-dir {args.cache_dir}: no such folder; name the cache of extract or train-rsna")
    if (args.action == "gc") != bool(args.series_csv):
        raise UsageError("--series-csv belongs to gc, which needs every table whose volumes are to stay")
    require_writable(*[args.cache_dir] * (args.delete or args.action == "compact"))
    files = compacted.single_files(args.cache_dir)
    if args.action == "gc":
        found = compacted.collect(args.cache_dir, _digests_in(args), is_deleting=args.delete)
        what = "removed" if args.delete else "that --delete would remove"
        text = f"{found['n_entries']} entries and {found['n_useless_files']} other files {what}"
    elif args.action == "verify":
        n_rows = len(compacted.Compacted(args.cache_dir).rows)
        with progress_bar("verifying", len(files) + n_rows, "entries", args.show_progress) as advance:
            found = compacted.verify(args.cache_dir, advance)
        text = f"{found['n_entries']} entries, {len(found['damaged'])} damaged"
    else:
        with progress_bar("compacting", len(files), "entries", args.show_progress) as advance:
            found = compacted.compact(args.cache_dir, advance)
        text = (
            f"{found['n_compacted']} entries compacted ({found['bytes_before'] / MIB:.1f} MiB; all shards "
            f"{found['bytes_after'] / MIB:.1f} MiB), {found['n_left']} left, {found['n_damaged']} damaged; "
            f"cosine distance of a class token to its float32 at most {1 - found['least_cosine']:.1e}"
        )
    document = {**provenance(), "action": args.action, "cache_dir": str(args.cache_dir), **found}
    where = args.cache_dir / COMPACTED / COMPACTED_INDEX if args.action == "compact" else args.cache_dir
    print(json.dumps(document) if args.json else ending(text, where))
    if found.get("damaged"):
        raise PartialFailure(f"{len(found['damaged'])} entries are damaged; the next run computes their volumes again")
    return document


def _digests_in(args: Args) -> set[str]:
    """The digests of all volumes of the tables; UsageError where one cannot be read, because its entries would go."""
    from meddinov3_stroke.ct import open_input
    from meddinov3_stroke.data import read_series_table
    from meddinov3_stroke.features import InputMemory

    datasets_dir, memory = config.load_settings().datasets_dir, InputMemory(args.cache_dir / "inputs")
    tables = [read_series_table(path, datasets_dir=datasets_dir, label_policy="ignore") for path in args.series_csv]
    sources = [source for table in tables for source in table.inputs if source is not None]
    digests = set()
    with progress_bar("reading", len(sources), "volumes", args.show_progress) as advance:
        for source in sources:
            try:
                opened = open_input(source)
                known = memory.recall(opened, source.series_uid)
                digests.add(known or memory.digest(opened, source.series_uid))
            except MedDINOError as error:
                advice = (
                    "without its digest its entries cannot be identified; fix the volume, or take it out of the table"
                )
                raise UsageError(f"{error}; {advice}") from error
            advance()
    return digests


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
