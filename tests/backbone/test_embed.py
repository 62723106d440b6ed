"""`load_backbone` and `Backbone.embed`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from meddinov3_stroke.backbone import (
    Backbone,
    TorchEngine,
    VisionTransformer,
    load_backbone,
    loading,
    prepare_channel,
)
from meddinov3_stroke.backbone.backbone import is_out_of_memory
from meddinov3_stroke.backbone.loading import REGISTERED
from meddinov3_stroke.errors import DeviceUnavailable, MachineError, MissingWeights, NonFiniteEmbedding, UsageError

MakeVit = Callable[..., VisionTransformer]
Publish = Callable[..., Path]


def slices(n: int = 5, n_rows: int = 40, n_columns: int = 40) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1000, 1500, (n, n_rows, n_columns)).astype(np.float32)


@torch.inference_mode()
def test_tokens_are_those_of_the_transformer_on_prepared_slices(small_backbone: Backbone, small_vit: MakeVit) -> None:
    hu = slices()
    tokens = small_backbone.embed(hu, resize=64, batch=5, patches=True)
    features = small_vit().forward_features(torch.from_numpy(prepare_channel(hu, 64)).expand(-1, 3, -1, -1))
    assert tokens.grid == (4, 4)
    np.testing.assert_allclose(tokens.cls, features["x_norm_clstoken"].numpy(), rtol=0, atol=1e-3)
    np.testing.assert_allclose(tokens.patches, features["x_norm_patchtokens"].numpy(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("batch", [1, 2, 3, 64])
def test_the_batch_changes_no_slice(small_backbone: Backbone, batch: int) -> None:
    hu = slices()
    whole = small_backbone.embed(hu, resize=64, batch=5, patches=True)
    parts = small_backbone.embed(hu, resize=64, batch=batch, patches=True)
    np.testing.assert_allclose(parts.cls, whole.cls, rtol=0, atol=1e-5)
    np.testing.assert_allclose(parts.patches, whole.patches, rtol=0, atol=1e-5)


def test_patches_come_only_on_request(small_backbone: Backbone) -> None:
    assert small_backbone.embed(slices(1), resize=32).patches is None


def test_on_batch_is_told_every_slice_once(small_backbone: Backbone) -> None:
    told: list[int] = []
    small_backbone.embed(slices(5), resize=32, batch=2, on_batch=told.append)
    assert told == [2, 2, 1]


@pytest.mark.parametrize(("resize", "nearest"), [(100, 96), (225, 224), (8, 16), (0, 16), (-16, 16)])
def test_a_resize_that_is_no_multiple_of_the_patch_is_a_usage_error(
    small_backbone: Backbone, resize: int, nearest: int
) -> None:
    with pytest.raises(UsageError, match=f"multiple of 16; the nearest is {nearest}"):
        small_backbone.embed(slices(1), resize=resize)


def test_no_slices_and_no_batch_are_usage_errors(small_backbone: Backbone) -> None:
    with pytest.raises(UsageError, match="expected \\[n, row, col\\] with n >= 1"):
        small_backbone.embed(slices(0), resize=32)
    with pytest.raises(UsageError, match="--batch 0"):
        small_backbone.embed(slices(1), resize=32, batch=0)


def test_a_slice_that_gives_nan_is_named(small_backbone: Backbone) -> None:
    hu = slices(4)
    hu[3, 5, 5] = np.nan
    with pytest.raises(NonFiniteEmbedding, match=r"model\.pth gave NaN or infinity for 1 of the slices.*position 3"):
        small_backbone.embed(hu, resize=32, batch=2)


class Crowded:
    """An engine that has room for `room` slices and keeps a diary."""

    def __init__(self, inner: TorchEngine, room: int, error: Exception) -> None:
        self._inner, self._room, self._error = inner, room, error
        self.passes: list[int] = []

    def class_tokens(self, pixels: np.ndarray) -> np.ndarray:
        self.passes.append(len(pixels))
        if len(pixels) > self._room:
            raise self._error
        return self._inner.class_tokens(pixels)

    def tokens(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.passes.append(len(pixels))
        if len(pixels) > self._room:
            raise self._error
        return self._inner.tokens(pixels)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    MemoryError(),
]


def crowded(small_backbone: Backbone, small_vit: MakeVit, room: int, error: Exception) -> tuple[Backbone, Crowded]:
    engine = Crowded(small_backbone._engine, room, error)
    return Backbone(small_backbone.identity, "cpu", lambda: engine), engine


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: type(e).__name__)
def test_the_batch_halves_when_memory_runs_out_and_no_slice_is_lost(
    small_backbone: Backbone, small_vit: MakeVit, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    backbone, engine = crowded(small_backbone, small_vit, 2, error)
    hu = slices(7)
    with caplog.at_level(logging.WARNING, logger="meddinov3_stroke"):
        found = backbone.embed(hu, resize=32, batch=8)
    assert engine.passes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    np.testing.assert_allclose(found.cls, small_backbone.embed(hu, resize=32).cls, rtol=0, atol=1e-5)
    assert [record.args for record in caplog.records] == [("cpu", 3), ("cpu", 1)]


def test_one_slice_that_does_not_fit_ends_the_run_with_what_to_do(small_backbone: Backbone, small_vit: MakeVit) -> None:
    backbone, engine = crowded(small_backbone, small_vit, 0, OUT_OF_MEMORY[0])
    with pytest.raises(MachineError, match=r"too little memory for one slice at --resize 32"):
        backbone.embed(slices(4), resize=32, batch=4)
    assert engine.passes == [4, 2, 1]


def test_another_runtime_error_is_not_taken_for_memory(small_backbone: Backbone, small_vit: MakeVit) -> None:
    backbone, engine = crowded(small_backbone, small_vit, 0, RuntimeError("device-side assert"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        backbone.embed(slices(4), resize=32, batch=4)
    assert engine.passes == [4]
    assert not is_out_of_memory(ValueError("out of memory"))


def test_the_identity_says_what_computes(published_checkpoint: Publish) -> None:
    backbone = load_backbone(published_checkpoint("ct.pth"), engine="torch", precision="fp32", device="cpu")
    identity = backbone.identity
    assert (identity.name, identity.engine, identity.precision) == ("ct.pth", "torch", "fp32")
    assert (identity.embed_dim, identity.patch_size, identity.rope_dtype) == (128, 16, "bf16")
    assert identity.preprocessing.version == "meddinov3-1"
    assert len(identity.weights_sha256) == 64
    assert backbone.device == "cpu"


def test_bf16_stays_close_and_says_so(published_checkpoint: Publish) -> None:
    path, hu = published_checkpoint(), slices()
    reference = load_backbone(path, engine="torch", precision="fp32", device="cpu").embed(hu, resize=64).cls
    backbone = load_backbone(path, device="cpu", precision="bf16")
    found = backbone.embed(hu, resize=64).cls
    cosine = (found * reference).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(reference, axis=1)
    assert backbone.identity.precision == "bf16"
    assert not np.array_equal(found, reference)
    assert cosine.min() > 0.999


@torch.inference_mode()
def test_weights_rounded_once_give_the_bits_of_autocast(small_vit: MakeVit) -> None:
    pixels = prepare_channel(slices(2), 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = small_vit().forward_features(torch.from_numpy(pixels).expand(-1, 3, -1, -1))
    expected = features["x_norm_clstoken"], features["x_norm_patchtokens"]
    found = TorchEngine(small_vit(), "cpu", "bf16").tokens(pixels)
    for ours, autocast in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, autocast.float().numpy())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "onnx"}, "--engine onnx: .*expected one of auto, torch, openvino"),
        ({"precision": "fp16"}, "--precision fp16: .*expected one of auto, fp32, bf16, int8"),
        ({"engine": "torch", "precision": "int8"}, "int8 runs on OpenVINO only"),
        ({"device": "tpu"}, "--device tpu"),
    ],
)
def test_an_unknown_engine_precision_or_device_is_a_usage_error(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_backbone("whatever.pth", **arguments)


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
def test_a_gpu_asked_for_by_name_never_falls_back(published_checkpoint: Publish) -> None:
    with pytest.raises(DeviceUnavailable):
        load_backbone(published_checkpoint(), device="gpu")


def test_missing_weights_name_the_download_and_the_register(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights) as caught:
        load_backbone(tmp_path / "model.pth", device="cpu")
    assert f"meddinov3-stroke download --output {tmp_path / 'model.pth'}" in str(caught.value)
    assert "demo" in str(caught.value)
    assert caught.value.exit_code == 6


def test_a_registered_name_without_its_file_is_missing_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTERED, "ghost", "ghost.safetensors")
    with pytest.raises(MissingWeights, match="'ghost' is not in this installation"):
        load_backbone("ghost", device="cpu")


def test_a_registered_name_wins_and_a_path_is_a_path(
    monkeypatch: pytest.MonkeyPatch, published_checkpoint: Publish, tmp_path: Path
) -> None:
    monkeypatch.setattr(loading, "files", lambda package: tmp_path)
    (tmp_path / "backbone" / "weights").mkdir(parents=True)
    published_checkpoint().rename(tmp_path / "backbone" / "weights" / "own.pth")
    monkeypatch.setitem(REGISTERED, "own", "own.pth")
    assert load_backbone("own", device="cpu").identity.name == "own"
    with pytest.raises(MissingWeights):
        load_backbone(Path("own"), device="cpu")
