from __future__ import annotations

import gc
import re
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meddinov3_stroke.errors import InputError, NonFiniteEmbedding, OutOfScope, StorageError, UsageError
from meddinov3_stroke.features import EmbeddingStore, Entry, extract, extract_one
from meddinov3_stroke.types import BackboneIdentity, Preprocessing, SliceImage, SliceSelection, VolumeInput
from stored_entries import stored_keys

Scan = Callable[[str, str], Path]
Store = EmbeddingStore
IDENTITY = BackboneIdentity("x", "ab", 3, 16, "bf16", Preprocessing(-1000.0, 1000.0, 65.0, 178.0, "x"), "torch", "fp32")


def test_a_second_run_decodes_and_embeds_nothing(
    scan: Scan, extractor: Any, reader: Any, store: EmbeddingStore
) -> None:
    paths = [scan(f"{k}.nii.gz", str(k + 2)) for k in range(4)]
    first = list(extract(paths, extractor, store))
    second = list(extract(paths, extractor, store))
    assert (extractor.calls, len(reader.calls)) == (4, 4)
    assert [found.from_cache for found in first + second] == [False] * 4 + [True] * 4


def test_what_comes_from_the_cache_equals_what_was_computed(
    scan: Scan, extractor: Any, reader: Any, store: EmbeddingStore
) -> None:
    path = scan("a.nii", "9")
    (computed,) = extract([path], extractor, store)
    (cached,) = extract([path], extractor, store)
    assert computed.embeddings is not None
    assert cached.embeddings is not None
    np.testing.assert_array_equal(cached.embeddings.cls, computed.embeddings.cls)
    np.testing.assert_array_equal(cached.embeddings.slice_indices, computed.embeddings.slice_indices)
    for name in ("n_slices", "resize", "selection", "backbone", "warnings"):
        assert getattr(cached.embeddings, name) == getattr(computed.embeddings, name)
    for name in ("path", "format", "sha256", "pixels_sha256"):
        assert getattr(cached.embeddings.source, name) == getattr(computed.embeddings.source, name)


def test_the_same_bytes_under_another_name_are_a_hit(
    scan: Scan, extractor: Any, reader: Any, store: EmbeddingStore
) -> None:
    list(extract([scan("a.nii.gz", "5")], extractor, store))
    (again,) = extract([scan("b.nii.gz", "5")], extractor, store)
    assert again.from_cache
    assert again.embeddings is not None
    assert again.embeddings.source.path.name == "b.nii.gz"


def test_a_changed_file_is_a_miss(scan: Scan, extractor: Any, reader: Any, store: Store) -> None:
    list(extract([scan("a.nii.gz", "5")], extractor, store))
    (again,) = extract([scan("a.nii.gz", "6")], extractor, store)
    assert not again.from_cache


@pytest.mark.parametrize("change", ["weights", "precision", "selection", "resize"])
def test_another_backbone_selection_or_side_is_a_miss(
    scan: Scan, extractor: Any, reader: Any, store: Store, change: str
) -> None:
    path = scan("a.nii.gz", "5")
    list(extract([path], extractor, store))
    identity = extractor.backbone.identity
    if change == "weights":
        extractor.backbone.identity = replace(identity, weights_sha256="cd" * 32)
    elif change == "precision":
        extractor.backbone.identity = replace(identity, precision="bf16")
    elif change == "selection":
        extractor.selection = SliceSelection(stride=2)
    else:
        extractor.resize = 240
    (again,) = extract([path], extractor, store)
    assert not again.from_cache


def test_every_path_ends_in_one_state_and_totals_add_up(
    scan: Scan, extractor: Any, reader: Any, store: Store, tmp_path: Path
) -> None:
    paths = [
        scan("good.nii.gz", "4"),
        scan("bad.nii.gz", "corrupt"),
        scan("oblique.nii", "oblique"),
        scan("unreadable.nii", "unreadable"),
        scan("text.txt", "corrupt"),
        tmp_path,
        tmp_path / "absent.nii.gz",
        None,
        scan("good2.nii.gz", "7"),
    ]
    ledger = list(extract(paths, extractor, store))
    assert [found.path for found in ledger] == paths
    assert Counter(found.outcome.status for found in ledger) == {"done": 2, "rejected": 5, "refused": 1, "failed": 1}
    for found in ledger:
        assert (found.outcome.status == "done") == (found.embeddings is not None) == (found.error is None)


@pytest.mark.parametrize(
    ("text", "status", "error"),
    [
        ("corrupt", "rejected", InputError),
        ("oblique", "refused", OutOfScope),
        ("unreadable", "failed", StorageError),
    ],
)
def test_each_fault_has_its_status_and_code(
    scan: Scan, extractor: Any, reader: Any, store: Store, text: str, status: str, error: type
) -> None:
    (found,) = extract([scan("a.nii", text)], extractor, store)
    assert found.outcome.status == status
    assert isinstance(found.error, error)
    assert found.outcome.code == found.error.code
    assert "a.nii" in found.outcome.message


def test_a_row_that_names_no_volume_is_rejected(extractor: Any, reader: Any, store: Store) -> None:
    (found,) = extract([None], extractor, store)
    assert (found.outcome.status, found.path) == ("rejected", None)
    assert "nifti_path is empty" in found.outcome.message


@pytest.mark.parametrize(
    ("what", "words"),
    [("directory", "is a directory"), ("absent", "no such file"), ("suffix", r"\.nii or \.nii\.gz")],
)
def test_what_must_be_nifti_and_is_not_says_what_it_is(
    scan: Scan, extractor: Any, store: Store, tmp_path: Path, what: str, words: str
) -> None:
    path = {"directory": tmp_path, "absent": tmp_path / "x.nii", "suffix": scan("x.dcm", "3")}[what]
    (found,) = extract([VolumeInput(path, format="nifti")], extractor, store)
    assert found.outcome.status == "rejected"
    assert re.search(words, found.outcome.message)
    assert extractor.calls == 0


def test_bytes_in_the_cache_do_not_excuse_another_ending(
    head_nifti: Callable[..., Path], extractor: Any, store: EmbeddingStore
) -> None:
    path = head_nifti("a.nii")
    list(extract([VolumeInput(path, format="nifti")], extractor, store))
    path.rename(path.with_suffix(".dcm"))
    (found,) = extract([VolumeInput(path.with_suffix(".dcm"), format="nifti")], extractor, store)
    assert found.outcome.status == "rejected"


def test_two_series_of_one_path_are_two_volumes(scan: Scan, extractor: Any, reader: Any, store: Store) -> None:
    path = scan("index.parquet", "5")
    inputs = [VolumeInput(path, "1.7"), VolumeInput(path, "1.8"), VolumeInput(path, "1.7")]
    ledger = list(extract(inputs, extractor, store))
    assert [found.input for found in ledger] == inputs
    assert [found.from_cache for found in ledger] == [False, False, True]


def test_the_images_of_slices_survive_the_cache(scan: Scan, extractor: Any, reader: Any, store: Store) -> None:
    source = VolumeInput(scan("study.zip", "5"), "1.7")
    first, again = (next(extract([source], extractor, store)) for _ in range(2))
    assert again.from_cache
    assert first.embeddings is not None
    assert again.embeddings is not None
    assert again.embeddings.source.images[4] == SliceImage("1.2.1.7.4", 5)
    for name in ("images", "study_instance_uid", "series_instance_uid"):
        assert getattr(again.embeddings.source, name) == getattr(first.embeddings.source, name)


def test_an_entry_written_before_images_were_known_still_serves() -> None:
    source = {"format": "nifti", "sha256": "ab", "pixels_sha256": "cd"}
    selection = {"stride": 1, "max_slices": 0}
    facts = {"n_slices": 1, "resize": 224, "selection": selection, "source": source, "warnings": []}
    entry = Entry({"cls": np.zeros((1, 3), np.float32), "slice_indices": np.zeros(1, np.int64)}, facts)
    assert entry.embeddings(Path("a.nii"), IDENTITY).source.images == ()


def test_an_unreadable_volume_is_tried_again_by_the_next_run(
    scan: Scan, extractor: Any, reader: Any, store: EmbeddingStore
) -> None:
    path = scan("a.nii", "unreadable")
    list(extract([path], extractor, store))
    scan("a.nii", "8")
    (found,) = extract([path], extractor, store)
    assert found.outcome.status == "done"


def test_a_file_that_changes_while_it_is_read_is_not_stored(
    scan: Scan, extractor: Any, reader: Any, store: EmbeddingStore
) -> None:
    path = scan("a.nii", "5")

    reader.before_read = lambda path: scan("a.nii", "6")
    (found,) = extract([path], extractor, store)
    assert found.outcome.status == "failed"
    assert stored_keys(store) == []


def test_a_nan_embedding_stops_the_run_and_names_the_volume(
    scan: Scan, extractor: Any, reader: Any, store: EmbeddingStore
) -> None:
    paths = [scan("good.nii", "4"), scan("nan.nii", "13"), scan("later.nii", "5")]
    with pytest.raises(NonFiniteEmbedding, match=r"nan\.nii"):
        list(extract(paths, extractor, store))
    assert len(stored_keys(store)) == 1


def test_a_corrupted_entry_is_computed_again_once(
    scan: Scan, extractor: Any, reader: Any, store: EmbeddingStore
) -> None:
    path = scan("a.nii", "5")
    list(extract([path], extractor, store))
    (key,) = stored_keys(store)
    entry = store.path(key)
    entry.write_bytes(entry.read_bytes()[:-1] + b"\x00\x01")
    runs = [next(iter(extract([path], extractor, store))) for _ in range(2)]
    assert [found.from_cache for found in runs] == [False, True]
    assert extractor.calls == 2


def test_a_volume_is_stored_before_it_is_yielded(
    scan: Scan, extractor: Any, reader: Any, store: EmbeddingStore
) -> None:
    paths = [scan(f"{k}.nii", str(k + 2)) for k in range(3)]
    for n_done, _ in enumerate(extract(paths, extractor, store), start=1):
        assert len(stored_keys(store)) == n_done


def test_entries_hold_no_path(scan: Scan, extractor: Any, reader: Any, store: Store) -> None:
    list(extract([scan("Canary-Patient.nii", "5")], extractor, store))
    (key,) = stored_keys(store)
    assert b"Canary" not in store.path(key).read_bytes()


def test_two_halves_give_the_same_store_as_one_run(scan: Scan, extractor: Any, reader: Any, tmp_path: Path) -> None:
    paths = [scan(f"{k}.nii", str(k + 2)) for k in range(6)]
    one, two = EmbeddingStore(tmp_path / "one"), EmbeddingStore(tmp_path / "two")
    list(extract(paths, extractor, one))
    for part in (paths[::2], paths[1::2]):
        list(extract(part, extractor, two))
    assert stored_keys(one) == stored_keys(two)
    for key in stored_keys(one):
        assert one.path(key).read_bytes() == two.path(key).read_bytes()


def test_the_same_input_twice_in_one_run_is_computed_once(
    scan: Scan, extractor: Any, reader: Any, store: EmbeddingStore
) -> None:
    paths = [scan("a.nii.gz", "5"), scan("b.nii.gz", "3"), scan("c.nii.gz", "5")]
    ledger = list(extract(paths, extractor, store))
    assert [found.from_cache for found in ledger] == [False, False, True]
    assert [found.path for found in ledger] == paths
    assert extractor.calls == 2
    assert ledger[2].embeddings is not None
    np.testing.assert_array_equal(ledger[2].embeddings.cls, ledger[0].embeddings.cls)


def test_small_volumes_share_passes_and_their_entries_do_not_show_it(
    scan: Scan, extractor: Any, reader: Any, tmp_path: Path
) -> None:
    paths = [scan(f"{k}.nii", str(k)) for k in (3, 2, 5, 1)]
    one, each = EmbeddingStore(tmp_path / "one"), EmbeddingStore(tmp_path / "each")
    list(extract(paths, extractor, one))
    assert extractor.backbone.passes == [4, 4, 3]
    for path in paths:
        list(extract([path], extractor, each))
    assert [one.path(key).read_bytes() for key in stored_keys(one)] == [
        each.path(key).read_bytes() for key in stored_keys(each)
    ]


def test_a_fault_between_two_volumes_keeps_its_place(
    scan: Scan, extractor: Any, reader: Any, store: EmbeddingStore
) -> None:
    paths = [scan("a.nii", "2"), scan("bad.nii", "corrupt"), scan("b.nii", "6")]
    ledger = extract(paths, extractor, store)
    assert [found.outcome.status for found in ledger] == ["done", "rejected", "done"]


def test_volumes_finished_in_the_pass_of_a_nan_are_kept(
    scan: Scan, extractor: Any, reader: Any, store: EmbeddingStore
) -> None:
    paths = [scan("good.nii", "3"), scan("nan.nii", "13")]
    with pytest.raises(NonFiniteEmbedding, match=r"nan\.nii: backbone fake gave NaN .* first at position 0"):
        list(extract(paths, extractor, store))
    assert len(stored_keys(store)) == 1


def test_a_run_that_is_left_early_leaves_no_thread(
    scan: Scan, extractor: Any, reader: Any, store: EmbeddingStore
) -> None:
    before = threading.active_count()
    run = extract([scan(f"{k}.nii", str(20 + k)) for k in range(9)], extractor, store)
    next(run)
    assert threading.active_count() > before
    run.close()
    assert threading.active_count() == before


def test_one_volume_is_held_at_a_time(scan: Scan, extractor: Any, reader: Any, store: EmbeddingStore) -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0

    def count(path: Path) -> None:
        nonlocal most
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))

    reader.before_read, reader.on_volume = count, lambda volume: alive.append(weakref.ref(volume))
    list(extract([scan(f"{k}.nii", str(20 + k)) for k in range(6)], extractor, store))
    assert len(alive) == 6
    assert most == 0


def test_without_a_store_every_input_is_computed_and_none_is_hashed_apart(
    scan: Scan, extractor: Any, reader: Any
) -> None:
    path = scan("a.nii", "5")
    found = list(extract([path, path], extractor, keep_volume=True))
    assert [one.from_cache for one in found] == [False, False]
    assert [one.volume.n_slices for one in found if one.volume is not None] == [5, 5]
    assert reader.hashed == []


def test_voxels_are_kept_only_on_request(scan: Scan, extractor: Any, reader: Any, store: Store) -> None:
    assert next(extract([scan("a.nii", "5")], extractor, store)).volume is None


def test_a_usage_error_while_reading_ends_one_input_and_is_raised_for_one(head_nifti: Any, extractor: Any) -> None:
    source = VolumeInput(head_nifti(), "1.2.3")  # NIfTI has no series
    (found,) = extract([source], extractor)
    assert (found.outcome.status, found.outcome.code) == ("rejected", "E-INPUT-UNSUPPORTED")
    with pytest.raises(UsageError):
        extract_one(source, extractor)


def test_a_selection_that_cannot_be_honoured_ends_the_run(
    scan: Scan, extractor: Any, reader: Any, store: Store
) -> None:
    extractor.selection = SliceSelection(stride=0)
    with pytest.raises(UsageError, match="--stride"):
        list(extract([scan("a.nii", "5")], extractor, store))


def test_slices_are_reported_with_the_number_of_their_volume(scan: Scan, extractor: Any, reader: Any) -> None:
    reported: list[tuple[int, int]] = []
    paths = [scan("a.nii", "5"), scan("bad.nii", "corrupt"), scan("b.nii", "2")]
    list(extract(paths, extractor, on_slices=lambda n_done, n_chosen: reported.append((n_done, n_chosen))))
    assert reported == [(0, 5), (4, 5), (0, 2), (1, 5), (2, 2)]
