"""Cohorts: who has what, and the files."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from meddinov3_stroke.errors import StorageError, UsageError
from meddinov3_stroke.phantom import CohortManifest, count_series, draw_cohort, write_cohort
from meddinov3_stroke.phantom.spec import LEAST_COHORT_ML
from meddinov3_stroke.types import LABELS

TINY = (9, 48, 48)
SEEDS = [0, 1, 42]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> CohortManifest:
    return write_cohort(tmp_path_factory.mktemp("cohort"), 12, 42, shape=TINY)


def rows_of(manifest: CohortManifest) -> list[dict[str, str]]:
    with manifest.csv_path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("seed", SEEDS)
def test_half_of_the_patients_bleed(seed: int) -> None:
    cohort = draw_cohort(120, seed)
    assert sum(bool(patient.studies[0].spec.lesions) for patient in cohort) == 60


@pytest.mark.parametrize("seed", SEEDS)
def test_each_type_is_in_at_least_three_studies_of_twenty(seed: int) -> None:
    studies = [study for patient in draw_cohort(140, seed) for study in patient.studies]
    counts = Counter(label for study in studies for label in {lesion.label for lesion in study.spec.lesions})
    assert all(counts[label] >= 0.15 * len(studies) for label in LABELS[1:]), counts


@pytest.mark.parametrize("seed", range(8))
def test_ten_patients_hold_every_type(seed: int) -> None:
    drawn = {lesion.label for patient in draw_cohort(10, seed) for lesion in patient.studies[0].spec.lesions}
    assert drawn == set(LABELS[1:])


@pytest.mark.parametrize("seed", SEEDS)
def test_types_occur_alone_and_mixed(seed: int) -> None:
    n_types = Counter(len(patient.studies[0].spec.lesions) for patient in draw_cohort(120, seed))
    assert set(n_types) == {0, 1, 2, 3}


@pytest.mark.parametrize("seed", SEEDS)
def test_more_than_a_fifth_of_the_haemorrhages_are_below_2_ml(seed: int) -> None:
    volumes = [lesion.volume_ml for patient in draw_cohort(120, seed) for lesion in patient.studies[0].spec.lesions]
    assert 0.2 < np.mean(np.array(volumes) < 2) < 0.5
    assert min(volumes) >= LEAST_COHORT_ML
    assert max(volumes) <= 60


@pytest.mark.parametrize("seed", SEEDS)
def test_volumes_are_log_uniform(seed: int) -> None:
    volumes = [
        lesion.volume_ml
        for patient in draw_cohort(120, seed)
        for lesion in patient.studies[0].spec.lesions
        if lesion.label in ("epidural", "intraparenchymal", "subdural")
    ]
    quartiles = np.percentile(np.log(volumes), [25, 50, 75])
    low, high = np.log([LEAST_COHORT_ML, 60])
    np.testing.assert_allclose((quartiles - low) / (high - low), [0.25, 0.5, 0.75], atol=0.05)


def test_some_patients_have_a_second_study_of_the_same_head_and_haemorrhages() -> None:
    follow_ups = [patient.studies for patient in draw_cohort(60, 1) if len(patient.studies) == 2]
    assert 5 <= len(follow_ups) <= 20
    for first, second in follow_ups:
        assert first.spec.head == second.spec.head
        assert first.spec.seed != second.spec.seed
        assert [lesion.label for lesion in first.spec.lesions] == [lesion.label for lesion in second.spec.lesions]


def test_identifiers_are_unique_and_differ_between_cohorts() -> None:
    def identifiers(seed: int) -> list[str]:
        cohort = draw_cohort(60, seed)
        return [i for p in cohort for i in (p.patient_id, *(u for s in p.studies for u in (s.study_uid, s.series_uid)))]

    assert len(set(identifiers(0))) == len(identifiers(0))
    assert not set(identifiers(0)) & set(identifiers(1))


def test_count_series_counts_the_studies() -> None:
    assert count_series(50, 3) == sum(len(patient.studies) for patient in draw_cohort(50, 3)) > 50


@pytest.mark.parametrize(("n_patients", "seed"), [(0, 1), (3, -1)])
def test_impossible_cohort_is_refused(n_patients: int, seed: int) -> None:
    with pytest.raises(UsageError, match="expected at least 1"):
        draw_cohort(n_patients, seed)


def test_no_worker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="workers 0"):
        write_cohort(tmp_path, 1, 0, workers=0)


def test_folder_holds_exactly_one_csv_at_its_top(manifest: CohortManifest) -> None:
    assert list(manifest.folder.rglob("*.csv")) == [manifest.folder / "phantom_series_labels.csv"]


def test_csv_has_the_agreed_columns(manifest: CohortManifest) -> None:
    header = manifest.csv_path.read_text(encoding="utf-8").splitlines()[0]
    assert header == "nifti_path,patient_id,study_uid,series_uid," + ",".join(LABELS)


def test_paths_have_the_form_patient_study_series(manifest: CohortManifest) -> None:
    for row in rows_of(manifest):
        assert row["nifti_path"] == f"volumes/{row['patient_id']}/{row['study_uid']}/_{row['series_uid']}.nii.gz"
        assert (manifest.folder / row["nifti_path"]).is_file()


def test_labels_in_the_csv_are_those_of_the_masks(manifest: CohortManifest) -> None:
    for row in rows_of(manifest):
        mask = nib.load(manifest.folder / row["nifti_path"].replace("volumes/", "masks/"))
        values = set(np.unique(np.asarray(mask.dataobj))) - {0}
        assert [int(row[label]) for label in LABELS[1:]] == [int(index in values) for index in range(1, len(LABELS))]
        assert int(row["any"]) == int(bool(values))


def test_json_holds_volumes_measured_from_the_masks(manifest: CohortManifest) -> None:
    document = json.loads(manifest.json_path.read_text(encoding="utf-8"))
    assert (document["seed"], document["n_patients"], document["n_series"]) == (42, 12, len(manifest.series))
    for series in document["series"]:
        mask = nib.load(manifest.folder / series["mask_path"])
        voxel_ml = np.prod(mask.header.get_zooms()) / 1000
        for label, value in document["mask_values"].items():
            measured = (np.asarray(mask.dataobj) == value).sum() * voxel_ml
            assert series["lesion_volumes_ml"][label] == pytest.approx(measured, abs=1e-3)


def test_same_seed_gives_the_same_bytes_however_many_workers(tmp_path: Path) -> None:
    write_cohort(tmp_path / "one", 4, 9, workers=1, shape=TINY)
    write_cohort(tmp_path / "three", 4, 9, workers=3, shape=TINY)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_progress_is_reported_once_for_each_volume(tmp_path: Path) -> None:
    reported: list[int] = []
    manifest = write_cohort(tmp_path, 3, 0, workers=2, on_progress=reported.append, shape=TINY)
    assert reported == [1] * len(manifest.series)


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        write_cohort(tmp_path / "file", 2, 0, shape=TINY)
