"""`python -m benchmarks [names ...] [--quick] [--output-dir FOLDER]`: measure, print tables, write JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.table import Table
from meddinov3_stroke.system.atomic import write_json
from meddinov3_stroke.system.provenance import Stopwatch

NAMES = (
    "engines",
    "peak",
    "tokens",
    "pipeline",
    "memory",
    "scaling",
    "cold_start",
    "cached",
    "batch",
    "workers",
    "reading",
    "dicom_reading",
    "head_training",
    "fits",
    "coverage",
)
"""The modules of the suite, in the order they are measured."""

OUTPUT_DIR = Path("outputs/benchmarks")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code; one benchmark after the other is measured, printed and written."""
    args = parse(argv)
    for name in args.names or NAMES:
        watch, machine = Stopwatch(), describe_machine()
        table: Table = import_module(f"benchmarks.{name}").measure(args.quick)
        print(table.text(), f"\n({watch.elapsed_s:.0f} s)\n", sep="\n", flush=True)
        document = {"machine": machine, "quick": args.quick, "elapsed_s": round(watch.elapsed_s, 1)}
        write_json(args.output_dir / f"{name}.json", {**document, **table.document()})
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; an unknown name ends the program with the known ones."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"which (default: all): {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="a small transformer and few slices: only to see it run")
    parser.add_argument(
        "--output-dir", type=Path, default=OUTPUT_DIR, help=f"folder of the JSON (default: {OUTPUT_DIR})"
    )
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; expected some of {', '.join(NAMES)}")
    return args


if __name__ == "__main__":
    sys.exit(main())
