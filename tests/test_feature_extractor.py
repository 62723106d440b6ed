from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
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


def _volume_of(tmp_path: Path, n_rows: int, n_columns: int, row_mm: float, column_mm: float) -> Volume:
    hu = np.zeros((4, n_rows, n_columns), dtype=np.int16)
    path = tmp_path / "case.nii"
    nib.save(nib.Nifti1Image(hu.transpose(2, 1, 0), np.diag([-column_mm, -row_mm, 5.0, 1.0])), path)
    return read_volume(path)


@pytest.mark.parametrize(
    ("shape", "pixel_mm", "extent"),
    [
        ((96, 96), (0.9, 0.45), "86.4 x 43.2 mm"),
        ((48, 64), (3.0, 3.0), "144.0 x 192.0 mm"),
        ((48, 96), (0.45, 0.9), "21.6 x 86.4 mm"),
        ((100, 97), (1.0, 1.0), "100.0 x 97.0 mm"),
    ],
)
def test_slices_that_are_not_square_in_mm_are_squashed_with_one_warning(
    backbone, tmp_path, caplog, shape, pixel_mm, extent
) -> None:
    found = FeatureExtractor(backbone, resize=64).embed(_volume_of(tmp_path, *shape, *pixel_mm))
    warning = f"slices of {extent} (height x width) are squashed to a square, so the head is distorted"
    assert [text.split(";")[0] for text in found.warnings] == [warning]
    assert caplog.records == []  # the caller prints the warning


@pytest.mark.parametrize(
    ("shape", "pixel_mm"), [((48, 96), (0.9, 0.45)), ((96, 48), (0.45, 0.9)), ((100, 99), (1.0, 1.0))]
)
def test_slices_that_are_square_in_mm_bring_no_warning(backbone, tmp_path, caplog, shape, pixel_mm) -> None:
    assert FeatureExtractor(backbone, resize=64).embed(_volume_of(tmp_path, *shape, *pixel_mm)).warnings == ()
    assert caplog.records == []


def test_a_head_on_pixels_that_are_not_square_gives_the_pixels_of_the_same_head_on_square_ones(
    backbone, tmp_path
) -> None:
    extractor, square = FeatureExtractor(backbone, resize=64), np.zeros((4, 64, 64), dtype=np.int16)
    square[:, 16:48, 24:40] = 60  # 32 x 16 mm
    pixels = []
    for hu, row_mm in ((square, 1.0), (square[:, ::2], 2.0)):
        path = tmp_path / f"case_{row_mm}.nii"
        nib.save(nib.Nifti1Image(hu.transpose(2, 1, 0), np.diag([-1.0, -row_mm, 5.0, 1.0])), path)
        (window,) = extractor.windows(read_volume(path), np.arange(4))
        pixels.append(window > np.float32(window.min() + window.max()) / 2)
    assert pixels[0].sum() == pytest.approx(4 * 32 * 16, rel=0.02)
    assert np.count_nonzero(pixels[0] != pixels[1]) <= 0.05 * pixels[0].sum()


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
