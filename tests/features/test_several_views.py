"""Several views of a volume: one reading, one entry each, and what each holds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from meddinov3_stroke.backbone import Backbone, load_backbone
from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.features import EmbeddingStore, FeatureExtractor, embedding_key, extract, patch_statistics
from meddinov3_stroke.features.basis import with_views
from meddinov3_stroke.features.compacted import compact, verify
from meddinov3_stroke.views import WINDOWS_HU, PatchBasis, View

EVERY = ("cls", "stats", "blocks", "patches", "cls@brain", "stats@neighbours")


@pytest.fixture(scope="module", params=["openvino", "torch"])
def backbone(request: Any, random_weights: Callable[..., Path]) -> Backbone:
    return load_backbone(random_weights(), engine=request.param, precision="fp32", device="cpu")


@pytest.fixture
def with_all(backbone: Backbone) -> FeatureExtractor:
    return with_views(FeatureExtractor(backbone, resize=64, batch=3), EVERY)


def entries(extractor: FeatureExtractor, path: Path, store: EmbeddingStore | None = None) -> dict[str, Any]:
    """View -> array of the volume."""
    (found,) = extract([path], extractor, store, keep_views=True)
    return {name: one.arrays.get("patches", one.arrays.get("cls")) for name, one in found.entries.items()}


def test_class_tokens_have_the_same_bits_whatever_other_views_are_asked_for(backbone, with_all, head_nifti) -> None:
    alone = FeatureExtractor(backbone, resize=64, batch=3)
    (plain,) = extract([head_nifti()], alone)
    assert np.array_equal(entries(with_all, head_nifti())["cls"], plain.embeddings.cls)


def test_windows_are_mapped_to_the_range_of_the_weights(backbone, with_all, head_nifti) -> None:
    volume, found = read_volume(head_nifti()), entries(with_all, head_nifti())
    low, high = WINDOWS_HU["brain"]
    mapped = -1000 + 2000 * (volume.hu.clip(low, high) - low) / (high - low)
    expected = backbone.embed(mapped.astype(np.float32), resize=64, batch=3).cls
    np.testing.assert_allclose(found["cls@brain"], expected, atol=1e-4)
    assert np.abs(found["cls"] - expected).max() > 0.05


def test_neighbours_are_the_three_channels_and_the_end_slices_stand_in_for_missing_ones(
    backbone, with_all, head_nifti
) -> None:
    prepared = backbone.prepare(read_volume(head_nifti()).hu, 64)[:, 0]
    padded = np.concatenate([prepared[:1], prepared, prepared[-1:]])
    stacked = np.stack([padded[:-2], padded[1:-1], padded[2:]], axis=1)
    expected = np.stack([patch_statistics(one) for one in backbone.tokens(stacked)[1]])
    np.testing.assert_allclose(entries(with_all, head_nifti())["stats@neighbours"], expected, atol=1e-5)


def test_patches_and_statistics_are_those_of_the_patch_tokens(backbone, with_all, head_nifti) -> None:
    found = entries(with_all, head_nifti())
    tokens = torch.tensor(backbone.embed(read_volume(head_nifti()).hu, resize=64, batch=3, patches=True).patches)
    np.testing.assert_array_equal(found["patches"], tokens.half().numpy())
    expected = [tokens.mean(1), tokens.amax(1), tokens.topk(1, dim=1).values.mean(1)]  # 5 % of 16 patches
    np.testing.assert_allclose(found["stats"], torch.cat(expected, 1).numpy(), atol=1e-5)


def test_the_highest_five_per_cent_of_patches_are_averaged_channel_by_channel() -> None:
    patches = np.random.default_rng(0).standard_normal((196, 7)).astype(np.float32)
    expected = np.sort(patches, axis=0)[-10:].mean(axis=0)
    np.testing.assert_allclose(patch_statistics(patches)[14:], expected, rtol=1e-6)


def test_a_file_is_read_once_and_a_stored_view_is_not_computed_again(backbone, with_all, head_nifti, tmp_path) -> None:
    store, path = EmbeddingStore(tmp_path / "cache"), head_nifti()
    (first,) = extract([path], FeatureExtractor(backbone, resize=64, batch=3), store)
    asked: list[set[str]] = []
    infer = FeatureExtractor.infer
    with pytest.MonkeyPatch.context() as patch:

        def counted(self: Any, pixels: Any, views: Any) -> Any:
            asked.append({view.name for view in views})
            return infer(self, pixels, views)

        patch.setattr(FeatureExtractor, "infer", counted)
        (second,) = extract([path], with_all, store)
        assert set().union(*asked) == set(EVERY) - {"cls"}
        assert (second.from_cache, first.keys["cls"]) == (False, second.keys["cls"])
        asked.clear()
        (third,) = extract([path], with_all, store)
    assert asked == []
    assert third.from_cache
    np.testing.assert_array_equal(third.embeddings.cls, first.embeddings.cls)
    assert len(set(third.keys.values())) == len(EVERY)
    assert all(store.get(key).metadata["view"] == name for name, key in third.keys.items())


def test_a_volume_is_decoded_once_for_all_views(extractor, reader, store, scan) -> None:
    extractor.views = tuple(map(View.parse, ("cls", "cls@brain", "cls@bone")))
    extractor.backbone.prepare = lambda hu, resize, window=None: hu[:, None] + (0 if window is None else window[1])
    (found,) = extract([scan("a.nii", "3 0")], extractor, store)
    assert len(reader.calls) == 1
    assert [store.get(key).arrays["cls"][0, 0] for key in found.keys.values()] == [0, 80, 2000]


def test_cases_that_miss_different_views_share_passes_and_keep_their_own(extractor, reader, store, scan) -> None:
    paths = [scan(f"{k}.nii", f"{k + 2} {k}") for k in range(5)]
    extractor.views = (View.parse("cls"),)
    list(extract(paths[::2], extractor, store))
    extractor.views = tuple(map(View.parse, ("cls", "cls@brain")))
    extractor.backbone.prepare = lambda hu, resize, window=None: hu[:, None] + (0 if window is None else window[1])
    for k, found in enumerate(extract(paths, extractor, store)):
        cls, brain = (store.get(key).arrays["cls"] for key in found.keys.values())
        np.testing.assert_array_equal(found.embeddings.cls, cls)
        np.testing.assert_array_equal(cls[:, 0], np.arange(k + 2))
        np.testing.assert_array_equal(brain[:, 0], np.arange(k + 2) + 80)


def test_a_view_that_another_run_computes_is_waited_for_and_no_lease_is_held_meanwhile(
    extractor, reader, store, scan
) -> None:
    extractor.views, path = tuple(map(View.parse, ("cls", "cls@brain"))), scan("a.nii", "3 0")
    extractor.backbone.prepare = lambda hu, resize, window=None: hu[:, None]
    digest = reader(path).digest
    keys = [
        embedding_key(digest, extractor.backbone.identity, 224, extractor.selection, view.key)
        for view in extractor.views
    ]
    hold = "import sys, time; from pathlib import Path; from meddinov3_stroke.features.leases import Leases\n"
    hold += "leases = Leases(Path(sys.argv[1])); print(leases.take(max(sys.argv[2:])), flush=True); time.sleep(1.5)\n"
    hold += "print(leases.take(min(sys.argv[2:])))"
    command = [sys.executable, "-c", hold, str(store.folder), *keys]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "True\n"
    signs: list[tuple[int, int]] = []
    [found] = extract([path], extractor, store, on_slices=lambda *counts: signs.append(counts))
    assert other.communicate()[0] == "True\n"
    assert found.embeddings is not None
    assert signs.count((0, 0)) > 2


def test_codes_of_a_slice_do_not_depend_on_the_slices_beside_it(backbone, head_nifti) -> None:
    if not backbone.independent_rows:
        pytest.skip("torch's patch tokens themselves do")
    rng = np.random.default_rng(0)
    components = np.linalg.qr(rng.standard_normal((64, 8)))[0].astype(np.float32)
    basis = PatchBasis(np.zeros(64, np.float32), components, np.full(8, 0.05, np.float32))
    view = replace(View.parse("patches8"), basis=basis)
    found = [
        entries(FeatureExtractor(backbone, resize=64, batch=batch, views=(View(), view)), head_nifti())["patches8"]
        for batch in (1, 3, 8)
    ]
    assert found[0].dtype == np.int8
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_rows_are_compacted_and_patches_stay_as_they_are(with_all, head_nifti, tmp_path) -> None:
    store = EmbeddingStore(tmp_path / "cache")
    (found,) = extract([head_nifti()], with_all, store)
    before = {name: store.get(key) for name, key in found.keys.items()}
    counts = compact(store.folder, lambda: None)
    assert (counts["n_compacted"], counts["n_left"]) == (len(EVERY) - 1, 1)
    assert verify(store.folder, lambda: None) == {"n_entries": len(EVERY), "damaged": []}
    for name, key in found.keys.items():
        entry, array = store.get(key), "patches" if name == "patches" else "cls"
        assert entry.metadata["view"] == name
        np.testing.assert_allclose(entry.arrays[array], before[name].arrays[array], atol=2e-3)
    assert extract([head_nifti()], with_all, store).__next__().from_cache


@pytest.mark.parametrize(
    ("names", "message"),
    [(("cls", "cls@native"), "different ones"), (("cls", "patches8"), "no basis")],
)
def test_views_that_cannot_be_had_are_refused_before_a_volume_is_read(backbone, names, message) -> None:
    with pytest.raises(UsageError, match=message):
        with_views(FeatureExtractor(backbone, resize=64), names)


def test_rows_go_before_patches_because_they_are_pooled(backbone) -> None:
    plain = FeatureExtractor(backbone, resize=64)
    assert [view.name for view in with_views(plain, ["patches@brain"]).views] == ["cls@brain", "patches@brain"]
    assert [view.name for view in with_views(plain, ["patches", "stats"]).views] == ["stats", "patches"]


def test_the_default_view_leaves_settings_and_keys_as_they_were(backbone) -> None:
    plain = FeatureExtractor(backbone, resize=64)
    assert set(plain.settings()) == {"backbone", "resize", "selection"}
    assert View().key == "cls"
    assert with_views(plain, ["cls", "stats"]).settings() != plain.settings()
