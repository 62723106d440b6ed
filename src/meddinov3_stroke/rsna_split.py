"""Stage `split`: series CSV -> train, validation and test by patient."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meddinov3_stroke import config
from meddinov3_stroke.labels import LabelPolicy
from meddinov3_stroke.options import OutputDir
from meddinov3_stroke.system.command import ConsoleOptions, run_command
from meddinov3_stroke.system.provenance import DISCLAIMER

if TYPE_CHECKING:
    from meddinov3_stroke.data import SeriesTable, Splits

LOGGER = logging.getLogger("meddinov3_stroke")


@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    """Split a series CSV into train, validation and test: by patient, stratified on the six labels."""

    series_csv: Path
    """CSV with nifti_path (or dicom_path, or header_index), study_uid and the six labels; patient_id and series_uid
    where known."""
    output_dir: OutputDir = config.SPLITS_DIR
    """Folder for train.csv, val.csv, test.csv and split_summary.json."""
    train_ratio: float = config.TRAIN_RATIO
    """Share of patients (never of series) in the training split."""
    val_ratio: float = config.VAL_RATIO
    """Share of patients in the validation split."""
    test_ratio: float = config.TEST_RATIO
    """Share of patients in the test split; the three sum to 1."""
    seed: int = config.SEED
    """The same CSV, ratios and seed give the same split."""
    columns: str | None = None
    """Names of the CSV's columns where they differ, such as nifti_path=path,patient_id=PatientID."""
    label_policy: LabelPolicy = "strict"
    """Where any is not the OR of the five types: fail, set any to the OR, or keep the row as it is."""
    exclude_ids: Path | None = None
    """Text file of IDs, one a line: all series of patients named there by patient, study or series ID are left out."""


def run(args: Args) -> Splits:
    """The splits, written to `args.output_dir`."""
    from meddinov3_stroke import data

    ratios = data.check_ratios((args.train_ratio, args.val_ratio, args.test_ratio))
    table = data.read_series_table(
        args.series_csv,
        columns=data.parse_column_mapping(args.columns),
        datasets_dir=config.load_settings().datasets_dir,
        label_policy=args.label_policy,
        exclude_ids=args.exclude_ids,
    )
    splits = data.split_by_patient(table, ratios, args.seed)
    for warning in splits.warnings:
        LOGGER.warning(warning)
    if table.exclusion is not None:
        LOGGER.info(table.exclusion.sentence)
    written = data.write_splits(splits, args.output_dir)
    print_counts("Split by patient", dict(splits.items()), [path for path in written.values() if path.suffix == ".csv"])
    return splits


def print_counts(title: str, tables: Mapping[str, SeriesTable], files: Sequence[Path]) -> None:
    """Print the patients, studies, series and positive series of each table, and the files written."""
    from rich.console import Console
    from rich.table import Table

    from meddinov3_stroke.data import split_statistics
    from meddinov3_stroke.types import LABELS

    counts = [split_statistics(table) for table in tables.values()]
    shown = Table("", *tables, title=title, title_justify="left")
    for column in shown.columns[1:]:
        column.justify = "right"
    for what in ("patients", "studies", "series"):
        shown.add_row(what, *(str(one[f"n_{what}"]) for one in counts))
    for label in LABELS:
        shown.add_row(f"{label} (series)", *(str(one["n_positive"][label]) for one in counts))
    Console().print(shown)
    print("\n".join([*map(str, files), DISCLAIMER]))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
