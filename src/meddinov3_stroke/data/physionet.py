"""PhysioNet CT-ICH (Hssayeni et al., Data 2020): `ct_scans/049.nii` ..., `masks/049.nii`, one CSV row for each slice.

`SliceNumber` counts from 1 along the file's third axis; each slice finds its canonical index through the affine.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from jaxtyping import Int8

from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.ct.contents import machine_errors
from meddinov3_stroke.data.cohort import CohortCase, Prepared, mask_values, write_cohort
from meddinov3_stroke.data.csv_file import CsvFile, read_csv_file
from meddinov3_stroke.errors import (
    DatasetError,
    InputError,
    LabelError,
    MachineError,
    OutOfScope,
    SeriesTableError,
    name_some,
)
from meddinov3_stroke.system.progress import progress_bar
from meddinov3_stroke.types import LABELS, Volume

SCANS_FOLDER, MASKS_FOLDER = "ct_scans", "masks"
DIAGNOSES_CSV = "hemorrhage_diagnosis_raw_ct.csv"
AXIS_TOLERANCE = 0.01  # how far the canonical slice axis may deviate from the file's third axis, in slices

_MASK_CLASSES = ("n_both", "n_mask_alone", "n_label_alone", "n_neither")
_SCAN = re.compile(r"([0-9]{1,9})\.nii(\.gz)?", re.IGNORECASE)


def prepare_physionet(root: Path, output_dir: Path, *, show_progress: bool = False) -> Prepared:
    """The series table and slice labels of a PhysioNet CT-ICH download.

    Raises:
        DatasetError: a file or column is missing, a bad label, two different rows of one slice, or no case is left.
        MachineError: the folder cannot be read, or the tables cannot be written.
    """
    csv = read_csv_file(root / DIAGNOSES_CSV, "slice diagnoses")
    labels, contradictions, n_repeated = _diagnoses(csv)
    scans, strange = _scans(root / SCANS_FOLDER)
    masks = _scans(root / MASKS_FOLDER)[0] if (root / MASKS_FOLDER).is_dir() else {}
    patients = sorted({*scans, *labels})
    cases: list[CohortCase] = []
    agreement: Counter[str] = Counter()
    bad_masks: list[str] = []
    with progress_bar("volumes", len(patients), "volumes", show_progress) as advance:
        for one in patients:
            cases.append(_case(one, scans.get(one), masks.get(one), labels.get(one), agreement, bad_masks))
            advance()
    facts: dict[str, Any] = {
        "diagnoses_sha256": csv.sha256,
        "slice_number": "from 1 along the file's third axis; slice_index is canonical, from 0",
        "no_hemorrhage_contradictions": contradictions,
        "n_repeated_rows": n_repeated,
        "mask_agreement_slices": {name: agreement[name] for name in _MASK_CLASSES},
        "unusable_masks": bad_masks,
    }
    counted = {
        f"slices have a No_Hemorrhage that disagrees with the types ({name_some(sorted(contradictions))}); `any` is "
        "the OR of the types": len(contradictions),
        "rows repeat an earlier one and were ignored": n_repeated,
        f"masks cannot be used and are not in the table; the first: {name_some(bad_masks[:1])}": len(bad_masks),
        f"files of {SCANS_FOLDER} are not named <number>.nii and were ignored: {name_some(strange)}": len(strange),
    }
    warnings = [*csv.warnings, *(f"{count} {text}" for text, count in counted.items() if count)]
    return write_cohort("physionet", cases, output_dir, facts=facts, warnings=warnings)


def _diagnoses(csv: CsvFile) -> tuple[dict[int, pd.DataFrame], list[str], int]:
    """({patient: six labels by slice number}, slices whose No_Hemorrhage disagrees with their types, repeated rows)."""
    frame = pd.DataFrame({label: csv.binary(label.capitalize()) for label in LABELS[1:]})
    frame.insert(0, LABELS[0], frame.max(axis=1))
    for place, name in enumerate(("PatientNumber", "SliceNumber")):
        column = csv.matching(name, r"[0-9]{1,9}(\.0*)?", "expected a whole number below 10^9")
        frame.insert(place, name, column.str.partition(".")[0].astype(int).to_numpy())
    odd = frame[csv.binary("No_Hemorrhage") == frame[LABELS[0]]]
    named = [f"patient {patient} slice {number}" for patient, number in odd.iloc[:, :2].itertuples(index=False)]
    kept = frame.drop_duplicates()
    conflicts = kept[kept.duplicated(["PatientNumber", "SliceNumber"])]
    if len(conflicts):
        patient, number = conflicts.iloc[0, :2]
        raise LabelError(f"{csv.path}: patient {patient} slice {number} occurs twice with different labels")
    by_patient = kept.set_index("SliceNumber").groupby("PatientNumber")[list(LABELS)]
    return {int(str(patient)): rows for patient, rows in by_patient}, named, len(frame) - len(kept)


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
        if match is None or found.setdefault(int(match[1]), path) != path:
            strange.append(path.name)
    return found, strange


def _case(
    patient: int,
    scan: Path | None,
    mask: Path | None,
    rows: pd.DataFrame | None,
    agreement: Counter[str],
    bad_masks: list[str],
) -> CohortCase:
    """The case of one patient; its mask is counted in `agreement` or, if it cannot be used, added to `bad_masks`."""
    name = f"{patient:03d}"
    if scan is None:
        return CohortCase.left_out(name, "missing", f"no {SCANS_FOLDER}/{name}.nii")
    if rows is None:
        return CohortCase.left_out(name, "unlabelled", f"no rows in {DIAGNOSES_CSV}")
    try:
        volume = read_volume(scan)
        labels = _slice_labels(name, volume, rows)
    except (InputError, OutOfScope, MachineError, DatasetError) as error:
        return CohortCase.failed(name, error)
    try:
        values = mask_values(mask, volume) if mask is not None else []
    except (InputError, OutOfScope, MachineError) as error:
        bad_masks.append(f"{error.code}: {error}")
        mask, values = None, []
    for of_slice, label in zip(values, labels[:, 0].tolist(), strict=False):
        agreement[_MASK_CLASSES[2 * (not of_slice) + (not label)]] += 1
    return CohortCase.labelled(name, volume, mask, labels, patient_id=name)


def _slice_labels(name: str, volume: Volume, rows: pd.DataFrame) -> Int8[np.ndarray, "slice 6"]:
    """The six labels of each canonical slice of a NIfTI volume, from rows indexed by slice number."""
    path = volume.source.path
    with machine_errors(path):
        file_affine: Any = nib.load(path).affine  # type: ignore[attr-defined]
    to_file = np.linalg.inv(file_affine) @ volume.affine
    index_steps = to_file[:3, 0]
    if not np.allclose(np.abs(index_steps), (0, 0, 1), atol=AXIS_TOLERANCE):
        raise OutOfScope(f"{path}: slices do not follow the file's third axis, so SliceNumber cannot be assigned")
    numbers = np.rint(to_file[2, 3] + index_steps[2] * np.arange(volume.n_slices)).astype(np.int64) + 1
    lacking = sorted(map(str, set(numbers.tolist()) - set(rows.index)))
    beyond = sorted(map(str, set(rows.index) - set(numbers.tolist())))
    if lacking or beyond:
        raise LabelError(
            f"patient {name}: {volume.n_slices} slices, of which {len(lacking)} have no row ({name_some(lacking)}); "
            f"{len(beyond)} rows have no slice ({name_some(beyond)})"
        )
    return np.asarray(rows.loc[numbers], dtype=np.int8)
