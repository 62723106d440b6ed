from __future__ import annotations

import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from meddinov3_stroke import rsna_train
from meddinov3_stroke.backbone import Backbone
from meddinov3_stroke.errors import CorruptInput, InputError, MissingInput, SplitError, TooManyInvalid, UsageError
from meddinov3_stroke.features import EmbeddingStore, FeatureExtractor
from meddinov3_stroke.heads import load_checkpoint
from meddinov3_stroke.types import LABELS, BackboneIdentity, Preprocessing, SliceEmbeddings, SliceSelection, Volume
from stored_entries import stored_keys

N_PATIENTS = 60
IDENTITY = BackboneIdentity(
    "fake", "ab" * 32, 8, 16, "bf16", Preprocessing(-1000.0, 1000.0, 65.0, 178.0, "fake-1"), "torch", "fp32"
)


class FakeBackbone(Backbone):
    """Eight numbers a slice: the HU of the voxels in which the cohort below writes its labels."""

    identity = IDENTITY
    device = "cpu"
    independent_rows = True
    warnings = ()

    def __init__(self) -> None: ...

    def side(self, resize: int) -> int:
        return resize // 16

    def prepare(self, hu: np.ndarray, resize: int) -> np.ndarray:
        return hu[:, None]

    def class_tokens(self, pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(len(pixels), -1)[:, :8] / np.float32(100)


class CountingExtractor(FeatureExtractor):
    """Counts the volumes whose tokens were all there, and calls `after_call` with their number."""

    def __init__(self) -> None:
        self.__dict__.update(backbone=FakeBackbone(), resize=224, batch=6, selection=SliceSelection(), calls=0)
        self.__dict__["after_call"] = lambda calls: None

    def __setattr__(self, name: str, value: object) -> None:
        self.__dict__[name] = value

    def finisher(
        self, volume: Volume, chosen: np.ndarray, scope: Mapping[str, Any]
    ) -> Callable[[np.ndarray], SliceEmbeddings]:
        finish = super().finisher(volume, chosen, scope)

        def counted(cls: np.ndarray) -> SliceEmbeddings:
            self.calls += 1
            self.after_call(self.calls)
            return finish(cls)

        return counted


def write_volume(path: Path, labels: list[int], seed: int) -> None:
    """A NIfTI whose first voxels (in canonical order) hold the labels, in noise that makes every file its own."""
    generator = np.random.default_rng(seed)
    canonical = generator.normal(30, 20, size=(6, 12, 12)).astype(np.int16)
    canonical[:, 0, : len(labels)] += np.asarray(labels, dtype=np.int16) * 150
    data = canonical.transpose(2, 1, 0)  # canonical columns run to the left, rows to the back, slices up: L P S
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, np.diag([-1.0, -1.0, 5.0, 1.0]))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series CSV and its volumes; every type in every fifth patient or more."""
    folder, generator, rows = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0), []
    for patient in range(N_PATIENTS):
        types = [int(patient % 5 == k or generator.random() < 0.25) for k in range(5)] if patient % 3 else [0] * 5
        for study in range(1 + (patient % 7 == 0)):
            labels = [max(types), *types]
            path = f"ID_p{patient}/ID_s{patient}{study}/_{patient}{study}.nii.gz"
            write_volume(folder / path, labels, seed=10 * patient + study)
            rows.append([path, f"ID_s{patient}{study}", *labels])
    csv = folder / "series.csv"
    pd.DataFrame(rows, columns=["nifti_path", "study_uid", *LABELS]).to_csv(csv, index=False)
    return csv


@pytest.fixture
def extractor(monkeypatch: pytest.MonkeyPatch) -> CountingExtractor:
    fake = CountingExtractor()
    monkeypatch.setattr(rsna_train.Args, "extractor", lambda args, resize: fake)
    return fake


@pytest.fixture
def args(cohort: Path, tmp_path: Path) -> rsna_train.Args:
    return rsna_train.Args(
        series_csv=cohort,
        output_dir=tmp_path / "out",
        cache_dir=tmp_path / "cache",
        checkpoints_dir=tmp_path / "checkpoints",
        train_ratio=0.6,
        val_ratio=0.2,
        test_ratio=0.2,
        head=rsna_train.SeriesHeadConfig(epochs=15, batch_size=8, lr=0.1, hidden_dim=0),
        quiet=True,
    )


def changed_csv(cohort: Path, change: Callable[[pd.DataFrame], None]) -> Path:
    table = pd.read_csv(cohort, dtype=str)
    change(table)
    path = cohort.with_name(f"changed_{np.random.default_rng().integers(1 << 40)}.csv")
    table.to_csv(path, index=False)
    return path


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_it_writes_every_promised_file(args: rsna_train.Args, extractor: CountingExtractor) -> None:
    rsna_train.run(args)
    promised = ["splits/train.csv", "splits/val.csv", "splits/test.csv", "test_metrics.json", "pipeline_summary.json"]
    promised += [f"features/{s}_{what}.npy" for s in ("train", "val", "test") for what in ("embeddings", "labels")]
    assert [name for name in promised if not (args.output_dir / name).is_file()] == []
    assert {"best.pt", "last.pt", "train_summary.json"} <= {path.name for path in args.checkpoints_dir.iterdir()}


def test_it_learns_labels_that_stand_in_the_features(args: rsna_train.Args, extractor: CountingExtractor) -> None:
    assert rsna_train.run(args)["test"]["macro_auroc"] > 0.9


def test_the_summary_holds_the_promised_keys(args: rsna_train.Args, extractor: CountingExtractor) -> None:
    summary = rsna_train.run(args)
    assert read(args.output_dir / "pipeline_summary.json") == json.loads(json.dumps(summary, default=str))
    assert {"split", "train", "test", "schema_version", "disclaimer", "warnings"} <= set(summary)
    assert summary["weights_sha256"] == IDENTITY.weights_sha256
    report = summary["train"]["invalid_nifti_report"]
    assert {key: report[key] for key in ("n_total", "n_invalid", "by_reason", "examples")} == {
        "n_total": summary["extraction"]["n_total"],
        "n_invalid": 0,
        "by_reason": {},
        "examples": [],
    }
    metrics = read(args.output_dir / "test_metrics.json")
    assert set(metrics["per_class_auroc"]) == set(LABELS)
    assert metrics["macro_auroc_interval"]["low"] <= metrics["macro_auroc"] <= metrics["macro_auroc_interval"]["high"]
    assert metrics["head_sha256"] == load_checkpoint(args.checkpoints_dir / "best.pt").sha256


def test_features_are_rows_of_the_split_in_its_order(args: rsna_train.Args, extractor: CountingExtractor) -> None:
    rsna_train.run(args)
    for name in ("train", "val", "test"):
        table = pd.read_csv(args.output_dir / "splits" / f"{name}.csv")
        labels = np.load(args.output_dir / "features" / f"{name}_labels.npy")
        embeddings = np.load(args.output_dir / "features" / f"{name}_embeddings.npy")
        np.testing.assert_array_equal(labels, table[list(LABELS)].to_numpy())
        for row, path in zip(embeddings, table["nifti_path"], strict=True):
            stored = nib.load(args.series_csv.parent / path).get_fdata()[:8, 0, :]
            np.testing.assert_allclose(row, stored.mean(axis=1) / 100, rtol=1e-5)


def test_meanmax_is_another_spelling_of_mean_max(args: rsna_train.Args, extractor: CountingExtractor) -> None:
    summary = rsna_train.run(replace(args, pool_mode="meanmax", head=replace(args.head, epochs=1)))
    assert summary["pool_mode"] == "mean_max"
    for folder in ("features/summary.json", "test_metrics.json", "pipeline_summary.json"):
        assert read(args.output_dir / folder)["pool_mode"] == "mean_max"
    assert load_checkpoint(args.checkpoints_dir / "best.pt").pool_mode == "mean_max"


def test_the_test_figures_are_also_given_at_the_evaluation_threshold(
    args: rsna_train.Args, extractor: CountingExtractor
) -> None:
    rsna_train.run(replace(args, head=replace(args.head, epochs=1), eval_threshold=0.3))
    metrics = read(args.output_dir / "test_metrics.json")
    probabilities = np.load(args.output_dir / "test_probs.npy")
    labels = np.load(args.output_dir / "features" / "test_labels.npy")
    positive = probabilities >= 0.3
    found = metrics["metrics_at_threshold"]
    assert found["threshold"] == 0.3
    for k, label in enumerate(LABELS):
        assert found["per_class"][label]["tp"] == int((positive[:, k] & (labels[:, k] == 1)).sum())
        assert found["per_class"][label]["fp"] == int((positive[:, k] & (labels[:, k] == 0)).sum())


def test_a_warm_run_reads_no_volume(
    args: rsna_train.Args, extractor: CountingExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)  # the cohort's files are old enough to be remembered
    first = rsna_train.run(replace(args, head=replace(args.head, epochs=1)))["extraction"]
    opened: list[str] = []
    sys.addaudithook(lambda event, found: opened.append(str(found[0])) if event == "open" else None)
    warm = rsna_train.run(replace(args, head=replace(args.head, epochs=1)))["extraction"]
    assert warm["n_from_cache"] == first["n_computed"] == first["n_total"]
    assert [path for path in opened if path.endswith(".nii.gz")] == []
    rsna_train.run(replace(args, head=replace(args.head, epochs=1), verify_inputs=True))
    assert len({path for path in opened if path.endswith(".nii.gz")}) == first["n_total"]


@pytest.mark.parametrize(("mode", "width"), [("mean", 8), ("max", 8), ("mean_max", 16)])
def test_the_pool_mode_decides_the_width_and_is_recorded(
    args: rsna_train.Args, extractor: CountingExtractor, mode: Any, width: int
) -> None:
    rsna_train.run(replace(args, pool_mode=mode, head=replace(args.head, epochs=1)))
    assert np.load(args.output_dir / "features" / "train_embeddings.npy").shape[1] == width
    assert read(args.output_dir / "features" / "summary.json")["pool_mode"] == mode
    assert load_checkpoint(args.checkpoints_dir / "best.pt").pool_mode == mode


def test_a_second_run_embeds_nothing_and_gives_the_same_head(
    args: rsna_train.Args, extractor: CountingExtractor
) -> None:
    first = rsna_train.run(args)
    tensors = load_checkpoint(args.checkpoints_dir / "best.pt").state_dict
    calls = extractor.calls
    second = rsna_train.run(args)
    assert extractor.calls == calls == first["extraction"]["n_computed"]
    assert second["extraction"]["n_from_cache"] == calls
    assert second["extraction"]["n_computed"] == 0
    again = load_checkpoint(args.checkpoints_dir / "best.pt").state_dict
    assert all((tensors[name] == again[name]).all() for name in tensors)


@pytest.mark.usefixtures("python_sigint")
def test_an_interrupted_run_keeps_finished_volumes_and_resumes(
    args: rsna_train.Args, extractor: CountingExtractor
) -> None:
    extractor.after_call = lambda calls: signal.raise_signal(signal.SIGINT) if calls == 5 else None
    with pytest.raises(KeyboardInterrupt):
        rsna_train.run(args)
    assert extractor.calls == len(stored_keys(EmbeddingStore(args.cache_dir))) == 5
    assert not args.checkpoints_dir.exists()
    extractor.after_call = lambda calls: None
    summary = rsna_train.run(args)
    assert summary["extraction"]["n_from_cache"] == 5
    assert extractor.calls == summary["extraction"]["n_total"]


@pytest.mark.usefixtures("python_sigint")
def test_a_second_interrupt_stops_at_once(args: rsna_train.Args, extractor: CountingExtractor) -> None:
    def twice(calls: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    extractor.after_call = twice
    with pytest.raises(KeyboardInterrupt):
        rsna_train.run(args)
    assert stored_keys(EmbeddingStore(args.cache_dir)) == []


@pytest.mark.usefixtures("python_sigint")
def test_the_command_exits_130_when_interrupted(args: rsna_train.Args, extractor: CountingExtractor) -> None:
    extractor.after_call = lambda calls: signal.raise_signal(signal.SIGINT)
    assert rsna_train.main(["--series-csv", str(args.series_csv), "--cache-dir", str(args.cache_dir), "--quiet",
                            "--output-dir", str(args.output_dir)]) == 130  # fmt: skip


def test_the_first_bad_volume_ends_the_run_with_its_row(args: rsna_train.Args, extractor: CountingExtractor) -> None:
    def break_one(table: pd.DataFrame) -> None:
        table.loc[7, "nifti_path"] = ""

    csv = changed_csv(args.series_csv, break_one)
    with pytest.raises(MissingInput, match=r"row 9: .*--skip-invalid-nifti"):
        rsna_train.run(replace(args, series_csv=csv))
    assert not args.checkpoints_dir.exists()


def test_a_truncated_volume_ends_the_run_with_its_row(args: rsna_train.Args, extractor: CountingExtractor) -> None:
    def truncate_one(table: pd.DataFrame) -> None:
        whole = args.series_csv.parent / table.loc[4, "nifti_path"]
        half = whole.with_name("_half.nii.gz")
        half.write_bytes(whole.read_bytes()[:-40])
        table.loc[4, "nifti_path"] = str(half.relative_to(args.series_csv.parent))

    with pytest.raises(CorruptInput, match="row 6"):
        rsna_train.run(replace(args, series_csv=changed_csv(args.series_csv, truncate_one)))


def test_bad_volumes_within_the_cap_are_skipped_and_reported(
    args: rsna_train.Args,
    extractor: CountingExtractor,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("meddinov3_stroke"), "propagate", True)

    def break_two(table: pd.DataFrame) -> None:
        table.loc[1, "nifti_path"] = ""
        table.loc[2, "nifti_path"] = "ID_p1/ID_s10"

    csv = changed_csv(args.series_csv, break_two)
    summary = rsna_train.run(replace(args, series_csv=csv, skip_invalid_nifti=True, head=replace(args.head, epochs=1)))
    report = summary["train"]["invalid_nifti_report"]
    assert report["n_invalid"] == 2
    assert report["by_reason"] == {"E-INPUT-MISSING": 2}
    assert sorted(example["row"] for example in report["examples"]) == [3, 4]
    counts = [summary["train"]["class_balance"][name] for name in ("train", "val", "test")]
    assert sum(one["before"]["n_series"] - one["after"]["n_series"] for one in counts) == 2
    rows = [len(np.load(args.output_dir / "features" / f"{name}_labels.npy")) for name in ("train", "val", "test")]
    assert rows == [one["after"]["n_series"] for one in counts]
    assert "2 of" in caplog.text


def test_more_bad_volumes_than_the_cap_stop_the_run_before_training(
    args: rsna_train.Args, extractor: CountingExtractor
) -> None:
    def break_many(table: pd.DataFrame) -> None:
        table.loc[:5, "nifti_path"] = ""

    csv = changed_csv(args.series_csv, break_many)
    with pytest.raises(TooManyInvalid, match=r"6 of \d+ .* rows 2, 3"):
        rsna_train.run(replace(args, series_csv=csv, skip_invalid_nifti=True))
    assert not args.checkpoints_dir.exists()
    assert read(args.output_dir / "invalid_nifti_report.json")["n_invalid"] == 6
    n_cached = len(stored_keys(EmbeddingStore(args.cache_dir)))
    assert n_cached == extractor.calls > 0


def test_the_same_volume_under_two_patients_stops_the_run(args: rsna_train.Args, extractor: CountingExtractor) -> None:
    def copy_one(table: pd.DataFrame) -> None:
        source = args.series_csv.parent / table.loc[0, "nifti_path"]
        copy = args.series_csv.parent / "ID_twin/ID_twin0/_1.nii.gz"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
        table.loc[len(table)] = ["ID_twin/ID_twin0/_1.nii.gz", "ID_twin0", *table.loc[0, list(LABELS)]]

    csv = changed_csv(args.series_csv, copy_one)
    with pytest.raises(SplitError, match=r"same pixels .* rows 2 \(.*\) and \d+"):
        rsna_train.run(replace(args, series_csv=csv))
    assert not args.checkpoints_dir.exists()


@pytest.mark.parametrize(
    "flags",
    [
        *({"train_ratio": 0.9}, {"max_invalid": 1.5}, {"eval_threshold": 1.5}),
        *({"head": rsna_train.SeriesHeadConfig(epochs=0)}, {"head": rsna_train.SeriesHeadConfig(lr=-1.0)}),
    ],
    ids=str,
)
def test_flags_out_of_range_are_found_before_any_volume_is_read(
    args: rsna_train.Args, extractor: CountingExtractor, flags: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        rsna_train.run(replace(args, **flags))
    assert extractor.calls == 0


def test_it_splits_as_prepare_rsna_splits_does(
    args: rsna_train.Args, extractor: CountingExtractor, tmp_path: Path
) -> None:
    from meddinov3_stroke import rsna_split

    rsna_train.run(replace(args, head=replace(args.head, epochs=1)))
    rsna_split.run(
        rsna_split.Args(
            series_csv=args.series_csv, output_dir=tmp_path / "alone", train_ratio=0.6, val_ratio=0.2, test_ratio=0.2
        )
    )
    for name in ("train.csv", "val.csv", "test.csv"):
        assert (tmp_path / "alone" / name).read_bytes() == (args.output_dir / "splits" / name).read_bytes()


def test_standard_output_shows_figures_paths_and_the_disclaimer(
    args: rsna_train.Args, extractor: CountingExtractor, capsys: pytest.CaptureFixture[str]
) -> None:
    rsna_train.run(replace(args, head=replace(args.head, epochs=1)))
    shown = capsys.readouterr().out
    for expected in ("epidural", "macro", "pipeline_summary.json", "research use only"):
        assert expected in shown


@pytest.mark.parametrize("what", ["a folder", "a DICOM file"])
def test_under_nifti_path_only_nifti_is_read(
    args: rsna_train.Args, extractor: CountingExtractor, cohort: Path, what: str
) -> None:
    from dicom_writer import DicomOptions, axial_geometry, write_dicom_series

    folder = cohort.parent / "dicom"
    hu = np.zeros((3, 8, 8), np.float32)
    truth = write_dicom_series(folder, hu, axial_geometry([5.0] * 2, (8, 8)), DicomOptions())
    named = folder if what == "a folder" else folder / truth.used[0].file
    csv = changed_csv(cohort, lambda table: table.__setitem__("nifti_path", [str(named), *table["nifti_path"][1:]]))
    with pytest.raises(InputError, match=r"row 2: .*(is a directory|is not a \.nii).*--skip-invalid-nifti"):
        rsna_train.run(replace(args, series_csv=csv))


def test_a_missing_torch_exits_7_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("meddinov3_stroke.system.devices.find_spec", lambda name: None)
    assert rsna_train.main(["--series-csv", str(tmp_path / "not there.csv"), "--backbone", "demo"]) == 7
    assert "pip install 'meddinov3-stroke[torch]'" in capfd.readouterr().err
