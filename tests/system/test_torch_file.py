"""The only module that reads and writes torch's pickled files."""

from __future__ import annotations

import argparse
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from meddinov3_stroke.errors import MissingWeights, UnsafeWeights, WeightsError
from meddinov3_stroke.system.torch_file import (
    read_torch_file,
    save_torch_file,
    unpickle_torch_file,
)

CONTENT = {
    "state": {"weight": torch.arange(6.0).reshape(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)},
    "labels": ("any", "epidural"),
    "thresholds": {"any": 0.25, "none": None},
    "size": torch.Size([2, 3]),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "dtype": torch.float32,
}


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_tensors_and_plain_containers_come_back(tmp_path: Path, archive: bool) -> None:
    torch.save(CONTENT, tmp_path / "x.pt", _use_new_zipfile_serialization=archive)
    found = read_torch_file(tmp_path / "x.pt")
    assert np.array_equal(found["state"]["weight"], CONTENT["state"]["weight"].numpy())
    assert found["labels"] == ("any", "epidural")
    assert found["thresholds"] == {"any": 0.25, "none": None}


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_tensors_come_back_as_arrays_without_torch(tmp_path: Path, archive: bool) -> None:
    tensors = {
        "view": torch.arange(24.0).reshape(4, 6)[1:, ::2].T,
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "bf16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "numbers": torch.arange(3),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.ones(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    shared = torch.arange(4.0)
    content = {"tensors": tensors, "a": shared[:2], "b": shared[2:], "size": torch.Size([2]), "plain": {"x": (1, None)}}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=archive)
    found = read_torch_file(tmp_path / "x.pt")
    for name, tensor in tensors.items():
        expected = tensor.detach().float() if name == "bf16" else tensor.detach()
        assert np.array_equal(found["tensors"][name], expected.numpy())
        assert found["tensors"][name].dtype == expected.numpy().dtype
    assert (found["a"].tolist(), found["b"].tolist()) == ([0, 1], [2, 3])
    assert (found["size"], found["plain"]) == ((2,), {"x": (1, None)})


def test_a_file_that_is_known_to_be_sound_is_not_checked_again(tmp_path: Path) -> None:
    save_torch_file(tmp_path / "x.pt", {"w": torch.ones(50_000)})
    raw = bytearray((tmp_path / "x.pt").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "x.pt").write_bytes(raw)
    assert read_torch_file(tmp_path / "x.pt", verified=True)["w"].shape == (50_000,)


@pytest.mark.parametrize("damage", [(0, (10**9,), (1,)), (-1, (1,), (1,)), (0, (3,), (4,)), (2, (3,), (1,))], ids=str)
def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path, damage: tuple[Any, ...]) -> None:
    class Lie:
        def __reduce__(self) -> tuple[Any, ...]:
            offset, size, stride = damage
            storage = torch.ones(4).storage()
            return torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, None)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates typed storages
        torch.save({"x": Lie()}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="does not fit in its storage"):
        read_torch_file(tmp_path / "x.pt")


def test_what_was_saved_is_loaded_and_no_temporary_stays(tmp_path: Path) -> None:
    save_torch_file(tmp_path / "x.pt", CONTENT)
    weight = CONTENT["state"]["weight"].numpy()
    assert np.array_equal(read_torch_file(tmp_path / "x.pt")["state"]["weight"], weight)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_a_malicious_pickle_is_named_and_not_run(tmp_path: Path, archive: bool) -> None:
    marker = tmp_path / "pwned"
    torch.save({"a": torch.ones(1), "x": Bomb(marker)}, tmp_path / "x.pt", _use_new_zipfile_serialization=archive)
    with pytest.raises(UnsafeWeights, match=r"posix\.system"):
        read_torch_file(tmp_path / "x.pt")
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_foreign_names_are_found_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    content = [argparse.Namespace(a=1), np.dtype("float32"), argparse.Namespace(b=2)]
    torch.save({"x": content}, tmp_path / "x.pt", pickle_protocol=protocol)
    _, names = unpickle_torch_file(tmp_path / "x.pt")
    assert "argparse.Namespace" in names
    assert any(name.startswith("numpy") for name in names)


def test_a_name_spelt_through_the_memo_is_found(tmp_path: Path) -> None:
    # "os" and "system" come from the memo, and other texts stand between them and the STACK_GLOBAL opcode
    stream = (
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x8c\x0bcollections\x8c\x0bOrderedDict00h\x00h\x01\x93"
        b"\x8c\x04true\x85R."
    )
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", stream)
        archive.writestr("x/version", b"3")
    assert unpickle_torch_file(tmp_path / "x.pt")[1] == ("os.system",)


def test_an_ordinary_file_has_no_foreign_names(tmp_path: Path) -> None:
    torch.save(CONTENT, tmp_path / "x.pt")
    assert unpickle_torch_file(tmp_path / "x.pt")[1] == ()


@pytest.mark.parametrize("place", [0.3, 0.5, 0.7])
def test_a_flipped_bit_in_a_tensor_is_refused(tmp_path: Path, place: float) -> None:
    save_torch_file(tmp_path / "x.pt", {"w": torch.ones(50_000)})
    raw = bytearray((tmp_path / "x.pt").read_bytes())
    raw[int(place * len(raw))] ^= 1
    (tmp_path / "x.pt").write_bytes(raw)
    with pytest.raises(WeightsError, match=r"record .*/data/0 fails its CRC-32"):
        read_torch_file(tmp_path / "x.pt")


def test_a_file_written_without_checksums_still_loads(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(5)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert np.array_equal(read_torch_file(tmp_path / "x.pt")["w"], np.ones(5))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    save_torch_file(tmp_path / "x.pt", {"w": torch.ones(50_000)})
    raw = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(WeightsError, match="truncated or damaged"):
        read_torch_file(tmp_path / "x.pt")


def test_compressed_records_are_refused_before_they_inflate(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(WeightsError, match=r"compressed records \(x/data\.pkl\)"):
        read_torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is an empty file"),
        (b"  \n", "is an empty file"),
        (b"\xef\xbb\xbf<html><body>Sign in</body></html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
        (b"PK\x03\x04 and nothing more", "truncated or damaged"),
        (b"\x80\x02}q\x00.", "truncated or damaged"),
        (b"hello", "truncated or damaged"),
        (pickle.dumps([1, 2, 3]), "truncated or damaged"),
    ],
    ids=["empty", "blank", "html", "lfs", "zip head", "one pickle", "text", "plain pickle"],
)
def test_an_impostor_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        read_torch_file(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "x.pt") in str(caught.value)


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights):
        read_torch_file(tmp_path / "none.pt")
    with pytest.raises(WeightsError, match="is a directory"):
        read_torch_file(tmp_path)
