from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from meddinov3_stroke.data import SeriesTable, read_series_table, require_disjoint, split_by_patient, write_splits
from meddinov3_stroke.data.splits import stratify, target_sizes
from meddinov3_stroke.errors import SplitError, UsageError
from meddinov3_stroke.types import LABELS

RATIOS = (0.7, 0.15, 0.15)


def table_of(labels: np.ndarray, patients: list[str], studies: list[str] | None = None) -> SeriesTable:
    studies = studies or [f"s{k}" for k in range(len(labels))]
    frame = pd.DataFrame(
        {
            "source_row": range(2, len(labels) + 2),
            "nifti_path": [f"{k}.nii.gz" for k in range(len(labels))],
            "patient_id": patients,
            "study_uid": studies,
            "series_uid": "",
        }
    )
    for k, label in enumerate(LABELS):
        frame[label] = labels[:, k].astype(np.int8)
    return SeriesTable(frame, frame.astype(str), (None,) * len(labels), "series.csv", "00" * 32)


def cohort(n_patients: int, seed: int, most_series: int = 3) -> SeriesTable:
    """Patients with one to three series and RSNA-like prevalences, a few positives of each type at least."""
    generator = np.random.default_rng(seed)
    patients = [f"p{k}" for k in range(n_patients) for _ in range(int(generator.integers(1, most_series + 1)))]
    types = generator.random((len(patients), 5)) < [0.04, 0.2, 0.15, 0.2, 0.25]
    for k in range(5):
        types[generator.choice(len(patients), 3), k] = True
    return table_of(np.column_stack([types.any(axis=1), types]), patients)


def membership(table: SeriesTable, ratios: tuple[float, float, float] = RATIOS, seed: int = 42) -> dict[str, str]:
    splits = split_by_patient(table, ratios, seed)
    return {group: name for name, part in splits.items() for group in part.groups}


n_patients = st.integers(20, 80)
seeds = st.integers(0, 10_000)


@settings(max_examples=12, deadline=None)
@given(n=n_patients, cohort_seed=seeds, seed=st.integers(-5, 10_000))
def test_no_patient_crosses_splits_and_their_union_is_everything(n: int, cohort_seed: int, seed: int) -> None:
    table = cohort(n, cohort_seed)
    parts = dict(split_by_patient(table, RATIOS, seed).items())
    groups = {name: set(part.groups) for name, part in parts.items()}
    assert not groups["train"] & groups["val"] | groups["train"] & groups["test"] | groups["val"] & groups["test"]
    assert sorted(row for part in parts.values() for row in part.rows) == table.rows


@settings(max_examples=12, deadline=None)
@given(n=n_patients, cohort_seed=seeds)
def test_the_order_of_rows_does_not_matter(n: int, cohort_seed: int) -> None:
    table = cohort(n, cohort_seed)
    shuffled = np.random.default_rng(cohort_seed).permutation(len(table))
    assert membership(table.take(shuffled)) == membership(table)


@settings(max_examples=12, deadline=None)
@given(
    n=n_patients,
    cohort_seed=seeds,
    ratios=st.sampled_from([RATIOS, (0.5, 0.25, 0.25), (0.45, 0.15, 0.4), (0.8, 0.1, 0.1)]),
)
def test_sizes_are_the_ratios_to_a_patient(n: int, cohort_seed: int, ratios: tuple[float, float, float]) -> None:
    table = cohort(n, cohort_seed)
    for (_, part), ratio in zip(split_by_patient(table, ratios, 7).items(), ratios, strict=True):
        assert abs(len(set(part.groups)) - ratio * n) < 1


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_positive_patients_of_each_label_are_shared_out_as_the_ratios(seed: int) -> None:
    table = cohort(200, seed)
    positive = {
        name: pd.DataFrame(part.labels, columns=LABELS).groupby(part.groups).max().sum()
        for name, part in split_by_patient(table, RATIOS, seed).items()
    }
    for label in LABELS:
        total = sum(counts[label] for counts in positive.values())
        for (_, counts), ratio in zip(positive.items(), RATIOS, strict=True):
            assert abs(counts[label] - ratio * total) < 4


def test_stratifying_beats_the_best_of_fifty_random_draws() -> None:
    positive = cohort(300, 5, most_series=1).labels.astype(bool)
    share = positive.mean(axis=0)

    def distance(split: np.ndarray) -> float:
        return max(float(abs(positive[split == k].mean(axis=0) - share).max()) for k in range(3))

    generator = np.random.default_rng(0)
    drawn = [distance(generator.permutation(np.repeat(range(3), target_sizes(300, RATIOS)))) for _ in range(50)]
    assert distance(stratify(positive, list(range(300)), RATIOS)) < min(drawn)


def test_the_seed_changes_the_split_and_nothing_else_does() -> None:
    table = cohort(100, 1)
    assert membership(table) == membership(table)
    assert membership(table, seed=43) != membership(table)


def test_the_split_is_the_same_on_every_machine_and_release() -> None:
    counts = membership(cohort(30, 2))
    test = sorted(group for group, name in counts.items() if name == "test")
    assert test == ["patient:p10", "patient:p26", "patient:p6", "patient:p9"]


@pytest.mark.parametrize(
    ("cohort_seed", "n", "ratios", "seed", "digest"),
    [
        (11, 60, RATIOS, 42, "8a1e26edbee9d2ae"),
        (12, 150, RATIOS, 7, "e74b109c5c8b7741"),
        (13, 90, (0.5, 0.25, 0.25), 42, "bbebf6a7b4dcdae9"),
    ],
)
def test_splits_are_those_of_earlier_releases(
    cohort_seed: int, n: int, ratios: tuple[float, float, float], seed: int, digest: str
) -> None:
    found = membership(cohort(n, cohort_seed), ratios, seed)
    lines = "\n".join(f"{group} {found[group]}" for group in sorted(found))
    assert hashlib.sha256(lines.encode()).hexdigest().startswith(digest)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(3, 500), parts=st.tuples(*[st.integers(1, 50)] * 3))
def test_sizes_sum_up_and_none_is_empty(n: int, parts: tuple[int, int, int]) -> None:
    shares = [part / sum(parts) for part in parts]
    sizes = target_sizes(n, shares)
    assert sizes.sum() == n
    assert sizes.min() >= 1
    assume(n * min(shares) >= 1)
    assert (abs(sizes - n * np.asarray(shares)) < 1).all()


@pytest.mark.parametrize(
    "ratios", [(0.7, 0.2, 0.2), (0.7, 0.3, 0.0), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5), (0.7, 0.15, 0.14999)]
)
def test_ratios_that_are_no_shares_are_a_usage_error(ratios: tuple[float, float, float]) -> None:
    with pytest.raises(UsageError, match="--train-ratio"):
        split_by_patient(cohort(30, 0), ratios, 42)


def test_ratios_that_sum_to_one_but_for_rounding_are_taken() -> None:
    splits = split_by_patient(cohort(30, 0), (0.7, 0.1, 0.2 + 1e-7), 42)
    assert sum(len(table) for _, table in splits.items()) == len(cohort(30, 0))


def test_two_patients_are_too_few() -> None:
    with pytest.raises(SplitError, match="2 patient"):
        split_by_patient(table_of(np.ones((4, 6)), ["a", "a", "b", "b"]), RATIOS, 42)


def test_a_label_without_a_positive_is_an_error_with_counts() -> None:
    labels = np.zeros((30, 6))
    labels[:10, [0, 2]] = 1
    with pytest.raises(SplitError, match=r"epidural 0.*subdural 0"):
        split_by_patient(table_of(labels, [f"p{k}" for k in range(30)]), RATIOS, 42)


def test_a_label_without_a_negative_is_an_error_with_counts() -> None:
    labels = np.ones((30, 6))
    labels[::2, 1:5] = 0
    with pytest.raises(SplitError, match=r"no negative series for: any 0, subdural 0"):
        split_by_patient(table_of(labels, [f"p{k}" for k in range(30)]), RATIOS, 42)


def test_a_single_positive_goes_to_training_and_the_rest_is_warned_of() -> None:
    labels = np.zeros((40, 6))
    for k in range(1, 6):
        labels[5 * k : 5 * k + 5, [0, k]] = 1
    labels[0, [0, 1]] = 1
    labels[5:10, 1] = 0
    labels[5:10, 2] = 1
    splits = split_by_patient(table_of(labels, [f"p{k}" for k in range(40)]), RATIOS, 42)
    assert splits.train.labels[:, 1].sum() == 1
    assert any("val has no positive series for epidural" in warning for warning in splits.warnings)
    assert any("test has no positive series for epidural" in warning for warning in splits.warnings)


def test_all_series_of_a_patient_count_for_the_patient() -> None:
    labels, patients = np.zeros((60, 6)), [f"p{k // 2}" for k in range(60)]
    for k in range(30):
        labels[2 * k, [0, 1 + k % 5]] = 1
    splits = split_by_patient(table_of(labels, patients), RATIOS, 42)
    for _, part in splits.items():
        assert part.labels[:, 0].sum() * 2 == len(part)


def test_unknown_patients_are_split_by_study_with_a_warning() -> None:
    table = cohort(60, 3)
    by_study = table_of(table.labels, [""] * len(table), [f"s{k // 2}" for k in range(len(table))])
    splits = split_by_patient(by_study, RATIOS, 42)
    assert any("split by study" in warning for warning in splits.warnings)
    studies = [set(part.frame["study_uid"]) for _, part in splits.items()]
    assert not studies[0] & studies[1] | studies[0] & studies[2] | studies[1] & studies[2]


def test_a_patient_in_two_splits_is_found_with_rows() -> None:
    table = cohort(20, 0)
    with pytest.raises(SplitError, match=r"1 patient_id in more than one split, first p0 \(train row 2; test row 2\)"):
        require_disjoint({"train": table.take([0]), "test": table.take([0])})


def test_a_study_in_two_splits_is_found() -> None:
    table = table_of(np.zeros((2, 6)), ["", ""], ["s", "s"])
    with pytest.raises(SplitError, match="study_uid"):
        require_disjoint({"train": table.take([0]), "test": table.take([1])})


def test_split_files_keep_the_original_columns_and_add_identities(
    series_csv: Callable[..., Path], tmp_path: Path
) -> None:
    rows = []
    for k in range(30):
        types = [int(k % 6 == j) for j in range(1, 6)]
        rows.append(f"n {k},ID_p{k}/ID_s{k}/_{k}.nii.gz,ID_s{k}," + ",".join(map(str, [max(types), *types])))
    csv = series_csv(*rows, header="备注,nifti_path,study_uid," + ",".join(LABELS))
    written = write_splits(split_by_patient(read_series_table(csv), RATIOS, 42), tmp_path / "splits")
    original = pd.read_csv(csv, dtype=str)
    parts = [pd.read_csv(written[name], dtype=str) for name in ("train", "val", "test")]
    together = pd.concat(parts).sort_values("source_row", key=lambda column: column.astype(int), ignore_index=True)
    pd.testing.assert_frame_equal(together[original.columns], original)
    assert together["source_row"].astype(int).tolist() == list(range(2, 32))
    assert together["patient_id"].tolist() == [f"ID_p{k}" for k in range(30)]
