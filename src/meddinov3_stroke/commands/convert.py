"""Verb `convert`: DICOM or NIfTI to NIfTI, as acquired, reoriented, resampled, or by dcm2niix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.options import InputPath, SeriesOptions
from meddinov3_stroke.system.command import ConsoleOptions, log_warnings, run_command
from meddinov3_stroke.system.nifti_bytes import NIFTI_SUFFIX, nifti_bytes
from meddinov3_stroke.system.provenance import ending

if TYPE_CHECKING:
    from meddinov3_stroke.types import Volume


@dataclass(frozen=True, kw_only=True)
class Args(SeriesOptions, ConsoleOptions):
    """Write a head CT as NIfTI, with a JSON file for what NIfTI cannot store. Inference needs no conversion."""

    input: InputPath
    """Volume: .nii, .nii.gz, or DICOM as a folder, .zip, .tar(.gz), .txt list of files or file."""
    output: Path
    """File to write; must end in .nii.gz. <name>.slices.json and <name>.json (its origin) are written beside it."""
    spacing: tuple[float, float, float] | None = None
    """Resample to this spacing in mm, along x, y and z (columns, rows, slices), such as 1 1 1; for other tools only."""
    orientation: str = "LAS"
    """Order of the axes in the file: three letters, one each of L or R, A or P, S or I, as nibabel names them."""
    dcm2niix: bool = False
    """Convert the chosen DICOM series with the dcm2niix program on this machine instead, and keep all it writes."""


def run(args: Args) -> dict[str, Any]:
    """The document written beside the volume; or, by dcm2niix, the files it wrote."""
    _check_flags(args)
    from meddinov3_stroke.ct import read_volume
    from meddinov3_stroke.ct.writing import convert_with_dcm2niix
    from meddinov3_stroke.system.atomic import require_writable

    require_writable(files=[args.output], inputs=[args.input])

    if args.dcm2niix:
        written = convert_with_dcm2niix(args.input, args.series, args.output, join_series=args.join_series)
        document: dict[str, Any] = {"files": [str(path) for path in written], "warnings": []}
    else:
        volume = read_volume(args.input, series=args.series, join_series=args.join_series)
        document, written = _write(args, volume)
        log_warnings(document["warnings"])
        print(document["text"])
    last = ending(f"{len(written)} files written", args.output, len(document["warnings"]))
    print("\n".join([*(f"wrote {path}" for path in written), last]))
    return document


def _check_flags(args: Args) -> None:
    if not args.output.name.lower().endswith(NIFTI_SUFFIX):
        raise UsageError(f"--output {args.output}: expected a name that ends in {NIFTI_SUFFIX}")
    letters = args.orientation.upper()
    if len(letters) != 3 or any(sum(letter in pair for letter in letters) != 1 for pair in ("LR", "AP", "SI")):
        raise UsageError(f"--orientation {args.orientation}: expected three letters, one each of L/R, A/P, S/I, as LAS")
    if args.spacing is not None and not all(0 < side < math.inf for side in args.spacing):
        sides = " ".join(f"{side:g}" for side in args.spacing)
        raise UsageError(f"--spacing {sides}: expected three positive numbers, in mm")
    if args.dcm2niix and (args.spacing is not None or letters != "LAS"):
        raise UsageError("--dcm2niix writes its own geometry; omit --spacing and --orientation")


def _write(args: Args, volume: Volume) -> tuple[dict[str, Any], list[Path]]:
    """The document of the volume's origin, and the files written."""
    from meddinov3_stroke.ct import writing
    from meddinov3_stroke.report import dicom_document
    from meddinov3_stroke.system.atomic import write_bytes, write_json
    from meddinov3_stroke.system.provenance import provenance

    name, axes = args.output.name[: -len(NIFTI_SUFFIX)], args.orientation.upper()
    slices_path, document_path = (args.output.with_name(f"{name}{ending}.json") for ending in (".slices", ""))
    warnings = list(volume.warnings)
    voxels, resampled, how = volume.stored, None, f"voxels as acquired, axes {axes}"
    if args.spacing is None:
        content = writing.nifti_bytes_of(volume, axes)
        if (off_mm := writing.misplaced_mm(volume)) > writing.POSITION_TOLERANCE_MM:
            warnings.append(
                "slices are not evenly spaced, which NIfTI cannot represent: its affine is off by up to "
                f"{off_mm:.2f} mm; the true positions are in {slices_path.name}"
            )
    else:
        x_mm, y_mm, z_mm = args.spacing
        grid = writing.resample(volume, (z_mm, y_mm, x_mm))
        if grid.n_clipped:
            warnings.append(f"{grid.n_clipped} voxels are beyond the range of int16 and were set to its limit")
        voxels, resampled = grid.hu, {"spacing_mm": list(args.spacing), "method": writing.METHOD}
        how = f"voxels of {x_mm:g} x {y_mm:g} x {z_mm:g} mm, axes {axes}; {writing.METHOD}"
        content = nifti_bytes(grid.hu, grid.affine, axis_codes=axes)
    document = {
        **provenance(),
        "input": str(args.input),
        "input_format": volume.source.format,
        "input_sha256": volume.source.sha256,
        "dicom": dicom_document(volume.source),
        "resampled": resampled,
        "orientation": axes,
        "text": f"{'x'.join(map(str, voxels.shape[::-1]))} {how}",
        "warnings": warnings,
    }
    write_bytes(args.output, content)
    if args.spacing is None:
        write_json(slices_path, {**provenance(), **writing.slices_document(volume)})
    write_json(document_path, document)
    return document, [args.output, *([slices_path] if args.spacing is None else []), document_path]


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
