"""The index leads to the volume it describes, and its NIfTI copy has the same slices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from meddinov3_stroke.ct import OpenedInput, open_input, read_volume
from meddinov3_stroke.data import read_series_table, rsna
from meddinov3_stroke.data.cohort import Prepared
from meddinov3_stroke.data.rsna import prepare_rsna
from meddinov3_stroke.types import VolumeInput

Kaggle = Callable[..., Any]


def prepare(root: Path, output: Path, **options: Any) -> Prepared:
    return prepare_rsna(root, output, **options)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.mark.parametrize("options", [{}, {"pixels": "wrapped12"}, {"missing_slices": (3,)}, {"repeated_slices": (2,)}])
def test_the_index_and_the_volume_name_the_same_slices(kaggle: Kaggle, out: Path, options: dict[str, Any]) -> None:
    cohort = kaggle()
    cohort.add("other")
    uid = cohort.add("one", n_slices=7, **options).identity.series_uid
    prepare(cohort.write(), out)
    volume = read_volume(VolumeInput(out / "header_index.parquet", uid))
    rows = pq.read_table(out / "header_index.parquet", filters=[("series_uid", "=", uid)]).to_pandas()
    rows = rows[rows["slice_index"] >= 0]
    assert rows["slice_index"].tolist() == list(range(volume.n_slices))
    assert rows["sop_uid"].tolist() == [image.sop_instance_uid for image in volume.source.images]
    positions = rows[["position_x_mm", "position_y_mm", "position_z_mm"]].to_numpy()
    np.testing.assert_allclose(positions, volume.slice_positions_mm, atol=1e-9)


def test_a_nifti_copy_has_the_slices_of_its_series(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    truths = [cohort.add(name, {0: ("subdural",)}, n_slices=5, patient="ID_p") for name in ("one", "two")]
    prepare(cohort.write(), out, write_nifti=True)
    table = read_series_table(out / "rsna_hemorrhage_series_labels.csv")
    assert table.labels[:, 5].tolist() == [1, 1]
    for truth in truths:
        path = out / "nifti" / "ID_p" / truth.identity.study_uid / f"_{truth.identity.series_uid}.nii.gz"
        copy, original = read_volume(path), read_volume(VolumeInput(out / "header_index.parquet", path.name[1:-7]))
        np.testing.assert_array_equal(copy.hu, original.hu)
        np.testing.assert_allclose(copy.slice_positions_mm, original.slice_positions_mm, atol=1e-3)
        assert VolumeInput(path, format="nifti") in table.inputs


def test_what_nifti_cannot_hold_is_said_and_stands_beside_it(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    truth = cohort.add("gap", n_slices=6, missing_slices=(2,))
    found = prepare(cohort.write(), out, write_nifti=True)
    assert any("cannot hold the positions of 1 series" in warning for warning in found.warnings)
    (beside,) = (out / "nifti").rglob("*.slices.json")
    lps = np.array(json.loads(beside.read_text())["slice_positions_mm"]) * [-1, -1, 1]
    np.testing.assert_allclose(lps, truth.positions_mm, atol=1e-6)


def test_copies_that_are_there_are_not_written_again(
    kaggle: Kaggle, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = kaggle()
    for name in ("one", "two"):
        cohort.add(name)
    prepare(cohort.write(), out, write_nifti=True)
    first, second = sorted((out / "nifti").rglob("*.nii.gz"))
    second.write_bytes(second.read_bytes()[:-1])
    decoded: list[VolumeInput] = []

    def counting(source: VolumeInput) -> OpenedInput:
        opened = open_input(source)
        volume = opened.volume
        monkeypatch.setattr(opened, "volume", lambda: decoded.append(source) or volume())
        return opened

    monkeypatch.setattr(rsna, "open_input", counting)
    found = prepare(cohort.root, out, write_nifti=True)
    assert [source.series_uid for source in decoded] == [second.name[1:-7]]
    assert found.facts["nifti"] == {
        "n_series": 2,
        "n_written": 1,
        "n_from_before": 1,
        "n_without": 0,
        "n_misplaced": 0,
        "most_misplaced_mm": 0.0,
    }
    assert first.is_file()


def test_a_changed_image_is_copied_anew(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    truth = cohort.add("one")
    prepare(cohort.write(), out, write_nifti=True)
    (path,) = (out / "nifti").rglob("*.nii.gz")
    before = read_volume(path).hu
    image = cohort.images / truth.used[0].file
    content = bytearray(image.read_bytes())
    content[-2] ^= 1
    image.write_bytes(bytes(content))
    assert prepare(cohort.root, out, write_nifti=True).facts["nifti"]["n_written"] == 1
    assert (read_volume(path).hu != before).sum() == 1


def test_an_id_never_becomes_a_path_out_of_the_folder(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    cohort.add("sound")
    cohort.add("wicked", patient="../../x")
    found = prepare(cohort.write(), out, write_nifti=True)
    assert len(list(out.parent.rglob("*.nii.gz"))) == 1
    assert found.facts["ledger"]["series"]["refused"] == 1
    assert len(pd.read_csv(out / "rsna_hemorrhage_series_labels.csv")) == 1
    assert len(pq.read_table(out / "slice_labels.parquet")) == 4


def test_several_processes_write_the_same_copies(kaggle: Kaggle, tmp_path: Path) -> None:
    cohort = kaggle()
    for k in range(3):
        cohort.add(str(k))
    cohort.write()
    for name, workers in (("one", 1), ("two", 2)):
        prepare(cohort.root, tmp_path / name, write_nifti=True, workers=workers)
    copies = [sorted((tmp_path / name / "nifti").rglob("*.nii.gz")) for name in ("one", "two")]
    assert [path.read_bytes() for path in copies[0]] == [path.read_bytes() for path in copies[1]]
    assert len(copies[0]) == 3
