"""Generated head CTs that span reality: where blood is, what the scanner does, what is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from meddinov3_stroke.errors import UnsupportedInput
from meddinov3_stroke.phantom import draw_spec
from meddinov3_stroke.phantom.atlas import Atlas, atlas_of_grid, atlas_of_phantom, atlas_of_volume, template_atlas
from meddinov3_stroke.phantom.generator import Scan, draw_scan
from meddinov3_stroke.types import LABELS

TYPES = LABELS[1:]


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return template_atlas()


def scan(atlas: Atlas, seed: int, **options: object) -> Scan:
    return draw_scan(seed, atlas, matrix=128, most_slices=16, **options)  # type: ignore[arg-type]


def test_a_seed_gives_one_scan(atlas: Atlas) -> None:
    first, again, other = (scan(atlas, seed, thickness_mm=6.0) for seed in (1, 1, 2))
    assert np.array_equal(first.hu, again.hu)
    assert all(np.array_equal(first.blood[name], share) for name, share in again.blood.items())
    assert first.hu.shape != other.hu.shape or not np.array_equal(first.hu, other.hu)


@pytest.mark.parametrize("label", TYPES)
def test_blood_is_of_the_type_asked_for_and_brighter_than_its_surroundings(atlas: Atlas, label: str) -> None:
    found = [scan(atlas, seed, lesions=[label], thickness_mm=5.0) for seed in range(8)]
    assert {name for one in found for name in one.blood} == {label}
    rises = []
    for one in found:
        inside = one.blood[label] > 200 if label in one.blood else np.zeros(one.hu.shape, dtype=bool)
        around = ndimage.binary_dilation(inside, iterations=5) & (one.hu > 0) & (one.hu < 60)
        around &= ~ndimage.binary_dilation(inside, iterations=2)
        if inside.sum() > 10 and around.any():
            rises.append(float(np.median(one.hu[inside]) - np.median(one.hu[around])))
    assert len(rises) >= 2
    assert np.median(rises) > 8
    assert all(one.hu[share > 0].max() <= 140 for one in found for share in one.blood.values())  # never in bone


def test_no_haemorrhage_no_blood(atlas: Atlas) -> None:
    assert all(scan(atlas, seed, lesions=[]).blood == {} for seed in range(3))


def test_the_draws_are_wide(atlas: Atlas) -> None:
    found = [scan(atlas, seed) for seed in range(24)]
    assert min(one.spacing_mm[0] for one in found) < 3 < 6 < max(one.spacing_mm[0] for one in found)
    assert 6 < sum(bool(one.lesions) for one in found) < 22
    assert 4 < sum(bool(one.tags["distractors"]) for one in found) < 24
    assert len({one.geometry.mirrored for one in found}) == 2
    ages = [lesion.hu for one in found for lesion in one.lesions]
    assert min(ages) < 58 < 66 < max(ages)


def test_fields_estimated_from_a_phantom_are_those_it_was_made_of() -> None:
    found, spec = atlas_of_phantom(5), draw_spec(5, [])
    assert np.allclose(found.scale[0] * 67, spec.head.half_width_mm, rtol=0.08)
    assert np.allclose(found.scale[1] * 83, spec.head.half_length_mm, rtol=0.08)
    brain = found.brain
    inside = found.hu[found.cavity]
    deep = brain.ventricle_mm > 1
    assert deep.sum() * np.prod(found.spacing_mm) > 2000  # mm3
    assert np.median(inside[deep]) < 15
    assert np.median(inside[(brain.csf_mm < -2) & (brain.ventricle_mm < -2) & (brain.depth_mm > 5)]) > 25
    assert brain.depth_mm.max() > 45
    assert np.abs(brain.points.x[brain.falx_mm > 0]).max() < 3


def test_a_volume_without_a_skull_is_no_atlas() -> None:
    with pytest.raises(UnsupportedInput, match="no cavity of a head"):
        atlas_of_grid(np.full((20, 60, 60), 30, dtype=np.float32), (5.0, 3.0, 3.0), "jelly")


@pytest.mark.shared_data
def test_a_real_head_becomes_an_atlas(shared_data_dir: Path) -> None:
    from meddinov3_stroke import read_volume

    found = atlas_of_volume(read_volume(shared_data_dir / "head_ncct_dicom"), "real")
    litres = found.cavity.sum() * np.prod(found.spacing_mm) / 1e6
    assert 1.1 < litres < 1.7
    assert 1 < found.noise_hu < 6
