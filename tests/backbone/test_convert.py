"""Conversion of files that hold more than tensors: the tensors come through, no code runs."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from meddinov3_stroke.backbone import VisionTransformer, convert_weights, load_weights, weights_sha256
from meddinov3_stroke.errors import MissingWeights, UnsafeWeights, UsageError, WeightsError, WeightsMismatch
from meddinov3_stroke.system.torch_file import InertUnpickler

MakeVit = Callable[..., VisionTransformer]
Publish = Callable[..., Path]


class Bomb:
    """Runs a shell command when unpickled in the ordinary way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


class DictConfig:
    """As OmegaConf's: state set by `__setstate__`, items by attribute."""

    def __init__(self) -> None:
        self.__dict__["_content"] = {"lr": 1e-3, "when": datetime(2025, 9, 2), "path": Path("a")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise AssertionError("code of the file ran")


def train_state() -> dict[str, Any]:
    """What training scripts leave beside the weights."""
    counts: defaultdict[str, list[int]] = defaultdict(list)
    counts["a"].append(1)
    return {
        "args": argparse.Namespace(lr=1e-3, nested=argparse.Namespace(a={1, 2})),
        "cfg": DictConfig(),
        "counts": counts,
        "ordered": OrderedDict(a=1),
        "numpy": np.float64(0.5),
        "array": np.arange(3),
        "student": {"w": torch.ones(3)},
    }


def test_the_tensors_of_a_file_with_foreign_objects_come_through(
    published_checkpoint: Publish, small_vit: MakeVit, tmp_path: Path
) -> None:
    path = published_checkpoint(extra=train_state())
    with pytest.raises(UnsafeWeights):
        load_weights(path)
    conversion = convert_weights(path, tmp_path / "model.safetensors")
    weights = load_weights(tmp_path / "model.safetensors")
    expected = small_vit().state_dict()
    assert all(np.array_equal(weights.state[name], expected[name].float()) for name in expected)
    assert conversion.n_tensors == len(expected)
    assert conversion.weights_sha256 == weights_sha256(expected)
    assert {"args", "cfg", "student", "iteration", "dino_head.mlp.0.weight"} <= set(conversion.ignored_entries)
    assert "argparse.Namespace" in conversion.ignored_names


def test_a_clean_file_converts_to_the_same_digest(published_checkpoint: Publish, tmp_path: Path) -> None:
    path = published_checkpoint()
    conversion = convert_weights(path, tmp_path / "model.safetensors")
    weights = load_weights(path)
    assert conversion.weights_sha256 == weights_sha256(weights.state, weights.architecture)
    assert conversion.ignored_names == ()


@pytest.mark.parametrize("where", ["beside", "inside"])
def test_no_command_of_a_malicious_pickle_runs(published_checkpoint: Publish, tmp_path: Path, where: str) -> None:
    marker = tmp_path / "pwned"
    bomb = Bomb(marker)
    path = published_checkpoint(extra={"hook": bomb} if where == "beside" else {"teacher": {"norm.bias": bomb}})
    with pytest.raises(UnsafeWeights, match=r"posix\.system|nt\.system"):
        load_weights(path)
    if where == "beside":
        assert convert_weights(path, tmp_path / "model.safetensors").ignored_names
    else:
        with pytest.raises(WeightsMismatch, match=r"found norm\.bias where a state dict should be"):
            convert_weights(path, tmp_path / "model.safetensors")
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the bomb is live: only our reading of it is safe
    assert marker.exists()


HOSTILE = {
    "eval": b"cbuiltins\neval\n(Vopen('{marker}','w')\ntR.",
    "getattr chain": b"cbuiltins\ngetattr\n(cos\nsystem\nV__call__\ntR(Vtouch '{marker}'\ntR.",
    "instance": b"(Vtouch '{marker}'\nios\nsystem\n.",
    "object": b"(cos\nsystem\nVtouch '{marker}'\no.",
    "build": b"cbuiltins\nobject\n)\x81}V__class__\ncos\nsystem\nsb.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x10touch '{marker}'\x85R.",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_opcodes_meet_stand_ins(tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "pwned"
    stream = HOSTILE[kind].replace(b"{marker}", str(marker).encode())
    if kind == "stack global":
        stream = b"\x80\x04\x8c\x02os\x8c\x06system\x93" + pickle.dumps(f"touch '{marker}'", 4)[2:-1] + b"\x85R."
    found: set[str] = set()
    InertUnpickler(io.BytesIO(stream), found).load()
    assert found & {"builtins.eval", "os.system", "builtins.getattr", "builtins.object"}
    assert not marker.exists()


def repacked(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive with its records passed through `change`, as `path` beside it."""
    other = path.with_name("changed.pth")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w", compression) as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return other


def test_a_tensor_larger_than_its_storage_is_refused_before_it_is_made(
    published_checkpoint: Publish, tmp_path: Path
) -> None:
    path = repacked(published_checkpoint(), lambda name, raw: raw[:-4] if name.endswith("data/0") else raw)
    with pytest.raises(WeightsError, match=r"record .*data/0 holds 508 bytes, expected 128 elements"):
        convert_weights(path, tmp_path / "model.safetensors")


def test_a_tensor_expanded_from_one_number_is_refused(tmp_path: Path, small_vit: MakeVit) -> None:
    state = small_vit().state_dict() | {"norm.bias": torch.ones(1).expand(128)}
    torch.save({"teacher": state}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="expected 1 elements"):
        convert_weights(tmp_path / "model.pth", tmp_path / "model.safetensors")


def test_a_flipped_bit_in_a_tensor_is_refused(published_checkpoint: Publish, tmp_path: Path) -> None:
    path = published_checkpoint()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)
    with pytest.raises(WeightsError, match="CRC-32"):
        convert_weights(path, tmp_path / "model.safetensors")


def test_big_endian_files_are_refused(published_checkpoint: Publish, tmp_path: Path) -> None:
    path = repacked(published_checkpoint(), lambda name, raw: b"big" if name.endswith("byteorder") else raw)
    with pytest.raises(WeightsError, match="big-endian"):
        convert_weights(path, tmp_path / "model.safetensors")


def test_views_with_strides_and_offsets_come_through(tmp_path: Path, small_vit: MakeVit) -> None:
    state = small_vit().state_dict()
    plain = {name: tensor.clone() for name, tensor in state.items()}
    state["blocks.0.mlp.fc1.weight"] = state["blocks.0.mlp.fc1.weight"].T.contiguous().T
    joint = torch.stack([state["norm.bias"], state["norm.weight"]])
    state["norm.weight"] = joint[1]
    torch.save(state, tmp_path / "model.pth")
    convert_weights(tmp_path / "model.pth", tmp_path / "model.safetensors")
    found = load_weights(tmp_path / "model.safetensors").state
    assert all(np.array_equal(found[name], plain[name].float()) for name in plain)


def test_a_file_of_an_old_torch_converts_too(tmp_path: Path, small_vit: MakeVit) -> None:
    state = small_vit().state_dict()
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    conversion = convert_weights(tmp_path / "old.pth", tmp_path / "model.safetensors")
    assert conversion.weights_sha256 == weights_sha256(state)


def test_a_failed_conversion_leaves_the_old_output(tmp_path: Path, published_checkpoint: Publish) -> None:
    output = tmp_path / "model.safetensors"
    output.write_bytes(b"before")
    path = published_checkpoint(extra={"teacher": {"norm.bias": torch.ones(3)}})
    with pytest.raises(WeightsMismatch):
        convert_weights(path, output)
    assert output.read_bytes() == b"before"


def test_the_output_must_be_safetensors_and_the_input_there(tmp_path: Path, published_checkpoint: Publish) -> None:
    with pytest.raises(UsageError, match=r"expected \.safetensors"):
        convert_weights(published_checkpoint(), tmp_path / "model.bin")
    with pytest.raises(MissingWeights):
        convert_weights(tmp_path / "none.pth", tmp_path / "model.safetensors")
