"""The command on a miniature of each cohort, and the pipeline on the tables it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dicom_writer import DicomOptions, axial_geometry, write_dicom_series
from meddinov3_stroke.commands import prepare_cohort
from meddinov3_stroke.data import read_series_table

FINDINGS = ("ICH", "IPH", "IVH", "SDH", "EDH", "SAH")
TYPES = ("Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural")
N_CASES, N_SLICES = 6, 9


def head(seed: int) -> np.ndarray:
    """Something like a head, brighter where `seed` is odd: [slice, row, column] in HU."""
    row, column = np.mgrid[:32, :32]
    inside = np.hypot(row - 16, column - 16) < 13
    hu = np.where(inside, 35 + 60 * (seed % 2), -1000) + np.zeros((N_SLICES, 1, 1))
    return (hu + np.random.default_rng(seed).normal(0, 3, hu.shape)).astype(np.float32)


def save_nifti(path: Path, canonical: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(canonical.transpose(2, 1, 0), np.diag([-5.0, -5.0, 5.0, 1.0]))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def write_cq500(root: Path) -> None:
    columns = [f"R{k}:{finding}" for k in (1, 2, 3) for finding in FINDINGS]
    rows = []
    for case in range(1, N_CASES + 1):
        bleeds = case % 2
        votes = {
            f"R{k}:{finding}": int(bleeds and finding in ("ICH", "SDH")) for k in (1, 2, 3) for finding in FINDINGS
        }
        rows.append({"name": f"CQ500-CT-{case}", "Category": "B1" if case < 4 else "B2"} | votes)
        folder = root / f"CQ500CT{case} CQ500CT{case}" / "Unknown Study" / "CT Plain"
        write_dicom_series(
            folder, head(case), axial_geometry([5.0] * (N_SLICES - 1), (32, 32)), DicomOptions(seed=case)
        )
    pd.DataFrame(rows, columns=["name", "Category", *columns]).to_csv(root / "reads.csv", index=False)


def write_physionet(root: Path) -> None:
    rows = []
    for patient in range(49, 49 + N_CASES):
        save_nifti(root / "ct_scans" / f"{patient:03d}.nii", head(patient).astype(np.int16))
        save_nifti(root / "masks" / f"{patient:03d}.nii", np.zeros((N_SLICES, 32, 32), np.uint8))
        for number in range(1, N_SLICES + 1):
            found = {name: int(patient % 2 and name == "Subdural" and number == 3) for name in TYPES}
            rows.append({"PatientNumber": patient, "SliceNumber": number} | found | {"Fracture_Yes_No": 0})
    frame = pd.DataFrame(rows)
    frame["No_Hemorrhage"] = 1 - frame[list(TYPES)].max(axis=1)
    frame.to_csv(root / "hemorrhage_diagnosis_raw_ct.csv", index=False)


def write_bhsd(root: Path) -> None:
    for case in range(N_CASES):
        mask = np.zeros((N_SLICES, 32, 32), np.uint8)
        mask[4, 10:14, 10:14] = 5 if case % 2 else 0
        save_nifti(root / "images" / f"ID_{case:08x}_ID_{case:010x}.nii.gz", head(case).astype(np.int16))
        save_nifti(root / "ground truths" / f"ID_{case:08x}_ID_{case:010x}.nii.gz", mask)


LAYOUTS: dict[str, Callable[[Path], None]] = {"cq500": write_cq500, "physionet": write_physionet, "bhsd": write_bhsd}


@pytest.fixture(scope="module", params=sorted(LAYOUTS))
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(cohort, output folder) after the command ran on the cohort's miniature."""
    cohort, folder = request.param, tmp_path_factory.mktemp(request.param)
    (folder / "root").mkdir()
    LAYOUTS[cohort](folder / "root")
    flags = ["--root", str(folder / "root"), "--output-dir", str(folder / "out"), "--quiet"]
    assert prepare_cohort.main([cohort, *flags]) == 0
    return cohort, folder / "out"


def test_one_command_writes_a_table_and_a_summary_that_adds_up(prepared: tuple[str, Path]) -> None:
    cohort, out = prepared
    table = read_series_table(out / f"{cohort}_series_labels.csv")
    assert len(table) == N_CASES
    assert table.labels[:, [0, 5]].sum(axis=0).tolist() == [N_CASES // 2] * 2
    summary = json.loads((out / "preparation_summary.json").read_text())
    assert {"schema_version", "disclaimer", "ledger", "table", "warnings"} <= set(summary)
    assert summary["ledger"]["n_cases"] == sum(summary["ledger"]["by_status"].values()) == N_CASES
    assert all(Path(path).is_file() for path in summary["files"].values())


@pytest.fixture(scope="module")
def weights(random_weights: Callable[..., Path]) -> Path:
    return random_weights()


@pytest.fixture(scope="module")
def backbone(weights: Path) -> Any:
    from meddinov3_stroke.backbone import load_backbone

    return load_backbone(weights, engine="torch", precision="fp32", device="cpu")


def test_extraction_head_test_and_case_inference_run_on_the_table(
    prepared: tuple[str, Path], weights: Path, backbone: Any, random_head: Callable[..., Path], tmp_path: Path
) -> None:
    from meddinov3_stroke import head_eval
    from meddinov3_stroke.commands import extract as extract_features
    from meddinov3_stroke.predictor import ICHPredictor

    cohort, out = prepared
    series_csv = out / f"{cohort}_series_labels.csv"
    table = read_series_table(series_csv)
    arguments = [
        "--series-csv",
        str(series_csv),
        "--backbone",
        str(weights),
        "--engine",
        "torch",
        "--precision",
        "fp32",
    ]
    arguments += [
        "--precision",
        "fp32",
        "--device",
        "cpu",
        "--resize",
        "64",
        "--cache-dir",
        str(tmp_path / "cache"),
        "--quiet",
    ]
    assert extract_features.main([*arguments, "--output-dir", str(tmp_path / "features")]) == 0
    head = random_head(backbone)
    flags = {name: tmp_path / "features" / f"cohort_{name}.npy" for name in ("embeddings", "labels")}
    arguments = [word for name, path in flags.items() for word in (f"--{name}", str(path))]
    arguments += ["--checkpoint", str(head), "--output-json", str(tmp_path / "metrics.json"), "--quiet"]
    assert head_eval.main([*arguments, "--output-probs", str(tmp_path / "probs.npy")]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["per_class_auroc"]["subdural"] is not None
    named = table.inputs[0]
    assert named is not None
    case = ICHPredictor.load(head, backbone=backbone)(named.path)
    assert set(case.probabilities) == set(case.decisions)


@pytest.mark.parametrize(
    ("flags", "exit_code", "code"),
    [
        (("cq500", "--mapping", "x.toml"), 2, "E-USAGE"),
        (("bhsd", "--undecided-type", "keep"), 2, "E-USAGE"),
        (("cq500",), 5, "E-SERIES-CSV"),
        (("physionet",), 5, "E-SERIES-CSV"),
    ],
)
def test_a_fault_is_one_line_and_its_exit_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: tuple[str, ...], exit_code: int, code: str
) -> None:
    where = ["--root", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    assert prepare_cohort.main([*flags, *where]) == exit_code
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"{code}: ")
