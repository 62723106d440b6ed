"""The head: determinism, orientation, labels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.phantom import HeadSpec, Phantom, PhantomSpec, draw_spec, make_phantom
from meddinov3_stroke.types import LABELS

TINY = (9, 48, 48)
SUBTYPES = st.lists(st.sampled_from(LABELS[1:]), max_size=4)


@pytest.fixture(scope="module")
def healthy() -> Phantom:
    return make_phantom(draw_spec(1, [], tilt_degrees=0))


def test_same_seed_gives_the_same_voxels() -> None:
    first, second = (make_phantom(draw_spec(7, ["subdural"], shape=TINY)) for _ in range(2))
    np.testing.assert_array_equal(first.hu, second.hu)
    np.testing.assert_array_equal(first.mask, second.mask)


def test_different_seeds_give_different_heads() -> None:
    first, second = (draw_spec(seed, [], shape=TINY) for seed in (7, 8))
    assert first.head != second.head
    assert np.mean(make_phantom(first).hu != make_phantom(second).hu) > 0.5


def test_every_anatomical_figure_varies_between_heads() -> None:
    heads = [draw_spec(seed, []).head for seed in range(40)]
    for field in dataclasses.fields(HeadSpec):
        assert len({getattr(head, field.name) for head in heads}) > 1, field.name


def test_drawn_geometry_stays_within_its_bounds() -> None:
    for seed in range(60):
        spec = draw_spec(seed)
        assert 18 <= spec.shape[0] <= 34
        assert 128 <= spec.shape[1] == spec.shape[2] <= 192
        assert 3 <= spec.spacing_mm[0] <= 8.3
        assert 0.8 <= spec.spacing_mm[1] == spec.spacing_mm[2] <= 1.65
        assert abs(spec.tilt_degrees) <= 18
        assert 2 <= spec.noise_hu <= 5


def test_a_haemorrhage_does_not_change_the_head_or_the_acquisition() -> None:
    assert dataclasses.replace(draw_spec(3, ["epidural"]), lesions=()) == draw_spec(3, [])


def test_head_seed_keeps_the_head_and_changes_the_acquisition() -> None:
    first, follow_up = draw_spec(10, ["epidural"], head_seed=4), draw_spec(11, ["epidural"], head_seed=4)
    assert first.head == follow_up.head
    assert first.lesions == follow_up.lesions
    assert first.centre_mm != follow_up.centre_mm


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1},
        {"seed": 0, "head_seed": -1},
        {"seed": 0, "lesions": ["any"]},
        {"seed": 0, "lesions": ["epidural"], "volumes_ml": [1.0, 2.0]},
        {"seed": 0, "lesions": ["epidural"], "volumes_ml": [0.0]},
    ],
)
def test_specification_that_cannot_be_honoured_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="expected"):
        draw_spec(**wrong)  # type: ignore[arg-type]


def test_tissues_have_their_densities(healthy: Phantom) -> None:
    assert np.median(healthy.hu[:, :3, :3]) == pytest.approx(-1000, abs=3)
    assert 1000 < np.percentile(healthy.hu, 99.5) < 1600
    skull = ndimage.distance_transform_edt(healthy.hu < 300, sampling=healthy.spec.spacing_mm)
    brain = healthy.hu[(skull > 12) & (healthy.hu > -30)]
    assert 28 < np.median(brain) < 38


def test_noise_has_the_spread_of_the_specification(healthy: Phantom) -> None:
    quiet = make_phantom(dataclasses.replace(healthy.spec, noise_hu=0.0))
    noise = healthy.hu.astype(int) - quiet.hu
    assert np.std(noise) == pytest.approx(healthy.spec.noise_hu, rel=0.1)
    assert 0.3 < np.corrcoef(noise[:, :, 1:].ravel(), noise[:, :, :-1].ravel())[0, 1] < 0.7


def test_no_soft_tissue_of_a_healthy_brain_is_as_dense_as_a_clot(healthy: Phantom) -> None:
    inside = ndimage.distance_transform_edt(healthy.hu < 300, sampling=healthy.spec.spacing_mm) > 12
    smooth = ndimage.uniform_filter(healthy.hu.astype(float), (1, 5, 5))
    assert np.mean(smooth[inside] > 55) < 0.002


def test_front_of_the_head_comes_first_in_the_rows(healthy: Phantom) -> None:
    base = healthy.hu[: healthy.hu.shape[0] // 3]
    body = np.stack([ndimage.binary_fill_holes(image > -300) for image in base])
    sinuses = np.argwhere(body & (base < -700))  # air within the face
    assert len(sinuses) > 50
    assert np.median(sinuses[:, 1]) < healthy.hu.shape[1] / 2


def test_base_of_the_skull_comes_first_in_the_slices(healthy: Phantom) -> None:
    air = [(ndimage.binary_fill_holes(image > -300) & (image < -700)).sum() for image in healthy.hu]
    third = len(air) // 3
    assert sum(air[:third]) > 10 * max(1, sum(air[-third:]))


@pytest.mark.parametrize("tilt_degrees", [0.0, 15.0, -15.0])
def test_right_side_of_the_patient_comes_first_in_the_columns(tilt_degrees: float) -> None:
    for seed in range(4):
        phantom = make_phantom(
            draw_spec(seed, ["epidural"], volumes_ml=[5.0], tilt_degrees=tilt_degrees, shape=(14, 64, 64))
        )
        middle = np.argwhere(phantom.mask > 0).mean(axis=0)
        on_the_right = phantom.spec.lesions[0].centre_mm[0] > 0
        assert (middle[2] < phantom.hu.shape[2] / 2) == on_the_right
        assert ((phantom.affine @ [*middle, 1])[0] > 0) == on_the_right


def test_tilt_turns_the_slices_and_not_the_head() -> None:
    straight, tilted = (
        make_phantom(draw_spec(2, ["intraparenchymal"], volumes_ml=[8.0], tilt_degrees=t)) for t in (0, 15)
    )
    places = [(p.affine @ [*np.argwhere(p.mask > 0).mean(axis=0), 1])[:3] for p in (straight, tilted)]
    np.testing.assert_allclose(places[0], places[1], atol=2.5)
    front, back = (tilted.affine @ [0, row, 0, 1] for row in (0, tilted.hu.shape[1] - 1))
    assert front[2] - back[2] == pytest.approx(np.sin(np.radians(15)) * np.linalg.norm(front - back), rel=1e-4)


def test_affine_has_the_spacing_of_the_specification() -> None:
    phantom = make_phantom(draw_spec(2, [], shape=TINY, tilt_degrees=11))
    np.testing.assert_allclose(np.linalg.norm(phantom.affine[:3, :3], axis=0), phantom.spec.spacing_mm, rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), lesions=SUBTYPES)
def test_labels_say_what_the_mask_holds(seed: int, lesions: list[str]) -> None:
    phantom = make_phantom(draw_spec(seed, lesions, shape=TINY))
    present = {LABELS[value] for value in np.unique(phantom.mask) if value}
    assert {label for label, value in phantom.labels.items() if value and label != "any"} == present
    assert phantom.labels["any"] == int(bool(present))
    assert {label for label, volume in phantom.lesion_volumes_ml.items() if volume > 0} == present
    assert present <= set(lesions)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), lesions=SUBTYPES)
def test_slice_labels_say_what_each_slice_of_the_mask_holds(seed: int, lesions: list[str]) -> None:
    phantom = make_phantom(draw_spec(seed, lesions, shape=TINY))
    for row, image in zip(phantom.slice_labels, phantom.mask, strict=True):
        assert [LABELS[i] for i in np.flatnonzero(row[1:]) + 1] == [LABELS[v] for v in np.unique(image) if v]
        assert row[0] == row[1:].max()


def test_a_phantom_takes_any_shape() -> None:
    phantom = make_phantom(draw_spec(0, ["subdural"], shape=(5, 40, 64)))
    assert phantom.hu.shape == phantom.mask.shape == (5, 40, 64)


def test_specification_holds_plain_numbers_only() -> None:
    def plain(value: object) -> bool:
        return type(value) in (int, float, bool, str) or (isinstance(value, tuple) and all(map(plain, value)))

    spec: PhantomSpec = draw_spec(0, LABELS[1:])
    values = [*vars(spec.head).values(), *(v for lesion in spec.lesions for v in vars(lesion).values())]
    assert all(plain(value) for name, value in vars(spec).items() if name not in ("head", "lesions"))
    assert all(map(plain, values))
