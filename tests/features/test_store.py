from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from meddinov3_stroke.errors import NonFiniteEmbedding, StorageError, UsageError
from meddinov3_stroke.features import EmbeddingStore, Entry
from stored_entries import stored_keys

KEY = "ab" * 32
DTYPES = st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_])

WRITER = """
import sys
import numpy as np
from meddinov3_stroke.features import EmbeddingStore, Entry
store, n_keys, rounds = EmbeddingStore(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
for _ in range(rounds):
    for k in range(n_keys):
        cls = np.random.default_rng(k).normal(size=(40, 768)).astype(np.float32)
        store.put(f"{k:064x}", Entry({"cls": cls}, {"k": k}))
"""


def expected_cls(k: int) -> np.ndarray:
    return np.random.default_rng(k).normal(size=(40, 768)).astype(np.float32)


def start_writer(folder: Path, n_keys: int, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), str(n_keys), str(rounds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    return process


def stored(tmp_path: Path) -> EmbeddingStore:
    store = EmbeddingStore(tmp_path)
    store.put(KEY, Entry({"cls": expected_cls(1)}, {"n_slices": 40, "warnings": ["甲"]}))
    return store


@settings(max_examples=25, deadline=None)
@given(array=hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, max_side=5), elements={"allow_nan": False}))
def test_an_entry_comes_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    array = np.where(np.isfinite(array), array, 0).astype(array.dtype)
    store = EmbeddingStore(tmp_path_factory.mktemp("store"))
    store.put(KEY, Entry({"a": array}, {"m": [1, None, "x"]}))
    entry = store.get(KEY)
    assert entry is not None
    assert entry.arrays["a"].dtype == array.dtype
    np.testing.assert_array_equal(entry.arrays["a"], array)
    assert entry.metadata == {"m": [1, None, "x"]}


def test_an_absent_key_gives_none(tmp_path: Path) -> None:
    assert EmbeddingStore(tmp_path).get(KEY) is None


def test_the_same_entry_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = set()
    for k, metadata in enumerate(({"warnings": ["甲"], "n": 40}, {"n": 40, "warnings": ["甲"]}) * 4):
        store = EmbeddingStore(tmp_path / str(k))
        store.put(KEY, Entry({"cls": expected_cls(1), "slice_indices": np.arange(40)}, metadata))
        contents.add(store.path(KEY).read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("position", [0, 8, 40, 48, *np.random.default_rng(0).integers(0, 122_000, size=16).tolist()])
def test_a_flipped_bit_is_a_miss_and_the_entry_is_set_aside(tmp_path: Path, position: int) -> None:
    store = stored(tmp_path)
    content = bytearray(store.path(KEY).read_bytes())
    content[position % len(content)] ^= 1 << (position % 8)
    store.path(KEY).write_bytes(content)
    assert store.get(KEY) is None
    assert not store.path(KEY).exists()
    assert store.path(KEY).with_name(f"{KEY}.emb.corrupt").read_bytes() == bytes(content)


@pytest.mark.parametrize("length", [0, 7, 39, 40, 47, 500, -1])
def test_a_truncated_entry_is_a_miss(tmp_path: Path, length: int) -> None:
    store = stored(tmp_path)
    store.path(KEY).write_bytes(store.path(KEY).read_bytes()[:length])
    assert store.get(KEY) is None


def test_an_entry_copied_under_another_key_is_a_miss(tmp_path: Path) -> None:
    store = stored(tmp_path)
    other = "cd" * 32
    store.path(other).parent.mkdir()
    store.path(other).write_bytes(store.path(KEY).read_bytes())
    assert store.get(other) is None
    assert store.get(KEY) is not None


def test_a_damaged_entry_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meddinov3_stroke.features.store.LOGGER.propagate", True)
    store = stored(tmp_path)
    store.path(KEY).write_bytes(b"nonsense")
    store.get(KEY)
    assert "damaged cache entry" in caplog.text


def test_a_damaged_entry_can_be_written_again(tmp_path: Path) -> None:
    store = stored(tmp_path)
    store.path(KEY).write_bytes(b"nonsense")
    assert store.get(KEY) is None
    store.put(KEY, Entry({"cls": expected_cls(1)}))
    assert store.get(KEY) is not None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_embedding_never_reaches_the_disk(tmp_path: Path, bad: float) -> None:
    store, cls = EmbeddingStore(tmp_path), expected_cls(1)
    cls[3, 5] = bad
    with pytest.raises(NonFiniteEmbedding):
        store.put(KEY, Entry({"cls": cls}))
    assert list(tmp_path.rglob("*.emb")) == []


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "AB" * 32, "ab" * 31, "ab" * 32 + "\n"])
def test_a_key_that_is_no_digest_never_becomes_a_path(tmp_path: Path, key: str) -> None:
    with pytest.raises(UsageError):
        EmbeddingStore(tmp_path).path(key)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        EmbeddingStore(tmp_path / "file").put(KEY, Entry({"cls": expected_cls(1)}))


def test_keys_lists_what_was_put(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    for k in (3, 1, 2):
        store.put(f"{k:064x}", Entry({"cls": expected_cls(k)}))
    assert stored_keys(store) == [f"{k:064x}" for k in (1, 2, 3)]


def test_a_killed_writer_leaves_every_entry_absent_or_whole(tmp_path: Path) -> None:
    generator, store, n_keys = np.random.default_rng(11), EmbeddingStore(tmp_path), 12
    for _ in range(6):
        process = start_writer(tmp_path, n_keys, rounds=10_000)
        time.sleep(float(generator.uniform(0.005, 0.15)))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        for key in stored_keys(store):
            entry = store.get(key)
            assert entry is not None, f"torn entry {key}"
            np.testing.assert_array_equal(entry.arrays["cls"], expected_cls(entry.metadata["k"]))
    assert stored_keys(store), "the writers were killed before they wrote anything"
    assert list(tmp_path.rglob("*.corrupt")) == []


def test_concurrent_writers_of_the_same_keys_corrupt_nothing(tmp_path: Path) -> None:
    n_keys, store = 8, EmbeddingStore(tmp_path)
    writers = [start_writer(tmp_path, n_keys, rounds=6) for _ in range(4)]
    while any(writer.poll() is None for writer in writers):
        for key in stored_keys(store):
            assert store.get(key) is not None
    assert [writer.communicate() and writer.returncode for writer in writers] == [0] * 4
    for k in range(n_keys):
        entry = store.get(f"{k:064x}")
        assert entry is not None
        np.testing.assert_array_equal(entry.arrays["cls"], expected_cls(k))
    assert list(tmp_path.rglob("*.tmp")) == []
