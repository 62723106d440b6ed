"""PhysioNet CT-ICH: every row of the CSV on its own canonical slice, whichever way the file runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.data.physionet import prepare_physionet
from meddinov3_stroke.errors import LabelError, SeriesTableError
from meddinov3_stroke.types import LABELS

COLUMNS = ["PatientNumber", "SliceNumber", "Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural"]
COLUMNS += ["Subdural", "No_Hemorrhage", "Fracture_Yes_No"]
UPWARD, DOWNWARD = np.diag([-1.0, -1.0, 5.0, 1.0]), np.diag([-1.0, -1.0, -5.0, 1.0])
N_SLICES = 5


def save(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


class PhysioNet:
    """A download being filled."""

    def __init__(self, root: Path) -> None:
        self.root, self.rows = root, []
        self.rows: list[list[int]]

    def add(
        self,
        patient: int,
        positive: dict[int, str] | None = None,
        affine: np.ndarray = UPWARD,
        mask: bool = True,
        rows: bool = True,
    ) -> None:
        """`positive`: SliceNumber -> type; the third axis's k-th slice has the value 10 k everywhere."""
        positive = positive or {}
        voxels = np.broadcast_to(10 * np.arange(N_SLICES), (8, 8, N_SLICES)).astype(np.int16)
        save(self.root / "ct_scans" / f"{patient:03d}.nii", voxels, affine)
        if mask:
            bleeds = np.zeros((8, 8, N_SLICES), np.uint8)
            bleeds[2:4, 2:4, [number - 1 for number in positive]] = 255
            save(self.root / "masks" / f"{patient:03d}.nii", bleeds, affine)
        for number in range(1, N_SLICES + 1) if rows else ():
            found = [int(positive.get(number) == name) for name in COLUMNS[2:7]]
            self.rows.append([patient, number, *found, int(not any(found)), 0])

    def write(self) -> Path:
        frame = pd.DataFrame(self.rows, columns=COLUMNS)
        frame.to_csv(self.root / "hemorrhage_diagnosis_raw_ct.csv", index=False)
        return self.root


@pytest.fixture
def physionet(tmp_path: Path) -> PhysioNet:
    return PhysioNet(tmp_path / "physionet")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def series_rows(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "physionet_series_labels.csv", dtype={"patient_id": str, "series_uid": str}).set_index(
        "patient_id"
    )


@pytest.mark.parametrize("affine", [UPWARD, DOWNWARD], ids=["upward", "downward"])
def test_a_row_lands_on_the_slice_it_speaks_of_whichever_way_the_file_runs(
    physionet: PhysioNet, out: Path, affine: np.ndarray
) -> None:
    physionet.add(49, {2: "Epidural", 5: "Subdural"}, affine)
    prepare_physionet(physionet.write(), out)
    rows = pq.read_table(out / "slice_labels.parquet").to_pandas()
    volume = read_volume(physionet.root / "ct_scans" / "049.nii")
    assert rows["slice_index"].tolist() == list(range(N_SLICES))
    for row in rows.to_dict("records"):
        number = int(volume.hu[row["slice_index"]].max()) // 10 + 1  # what the file's k-th slice holds
        assert row["epidural"] == (number == 2)
        assert row["subdural"] == (number == 5)
        assert row["any"] == (number in (2, 5))
        position = [row[f"position_{axis}_mm"] for axis in "xyz"]
        np.testing.assert_allclose(position, volume.slice_positions_mm[row["slice_index"]])


def test_a_case_has_the_maximum_of_its_slices(physionet: PhysioNet, out: Path) -> None:
    physionet.add(49, {2: "Epidural", 5: "Subarachnoid"})
    physionet.add(130)
    prepare_physionet(physionet.write(), out)
    rows = series_rows(out)
    assert rows.loc["049", list(LABELS)].tolist() == [1, 1, 0, 0, 1, 0]
    assert rows.loc["130", list(LABELS)].tolist() == [0] * 6
    assert Path(rows.loc["049", "nifti_path"]) == physionet.root / "ct_scans" / "049.nii"


def test_masks_stand_in_the_table_and_are_compared_with_labels(physionet: PhysioNet, out: Path) -> None:
    physionet.add(49, {2: "Epidural"})
    physionet.add(50, {3: "Subdural"}, mask=False)
    found = prepare_physionet(physionet.write(), out)
    rows = series_rows(out)
    assert Path(rows.loc["049", "mask"]) == physionet.root / "masks" / "049.nii"
    assert pd.isna(rows.loc["050", "mask"])
    agreement = found.facts["mask_agreement_slices"]
    assert agreement == {"n_both": 1, "n_mask_alone": 0, "n_label_alone": 0, "n_neither": 4}


@pytest.mark.parametrize("fault", ["shape", "place", "fraction"])
def test_a_mask_that_is_not_its_volumes_is_left_out_and_said(physionet: PhysioNet, out: Path, fault: str) -> None:
    physionet.add(49, {2: "Epidural"})
    voxels, affine = np.zeros((8, 8, N_SLICES), np.float32), UPWARD.copy()
    if fault == "shape":
        voxels = voxels[..., 1:]
    elif fault == "place":
        affine[2, 3] = 40
    else:
        voxels[3, 3, 3] = 0.5
    save(physionet.root / "masks" / "049.nii", voxels, affine)
    found = prepare_physionet(physionet.write(), out)
    assert pd.isna(series_rows(out).loc["049", "mask"])
    assert any("1 masks cannot be used" in warning for warning in found.warnings)


def test_scans_and_rows_without_each_other_are_counted(physionet: PhysioNet, out: Path) -> None:
    physionet.add(49)
    physionet.add(50, rows=False)
    physionet.add(51)
    (physionet.root / "ct_scans" / "051.nii").unlink()
    (physionet.root / "ct_scans" / "readme.txt").write_text("")
    found = prepare_physionet(physionet.write(), out)
    assert found.facts["ledger"]["by_status"] == {"usable": 1, "unlabelled": 1, "missing": 1}
    assert found.facts["ledger"]["by_outcome"] == {"done": 1, "rejected": 2, "refused": 0, "failed": 0}
    assert any("readme.txt" in warning for warning in found.warnings)


@pytest.mark.parametrize("change", ["one row less", "one row more"])
def test_rows_that_do_not_fit_the_slices_keep_the_case_out(physionet: PhysioNet, out: Path, change: str) -> None:
    physionet.add(49)
    physionet.add(50)
    physionet.rows = physionet.rows[:-1] if change == "one row less" else [*physionet.rows, [50, 6, *[0] * 5, 1, 0]]
    found = prepare_physionet(physionet.write(), out)
    assert found.facts["ledger"]["by_status"] == {"usable": 1, "rejected": 1}
    assert "patient 050: 5 slices" in found.facts["ledger"]["left_out"][0]["reason"]


def test_a_damaged_scan_is_rejected_with_its_code(physionet: PhysioNet, out: Path) -> None:
    physionet.add(49)
    physionet.add(50)
    path = physionet.root / "ct_scans" / "050.nii"
    path.write_bytes(path.read_bytes()[:-9])
    (left,) = prepare_physionet(physionet.write(), out).facts["ledger"]["left_out"]
    assert (left["case"], left["status"]) == ("050", "rejected")
    assert "E-INPUT-CORRUPT" in left["reason"]


def test_a_scan_whose_slices_lie_along_another_axis_is_refused(physionet: PhysioNet, out: Path) -> None:
    physionet.add(49)
    physionet.add(50, affine=np.array([[0, 0, -1.0, 0], [0, -1, 0, 0], [5, 0, 0, 0], [0, 0, 0, 1]]))
    (left,) = prepare_physionet(physionet.write(), out).facts["ledger"]["left_out"]
    assert (left["case"], left["status"]) == ("050", "refused")
    assert "third axis" in left["reason"]


def test_no_hemorrhage_that_disagrees_with_the_types_is_named(physionet: PhysioNet, out: Path) -> None:
    physionet.add(49, {2: "Epidural"})
    physionet.rows[1][7] = 1
    physionet.rows[3][7] = 0
    found = prepare_physionet(physionet.write(), out)
    assert found.facts["no_hemorrhage_contradictions"] == ["patient 49 slice 2", "patient 49 slice 4"]
    assert any("No_Hemorrhage that disagrees" in warning for warning in found.warnings)
    assert pq.read_table(out / "slice_labels.parquet")["any"].to_pylist() == [0, 1, 0, 0, 0]


def test_identical_rows_count_once_and_conflicting_ones_stop(physionet: PhysioNet, out: Path) -> None:
    physionet.add(49)
    physionet.rows.append(list(physionet.rows[0]))
    assert prepare_physionet(physionet.write(), out).facts["n_repeated_rows"] == 1
    physionet.rows[-1][2] = 1
    with pytest.raises(LabelError, match="patient 49 slice 1 occurs twice"):
        prepare_physionet(physionet.write(), out)


@pytest.mark.parametrize(("column", "value"), [("Epidural", 2), ("SliceNumber", 1.5)])
def test_a_cell_of_another_form_names_its_row(physionet: PhysioNet, out: Path, column: str, value: Any) -> None:
    physionet.add(49)
    physionet.rows[1][COLUMNS.index(column)] = value
    with pytest.raises(LabelError, match=f"row 3: {column}"):
        prepare_physionet(physionet.write(), out)


@pytest.mark.parametrize("column", ["PatientNumber", "SliceNumber"])
@pytest.mark.parametrize("n_digits", [10, 400, 5000])
def test_a_number_of_many_digits_is_no_number(physionet: PhysioNet, out: Path, column: str, n_digits: int) -> None:
    physionet.add(49)
    csv = physionet.write() / "hemorrhage_diagnosis_raw_ct.csv"
    frame = pd.read_csv(csv, dtype=str)
    frame.loc[0, column] = "9" * n_digits
    frame.to_csv(csv, index=False)
    with pytest.raises(LabelError, match=f"row 2: {column} is '9+") as raised:
        prepare_physionet(physionet.root, out)
    assert len(str(raised.value)) < 400


def test_a_folder_without_scans_is_an_error(physionet: PhysioNet, out: Path) -> None:
    physionet.root.mkdir()
    physionet.rows.append([49, 1, *[0] * 5, 1, 0])
    with pytest.raises(SeriesTableError, match=r"no folder .*ct_scans"):
        prepare_physionet(physionet.write(), out)
