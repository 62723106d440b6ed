"""No positive slice is lost on the way to its series: not with a damaged file, and not with a dropped copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.config import disable_value_validation

from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.data.cohort import Prepared
from meddinov3_stroke.data.rsna import prepare_rsna
from meddinov3_stroke.errors import CorruptInput
from meddinov3_stroke.types import LABELS, VolumeInput

Kaggle = Callable[..., Any]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def prepare(root: Path, output: Path) -> Prepared:
    return prepare_rsna(root, output)


def series_rows(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "rsna_hemorrhage_series_labels.csv").set_index("series_uid")


def cut(path: Path, n_bytes: int = 20) -> None:
    path.write_bytes(path.read_bytes()[:-n_bytes])


def test_a_series_whose_positive_file_is_damaged_is_left_out_with_its_reason(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    cohort.add("sound")
    truth = cohort.add("cut", {1: ("epidural",)})
    bad = cohort.images / truth.used[1].file
    cut(bad)
    found = prepare(cohort.write(), out)
    assert truth.identity.series_uid not in series_rows(out).index
    assert truth.identity.series_uid not in set(pq.read_table(out / "slice_labels.parquet")["series_uid"].to_pylist())
    (example,) = found.facts["ledger"]["series"]["examples"]
    assert example["status"] == "refused"
    assert "1 of its files cannot be read: E-INPUT-CORRUPT" in example["reason"]
    assert bad.name in example["reason"]
    assert any(bad.name in warning for warning in found.warnings)


def test_the_index_gives_a_series_with_its_damaged_file_and_reading_it_says_so(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    cohort.add("sound")
    truth = cohort.add("cut")
    cut(cohort.images / truth.used[1].file)
    prepare(cohort.write(), out)
    with pytest.raises(CorruptInput, match=truth.used[1].file):
        read_volume(VolumeInput(out / "header_index.parquet", truth.identity.series_uid))


def test_a_positive_file_too_damaged_to_name_its_series_is_warned_of(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    cohort.add("sound")
    truth = cohort.add("cut", {1: ("epidural",), 2: ("subdural",)})
    for image in truth.used[1:3]:
        path = cohort.images / image.file
        path.write_bytes(path.read_bytes()[:150])
    found = prepare(cohort.write(), out)
    assert found.facts["ledger"]["labels"]["ends"]["positive_any_in_no_series"] == 2
    assert any("2 images with a positive label are in no series" in warning for warning in found.warnings)


def test_sound_files_and_negative_damaged_ones_raise_no_such_warning(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    cohort.add("sound", {0: ("subdural",)})
    truth = cohort.add("cut")
    path = cohort.images / truth.used[1].file
    path.write_bytes(path.read_bytes()[:150])
    assert not any("in no series" in warning for warning in prepare(cohort.write(), out).warnings)


def with_copy(kaggle: Kaggle, positive: int) -> Any:
    """A series in which one slice has a copy under another UID; of the two the first or second (by UID) is positive."""
    cohort = kaggle()
    truth = cohort.add("one", repeated_slices=(2,))
    (again,) = [image for image in truth.images if image.role == "duplicate"]
    pair = sorted((truth.used[2].sop_instance_uid, again.sop_instance_uid))
    assert len(set(pair)) == 2
    for place, uid in enumerate(pair):
        cohort.rows = [row for row in cohort.rows if not row.startswith(f"{uid}_")]
        cohort.label(uid, *(("epidural",) if place == positive else ()))
    cohort.write()
    return cohort


@pytest.mark.parametrize("positive", [0, 1])
def test_the_label_of_a_dropped_copy_counts_whichever_is_kept(kaggle: Kaggle, out: Path, positive: int) -> None:
    found = prepare(with_copy(kaggle, positive).root, out)
    assert series_rows(out)[list(LABELS)].to_numpy().tolist() == [[1, 1, 0, 0, 0, 0]]
    rows = pq.read_table(out / "slice_labels.parquet").to_pandas()
    np.testing.assert_array_equal(rows["epidural"], [0, 0, 1, 0])
    np.testing.assert_array_equal(rows["any"], [0, 0, 1, 0])
    assert found.facts["ledger"]["labels"]["copies"] == {"n_copies": 1, "n_slices_with_other_labels": 1}
    assert any("1 slices have duplicates with other labels" in warning for warning in found.warnings)


def test_the_labels_of_copies_end_once(kaggle: Kaggle, out: Path) -> None:
    labels = prepare(with_copy(kaggle, 1).root, out).facts["ledger"]["labels"]
    ends = labels["ends"]
    assert (ends["of_slices_in_the_table"], ends["of_copies_of_slices_in_the_table"]) == (4, 1)
    assert ends["positive_any_outside_the_table"] == 0
    assert sum(ends[name] for name in ends if not name.startswith("positive")) == labels["n_images"] == 5


def test_a_slice_without_labels_has_those_of_its_copy(kaggle: Kaggle, out: Path) -> None:
    cohort = with_copy(kaggle, 0)
    prepare(cohort.root, out)
    uid = pq.read_table(out / "slice_labels.parquet")["sop_uid"].to_pylist()[2]
    cohort.rows = [row for row in cohort.rows if not row.startswith(f"{uid}_")]
    cohort.write()
    assert prepare(cohort.root, out).facts["ledger"]["series"]["usable"] == 1


def test_a_positive_image_beside_the_slices_that_are_read_is_said(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    truth = cohort.add("one", {0: ("epidural",)}, n_slices=5)
    path = cohort.images / truth.used[0].file
    dataset = pydicom.dcmread(path)
    with disable_value_validation():
        dataset.PixelSpacing = [0.9, 0.9]
        dataset.save_as(path)
    found = prepare(cohort.write(), out)
    assert series_rows(out)[["n_slices", "any"]].to_numpy().tolist() == [[4, 0]]
    assert found.facts["ledger"]["labels"]["ends"]["positive_any_beside_the_slices_read"] == 1
    assert any(
        "1 images with a positive label are of series in the table but not" in warning for warning in found.warnings
    )
