"""PhysioNet CT-ICH (Hssayeni et al., Data 2020): `ct_scans/049.nii` ..., `masks/049.nii`, one CSV row for each slice.

`SliceNumber` counts from 1 along the file's third axis; each slice finds its canonical index through the affine.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from jaxtyping import Int8, Int64

from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.ct.contents import machine_errors
from meddinov3_stroke.data.cohort import CohortCase, PreparedCohort, write_cohort
from meddinov3_stroke.data.csv_file import CsvFile, read_csv_file
from meddinov3_stroke.data.slice_labels import mask_values
from meddinov3_stroke.errors import DatasetError, InputError, LabelError, MachineError, OutOfScope, SeriesTableError
from meddinov3_stroke.labels import name_some
from meddinov3_stroke.system.progress import progress_bar
from meddinov3_stroke.types import LABELS, Volume

SCANS_FOLDER, MASKS_FOLDER = "ct_scans", "masks"
DIAGNOSES_CSV = "hemorrhage_diagnosis_raw_ct.csv"
NO_HEMORRHAGE = "No_Hemorrhage"
AXIS_TOLERANCE = 0.01
"""How far the canonical slice axis may deviate from the file's third axis, in slices."""

MASK_CLASSES = {(True, True): "n_both", (True, False): "n_mask_alone", (False, True): "n_label_alone"}
MASK_CLASSES |= {(False, False): "n_neither"}
"""Names of (slice has mask, slice has label)."""

_SCAN = re.compile(r"([0-9]{1,9})\.nii(\.gz)?", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class _Diagnoses:
    """The rows of the CSV."""

    labels: pd.DataFrame
    """The six labels by (patient, slice number from 1)."""
    contradictions: list[str]
    """Slices whose No_Hemorrhage disagrees with their types, as `patient 49 slice 3`."""
    n_repeated: int
    """Rows dropped because an identical one came before."""


def prepare_physionet(root: Path, output_dir: Path, *, show_progress: bool = False) -> PreparedCohort:
    """The series table and slice labels of a PhysioNet CT-ICH download.

    Raises:
        SeriesTableError: a file or column is missing, or no case is left.
        LabelError: a label that is not 0 or 1, or two different rows of one slice.
        MachineError: the folder cannot be read, or the tables cannot be written.
    """
    csv = read_csv_file(root / DIAGNOSES_CSV, "slice diagnoses")
    diagnoses = _read_diagnoses(csv)
    scans, strange = _scans(root / SCANS_FOLDER)
    masks = _scans(root / MASKS_FOLDER)[0] if (root / MASKS_FOLDER).is_dir() else {}
    patients = sorted({*scans, *diagnoses.labels.index.get_level_values(0).tolist()})
    cases: list[CohortCase] = []
    agreement: Counter[str] = Counter()
    bad_masks: list[str] = []
    with progress_bar("volumes", len(patients), "volumes", show_progress) as advance:
        for patient in patients:
            cases.append(_case(patient, scans.get(patient), masks.get(patient), diagnoses, agreement, bad_masks))
            advance()
    facts: dict[str, Any] = {
        "diagnoses_sha256": csv.sha256,
        "slice_number": "from 1 along the file's third axis; slice_index is canonical, from 0",
        "no_hemorrhage_contradictions": diagnoses.contradictions,
        "n_repeated_rows": diagnoses.n_repeated,
        "mask_agreement_slices": {name: agreement[name] for name in MASK_CLASSES.values()},
        "unusable_masks": bad_masks,
    }
    warnings = [*csv.warnings, *_warnings(diagnoses, bad_masks, strange)]
    return write_cohort("physionet", cases, output_dir, facts=facts, warnings=warnings)


def _read_diagnoses(csv: CsvFile) -> _Diagnoses:
    whole = "expected a whole number below 10^9"
    numbers = [csv.matching(name, r"[0-9]{1,9}(\.0*)?", whole) for name in ("PatientNumber", "SliceNumber")]
    whole_numbers = [column.str.partition(".")[0].astype(int) for column in numbers]
    index = pd.MultiIndex.from_arrays(whole_numbers, names=["patient", "slice"])
    types = pd.DataFrame({label: csv.binary(label.capitalize()) for label in LABELS[1:]}, index=index)
    labels = pd.concat([types.max(axis=1).rename(LABELS[0]), types], axis=1)
    disagree = index[csv.binary(NO_HEMORRHAGE) == labels[LABELS[0]].to_numpy()]
    contradictions = [f"patient {patient} slice {number}" for patient, number in disagree]
    is_copy = labels.reset_index().duplicated().to_numpy()
    kept = labels[~is_copy].sort_index()
    conflicts = kept.index[kept.index.duplicated()]
    if len(conflicts):
        patient, number = conflicts[0]
        raise LabelError(f"{csv.path}: patient {patient} slice {number} occurs twice with different labels")
    return _Diagnoses(kept, contradictions, int(is_copy.sum()))


def _scans(folder: Path) -> tuple[dict[int, Path], list[str]]:
    """({patient number: file}, files with other names)."""
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
    patient: int,
    scan: Path | None,
    mask: Path | None,
    diagnoses: _Diagnoses,
    agreement: Counter[str],
    bad_masks: list[str],
) -> CohortCase:
    """The case of one patient; its mask is counted in `agreement` or, if it cannot be used, added to `bad_masks`."""
    name = f"{patient:03d}"
    if scan is None:
        return CohortCase.left_out(name, "missing", f"no {SCANS_FOLDER}/{name}.nii")
    if patient not in diagnoses.labels.index:
        return CohortCase.left_out(name, "unlabelled", f"no rows in {DIAGNOSES_CSV}")
    try:
        volume = read_volume(scan)
        labels = _slice_labels(name, volume, diagnoses.labels.loc[patient])
    except (InputError, OutOfScope, MachineError, DatasetError) as error:
        return CohortCase.failed(name, error)
    if mask is not None:
        try:
            has_mask = [bool(values) for values in mask_values(mask, volume)]
            agreement.update(MASK_CLASSES[pair] for pair in zip(has_mask, (labels[:, 0] > 0).tolist(), strict=True))
        except (InputError, OutOfScope, MachineError) as error:
            bad_masks.append(f"{error.code}: {error}")
            mask = None
    return CohortCase.labelled(name, volume, mask, labels, patient_id=name)


def _slice_labels(name: str, volume: Volume, rows: pd.DataFrame) -> Int8[np.ndarray, "slice 6"]:
    """The six labels of each canonical slice, from rows indexed by slice number.

    Raises:
        LabelError: a slice without a row, or a row without a slice.
        OutOfScope: as `_slice_numbers`.
    """
    wanted = pd.Index(_slice_numbers(volume))
    lacking, beyond = (sorted(map(str, some)) for some in (wanted.difference(rows.index), rows.index.difference(wanted)))
    if lacking or beyond:
        raise LabelError(
            f"patient {name}: {volume.n_slices} slices, of which {len(lacking)} have no row ({name_some(lacking)}); "
            f"{len(beyond)} rows have no slice ({name_some(beyond)})"
        )
    return rows.loc[wanted].to_numpy(dtype=np.int8)


def _slice_numbers(volume: Volume) -> Int64[np.ndarray, " slice"]:
    """SliceNumber (from 1, along the third axis of the file) of each canonical slice of a NIfTI volume.

    Raises:
        OutOfScope: the file's third axis is not its slice axis.
    """
    path = volume.source.path
    with machine_errors(path):
        file_affine: Any = nib.load(path).affine  # type: ignore[attr-defined]
    to_file = np.linalg.inv(file_affine) @ volume.affine
    index_steps = to_file[:3, 0]
    if not np.allclose(np.abs(index_steps), (0, 0, 1), atol=AXIS_TOLERANCE):
        raise OutOfScope(f"{path}: slices do not follow the file's third axis, so SliceNumber cannot be assigned")
    numbers = to_file[2, 3] + index_steps[2] * np.arange(volume.n_slices)
    return np.asarray(np.rint(numbers) + 1, dtype=np.int64)


def _warnings(diagnoses: _Diagnoses, bad_masks: list[str], strange: list[str]) -> Iterator[str]:
    if diagnoses.contradictions:
        yield (
            f"No_Hemorrhage disagrees with the types on {len(diagnoses.contradictions)} slices "
            f"({name_some(sorted(diagnoses.contradictions))}); `any` is the OR of the types"
        )
    if diagnoses.n_repeated:
        yield f"{diagnoses.n_repeated} rows repeat an earlier one and were ignored"
    if bad_masks:
        yield f"{len(bad_masks)} masks cannot be used and are not in the table; the first: {bad_masks[0]}"
    if strange:
        yield f"{len(strange)} files of {SCANS_FOLDER} are not named <number>.nii and were ignored: {name_some(strange)}"
