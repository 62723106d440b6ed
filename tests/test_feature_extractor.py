from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from meddinov3_stroke import explain, feature_extractor
from meddinov3_stroke import features as embeddings
from meddinov3_stroke.backbone import Backbone, load_backbone
from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.errors import NonFiniteEmbedding, UsageError
from meddinov3_stroke.feature_extractor import FeatureExtractor
from meddinov3_stroke.features import extract_one
from meddinov3_stroke.types import SliceSelection, Volume


@pytest.fixture(scope="module")
def backbone(random_weights: Callable[..., Path]) -> Backbone:
    return load_backbone(random_weights(), engine="torch", precision="fp32", device="cpu")


@pytest.fixture
def volume(head_nifti: Callable[..., Path]) -> Volume:
    return read_volume(head_nifti())


def test_embeddings_are_the_backbones_class_tokens_of_the_chosen_slices(backbone, volume) -> None:
    found = FeatureExtractor(backbone, resize=64, selection=SliceSelection(stride=3)).embed(volume)
    assert found.slice_indices.tolist() == [0, 3, 6]
    np.testing.assert_array_equal(found.cls, backbone.embed(volume.hu[[0, 3, 6]], resize=64).cls)


def test_embeddings_say_where_they_came_from(backbone, volume) -> None:
    selection = SliceSelection(max_slices=4)
    found = FeatureExtractor(backbone, resize=64, selection=selection).embed(volume)
    assert (found.n_slices, found.resize, found.selection) == (8, 64, selection)
    assert found.backbone == backbone.identity
    assert found.source is volume.source


def test_tokens_are_of_the_named_slices_whatever_the_selection(backbone, volume) -> None:
    tokens = FeatureExtractor(backbone, resize=64, selection=SliceSelection(max_slices=1)).tokens(volume, [6, 1])
    expected = backbone.embed(volume.hu[[6, 1]], resize=64, patches=True)
    np.testing.assert_array_equal(tokens.patches, expected.patches)
    assert tokens.grid == (4, 4)


def test_the_number_of_slices_done_is_reported_with_the_number_chosen(backbone, head_nifti) -> None:
    reported: list[tuple[int, int]] = []
    extractor = FeatureExtractor(backbone, resize=64, batch=3)
    extract_one(head_nifti(), extractor, lambda n_done, n_chosen: reported.append((n_done, n_chosen)))
    assert reported == [(0, 8), (3, 8), (3, 8), (2, 8)]


def test_embedding_a_volume_in_memory_is_the_same_as_extracting_its_file(backbone, head_nifti) -> None:
    path, extractor = head_nifti(), FeatureExtractor(backbone, resize=64, batch=3)
    in_memory, (_, from_file, _) = extractor.embed(read_volume(path)), extract_one(path, extractor)
    np.testing.assert_array_equal(in_memory.cls, from_file.cls)
    assert in_memory.source.sha256 == from_file.source.sha256


def test_an_embedding_that_is_no_number_names_the_file(backbone, volume, monkeypatch) -> None:
    monkeypatch.setattr(backbone, "class_tokens", lambda pixels: np.full((len(pixels), 64), np.nan, np.float32))
    with pytest.raises(NonFiniteEmbedding, match=r"case\.nii\.gz: backbone"):
        FeatureExtractor(backbone, resize=64).embed(volume)


def test_a_volume_in_between_changes_nothing(backbone, volume, head_nifti) -> None:
    extractor = FeatureExtractor(backbone, resize=64)
    before = extractor.embed(volume).cls
    extractor.embed(read_volume(head_nifti("other.nii.gz", seed=1)))
    np.testing.assert_array_equal(extractor.embed(volume).cls, before)


def test_slices_that_are_not_square_are_squashed_with_a_warning(backbone, head_nifti) -> None:
    found = FeatureExtractor(backbone, resize=64).embed(read_volume(head_nifti(n_rows=48)))
    assert "slices of 48 x 64 pixels are squashed to 64 x 64" in found.warnings


def test_square_slices_bring_no_warning(backbone, volume) -> None:
    assert FeatureExtractor(backbone, resize=64).embed(volume).warnings == ()


def test_warnings_of_the_volume_are_kept(backbone, volume) -> None:
    object.__setattr__(volume, "warnings", ("the sform was taken",))
    assert FeatureExtractor(backbone, resize=64).embed(volume).warnings == ("the sform was taken",)


def test_a_resize_that_cuts_patches_is_a_usage_error(backbone, volume) -> None:
    with pytest.raises(UsageError, match="multiple of 16"):
        FeatureExtractor(backbone, resize=72).embed(volume)


@pytest.mark.parametrize(
    ("name", "room"), [("pool_slices", embeddings), ("select_slices", embeddings), ("patch_similarity", explain)]
)
def test_pooling_and_similarity_are_importable_from_here(name, room) -> None:
    assert getattr(feature_extractor, name) is getattr(room, name)
