from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meddinov3_stroke.errors import DatasetError, LabelError
from meddinov3_stroke.heads import (
    EmbeddingOrigin,
    check_head_data,
    check_train_and_val,
    load_head_data,
    read_array,
    read_origin,
    same_origin,
)
from meddinov3_stroke.types import BackboneIdentity, HeadData


def save(folder: Path, embeddings: np.ndarray, labels: np.ndarray) -> tuple[Path, Path]:
    np.save(folder / "e.npy", embeddings)
    np.save(folder / "l.npy", labels)
    return folder / "e.npy", folder / "l.npy"


@pytest.fixture
def embeddings() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)


@pytest.fixture
def labels() -> np.ndarray:
    return (np.arange(20).reshape(10, 2) % 3 == 0).astype(np.int8)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.float32, np.float64])
def test_labels_of_any_numeric_type_are_read(
    tmp_path: Path, embeddings: np.ndarray, labels: np.ndarray, dtype: type
) -> None:
    data, warnings = load_head_data(*save(tmp_path, embeddings, labels.astype(dtype)))
    np.testing.assert_array_equal(data.labels, labels)
    assert data.labels.dtype == np.int8
    assert warnings == []


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_embeddings_of_any_real_type_become_float32(
    tmp_path: Path, embeddings: np.ndarray, labels: np.ndarray, dtype: type
) -> None:
    data, _ = load_head_data(*save(tmp_path, embeddings.astype(dtype), labels))
    np.testing.assert_array_equal(data.embeddings, embeddings.astype(dtype).astype(np.float32))
    assert data.embeddings.dtype == np.float32


def test_one_dimensional_labels_are_one_label(tmp_path: Path, embeddings: np.ndarray, labels: np.ndarray) -> None:
    data, _ = load_head_data(*save(tmp_path, embeddings, labels[:, 0]))
    np.testing.assert_array_equal(data.labels, labels[:, :1])


def spoil(array: np.ndarray, row: int, value: float) -> np.ndarray:
    spoilt = array.astype(np.float64)
    spoilt[row, 1] = value
    return spoilt


@pytest.mark.parametrize(("value", "found"), [(2, "2"), (0.5, "0.5"), (-1, "-1"), (np.nan, "nan"), (np.inf, "inf")])
def test_label_other_than_0_and_1_is_refused_with_its_row(
    tmp_path: Path, embeddings: np.ndarray, labels: np.ndarray, value: float, found: str
) -> None:
    with pytest.raises(LabelError, match=rf"row 7 \(counted from 0\); found {found}, expected 0 or 1"):
        load_head_data(*save(tmp_path, embeddings, spoil(labels, 7, value)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_embedding_without_a_float32_value_is_refused_with_its_row(
    tmp_path: Path, embeddings: np.ndarray, labels: np.ndarray, value: float
) -> None:
    with pytest.raises(DatasetError, match=r"NaN or infinity in row 4 \(counted from 0\); 1 of 10 rows"):
        load_head_data(*save(tmp_path, spoil(embeddings, 4, value), labels))


@pytest.mark.parametrize(
    ("bad_embeddings", "bad_labels", "complaint"),
    [
        (np.zeros((9, 8)), None, r"e\.npy has 9 rows and .*l\.npy has 10"),
        (np.zeros(10), None, r"embeddings of shape \(10,\)"),
        (np.zeros((10, 8, 1)), None, r"embeddings of shape \(10, 8, 1\)"),
        (np.zeros((0, 8)), None, r"embeddings of shape \(0, 8\)"),
        (np.zeros((10, 0)), None, r"embeddings of shape \(10, 0\)"),
        (np.zeros((10, 8), dtype=complex), None, "embeddings of type complex128"),
        (np.full((10, 8), "1.0"), None, "embeddings of type <U3"),
        (None, np.zeros((10, 2, 1)), r"labels of shape \(10, 2, 1\)"),
        (None, np.zeros((10, 0)), r"labels of shape \(10, 0\)"),
        (None, np.array(0), r"labels of shape \(\)"),
        (None, np.full((10, 2), "1"), "labels of type <U1"),
    ],
)
def test_arrays_of_the_wrong_form_are_refused(
    tmp_path: Path,
    embeddings: np.ndarray,
    labels: np.ndarray,
    bad_embeddings: np.ndarray | None,
    bad_labels: np.ndarray | None,
    complaint: str,
) -> None:
    files = save(
        tmp_path,
        embeddings if bad_embeddings is None else bad_embeddings,
        labels if bad_labels is None else bad_labels,
    )
    with pytest.raises(DatasetError, match=complaint):
        load_head_data(*files)


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_pickled_array_is_refused_and_not_run(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", np.array([Malicious(tmp_path / "mark")], dtype=object), allow_pickle=True)
    with pytest.raises(DatasetError, match=r"not a readable \.npy"):
        read_array(tmp_path / "e.npy")
    assert not (tmp_path / "mark").exists()


def npz_bytes() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!doctype html><html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        npz_bytes(),
        npy_bytes(np.zeros((10, 8)))[:-1],
        npy_bytes(np.zeros((10, 8)))[:40],
        npy_bytes(np.zeros((10, 8))).replace(b"(10, 8)", b"(32767, 32767)"),
    ],
    ids=["empty", "html", "lfs", "npz", "truncated", "truncated-header", "lying-header"],
)
def test_file_that_is_no_whole_npy_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e.npy").write_bytes(content)
    with pytest.raises(DatasetError, match=r"e\.npy is not a readable \.npy file"):
        read_array(tmp_path / "e.npy")


def test_missing_file_and_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="found nothing"):
        read_array(tmp_path / "e.npy")
    with pytest.raises(DatasetError, match="found a directory"):
        read_array(tmp_path)


def test_checked_head_data_passes_and_nan_does_not(embeddings: np.ndarray, labels: np.ndarray) -> None:
    check_head_data(HeadData(embeddings, labels), "test")
    with pytest.raises(DatasetError, match="test: NaN"):
        check_head_data(HeadData(spoil(embeddings, 0, np.nan).astype(np.float32), labels), "test")


class TestTrainAndVal:
    names = ("class_0", "class_1")

    def test_good_data_give_no_warning(self, embeddings: np.ndarray, labels: np.ndarray) -> None:
        data = HeadData(embeddings, labels)
        assert check_train_and_val(data, data, self.names) == []

    @pytest.mark.parametrize("value", [0, 1])
    def test_label_of_one_class_in_training_is_refused_with_counts(
        self, embeddings: np.ndarray, labels: np.ndarray, value: int
    ) -> None:
        single = labels.copy()
        single[:, 1] = value
        with pytest.raises(LabelError, match=rf"positives of 10 rows: class_0 \d+, class_1 {10 * value};"):
            check_train_and_val(HeadData(embeddings, single), HeadData(embeddings, labels), self.names)

    def test_label_of_one_class_in_validation_is_a_warning(self, embeddings: np.ndarray, labels: np.ndarray) -> None:
        single = labels.copy()
        single[:, 1] = 0
        (warning,) = check_train_and_val(HeadData(embeddings, labels), HeadData(embeddings, single), self.names)
        assert "class_1 has 0 positive of 10 rows in validation" in warning

    def test_different_columns_are_refused(self, embeddings: np.ndarray, labels: np.ndarray) -> None:
        data = HeadData(embeddings, labels)
        with pytest.raises(DatasetError, match="embeddings have 8 columns in training and 7 in validation"):
            check_train_and_val(data, HeadData(embeddings[:, :7], labels), self.names)
        with pytest.raises(DatasetError, match="labels have 2 columns in training and 1 in validation"):
            check_train_and_val(data, HeadData(embeddings, labels[:, :1]), self.names)
        with pytest.raises(DatasetError, match="3 label names for 2 columns"):
            check_train_and_val(data, data, ("a", "b", "c"))


class TestOrigin:
    def write(self, folder: Path, content: Any) -> Path:
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "summary.json").write_text(text, encoding="utf-8")
        return folder / "e.npy"

    def test_summary_beside_the_embeddings_is_read(self, tmp_path: Path, identity: BackboneIdentity) -> None:
        summary = {"pool_mode": "mean_max", "resize": 512, "backbone": asdict(identity), "other": 1}
        assert read_origin(self.write(tmp_path, summary), 16) == EmbeddingOrigin("mean_max", 512, identity)

    def test_without_a_summary_the_origin_is_unknown_and_warned_of(self, tmp_path: Path) -> None:
        origin = read_origin(tmp_path / "e.npy", 8)
        assert (origin.pool_mode, origin.resize, origin.identity) == ("unknown", None, None)
        assert "no summary.json" in origin.warnings[0]

    @pytest.mark.parametrize(
        "content", ["not json", "[]", "{}", {"backbone": None}, {"backbone": {"name": "x"}}], ids=str
    )
    def test_summary_of_no_use_is_warned_of(self, tmp_path: Path, content: Any) -> None:
        origin = read_origin(self.write(tmp_path, content), 8)
        assert origin.identity is None
        assert "does not state which backbone" in origin.warnings[0]

    @pytest.mark.parametrize(
        "change", [{"pool_mode": "median"}, {"resize": "224"}, {"resize": 0}, {"resize": True}], ids=str
    )
    def test_summary_with_a_senseless_value_is_warned_of(
        self, tmp_path: Path, identity: BackboneIdentity, change: dict[str, Any]
    ) -> None:
        summary = {"pool_mode": "mean", "resize": 224, "backbone": asdict(identity)} | change
        assert "does not state" in read_origin(self.write(tmp_path, summary), 8).warnings[0]

    def test_summary_of_other_embeddings_is_refused(self, tmp_path: Path, identity: BackboneIdentity) -> None:
        path = self.write(tmp_path, {"pool_mode": "mean", "resize": 224, "backbone": asdict(identity)})
        with pytest.raises(DatasetError, match=r"has 16 columns but .* describes 8"):
            read_origin(path, 16)

    @pytest.mark.parametrize(
        "change",
        [
            lambda o: replace(o, identity=replace(o.identity, weights_sha256="cd")),
            lambda o: replace(
                o, identity=replace(o.identity, preprocessing=replace(o.identity.preprocessing, version="2"))
            ),
            lambda o: replace(o, identity=replace(o.identity, rope_dtype="fp32")),
            lambda o: replace(o, resize=512),
            lambda o: replace(o, pool_mode="max"),
        ],
        ids=["weights", "preprocessing", "rope_dtype", "resize", "pool_mode"],
    )
    def test_training_and_validation_of_two_makes_are_refused(
        self, identity: BackboneIdentity, change: Callable[[EmbeddingOrigin], EmbeddingOrigin]
    ) -> None:
        origin = EmbeddingOrigin("mean", 224, identity)
        assert same_origin(origin, origin) == []
        with pytest.raises(DatasetError, match="made differently"):
            same_origin(origin, change(origin))

    def test_another_engine_for_validation_is_a_warning(self, identity: BackboneIdentity) -> None:
        origin = EmbeddingOrigin("mean", 224, identity)
        (warning,) = same_origin(origin, replace(origin, identity=replace(identity, precision="bf16")))
        assert "bf16" in warning

    def test_another_int8_calibration_for_validation_is_a_warning(self, identity: BackboneIdentity) -> None:
        graphs = [replace(identity, precision="int8", calibration_sha256=digest) for digest in ("aa", "bb")]
        (warning,) = same_origin(*(EmbeddingOrigin("mean", 224, graph) for graph in graphs))
        assert "calibration_sha256: expected aa, found bb" in warning
