"""Verb `convert`: DICOM or NIfTI to NIfTI, as acquired, reoriented, resampled, or by dcm2niix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meddinov3_stroke.cases import EndedCase, require_own_result
from meddinov3_stroke.errors import AmbiguousInput, Outcome, UsageError
from meddinov3_stroke.options import InputOptions
from meddinov3_stroke.system import names
from meddinov3_stroke.system.command import log_warnings, run_command
from meddinov3_stroke.system.nifti_bytes import NIFTI_SUFFIX, nifti_bytes
from meddinov3_stroke.system.provenance import ending, provenance

if TYPE_CHECKING:
    from meddinov3_stroke.types import Volume, VolumeInput

BATCH_NAME = f"volume{NIFTI_SUFFIX}"  # of the file in the folder of a case


@dataclass(frozen=True, kw_only=True)
class Args(InputOptions):
    """Write head CTs as NIfTI, with a JSON file for what NIfTI cannot store. Inference needs no conversion."""

    output: Path
    """File to write; must end in .nii.gz. <name>.slices.json and <name>.json (its origin) are written beside it. Of
    several inputs: folder for results.csv and a folder for each case."""
    spacing: tuple[float, float, float] | None = None
    """Resample to this spacing in mm, along x, y and z (columns, rows, slices), such as 1 1 1; for other tools only."""
    orientation: str = "LAS"
    """Order of the axes in the file: three letters, one each of L or R, A or P, S or I, as nibabel names them."""
    dcm2niix: bool = False
    """Convert the chosen DICOM series with the dcm2niix program on this machine instead, and keep all it writes."""


@dataclass(frozen=True, eq=False)
class ConvertedCase(EndedCase):
    """A volume as NIfTI, with the documents beside it."""

    path: Path
    sha256: str
    contents: Mapping[str, bytes | dict[str, Any]]  # ending of the file's name -> its content
    document: Mapping[str, Any]
    outcome: Outcome = field(default_factory=Outcome)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the input, and about what NIfTI cannot represent."""
        return tuple(self.document["warnings"])

    def row(self) -> dict[str, Any]:
        """Its columns of `results.csv`."""
        return {"valid": 1, "volume": self.document["text"], "warnings": " | ".join(self.warnings)}

    def save(self, folder: Path | str, name: str = BATCH_NAME) -> dict[str, Path]:
        """Name -> path of the files written into `folder`."""
        from meddinov3_stroke.system.atomic import write_bytes, write_json

        stem = name.removesuffix(NIFTI_SUFFIX)
        files = [Path(folder, stem + one) for one in self.contents]
        for unused in {".slices.json", ".json"} - self.contents.keys():  # of an earlier conversion
            Path(folder, stem + unused).unlink(missing_ok=True)
        for path, content in zip(files, self.contents.values(), strict=True):
            if isinstance(content, bytes):
                write_bytes(path, content)
            else:
                write_json(path, content)
        return {path.name: path for path in files}


def run(args: Args) -> dict[str, Any] | None:
    """The document written beside the volume; None for a batch."""
    _check_flags(args)
    from meddinov3_stroke.ct.contents import is_nifti_name
    from meddinov3_stroke.ct.writing import dcm2niix_program
    from meddinov3_stroke.system.atomic import require_writable

    if args.dcm2niix:
        dcm2niix_program()
    cases = args.cases()
    if not (cases.is_batch or _names_a_file(args)):
        is_one = args.series is not None or is_nifti_name(cases.inputs[0].path)
        if is_one or len((studies := args.studies(cases)).inputs) == 1:
            raise UsageError(f"--output {args.output}: expected a name that ends in {NIFTI_SUFFIX}")
        cases = studies
    if cases.is_batch:
        require_writable(args.output)
    else:
        require_writable(files=[args.output], inputs=[cases.inputs[0].path])
    try:
        if not cases.is_batch:
            return _convert_one(args, cases.inputs[0])
    except AmbiguousInput:
        if args.series is not None:
            raise
        cases = args.studies(cases)
    _convert_many(args, cases.inputs)
    return None


def _convert_many(args: Args, inputs: Sequence[VolumeInput]) -> None:
    from meddinov3_stroke.batch import Batch, attempt

    if _names_a_file(args):
        found = f"{len(inputs)} cases in {', '.join(map(str, args.input))}"
        raise UsageError(f"--output {args.output}: expected a folder, for {found}; or name one case with --series")

    def compute(todo: Iterable[VolumeInput], _: object) -> Iterator[EndedCase]:
        for source in todo:
            yield attempt(source, lambda: _converted(args, source))  # noqa: B023

    flags = {name: getattr(args, name) for name in ("spacing", "orientation", "dcm2niix", "join_series")}
    Batch(args.output, {"verb": "convert", **flags}, overwrite=args.overwrite).run(inputs, compute, args)


def _names_a_file(args: Args) -> bool:
    return args.output.name.lower().endswith(NIFTI_SUFFIX)


def _convert_one(args: Args, source: VolumeInput) -> dict[str, Any]:
    case = _converted(args, source)
    if not args.overwrite:
        beside = args.output.with_name(args.output.name[: -len(NIFTI_SUFFIX)] + ".json")
        require_own_result(beside, case.sha256, "--output")
        if args.output.exists() and not beside.exists():
            raise UsageError(f"{args.output} exists and was not written by convert; name another file, or --overwrite")
    written = case.save(args.output.parent, args.output.name).values()
    log_warnings(case.warnings)
    if args.json:
        names.print_document(case.document)
    else:
        last = ending(f"{len(written)} files written", args.output, len(case.warnings))
        print("\n".join([case.document["text"], *(f"wrote {path}" for path in written), last]))
    return dict(case.document)


def _check_flags(args: Args) -> None:
    letters = args.orientation.upper()
    if len(letters) != 3 or any(sum(letter in pair for letter in letters) != 1 for pair in ("LR", "AP", "SI")):
        raise UsageError(f"--orientation {args.orientation}: expected three letters, one each of L/R, A/P, S/I, as LAS")
    if args.spacing is not None and not all(0 < side < math.inf for side in args.spacing):
        sides = " ".join(f"{side:g}" for side in args.spacing)
        raise UsageError(f"--spacing {sides}: expected three positive numbers, in mm")
    if args.dcm2niix and (args.spacing is not None or letters != "LAS"):
        raise UsageError("--dcm2niix writes its own geometry; omit --spacing and --orientation")


def _converted(args: Args, source: VolumeInput) -> ConvertedCase:
    from meddinov3_stroke.ct import open_input, read_volume, writing

    if not args.dcm2niix:
        return _as_nifti(args, read_volume(source))
    volumes = writing.dcm2niix_files(source.path, source.series_uid, join_series=source.join_series)
    digest, text = open_input(source).digest, f"{len(volumes)} volumes by dcm2niix"
    document = {**provenance(), "input": str(source.path), "input_sha256": digest, "text": text, "warnings": []}
    return ConvertedCase(source.path, digest, {**volumes, ".json": document}, document)


def _as_nifti(args: Args, volume: Volume) -> ConvertedCase:
    """The volume as the flags ask for it, and the document of its origin."""
    from meddinov3_stroke.ct import writing
    from meddinov3_stroke.report import dicom_document

    axes, warnings = args.orientation.upper(), list(volume.warnings)
    voxels, resampled, how = volume.stored, None, f"voxels as acquired, axes {axes}"
    if args.spacing is None:
        content = writing.nifti_bytes_of(volume, axes)
        if (off_mm := writing.misplaced_mm(volume)) > writing.POSITION_TOLERANCE_MM:
            beside = (args.output.name if _names_a_file(args) else BATCH_NAME)[: -len(NIFTI_SUFFIX)]
            warnings.append(
                "slices are not evenly spaced, which NIfTI cannot represent: its affine is off by up to "
                f"{off_mm:.2f} mm; the true positions are in {beside}.slices.json"
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
        "input": str(volume.source.path),
        "input_format": volume.source.format,
        "input_sha256": volume.source.sha256,
        "dicom": dicom_document(volume.source),
        "resampled": resampled,
        "orientation": axes,
        "text": f"{'x'.join(map(str, voxels.shape[::-1]))} {how}",
        "warnings": warnings,
    }
    contents: dict[str, bytes | dict[str, Any]] = {NIFTI_SUFFIX: content}
    if not resampled:
        contents[".slices.json"] = {**provenance(), **writing.slices_document(volume)}
    contents[".json"] = document
    return ConvertedCase(volume.source.path, volume.source.sha256, contents, document)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
