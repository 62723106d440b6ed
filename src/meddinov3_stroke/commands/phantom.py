"""Stage `phantom`: synthetic head CT with haemorrhages and masks, ready for the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from meddinov3_stroke import config
from meddinov3_stroke.options import OutputDir
from meddinov3_stroke.phantom import CohortManifest, count_series, write_cohort
from meddinov3_stroke.system.atomic import require_writable
from meddinov3_stroke.system.command import ConsoleOptions, Range, run_command
from meddinov3_stroke.system.devices import available_cpus
from meddinov3_stroke.system.progress import progress_bar
from meddinov3_stroke.system.provenance import ending


@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    """Write synthetic head CT volumes, their haemorrhage masks and one series CSV at the top of the folder."""

    output_dir: OutputDir = config.PHANTOM_DIR
    """Folder for volumes/, masks/ and phantom_series_labels.csv."""
    patients: Annotated[int, Range(1)] = config.PHANTOM_PATIENTS
    """Number of patients; some have two studies."""
    seed: Annotated[int, Range(0)] = config.SEED
    """The same seed gives the same bytes."""
    format: Literal["nifti", "dicom"] = "nifti"
    """How volumes are written: a .nii.gz each, or a DICOM folder each (the CSV's paths are then in `dicom_path`)."""


def run(args: Args) -> CohortManifest:
    """The manifest of the cohort written under `args.output_dir`."""
    require_writable(args.output_dir)
    total = count_series(args.patients, args.seed)
    with progress_bar("phantoms", total, "volumes", args.show_progress) as advance:
        folder, workers = args.output_dir, available_cpus()
        manifest = write_cohort(
            folder, args.patients, args.seed, workers=workers, on_progress=advance, volume_format=args.format
        )
    print(ending(f"{total} synthetic series of {args.patients} patients", manifest.csv_path))
    return manifest


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
