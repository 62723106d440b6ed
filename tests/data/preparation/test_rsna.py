"""Kaggle's folder as a series table: every slice in its place, every label on its slice, every file accounted for."""

from __future__ import annotations

import re
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
from meddinov3_stroke.errors import LabelError, MissingInput, SeriesTableError
from meddinov3_stroke.types import LABELS

Kaggle = Callable[..., Any]


def prepare(root: Path, output: Path, **options: Any) -> Prepared:
    return prepare_rsna(root, output, **options)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def series_rows(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "rsna_hemorrhage_series_labels.csv").set_index("series_uid")


def index_rows(out: Path) -> pd.DataFrame:
    return pq.read_table(out / "header_index.parquet").to_pandas()


def test_a_series_has_the_maximum_of_its_slices_labels(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    sick = cohort.add("sick", {0: ("subdural",), 3: ("subdural", "epidural")})
    well = cohort.add("well")
    prepare(cohort.write(), out)
    rows = series_rows(out)
    assert rows.loc[sick.identity.series_uid, list(LABELS)].tolist() == [1, 1, 0, 0, 0, 1]
    assert rows.loc[well.identity.series_uid, list(LABELS)].tolist() == [0] * 6
    assert rows["n_slices"].tolist() == [4, 4]


def test_the_table_names_patient_study_series_and_the_index(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    truth = cohort.add("one", patient="ID_abc")
    found = prepare(cohort.write(), out)
    row = series_rows(out).loc[truth.identity.series_uid]
    assert (row["patient_id"], row["study_uid"]) == ("ID_abc", truth.identity.study_uid)
    (named,) = found.table.inputs
    assert named is not None
    assert (named.path, named.series_uid) == (out / "header_index.parquet", truth.identity.series_uid)


def test_slices_are_indexed_from_inferior_to_superior_whatever_the_names(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    truth = cohort.add("one", n_slices=9)
    prepare(cohort.write(), out)
    rows = index_rows(out)
    assert rows["slice_index"].tolist() == list(range(9))
    assert rows["sop_uid"].tolist() == [image.sop_instance_uid for image in truth.used]
    lps = rows[["position_x_mm", "position_y_mm", "position_z_mm"]].to_numpy() * [-1, -1, 1]
    np.testing.assert_allclose(lps, truth.positions_mm, atol=1e-6)
    assert [Path(name) for name in rows["file"]] == [cohort.images / image.file for image in truth.used]


def test_each_slice_keeps_its_own_labels(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    truth = cohort.add("one", {1: ("epidural",), 2: ("subarachnoid", "intraventricular")})
    cohort.add("two", {0: ("subdural",)})
    prepare(cohort.write(), out)
    rows = pq.read_table(out / "slice_labels.parquet").to_pandas()
    assert len(rows) == 8
    for row in rows.to_dict("records"):
        assert {label: row[label] for label in LABELS} == cohort.labels[row["sop_uid"]]
    of_series = rows[rows["series_uid"] == truth.identity.series_uid]
    assert of_series["slice_index"].tolist() == [0, 1, 2, 3]
    assert of_series["sop_uid"].tolist() == [image.sop_instance_uid for image in truth.used]


def test_one_series_is_one_range_of_the_index_and_read_by_a_filter(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    truths = [cohort.add(str(k), n_slices=3 + k) for k in range(5)]
    prepare(cohort.write(), out)
    rows = index_rows(out)
    assert rows["series_uid"].is_monotonic_increasing
    for truth in truths:
        uid = truth.identity.series_uid
        found = pq.read_table(out / "header_index.parquet", filters=[("series_uid", "=", uid)])
        assert found["slice_index"].to_pylist() == list(range(len(truth.used)))


def test_every_image_series_and_label_ends_once(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    cohort.add("sound", {1: ("epidural",)})
    cohort.add("single", n_slices=2, missing_slices=(1,))
    cohort.add("repeated", repeated_slices=(2,))
    cohort.add("localizer", companions=("localizer",))
    short = cohort.add("short")
    path = cohort.images / short.images[1].file
    path.write_bytes(path.read_bytes()[:-40])
    (cohort.images / "notes.txt").write_text("no DICOM")
    cohort.label("ID_nowhere", "subdural")
    ledger = prepare(cohort.write(), out).facts["ledger"]
    images, series, ends = ledger["images"], ledger["series"], ledger["labels"]["ends"]
    statuses = ("slice", "set aside", "refused", "rejected", "failed")
    assert images["n_images"] == sum(images[status] for status in statuses) == len(list(cohort.images.iterdir()))
    assert (images["slice"], images["rejected"]) == (4 + 4 + 4, 1)
    assert series["n_series"] == sum(
        series[status] for status in ("usable", "set aside", "refused", "unlabelled", "excluded")
    )
    assert (series["usable"], series["set aside"], series["refused"]) == (3, 1, 1)
    assert series["by_outcome"] == {"done": 3, "rejected": 0, "refused": 2, "failed": 0}
    parts = [ends[name] for name in ends if not name.startswith("positive")]
    assert sum(parts) == ledger["labels"]["n_images"]
    assert ends["without_a_readable_file"] == 2  # the cut file's and ID_nowhere's
    assert ends["positive_any_outside_the_table"] == 1


def test_a_file_that_is_no_slice_stands_in_the_index_with_its_reason(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    cohort.add("sound")
    truth = cohort.add("one")
    path = cohort.images / truth.images[1].file
    path.write_bytes(path.read_bytes()[:-40])
    (cohort.images / "notes.txt").write_text("no DICOM")
    prepare(cohort.write(), out)
    rows = index_rows(out).assign(name=lambda rows: [Path(file).name for file in rows["file"]]).set_index("name")
    assert rows.loc[path.name, "slice_index"] == -1
    assert rows.loc[path.name, "status"] == "rejected"
    assert "E-INPUT-CORRUPT" in rows.loc[path.name, "reason"]
    assert rows.loc["notes.txt", ["status", "reason"]].tolist() == ["set aside", "not DICOM"]


def test_wrapped_values_are_counted_and_said(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    cohort.add("sound")
    cohort.add("wrapped", pixels="wrapped12")
    found = prepare(cohort.write(), out)
    assert (found.facts["ledger"]["hu"]["n_slices_repaired"], found.facts["ledger"]["hu"]["n_series_repaired"]) == (
        4,
        1,
    )
    assert any("4 slices of 1 series have values that wrapped" in warning for warning in found.warnings)
    assert index_rows(out)["is_wrapped"].sum() == 4


def test_a_rescale_that_no_ct_has_keeps_the_series_out(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    cohort.add("sound")
    cohort.add("odd", slope=1e9)
    assert prepare(cohort.write(), out).facts["ledger"]["series"]["refused"] == 1
    assert set(index_rows(out)["status"]) == {"slice", "refused"}


def test_one_series_uid_under_two_studies_is_refused(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    cohort.add("sound")
    first, second = cohort.add("a", study=7), cohort.add("b", study=8)
    for image in second.used:
        path = cohort.images / image.file
        dataset = pydicom.dcmread(path)
        with disable_value_validation():
            dataset.SeriesInstanceUID = first.identity.series_uid
            dataset.save_as(path)
    found = prepare(cohort.write(), out)
    assert (found.facts["ledger"]["series"]["usable"], found.facts["ledger"]["series"]["refused"]) == (1, 1)
    assert found.facts["ledger"]["images"]["refused"] == 8
    assert first.identity.series_uid not in series_rows(out).index


def test_a_series_with_an_unlabelled_slice_is_not_in_the_table(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    cohort.add("labelled")
    truth = cohort.add("half")
    cohort.rows = [row for row in cohort.rows if not row.startswith(truth.used[2].sop_instance_uid)]
    found = prepare(cohort.write(), out)
    assert found.facts["ledger"]["series"]["unlabelled"] == 1
    assert truth.identity.series_uid not in series_rows(out).index


def test_excluded_patients_leave_with_all_their_studies(kaggle: Kaggle, out: Path, tmp_path: Path) -> None:
    cohort = kaggle()
    cohort.add("a", patient="ID_x")
    other = cohort.add("b", patient="ID_x")
    cohort.add("c", patient="ID_y")
    ids = tmp_path / "ids.txt"
    ids.write_text(f"{other.identity.study_uid}\nID_unknown\n")
    found = prepare(cohort.write(), out, exclude_ids=ids)
    assert series_rows(out)["patient_id"].tolist() == ["ID_y"]
    assert found.facts["ledger"]["series"]["excluded"] == 2
    assert any("1 of 2 IDs match no" in warning for warning in found.warnings)
    assert len(pq.read_table(out / "slice_labels.parquet")) == 4


def test_an_image_named_for_exclusion_takes_its_patient_along(kaggle: Kaggle, out: Path, tmp_path: Path) -> None:
    cohort = kaggle()
    cohort.add("a", patient="ID_x")
    named = cohort.add("b", patient="ID_x")
    cohort.add("c", patient="ID_y")
    ids = tmp_path / "ids.txt"
    ids.write_text(f"{named.used[1].sop_instance_uid.upper()}\n")
    found = prepare(cohort.write(), out, exclude_ids=ids)
    assert series_rows(out)["patient_id"].tolist() == ["ID_y"]
    assert found.table.exclusion is not None
    assert (found.facts["exclusion"]["unmatched"], found.facts["exclusion"]["n_excluded_series"]) == ([], 2)


def test_an_image_of_an_unusable_series_takes_its_patient_too(kaggle: Kaggle, out: Path, tmp_path: Path) -> None:
    cohort = kaggle()
    cohort.add("a", patient="ID_x")
    single = cohort.add("single", patient="ID_x", n_slices=2, missing_slices=(1,))
    cohort.add("c", patient="ID_y")
    ids = tmp_path / "ids.txt"
    ids.write_text(f"{single.used[0].sop_instance_uid}\n")
    prepare(cohort.write(), out, exclude_ids=ids)
    assert series_rows(out)["patient_id"].tolist() == ["ID_y"]


def test_identical_duplicate_rows_are_dropped_and_counted(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    cohort.add("one", {0: ("subdural",)})
    cohort.rows += cohort.rows[:7]
    document = prepare(cohort.write(), out).facts["ledger"]["labels"]
    assert (document["n_rows"], document["n_repeated"], document["n_images"]) == (31, 7, 4)


def test_an_id_with_both_labels_stops_and_is_named(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    truth = cohort.add("one")
    wrong = f"{truth.used[0].sop_instance_uid}_epidural"
    cohort.rows.append(f"{wrong},1")
    with pytest.raises(LabelError, match=wrong):
        prepare(cohort.write(), out)


def test_an_id_with_both_labels_is_positive_where_that_is_asked_for(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    truth = cohort.add("one")
    cohort.rows += [f"{truth.used[0].sop_instance_uid}_{label},1" for label in ("epidural", "any")]
    found = prepare(cohort.write(), out, conflicting_labels="positive")
    assert series_rows(out)[list(LABELS)].to_numpy().tolist() == [[1, 1, 0, 0, 0, 0]]
    assert any("2 IDs have both labels" in warning for warning in found.warnings)
    document = found.facts["ledger"]["labels"]
    assert document["n_rows"] == 6 * document["n_images"] + document["n_repeated"] + document["n_conflicting_rows"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["ID_a_epidural,2"], "expected 0 or 1"),
        (["ID_a_epidural,"], "expected 0 or 1"),
        (["ID_a_epidural,0.5"], "ID_a_epidural has the label '0.5'; expected 0 or 1"),
        (["ID_a_epidural,1,7"], "its first line is 'ID,Label'; expected ID,Label in the first line and two cells in"),
        (["ID_a_stroke,1"], r"'ID_a_stroke'; expected ID_<sop>_<label>"),
        (["ID_a_any,0"], "lack some of their six rows, first ID_a"),
        ([], "has no rows|cannot be read"),
    ],
)
def test_labels_of_another_form_say_what_is_wrong(kaggle: Kaggle, out: Path, rows: list[str], words: str) -> None:
    cohort = kaggle()
    cohort.add("one")
    cohort.rows = rows
    with pytest.raises(LabelError, match=words):
        prepare(cohort.write(), out)


@pytest.mark.parametrize(("zero", "one"), [("0.0", "1.0"), ("FALSE", "TRUE"), (" 0", "1 ")])
def test_labels_are_read_in_each_spelling(kaggle: Kaggle, out: Path, zero: str, one: str) -> None:
    cohort = kaggle()
    cohort.add("one", {0: ("subdural",)})
    cohort.rows = [row.replace(",0", f",{zero}").replace(",1", f",{one}") for row in cohort.rows]
    prepare(cohort.write(), out)
    assert series_rows(out)[list(LABELS)].to_numpy().tolist() == [[1, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize("first", ["ID,Lab", "ID;Label", "sep=,", ""])
def test_a_file_of_other_columns_is_named_in_our_words(kaggle: Kaggle, out: Path, first: str) -> None:
    cohort = kaggle()
    cohort.add("one")
    cohort.csv.write_text("\n".join([first, *cohort.rows]))
    with pytest.raises(LabelError, match=f"cannot be read as labels: its first line is '{first}'; expected ID,Label"):
        prepare(cohort.root, out)


@pytest.mark.parametrize("given", ["..", "../..", "stage_2_train"])
def test_a_root_beside_the_right_one_gets_a_message_that_names_it(kaggle: Kaggle, out: Path, given: str) -> None:
    cohort = kaggle("cohorts/rsna")
    cohort.add("one", {0: ("subdural",)})
    right = cohort.write()
    wrong = (right / given).resolve()
    with pytest.raises(LabelError, match=re.escape(f"no stage_2_train.csv in {wrong}; it is in ")) as caught:
        prepare(wrong, out)
    named = Path(str(caught.value).rpartition("--root ")[2])
    assert named.samefile(right)
    prepare(named, out)
    assert series_rows(out)["subdural"].tolist() == [1]


def test_the_first_stage_is_named_and_its_advice_works(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    cohort.add("one", {0: ("subdural",)})
    root = cohort.write()
    first_csv = cohort.csv.rename(root / "stage_1_train.csv")
    first_images = cohort.images.rename(root / "stage_1_train_images")
    with pytest.raises(LabelError, match=r"found stage_1_train\.csv, of the first stage; download stage 2.*or rename"):
        prepare(root, out)
    first_csv.rename(cohort.csv)
    first_images.rename(cohort.images)
    prepare(root, out)
    assert series_rows(out)["subdural"].tolist() == [1]


def test_any_that_is_not_the_or_names_the_image_and_is_settled_by_policy(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    truth = cohort.add("one")
    uid = truth.used[1].sop_instance_uid
    cohort.rows = [row.replace(f"{uid}_epidural,0", f"{uid}_epidural,1") for row in cohort.rows]
    with pytest.raises(LabelError, match=uid):
        prepare(cohort.write(), out)
    prepare(cohort.root, out, label_policy="fix-any")
    assert series_rows(out)["any"].tolist() == [1]


def test_a_folder_without_kaggles_files_says_what_is_missing(kaggle: Kaggle, tmp_path: Path, out: Path) -> None:
    with pytest.raises(LabelError, match=r"stage_2_train\.csv; found nothing"):
        prepare(tmp_path, out)
    cohort = kaggle()
    cohort.label("ID_a")
    cohort.write()
    with pytest.raises(MissingInput, match="holds no files"):
        prepare(cohort.root, out)


def test_no_usable_series_is_an_error(kaggle: Kaggle, out: Path) -> None:
    cohort = kaggle()
    cohort.add("single", n_slices=2, missing_slices=(1,))
    with pytest.raises(SeriesTableError, match="no series is left"):
        prepare(cohort.write(), out)


def test_another_run_writes_the_same_bytes(kaggle: Kaggle, tmp_path: Path) -> None:
    cohort = kaggle()
    for k in range(4):
        cohort.add(str(k), {k: ("subdural",)})
    cohort.write()
    for name in ("one", "two"):
        prepare(cohort.root, tmp_path / name)
    for name in ("slice_labels.parquet", "header_index.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    "orientation",
    [[1, 0, 0, 0, 1, 0], [-1, 0, 0, 0, -1, 0], [-1, 0, 0, 0, 1, 0], [1, 0, 0, 0, -1, 0], [0, 1, 0, -1, 0, 0]],
    ids=str,
)
def test_slice_labels_have_the_positions_that_the_reader_gives(
    kaggle: Kaggle, out: Path, orientation: list[float]
) -> None:
    cohort = kaggle()
    cohort.add("one", n_slices=5)
    for path in cohort.images.iterdir():
        dataset = pydicom.dcmread(path)
        with disable_value_validation():
            dataset.ImageOrientationPatient = orientation
            dataset.save_as(path)
    (named,) = prepare(cohort.write(), out).table.inputs
    assert named is not None
    volume = read_volume(named)
    rows = pq.read_table(out / "slice_labels.parquet").to_pandas()
    assert rows["sop_uid"].tolist() == [image.sop_instance_uid for image in volume.source.images]
    positions = rows[["position_x_mm", "position_y_mm", "position_z_mm"]].to_numpy()
    np.testing.assert_allclose(positions, volume.slice_positions_mm, atol=1e-9)
