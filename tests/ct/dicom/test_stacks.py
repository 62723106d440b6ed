"""Which images make one volume, in which order, and which do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_writer import axial_geometry, write_dicom_series
from dicom_writer.reading import read_headers
from meddinov3_stroke.ct.dicom.header import ImageHeader
from meddinov3_stroke.ct.dicom.series import SINGLE_IMAGE, assemble

SOUND = ("usable", "")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[ImageHeader]:
    """The headers of ten sound axial slices, inferior to superior."""
    folder = tmp_path_factory.mktemp("series")
    write_dicom_series(folder, np.zeros((10, 4, 5)), axial_geometry([5.0] * 9, (4, 5), tilt_degrees=12))
    headers = [read_headers(path.read_bytes(), path.name) for path in sorted(folder.iterdir())]
    return [one for found in headers if found is not None for one in found]


def always(first: ImageHeader, second: ImageHeader) -> bool:
    return True


def never(first: ImageHeader, second: ImageHeader) -> bool:
    return False


def again(image: ImageHeader, **changes: Any) -> ImageHeader:
    return replace(image, **{"file": f"again {image.file}", "sop_instance_uid": f"{image.sop_instance_uid}9"} | changes)


def files_of(images: Sequence[ImageHeader]) -> list[str]:
    return [image.file for image in images]


@given(order=st.permutations(range(10)))
def test_whatever_the_order_of_files_slices_go_by_position(images: list[ImageHeader], order: list[int]) -> None:
    (stack,) = assemble([replace(images[k], instance_number=order[k]) for k in order])
    assert files_of(stack.images) == files_of(images)
    assert (stack.verdict, stack.reason) == SOUND


def test_a_copy_is_dropped_and_listed_with_what_it_copies(images: list[ImageHeader]) -> None:
    (stack,) = assemble([*images, again(images[4]), again(images[7])], always)
    assert len(stack.images) == 10
    assert sorted(image.file for image, _ in stack.set_aside) == ["again IM0005.dcm", "again IM0008.dcm"]
    assert {reason for _, reason in stack.set_aside} == {
        "a copy of IM0005.dcm: same position, same pixels",
        "a copy of IM0008.dcm: same position, same pixels",
    }
    assert (stack.verdict, stack.reason) == SOUND


def test_different_pixels_at_one_position_refuse_the_stack(images: list[ImageHeader]) -> None:
    (stack,) = assemble([*images, again(images[4]), again(images[7])], never)
    assert stack.verdict == "refused"
    assert "different images at one position (2 times; first: IM0005.dcm and again IM0005.dcm)" in stack.reason


def test_images_at_one_height_that_are_shifted_in_plane_are_no_copies(images: list[ImageHeader]) -> None:
    assert images[4].position_mm is not None
    shifted = again(images[4], position_mm=images[4].position_mm + np.array([1.0, 0, 0]))
    (stack,) = assemble([*images, shifted], always)
    assert stack.verdict == "refused"


def test_acquisition_numbers_part_images_that_share_positions(images: list[ImageHeader]) -> None:
    second = [again(image, acquisition_number=2) for image in images]
    stacks = assemble([*images, *second], never)
    assert [stack.verdict for stack in stacks] == ["usable", "usable"]
    assert sorted(files_of(stack.images) for stack in stacks) == sorted([files_of(images), files_of(second)])


def test_acquisition_numbers_part_nothing_where_positions_differ(images: list[ImageHeader]) -> None:
    """A step-and-shoot series has an acquisition for each few slices."""
    (stack,) = assemble([replace(image, acquisition_number=k // 2) for k, image in enumerate(images)], never)
    assert len(stack.images) == 10


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": "H70H"},
        {"series_instance_uid": "2.25.7"},
        {"study_instance_uid": "2.25.8"},
        {"pixel_spacing_mm": (0.4, 0.4)},
        {"rows": 8},
        {"columns": 8},
    ],
    ids=lambda change: next(iter(change)),
)
def test_images_that_differ_are_never_one_stack(images: list[ImageHeader], change: dict[str, Any]) -> None:
    sides = {name: change[name] for name in ("rows", "columns") if name in change}
    fields = {name: value for name, value in change.items() if name not in sides}
    others = [again(image, pixels=replace(image.pixels, **sides), **fields) for image in images[:3]]
    stacks = assemble([*images, *others], always)
    assert sorted(len(stack.images) for stack in stacks) == [3, 10]


def turned(image: ImageHeader, degrees: float) -> ImageHeader:
    angle = np.radians(degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    assert image.position_mm is not None
    directions = image.directions @ turn.T
    return again(
        image, row_direction=directions[0], column_direction=directions[1], position_mm=turn @ image.position_mm
    )


def test_a_reformat_of_another_orientation_is_a_stack_of_its_own_and_set_aside(images: list[ImageHeader]) -> None:
    coronal = [turned(image, 90) for image in images[:4]]
    stacks = assemble([*images, *coronal], always)
    assert {(len(stack.images), stack.verdict) for stack in stacks} == {(10, "usable"), (4, "set aside")}
    (aside,) = [stack for stack in stacks if stack.verdict == "set aside"]
    assert aside.reason == "slices are 90 degrees off axial; at most 45 are accepted"


def test_two_groups_of_tilt_in_one_series_are_two_stacks(images: list[ImageHeader]) -> None:
    """Base of skull with tilt, the rest without, as step-and-shoot protocols have it."""
    stacks = assemble([*images[:4], *[turned(image, -12) for image in images[4:]]], always)
    assert sorted(len(stack.images) for stack in stacks) == [4, 6]


def test_directions_that_differ_by_rounding_are_one(images: list[ImageHeader]) -> None:
    (stack,) = assemble([images[0], *[turned(image, 0.02) for image in images[1:]]], always)
    assert len(stack.images) == 10


def test_a_single_image_is_set_aside_as_such(images: list[ImageHeader]) -> None:
    (stack,) = assemble(images[:1])
    assert (stack.verdict, stack.reason) == ("set aside", SINGLE_IMAGE)


def test_images_that_are_no_slices_are_gathered_by_series_and_fault(images: list[ImageHeader]) -> None:
    reports = [again(image, image_type=("DERIVED", "PRIMARY", "LOCALIZER")) for image in images[:2]]
    stacks = assemble([*images, *reports, again(images[5], modality="PR")])
    assert {(stack.reason, len(stack.images)) for stack in stacks} == {
        ("", 10),
        ("a localizer", 2),
        ("modality PR, not CT", 1),
    }


def test_a_transfer_syntax_without_a_decoder_refuses_the_stack_by_name(images: list[ImageHeader]) -> None:
    def unreadable(first: ImageHeader, second: ImageHeader) -> bool:
        raise AssertionError("pixels that cannot be decoded were compared")

    extended = [replace(image, transfer_syntax="1.2.840.10008.1.2.4.51") for image in images]
    (stack,) = assemble([*extended, again(extended[0])], unreadable)
    assert stack.verdict == "refused"
    assert "1.2.840.10008.1.2.4.51 (JPEG Extended" in stack.reason


@given(seed=st.integers(0, 10_000))
def test_every_image_is_in_exactly_one_place(images: list[ImageHeader], seed: int) -> None:
    random = np.random.default_rng(seed)
    changes: list[Callable[[ImageHeader], ImageHeader]] = [
        lambda image: image,
        again,
        lambda image: again(image, kernel="H70H"),
        lambda image: again(image, modality="MR"),
        lambda image: again(image, acquisition_number=5),
        lambda image: turned(image, 90),
    ]
    mixed = [replace(changes[random.integers(6)](images[random.integers(10)]), instance_number=k) for k in range(30)]
    stacks = assemble(mixed, lambda first, second: bool(random.integers(2)))
    placed = [image for stack in stacks for image in (*stack.images, *(one for one, _ in stack.set_aside))]
    assert sorted(image.instance_number or 0 for image in placed) == list(range(30))
