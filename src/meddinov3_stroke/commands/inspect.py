"""Stage `inspect`: the series of a DICOM input, and which of them would be read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from meddinov3_stroke.system.command import ConsoleOptions, run_command
from meddinov3_stroke.system.provenance import DISCLAIMER

if TYPE_CHECKING:
    from meddinov3_stroke.ct.dicom.choice import Inspection
    from meddinov3_stroke.types import Volume

LOGGER = logging.getLogger("meddinov3_stroke")


@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    """List the studies and series of a DICOM folder, archive or file, each with a verdict and a reason."""

    path: Annotated[Path, tyro.conf.Positional]
    """Folder, .zip, .txt list of files, DICOM file, or NIfTI volume."""
    output_json: Path | None = None
    """JSON file to write the same facts to."""


def run(args: Args) -> dict[str, Any]:
    """The facts, as written to `--output-json`.

    Raises:
        InputError: not found, or not something that can be inspected.
    """
    from meddinov3_stroke.ct import read_volume
    from meddinov3_stroke.ct.contents import is_nifti_name
    from meddinov3_stroke.system.atomic import write_json
    from meddinov3_stroke.system.provenance import provenance

    if is_nifti_name(args.path):
        facts = _volume_facts(read_volume(args.path))
    else:
        from meddinov3_stroke.ct.dicom.choice import inspect_dicom

        facts = _series_facts(inspect_dicom(args.path))
    document = {**provenance(), "input": str(args.path), **facts}
    if args.output_json is not None:
        write_json(args.output_json, document)
        print(f"wrote {args.output_json}")
    print(DISCLAIMER)
    return document


def _series_facts(found: Inspection) -> dict[str, Any]:
    from meddinov3_stroke.ct.dicom.choice import RULE
    from meddinov3_stroke.report.inspection import print_inspection

    print_inspection(found, RULE)
    document = asdict(found)
    del document["path"]
    for one in document["series"]:
        del one["outcome"]
    return {"format": "dicom", "rule": RULE, "n_used": found.n_used, **document}


def _volume_facts(volume: Volume) -> dict[str, Any]:
    n_slices, n_rows, n_columns = volume.stored.shape
    slice_mm, row_mm, column_mm = volume.spacing_mm
    print(
        f"NIfTI volume of {n_slices} slices of {n_rows} x {n_columns}, {slice_mm:.3f} x {row_mm:.3f} x {column_mm:.3f} "
        f"mm, {volume.stored.dtype}"
    )
    for warning in volume.warnings:
        LOGGER.warning("%s", warning)
    return {
        "format": "nifti",
        "shape": [n_slices, n_rows, n_columns],
        "spacing_mm": list(volume.spacing_mm),
        "input_sha256": volume.source.sha256,
        "warnings": list(volume.warnings),
    }


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
