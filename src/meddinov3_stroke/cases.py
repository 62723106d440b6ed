"""Cases: which ones a user's inputs hold (files, folders, DICOM studies, tables, patterns), and how one ends."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from meddinov3_stroke.config import load_settings
from meddinov3_stroke.ct.contents import HEAD_BYTES, is_nifti_name
from meddinov3_stroke.errors import InputError, MissingInput, Outcome, OutOfScope, UsageError
from meddinov3_stroke.system.atomic import is_url
from meddinov3_stroke.system.names import know
from meddinov3_stroke.system.provenance import SUMMARY_NAME, provenance
from meddinov3_stroke.types import CASE_ID_DIGITS, CaseFindings, VolumeInput

LOGGER = logging.getLogger("meddinov3_stroke")

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")

_PATTERN_CHARACTERS = frozenset("*?[")


@dataclass(frozen=True)
class Cases:
    """Inputs in the order given, each once."""

    inputs: tuple[VolumeInput, ...]
    is_batch: bool
    """Whether each case gets a folder of its own; only a single file, archive or DICOM folder does not."""


class EndedCase:
    """What a case and a failed case share."""

    path: Path
    outcome: Outcome
    sha256: str  # digest of the input; empty if it is not known
    status = property(attrgetter("outcome.status"))  # done, rejected, refused or failed
    code = property(attrgetter("outcome.code"))  # code of the error; empty when done
    message = property(attrgetter("outcome.message"))  # the error in one line; empty when done

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return case_name(self.path)

    def row(self) -> dict[str, Any]:
        """Its columns of `results.csv`."""
        return {}

    def save(self, folder: Path | str) -> dict[str, Path]:
        """Name -> path of the files written into `folder`; `summary.json` is written last."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Case(EndedCase):
    """A case with findings."""

    path: Path
    findings: CaseFindings
    outcome: Outcome = field(default_factory=Outcome)
    probabilities = property(attrgetter("findings.probabilities"))  # label -> probability of the case
    thresholds = property(attrgetter("findings.thresholds"))  # label -> decision threshold and its origin
    decisions = property(attrgetter("findings.decisions"))
    """Label -> whether the probability is at or above the threshold."""
    calibrated = property(attrgetter("findings.calibrated"))  # label -> calibrated probability and its interval
    classification = property(attrgetter("findings.classification"))  # label -> positive, negative or indeterminate
    top_slices = property(attrgetter("findings.top_slices"))  # the most suspicious slices, highest score first
    warnings = property(attrgetter("findings.warnings"))  # warnings about the input, the model and the findings

    def __repr__(self) -> str:
        return f"Case({str(self.path)!r}, {self.status}, {self.findings})"

    def save(self, folder: Path | str) -> dict[str, Path]:
        """Name -> path of the files written into `folder`; `summary.json` is written last."""
        from meddinov3_stroke.report import save_case

        return save_case(self.findings, Path(folder))

    sha256 = property(attrgetter("findings.embeddings.source.sha256"))  # digest of the input

    def row(self) -> dict[str, Any]:
        """Its columns of `results.csv`."""
        from meddinov3_stroke.report import case_row

        return case_row(self.findings)


@dataclass(frozen=True)
class FailedCase(EndedCase):
    """A case without findings, and why."""

    path: Path
    outcome: Outcome
    sha256 = property(lambda self: "")  # not known
    probabilities = None
    warnings = property(lambda self: (self.message,))  # why there are no findings

    def __repr__(self) -> str:
        return f"FailedCase({str(self.path)!r}, {self.status}, {self.code})"

    def row(self) -> dict[str, Any]:
        """Its columns of `results.csv`: the verdicts that are known."""
        return {"valid": int(self.status == "refused"), "in_scope": 0} if self.status in ("rejected", "refused") else {}

    def save(self, folder: Path | str) -> dict[str, Path]:
        """Name -> path of the one file written into `folder`: a `summary.json` with `status`, `code`, `message`."""
        from meddinov3_stroke.system.atomic import write_json

        path = Path(folder) / SUMMARY_NAME
        write_json(path, {**provenance(), "input": str(self.path), **asdict(self.outcome)})
        return {path.name: path}


def case_id(sha256: str) -> str:
    """The id of a case, from the digest of its input; it stands in folder names and pictures instead of any name."""
    return sha256[:CASE_ID_DIGITS]


def require_own_folder(folder: Path, sha256: str) -> None:
    """Raise `UsageError` if a folder holds the result of another input, or of several."""
    from meddinov3_stroke.features.ledger import LEDGER_NAME

    if (folder / LEDGER_NAME).exists():
        raise UsageError(f"{folder} holds results of several cases; choose another --output-dir, or pass --overwrite")
    require_own_result(folder / SUMMARY_NAME, sha256)


def require_own_result(document: Path, sha256: str, flag: str = "--output-dir") -> None:
    """Raise `UsageError` if the document of a result, where there is one, names another input."""
    try:
        found = json.loads(document.read_text(encoding="utf-8")).get("input_sha256", sha256)
    except (OSError, ValueError, AttributeError):
        return
    if found != sha256:
        raise UsageError(
            f"{document.parent} holds the result of another input (case {case_id(str(found))}; this one is "
            f"{case_id(sha256)}); choose another {flag}, or pass --overwrite"
        )


def case_name(path: Path, series_uid: str | None = None) -> str:
    """The name of a file without its ending, or of a folder; with a series `<name>_<series>`, never a path."""
    ending = r"\.(nii\.gz|nii|zip|dcm|txt|parquet)$"
    name = re.sub(ending, "", path.name or path.resolve().name, flags=re.IGNORECASE)
    return name if series_uid is None else f"{name}_{re.sub('[^0-9A-Za-z._-]', '_', series_uid)}"


def find_cases(paths: Sequence[Path], series: str | None = None, *, join_series: bool = False) -> Cases:
    """The cases in some paths: a file, an archive, a folder of volumes or studies, a series table (.csv), or a pattern.

    A folder that may be one DICOM study is a single case here; `AmbiguousInput` when it is read tells otherwise, and
    `studies_in` lists its studies then.

    Raises:
        UsageError: a series named beside several inputs.
        MissingInput: a pattern or a folder without any volume.
    """
    know(*paths)
    given = [found for path in paths for found in _matches(path)]
    if len(given) == 1 and not _holds_many(given[0]):
        return Cases((VolumeInput(given[0], series, join_series=join_series),), is_batch=False)
    if series is not None:
        raise UsageError("--series with several inputs; omit it, or name one DICOM input")
    found = [one for path in given for one in _cases_at(path, join_series)]
    return Cases(tuple(dict.fromkeys(found)), is_batch=True)


def studies_in(path: Path, *, join_series: bool = False) -> Iterator[VolumeInput]:
    """One input for each DICOM study in a folder or archive: the series that the rule of `inspect` selects in it.

    A study without a usable series is listed with its first series, and a place without any series by its path, so that
    reading it says why.
    """
    from meddinov3_stroke.ct.dicom.choice import inspect_dicom

    series_at: dict[str, list[tuple[Path, bool, str]]] = defaultdict(list)  # study -> (folder, is used, series)
    for folder in _dicom_places(path) if path.is_dir() else (path,):
        try:
            found = inspect_dicom(folder, join_series=join_series)
        except (InputError, OutOfScope):
            yield VolumeInput(folder, join_series=join_series)
            continue
        for name, fault in found.damaged:
            LOGGER.warning("%s: damaged: %s", folder, fault if name in fault else f"{name}: {fault}")
        if not found.series:
            yield VolumeInput(folder, join_series=join_series)
        for one in found.series:
            series_at[one.study_instance_uid].append((folder, one.verdict == "used", one.name))
    for candidates in series_at.values():
        folders = sorted({folder for folder, _, _ in candidates})
        n_used = sum(is_used for _, is_used, _ in candidates)
        if len(folders) > 1 and n_used > 1:  # the rule has to choose among folders
            yield VolumeInput(Path(os.path.commonpath(folders)), join_series=join_series)
        else:
            folder, _, name = max(candidates, key=lambda candidate: candidate[1])
            yield VolumeInput(folder, name, join_series=join_series)


def _matches(path: Path) -> list[Path]:
    if path.exists() or not _PATTERN_CHARACTERS & set(str(path)):
        return [path]
    found = _matching_files(path) if not is_url(path) else _matching_objects(path)
    if not found:
        raise MissingInput(f"nothing matches --input {path}; check the pattern")
    return found


def _matching_files(path: Path) -> list[Path]:
    root = Path(path.anchor)
    return sorted(root.glob(str(path.relative_to(root))))


def _matching_objects(path: Path) -> list[Path]:
    from meddinov3_stroke.system.remote import matching

    return matching(path)


def _holds_many(path: Path) -> bool:
    """Whether a path is a table, or a folder that holds a NIfTI file, an archive, or too many files for one study."""
    if not path.is_dir():
        return path.suffix.lower() == ".csv" or bool(is_url(path) and _objects_below(path))
    from meddinov3_stroke.ct.dicom.files import MAX_FILES  # pydicom is loaded for DICOM alone

    n_files = 0
    for folder, names in _walk(path):
        n_files += len(names)
        if n_files > MAX_FILES or any(is_nifti_name(folder / name) or _is_archive(name) for name in names):
            return True
    return False


def _objects_below(url: Path) -> list[Path]:
    """The NIfTI objects and archives below a URL, and the uppermost prefixes of others where there are any of these.

    None for an object, and for a prefix of other objects alone, which is one DICOM input.
    """
    from meddinov3_stroke.ct.staged import MOST_OBJECTS
    from meddinov3_stroke.system.remote import listed

    urls = [one.url for one in listed(url, MOST_OBJECTS)]
    volumes = [one for one in urls if is_nifti_name(one) or _is_archive(one.name)]
    if urls == [url] or not volumes:
        return []
    if len(urls) > MOST_OBJECTS:
        raise UsageError(f"--input {url} holds more than {MOST_OBJECTS} objects; name prefixes below it, or a table")
    places: list[Path] = []
    for place in sorted({one.parent for one in urls if one.suffix.lower() in ("", ".dcm")}):
        places += [] if set(places) & {place, *place.parents} else [place]
    return [*volumes, *places]


def _cases_at(path: Path, join_series: bool) -> Iterator[VolumeInput]:
    if path.suffix.lower() == ".csv":
        yield from _rows_of(path)
    elif is_url(path) and (found := _objects_below(path)):
        yield from (VolumeInput(one, join_series=join_series and not is_nifti_name(one)) for one in found)
    elif not path.is_dir():
        yield VolumeInput(path, join_series=join_series)
    else:
        files = (folder / name for folder, names in _walk(path) for name in names)
        volumes = [VolumeInput(file) for file in files if is_nifti_name(file)]
        studies = list(studies_in(path, join_series=join_series))
        if not volumes and not studies:
            raise MissingInput(f"{path} holds neither NIfTI nor DICOM; expected volumes or studies; check the path")
        yield from volumes
        yield from studies


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    for parent, folders, names in os.walk(root):
        folders.sort()
        yield Path(parent), sorted(names)


def _is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def _dicom_places(root: Path) -> Iterator[Path]:
    """Archives below `root`, and the uppermost folders that directly hold a DICOM file."""
    covered: list[Path] = []
    for folder, names in _walk(root):
        yield from (folder / name for name in names if _is_archive(name))
        if not any(parent in covered for parent in folder.parents) and any(_is_dicom(folder / name) for name in names):
            covered.append(folder)
            yield folder


def _is_dicom(path: Path) -> bool:
    from meddinov3_stroke.ct.dicom.container import begins_as_dicom

    if path.name.upper() == "DICOMDIR" or is_nifti_name(path) or _is_archive(path.name):
        return False
    try:
        with path.open("rb") as handle:
            return path.name.lower().endswith(".dcm.gz") or begins_as_dicom(handle.read(HEAD_BYTES))
    except OSError:  # reading the folder says so
        return True


def _rows_of(csv_path: Path) -> Iterator[VolumeInput]:
    from meddinov3_stroke.data.csv_file import read_csv_file
    from meddinov3_stroke.data.table import VOLUME_COLUMNS, volume_inputs

    csv = read_csv_file(csv_path)
    cells = csv.cells.rename(columns={name: str(name).strip().casefold() for name in csv.cells.columns})
    if not set(VOLUME_COLUMNS) & set(cells.columns):
        raise UsageError(f"{csv_path} has no column {', '.join(VOLUME_COLUMNS)}; found {', '.join(csv.cells.columns)}")
    columns = [*VOLUME_COLUMNS, "series_uid"]
    frame = cells.assign(**{name: "" for name in columns if name not in cells})[columns]
    inputs = volume_inputs(frame, csv_path.parent, load_settings().datasets_dir, csv_path.name)
    for row, one in zip(frame.index, inputs, strict=True):
        yield one if one is not None else VolumeInput(csv_path / f"row {row} names no volume")
