"""Loading weights: layouts, strictness, digest."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from meddinov3_stroke.backbone import (
    VisionTransformer,
    load_weights,
    save_backbone,
    save_safetensors,
    weights_sha256,
)
from meddinov3_stroke.backbone.weights import build_module, published_layout
from meddinov3_stroke.errors import MissingWeights, UnsafeWeights, WeightsError, WeightsMismatch

MakeVit = Callable[..., VisionTransformer]
Publish = Callable[..., Path]


def same_tensors(found: dict[str, np.ndarray], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[k], expected[k].float()) for k in found)


def test_the_published_layout_loads_without_its_training_heads(
    published_checkpoint: Publish, small_vit: MakeVit
) -> None:
    weights = load_weights(published_checkpoint())
    assert same_tensors(weights.state, small_vit().state_dict())
    assert set(weights.ignored) == {"iteration", "dino_head.mlp.0.weight", "backbone.ibot_head.weight"}


def test_a_plain_state_dict_loads(tmp_path: Path, small_vit: MakeVit) -> None:
    path = tmp_path / "plain.pth"
    torch.save(small_vit().state_dict(), path)
    weights = load_weights(path)
    assert same_tensors(weights.state, small_vit().state_dict())
    assert weights.ignored == ()


@torch.inference_mode()
def test_a_loaded_module_computes_what_the_saved_one_did(published_checkpoint: Publish, small_vit: MakeVit) -> None:
    x = torch.randn(1, 3, 64, 64)
    vit = build_module(load_weights(published_checkpoint()))
    assert torch.equal(vit(x), small_vit()(x))
    assert not vit.training
    assert not any(p.requires_grad for p in vit.parameters())


def test_pth_and_safetensors_of_the_same_weights_share_their_digest(
    tmp_path: Path, published_checkpoint: Publish, small_vit: MakeVit
) -> None:
    pth = load_weights(published_checkpoint())
    told = save_backbone(small_vit(), tmp_path / "own.safetensors", "own")
    own = load_weights(tmp_path / "own.safetensors")
    assert weights_sha256(pth.state, pth.architecture) == weights_sha256(own.state, own.architecture) == told
    assert weights_sha256(small_vit().state_dict()) == told


@pytest.mark.parametrize("name", ["mask_token", "rope_embed.periods", "blocks.1.ls2.gamma", "norm.bias"])
def test_the_digest_changes_with_any_tensor(small_vit: MakeVit, name: str) -> None:
    state = small_vit().state_dict()
    changed = state | {name: state[name] * 1.5 + 0.25}
    assert weights_sha256(changed) != weights_sha256(state)


@pytest.mark.parametrize("change", [{"norm_layer": "layernormbf16"}, {"rope_dtype": "fp32"}])
def test_the_digest_changes_with_what_no_shape_shows(small_vit: MakeVit, change: dict[str, object]) -> None:
    vit = small_vit()
    architecture = vit.architecture
    state = vit.state_dict()
    other = dataclasses.replace(architecture, **change)
    assert weights_sha256(state, other) != weights_sha256(state, architecture)


def test_half_precision_copies_load_as_float32(tmp_path: Path, small_vit: MakeVit) -> None:
    digest = save_backbone(small_vit(), tmp_path / "half.safetensors", "half", torch.float16)
    weights = load_weights(tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in weights.state.values()} == {np.dtype(np.float32)}
    periods = torch.from_numpy(weights.state["rope_embed.periods"])
    assert torch.equal(periods.to(torch.bfloat16).float(), periods)
    assert weights_sha256(weights.state, weights.architecture) == digest


def test_periods_of_another_dtype_are_cast_on_load(tmp_path: Path, small_vit: MakeVit) -> None:
    state = small_vit().state_dict()
    path = tmp_path / "float.pth"
    torch.save(state | {"rope_embed.periods": state["rope_embed.periods"].double()}, path)
    loaded = load_weights(path).state["rope_embed.periods"]
    assert np.array_equal(loaded, state["rope_embed.periods"].float())


def test_fp32_rotation_takes_no_periods_from_the_file(tmp_path: Path, small_vit: MakeVit) -> None:
    vit = small_vit(pos_embed_rope_dtype="fp32")
    rounded = vit.rope_embed.periods.to(torch.bfloat16)
    save_safetensors(
        vit.state_dict() | {"rope_embed.periods": rounded}, tmp_path / "x.safetensors", {"rope_dtype": "fp32"}
    )
    weights = load_weights(tmp_path / "x.safetensors")
    assert np.array_equal(weights.state["rope_embed.periods"], vit.rope_embed.periods)
    assert not np.array_equal(weights.state["rope_embed.periods"], rounded.float())


def changed_file(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"teacher": state}, path)
    return path


def test_missing_unexpected_and_wrong_tensors_are_listed_and_counted(tmp_path: Path, small_vit: MakeVit) -> None:
    state = small_vit().state_dict()
    del state["blocks.0.norm1.weight"]
    state |= {f"extra.{i}": torch.ones(1) for i in range(10)}
    state["blocks.1.attn.proj.weight"] = torch.ones(3, 3)
    with pytest.raises(WeightsMismatch) as caught:
        load_weights(changed_file(tmp_path / "m.pth", state))
    message = str(caught.value)
    assert "1 missing: blocks.0.norm1.weight" in message
    assert "10 unexpected: extra.0, " in message
    assert "and 2 more" in message
    assert "1 wrong: blocks.1.attn.proj.weight found (3, 3) expected (128, 128)" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["cls_token", "norm.weight", "blocks.0.attn.qkv.weight", "rope_embed.periods"])
def test_no_tensor_may_be_missing(tmp_path: Path, small_vit: MakeVit, name: str) -> None:
    state = small_vit().state_dict()
    del state[name]
    with pytest.raises(WeightsMismatch, match=f"missing: {name}"):
        load_weights(changed_file(tmp_path / "m.pth", state))


def test_a_missing_block_is_a_mismatch_and_not_a_shorter_network(tmp_path: Path, small_vit: MakeVit) -> None:
    state = {k: v for k, v in small_vit(depth=3).state_dict().items() if not k.startswith("blocks.1.")}
    with pytest.raises(WeightsMismatch, match=r"13 missing: blocks\.1\..*13 unexpected: blocks\.2\."):
        load_weights(changed_file(tmp_path / "m.pth", state))


def test_integer_tensors_are_no_weights(tmp_path: Path, small_vit: MakeVit) -> None:
    state = small_vit().state_dict()
    state["norm.bias"] = state["norm.bias"].long()
    with pytest.raises(WeightsMismatch, match=r"norm\.bias found int64 expected floating point"):
        load_weights(changed_file(tmp_path / "m.pth", state))


@pytest.mark.parametrize(
    "content",
    [{"model": {"a": torch.ones(1)}, "epoch": 3}, [torch.ones(1)], {}, {"teacher": torch.ones(2)}, {1: torch.ones(1)}],
    ids=["nested", "list", "empty", "tensor", "numbers"],
)
def test_a_file_that_holds_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(WeightsMismatch, match="expected 'teacher' with a state dict in it"):
        load_weights(path)


def test_one_name_with_and_without_prefix_is_refused() -> None:
    with pytest.raises(WeightsMismatch, match=r"both with and without 'backbone\.'"):
        published_layout({"backbone.norm.bias": 1, "norm.bias": 2}, "file")


@given(st.dictionaries(st.text(min_size=1, max_size=12), st.integers(), min_size=1))
def test_entries_and_ignored_names_together_are_the_file(content: dict[str, int]) -> None:
    names = {f"backbone.{name}": value for name, value in content.items()} | {"x.ibot.y": 0, "dino_head.z": 0}
    entries, ignored = published_layout({"teacher": names, "optimizer": 1}, "file")
    assert len(entries) + len(ignored) == len(names) + 1
    assert {"x.ibot.y", "dino_head.z", "optimizer"} <= set(ignored)


def test_a_pickle_with_more_than_tensors_is_refused_with_the_way_out(published_checkpoint: Publish) -> None:
    path = published_checkpoint(extra={"args": argparse.Namespace(lr=1e-3)})
    with pytest.raises(UnsafeWeights, match=r"argparse\.Namespace.*convert-weights --input model\.pth"):
        load_weights(path)


IMPOSTORS = {
    "empty": (b"", "is an empty file"),
    "html": (b"\n<!DOCTYPE html><html>quota</html>", "HTML page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git-LFS pointer"),
    "noise": (b"\x00\x01not weights at all", "not a readable"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", IMPOSTORS)
def test_an_impostor_is_named_for_what_it_is(tmp_path: Path, kind: str, suffix: str) -> None:
    content, message = IMPOSTORS[kind]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        load_weights(path)


def test_a_directory_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a directory"):
        load_weights(tmp_path)
    with pytest.raises(MissingWeights, match="no weights file at"):
        load_weights(tmp_path / "none.pth")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused(
    tmp_path: Path, published_checkpoint: Publish, small_vit: MakeVit, suffix: str, share: float
) -> None:
    path = published_checkpoint() if suffix == ".pth" else tmp_path / "own.safetensors"
    if suffix == ".safetensors":
        save_backbone(small_vit(), path, "own")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(WeightsError, match="truncated"):
        load_weights(path)


def test_metadata_states_the_heads_that_no_shape_shows(tmp_path: Path, small_vit: MakeVit) -> None:
    save_backbone(small_vit(embed_dim=96, num_heads=3), tmp_path / "thin.safetensors", "thin")
    assert load_weights(tmp_path / "thin.safetensors").architecture.num_heads == 3


def test_metadata_under_plain_field_names_is_read_too(tmp_path: Path, small_vit: MakeVit) -> None:
    state = small_vit(embed_dim=96, num_heads=3).state_dict()
    stated = {"name": "thin", "num_heads": "3", "embed_dim": "96", "qkv_bias": "False", "rope_dtype": "bf16"}
    save_safetensors(state, tmp_path / "thin.safetensors", stated)
    assert load_weights(tmp_path / "thin.safetensors").architecture.num_heads == 3


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"depth": "7"}, "metadata states depth 7, the tensors show 2"),
        ({"num_heads": "5"}, "do not divide into 5 heads"),
        ({"architecture": "{"}, "no readable architecture"),
        ({"architecture": '{"colour": 1}'}, "unknown fields colour"),
        ({"rope_dtype": "fp8"}, "rope_dtype 'fp8'"),
    ],
)
def test_metadata_that_contradicts_the_tensors_is_refused(
    tmp_path: Path, small_vit: MakeVit, metadata: dict[str, str], message: str
) -> None:
    save_safetensors(small_vit().state_dict(), tmp_path / "x.safetensors", metadata)
    with pytest.raises(WeightsMismatch, match=message):
        load_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"depth": 3, "embed_dim": 64, "num_heads": 1},
        {"n_storage_tokens": 0},
        {"layerscale_init": None},
        {"patch_size": 8, "in_chans": 1},
        {"qkv_bias": True, "mask_k_bias": False},
        {"ffn_ratio": 3.0, "ffn_bias": False, "proj_bias": False},
        {"qkv_bias": True, "mask_k_bias": True, "pos_embed_rope_dtype": "fp32", "norm_layer": "layernormbf16"},
    ],
    ids=str,
)
@torch.inference_mode()
def test_the_architecture_is_read_off_the_shapes(
    tmp_path: Path, small_vit: MakeVit, changes: dict[str, object]
) -> None:
    vit = small_vit(**changes)
    path = tmp_path / "bare.safetensors"
    save_file(vit.state_dict(), path)
    x = torch.randn(1, changes.get("in_chans", 3), 48, 32)
    assert torch.equal(build_module(load_weights(path))(x), vit(x))


def test_a_tensor_type_that_is_not_supported_is_named(tmp_path: Path) -> None:
    save_file({"norm.weight": torch.zeros(4, dtype=torch.uint8)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsMismatch, match=r"tensors of type U8; convert them to F32"):
        load_weights(tmp_path / "w.safetensors")
