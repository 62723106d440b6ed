"""Stage `split`: series CSV -> train, validation and test by patient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from meddinov3_stroke import config
from meddinov3_stroke.options import OutputDir, TableOptions
from meddinov3_stroke.system.atomic import require_writable
from meddinov3_stroke.system.command import Range, log_warnings, run_command
from meddinov3_stroke.system.progress import console
from meddinov3_stroke.system.provenance import ending
from meddinov3_stroke.types import LABELS

if TYPE_CHECKING:
    from meddinov3_stroke.data import SeriesTable, Splits


@dataclass(frozen=True, kw_only=True)
class SplitOptions(TableOptions):
    """How a table is split by patient."""

    train_ratio: float = config.TRAIN_RATIO
    """Share of patients (never of series) in the training split."""
    val_ratio: float = config.VAL_RATIO
    """Share of patients in the validation split."""
    test_ratio: float = config.TEST_RATIO
    """Share of patients in the test split; the three sum to 1."""

    def split(self, seed: int) -> Splits:
        """The split of the table; its warnings are logged."""
        from meddinov3_stroke.data import check_ratios, split_by_patient

        ratios = check_ratios((self.train_ratio, self.val_ratio, self.test_ratio))  # before the table is read
        splits = split_by_patient(self.read_table(), ratios, seed)
        log_warnings(splits.warnings)
        return splits


@dataclass(frozen=True, kw_only=True)
class Args(SplitOptions):
    """Split a series CSV into train, validation and test: by patient, stratified on the six labels."""

    output_dir: OutputDir = config.SPLITS_DIR
    """Folder for train.csv, val.csv, test.csv and split_summary.json."""
    seed: Annotated[int, Range(0)] = config.SEED
    """The same CSV, ratios and seed give the same split."""


def run(args: Args) -> Splits:
    """The splits, written to `args.output_dir`."""
    from meddinov3_stroke.data import write_splits

    require_writable(args.output_dir)
    splits = args.split(args.seed)
    written = write_splits(splits, args.output_dir)
    files = [path for path in written.values() if path.suffix == ".csv"]
    last = ending(f"{len(files)} splits by patient", args.output_dir, len(splits.warnings))
    print_counts("Split by patient", dict(splits.items()), files, last)
    return splits


def print_counts(title: str, tables: Mapping[str, SeriesTable], files: Iterable[Path], last: str) -> None:
    """Print the patients, studies, series and positive series of each table, the files written and the last lines."""
    from meddinov3_stroke.data import split_statistics

    counts = [split_statistics(table) for table in tables.values()]
    rows = [[what, *(str(one[f"n_{what}"]) for one in counts)] for what in ("patients", "studies", "series")]
    rows += [[f"{label} (series)", *(str(one["n_positive"][label]) for one in counts)] for label in LABELS]
    print_table(title, ("", *tables), rows, files, last)


def print_table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[str]], files: Iterable[Path | str], last: str
) -> None:
    """Print rows of a text and numbers (an empty row is a line), the files written and the last lines."""
    from rich.table import Table

    shown = Table(*header, title=title, title_justify="left")
    for column in shown.columns[1:]:
        column.justify = "right"
    for row in rows:
        shown.add_row(*row) if row else shown.add_section()
    console().print(shown)
    print("\n".join([*(f"wrote {path}" for path in files), last]))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
