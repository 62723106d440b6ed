"""Each haemorrhage lies in its place, has its volume and its density.

The same seed without haemorrhages gives the same head and the same noise: what a voxel was before the blood came.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from scipy import ndimage

from meddinov3_stroke.phantom import Phantom, PhantomSpec, draw_spec, make_phantom
from meddinov3_stroke.types import LABELS

SMALL_ML = 1.6
"""Below the volume that pushes the brain aside, so that before and after differ by the blood alone."""
SHAPE = (24, 128, 128)
SEEDS = range(3)


@functools.cache
def phantom(seed: int, label: str | None = None, volume_ml: float = SMALL_ML) -> Phantom:
    labels = [] if label is None else [label]
    return make_phantom(draw_spec(seed, labels, volumes_ml=[volume_ml] * len(labels), shape=SHAPE))


def before(seed: int, label: str) -> np.ndarray:
    """HU that the voxels of the haemorrhage had without it."""
    return phantom(seed).hu[phantom(seed, label).mask > 0].astype(float)


@functools.cache
def distance_to_bone_mm(seed: int) -> np.ndarray:
    healthy = phantom(seed)
    return np.asarray(ndimage.distance_transform_edt(healthy.hu < 300, sampling=healthy.spec.spacing_mm))


@pytest.mark.parametrize("label", LABELS[1:])
@pytest.mark.parametrize("volume_ml", [0.4, 3.0, 12.0])
def test_measured_volume_is_the_target(label: str, volume_ml: float) -> None:
    for seed in (0, 1):
        assert phantom(seed, label, volume_ml).lesion_volumes_ml[label] == pytest.approx(volume_ml, rel=0.25)


@pytest.mark.parametrize("label", LABELS[1:])
def test_mask_holds_only_the_type_asked_for(label: str) -> None:
    assert set(np.unique(phantom(0, label).mask)) == {0, LABELS.index(label)}


@pytest.mark.parametrize("label", LABELS[1:])
def test_blood_has_the_density_of_fresh_clot(label: str) -> None:
    for seed in SEEDS:
        blood = phantom(seed, label).hu[phantom(seed, label).mask > 0]
        assert 48 <= np.mean(blood) <= 80
        assert np.percentile(blood, 99) < 110


@pytest.mark.parametrize("label", LABELS[1:])
def test_mask_lies_only_where_blood_raised_the_density(label: str) -> None:
    for seed in SEEDS:
        rise = phantom(seed, label).hu.astype(int) - phantom(seed).hu
        assert rise[phantom(seed, label).mask > 0].min() >= 3


@pytest.mark.parametrize("label", LABELS[1:])
def test_a_small_haemorrhage_leaves_the_rest_of_the_head_as_it_was(label: str) -> None:
    for seed in SEEDS:
        ill = phantom(seed, label)
        far = ndimage.distance_transform_edt(ill.mask == 0, sampling=ill.spec.spacing_mm) > 14
        np.testing.assert_array_equal(ill.hu[far], phantom(seed).hu[far])


@pytest.mark.parametrize(("label", "farthest_mm"), [("epidural", 16), ("subdural", 10)])
def test_extra_axial_blood_lies_against_the_bone(label: str, farthest_mm: float) -> None:
    for seed in range(6):
        spec = draw_spec(seed, [label], volumes_ml=[SMALL_ML], shape=SHAPE)
        if spec.lesions[0].site in ("falx", "tentorium"):
            continue
        away = distance_to_bone_mm(seed)[make_phantom(spec).mask > 0]
        assert away.min() < 2.5
        assert away.max() < farthest_mm


def test_epidural_blood_is_a_lens_and_subdural_a_crescent_of_the_same_volume() -> None:
    seeds = [
        seed
        for seed in range(12)
        if draw_spec(seed, ["subdural"], volumes_ml=[25], shape=SHAPE).lesions[0].site == "convexity"
    ]
    for seed in seeds[:3]:
        thickness, extent = {}, {}
        for label in ("epidural", "subdural"):
            mask = phantom(seed, label, 25.0).mask > 0
            thickness[label] = distance_to_bone_mm(seed)[mask].max()
            extent[label] = np.ptp(np.argwhere(mask) * phantom(seed).spec.spacing_mm, axis=0)[1]
        assert thickness["epidural"] > 1.3 * thickness["subdural"]
        assert extent["subdural"] > 1.3 * extent["epidural"]


def test_intraventricular_blood_replaces_fluid() -> None:
    for seed in SEEDS:
        assert np.mean(before(seed, "intraventricular")) < 18


def test_intraventricular_blood_lies_deep() -> None:
    for seed in SEEDS:
        assert distance_to_bone_mm(seed)[phantom(seed, "intraventricular").mask > 0].min() > 8


def test_layered_blood_has_a_level_and_lies_behind_the_fluid() -> None:
    spec = next(
        spec
        for spec in (
            draw_spec(seed, ["intraventricular"], volumes_ml=[4.0], tilt_degrees=0, shape=SHAPE) for seed in range(30)
        )
        if spec.lesions[0].site.startswith("layering in both")
    )
    ill, healthy = make_phantom(spec), make_phantom(draw_spec(spec.seed, [], tilt_degrees=0, shape=SHAPE))
    smooth = ndimage.gaussian_filter(healthy.hu.astype(float), (0, 1, 1))
    columns = np.unique(np.argwhere(ill.mask > 0)[:, 2])
    fluid = (smooth < 16) & (ill.mask == 0) & (distance_to_bone_mm(spec.seed) > 25)
    assert np.argwhere(ill.mask > 0)[:, 1].min() > np.argwhere(fluid[:, :, columns])[:, 1].mean()


def test_subarachnoid_blood_replaces_fluid_between_brain_and_skull() -> None:
    for seed in SEEDS:
        assert np.mean(before(seed, "subarachnoid")) < 26


def test_subarachnoid_blood_is_thin() -> None:
    for seed in SEEDS:
        ill = phantom(seed, "subarachnoid", 6.0)
        inner = ndimage.binary_erosion(ill.mask > 0, np.ones((1, 5, 5)))
        assert inner.sum() < 0.12 * (ill.mask > 0).sum()


def test_intraparenchymal_blood_replaces_brain() -> None:
    for seed in SEEDS:
        was = before(seed, "intraparenchymal")
        assert 26 < np.mean(was) < 42
        assert distance_to_bone_mm(seed)[phantom(seed, "intraparenchymal").mask > 0].min() > 2


def test_intraparenchymal_blood_stays_out_of_fluid() -> None:
    for seed in range(8):
        spec = draw_spec(seed, ["intraparenchymal"], volumes_ml=[1.9], shape=SHAPE)
        quiet = make_phantom(dataclasses.replace(spec, lesions=(), noise_hu=0.0))
        assert quiet.hu[make_phantom(spec).mask > 0].min() > 18


def test_intraparenchymal_blood_is_one_compact_clot_with_a_rim_of_oedema() -> None:
    spec = draw_spec(0, ["intraparenchymal"], volumes_ml=[18.0], shape=SHAPE)
    ill = make_phantom(spec)
    clot = ill.mask > 0
    pieces, n_pieces = ndimage.label(clot)
    assert np.bincount(pieces[clot]).max() > 0.95 * clot.sum(), n_pieces
    away = ndimage.distance_transform_edt(~clot, sampling=spec.spacing_mm)
    rim, beyond = (away > 2.5) & (away < 4), (away > 14) & (away < 20) & (distance_to_bone_mm(0) > 20)
    assert np.median(ill.hu[rim]) < np.median(ill.hu[beyond]) - 2


@pytest.mark.parametrize(
    ("label", "site"), [("intraparenchymal", "putamen"), ("epidural", "parietal"), ("subdural", "convexity")]
)
def test_a_large_haemorrhage_pushes_the_ventricles_to_the_other_side(label: str, site: str) -> None:
    drawn = (draw_spec(seed, [label], volumes_ml=[45.0], shape=SHAPE) for seed in range(30))
    ill = next(spec for spec in drawn if spec.lesions[0].site == site)
    moved_mm = _middle_of_ventricles_mm(ill) - _middle_of_ventricles_mm(draw_spec(ill.seed, [], shape=SHAPE))
    assert moved_mm * np.sign(ill.lesions[0].centre_mm[0]) < -0.6


def _middle_of_ventricles_mm(spec: PhantomSpec) -> float:
    """RAS+ x of the middle of the deep fluid."""
    made = make_phantom(spec)
    hu = ndimage.gaussian_filter(made.hu.astype(float), (0, 1, 1))
    fluid = np.argwhere((distance_to_bone_mm(spec.seed) > 35) & (hu > -50) & (hu < 18))
    return float((fluid @ made.affine[0, :3]).mean() + made.affine[0, 3])


def test_haemorrhages_of_all_types_fit_into_one_head() -> None:
    ill = make_phantom(draw_spec(5, LABELS[1:], volumes_ml=[20, 15, 5, 6, 25], shape=SHAPE))
    for label, target in zip(LABELS[1:], [20, 15, 5, 6, 25], strict=True):
        assert ill.lesion_volumes_ml[label] == pytest.approx(target, rel=0.25)
