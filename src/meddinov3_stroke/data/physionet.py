"""PhysioNet CT-ICH (Hssayeni et al., Data 2020): `ct_scans/049.nii` ..., `masks/049.nii`, one CSV row for each slice.

`SliceNumber` counts from 1 along the file's third axis; each slice finds its canonical index through the affine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from jaxtyping import Int8, Int64

from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.ct.contents import machine_errors
from meddinov3_stroke.data.cohort_tables import (
    CohortCase,
    PreparedCohort,
    column_of,
    failed_case,
    labelled_case,
    name_cases,
    write_cohort,
)
from meddinov3_stroke.data.csv_file import CsvFile, read_csv_file
from meddinov3_stroke.data.masks import slice_values
from meddinov3_stroke.errors import DatasetError, InputError, LabelError, MachineError, OutOfScope, SeriesTableError
from meddinov3_stroke.system.progress import progress_bar
from meddinov3_stroke.types import LABELS, Volume

SCANS_FOLDER, MASKS_FOLDER = "ct_scans", "masks"
DIAGNOSES_CSV = "hemorrhage_diagnosis_raw_ct.csv"
TYPES = {label: label.capitalize() for label in LABELS[1:]}
"""What the CSV calls the five types."""
NO_HEMORRHAGE = "No_Hemorrhage"
WHOLE_NUMBER_MM = 0.01
"""How far a slice's index in the file may be from a whole number, in slices."""

_SCAN = re.compile(r"([0-9]{1,9})\.nii(\.gz)?", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Diagnoses:
    """The rows of the CSV."""

    rows: Mapping[int, Mapping[int, tuple[int, ...]]]
    """patient -> slice number (from 1) -> the five types, in the order of `LABELS`."""
    contradictions: tuple[str, ...]
    """Slices whose No_Hemorrhage disagrees with their types, as `patient 49 slice 3`."""
    n_repeated: int
    """Rows dropped because an identical one came before."""
    csv: CsvFile


@dataclass(frozen=True)
class MaskAgreement:
    """Slices by mask and label."""

    n_both: int = 0
    n_mask_alone: int = 0
    n_label_alone: int = 0
    n_neither: int = 0

    def __add__(self, other: MaskAgreement) -> MaskAgreement:
        return MaskAgreement(
            self.n_both + other.n_both,
            self.n_mask_alone + other.n_mask_alone,
            self.n_label_alone + other.n_label_alone,
            self.n_neither + other.n_neither,
        )


def prepare_physionet(root: Path, output_dir: Path, *, show_progress: bool = False) -> PreparedCohort:
    """The series table and slice labels of a PhysioNet CT-ICH download.

    Raises:
        SeriesTableError: a file or column is missing, or no case is left.
        LabelError: a label that is not 0 or 1, or two rows of one slice that differ.
        MachineError: the folder cannot be read, or the tables not be written.
    """
    diagnoses = read_diagnoses(root / DIAGNOSES_CSV)
    scans, strange = _scans(root / SCANS_FOLDER)
    masks, _ = _scans(root / MASKS_FOLDER) if (root / MASKS_FOLDER).is_dir() else ({}, [])
    cases: list[CohortCase] = []
    agreement, unusable_masks = MaskAgreement(), []
    patients = sorted({*scans, *diagnoses.rows})
    with progress_bar("volumes", len(patients), "volumes", show_progress) as advance:
        for patient in patients:
            case, of_mask, fault = _case(patient, scans.get(patient), masks.get(patient), diagnoses)
            cases.append(case)
            agreement = agreement + of_mask
            unusable_masks += fault
            advance()
    facts: dict[str, Any] = {
        "diagnoses_sha256": diagnoses.csv.sha256,
        "slice_number": "from 1 along the file's third axis; slice_index is canonical, from 0",
        "no_hemorrhage_contradictions": list(diagnoses.contradictions),
        "n_repeated_rows": diagnoses.n_repeated,
        "mask_agreement_slices": vars(agreement),
        "unusable_masks": unusable_masks,
    }
    warnings = [*diagnoses.csv.warnings, *_warnings(diagnoses, unusable_masks, strange)]
    return write_cohort("physionet", cases, output_dir, facts=facts, warnings=warnings)


def read_diagnoses(path: Path) -> Diagnoses:
    """The labels of every slice in the CSV at `path`.

    Raises:
        SeriesTableError: no such file, or a column is missing.
        LabelError: a cell that is no label or number, or two rows of one slice that differ.
    """
    csv = read_csv_file(path, "diagnoses of the slices")
    numbers = {name: _whole_numbers(column_of(csv, name, path.name), path) for name in ("PatientNumber", "SliceNumber")}
    labels = {name: _labels(column_of(csv, name, path.name), path) for name in (*TYPES.values(), NO_HEMORRHAGE)}
    rows: dict[int, dict[int, tuple[int, ...]]] = {}
    contradictions, n_repeated = [], 0
    types = zip(*(labels[name] for name in TYPES.values()), strict=True)
    for patient, number, found, none in zip(*numbers.values(), types, labels[NO_HEMORRHAGE], strict=True):
        of_patient = rows.setdefault(patient, {})
        if of_patient.get(number, found) != found:
            raise LabelError(f"{path}: patient {patient} slice {number} stands there twice with different labels")
        n_repeated += number in of_patient
        of_patient[number] = found
        if none == any(found):
            contradictions.append(f"patient {patient} slice {number}")
    return Diagnoses(rows, tuple(contradictions), n_repeated, csv)


def _whole_numbers(column: pd.Series, path: Path) -> list[int]:
    unlike = column[~column.str.fullmatch(r"[0-9]{1,9}(\.0*)?")]
    if len(unlike):
        found = f"{unlike.iloc[0]!r:.40}"
        raise LabelError(f"{path} row {unlike.index[0]}: {column.name} is {found}; expected a whole number below 10^9")
    return [int(value.partition(".")[0]) for value in column]


def _labels(column: pd.Series, path: Path) -> list[int]:
    unlike = column[~column.str.fullmatch(r"[01](\.0*)?")]
    if len(unlike):
        raise LabelError(f"{path} row {unlike.index[0]}: {column.name} is {unlike.iloc[0]!r}; expected 0 or 1")
    return [int(value[0]) for value in column]


def _scans(folder: Path) -> tuple[dict[int, Path], list[str]]:
    """({patient number: file}, files whose names are of another form)."""
    if not folder.is_dir():
        raise SeriesTableError(f"no folder {folder}; expected {SCANS_FOLDER}/ with files such as 049.nii")
    found: dict[int, Path] = {}
    strange: list[str] = []
    with machine_errors(folder):
        files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        match = _SCAN.fullmatch(path.name)
        if match is None or int(match[1]) in found:
            strange.append(path.name)
        else:
            found[int(match[1])] = path
    return found, strange


def _case(
    patient: int, scan: Path | None, mask: Path | None, diagnoses: Diagnoses
) -> tuple[CohortCase, MaskAgreement, list[str]]:
    """(the case, slices by mask and label, what is wrong with its mask)."""
    name, rows = f"{patient:03d}", diagnoses.rows.get(patient)
    nothing = MaskAgreement()
    if scan is None:
        return CohortCase(name, "missing", f"no {SCANS_FOLDER}/{name}.nii"), nothing, []
    if rows is None:
        return CohortCase(name, "unlabelled", f"no rows in {DIAGNOSES_CSV}"), nothing, []
    try:
        volume = read_volume(scan)
        labels = _slice_labels(name, volume, rows)
    except (InputError, OutOfScope, MachineError, DatasetError) as error:
        return failed_case(name, error), nothing, []
    agreement, fault = _compared(mask, volume, labels)
    case = labelled_case(name, volume, None if fault else mask, labels, patient_id=name)
    return case, agreement, fault


def _slice_labels(name: str, volume: Volume, rows: Mapping[int, tuple[int, ...]]) -> Int8[np.ndarray, "slice 6"]:
    """The six labels of each canonical slice.

    Raises:
        LabelError: a slice without a row, or a row without a slice.
    """
    wanted = slice_numbers(volume)
    lacking = sorted(set(wanted.tolist()) - set(rows))
    beyond = sorted(set(rows) - set(wanted.tolist()))
    if lacking or beyond:
        raise LabelError(
            f"patient {name}: {volume.n_slices} slices, of which {len(lacking)} have no row "
            f"({name_cases(map(str, lacking))}); {len(beyond)} rows have no slice ({name_cases(map(str, beyond))})"
        )
    types = np.array([rows[int(number)] for number in wanted], dtype=np.int8)
    return np.column_stack([types.max(axis=1), types])


def slice_numbers(volume: Volume) -> Int64[np.ndarray, " slice"]:
    """SliceNumber (from 1, along the third axis of the file) of each canonical slice of a NIfTI volume.

    Raises:
        OutOfScope: the file's third axis is not its slice axis.
    """
    path = volume.source.path
    with machine_errors(path):
        file_affine: Any = nib.load(path).affine  # type: ignore[attr-defined]
    to_file = np.linalg.inv(file_affine) @ volume.affine
    index_steps = to_file[:3, 0]
    if not np.allclose(np.abs(index_steps), (0, 0, 1), atol=WHOLE_NUMBER_MM):
        raise OutOfScope(f"{path}: slices do not follow the third axis of the file; SliceNumber cannot be placed")
    numbers = to_file[2, 3] + index_steps[2] * np.arange(volume.n_slices)
    return np.asarray(np.rint(numbers) + 1, dtype=np.int64)


def _compared(
    mask: Path | None, volume: Volume, labels: Int8[np.ndarray, "slice 6"]
) -> tuple[MaskAgreement, list[str]]:
    if mask is None:
        return MaskAgreement(), []
    try:
        has_mask = np.array([bool(values) for values in slice_values(mask, volume)])
    except (InputError, OutOfScope, MachineError) as error:
        return MaskAgreement(), [f"{error.code}: {error}"]
    has_label = labels[:, 0] > 0
    pairs = [(True, True), (True, False), (False, True), (False, False)]
    counts = [int(((has_mask == of_mask) & (has_label == of_label)).sum()) for of_mask, of_label in pairs]
    return MaskAgreement(*counts), []


def _warnings(diagnoses: Diagnoses, unusable_masks: list[str], strange: list[str]) -> Iterator[str]:
    if diagnoses.contradictions:
        yield (
            f"No_Hemorrhage disagrees with the types on {len(diagnoses.contradictions)} slices "
            f"({name_cases(diagnoses.contradictions)}); `any` is the OR of the types"
        )
    if diagnoses.n_repeated:
        yield f"{diagnoses.n_repeated} rows repeat an earlier one and were taken once"
    if unusable_masks:
        yield f"{len(unusable_masks)} masks cannot be used and are not in the table; the first: {unusable_masks[0]}"
    if strange:
        yield f"{len(strange)} files of {SCANS_FOLDER} are no <number>.nii and were left: {name_cases(strange)}"
