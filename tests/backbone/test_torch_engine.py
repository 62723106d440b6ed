"""torch as the engine: its arithmetic, and what it asks of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from meddinov3_stroke.backbone import TorchEngine, VisionTransformer, load_backbone, load_weights
from meddinov3_stroke.backbone.loading import cosines
from meddinov3_stroke.backbone.torch_engine import full_float32_products
from meddinov3_stroke.backbone.weights import build_module

MakeVit = Callable[..., VisionTransformer]
Publish = Callable[..., Path]


def pixels(n: int = 3, side: int = 32) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(n, 1, side, side)).astype(np.float32)


@pytest.fixture
def on_cuda(small_vit: MakeVit, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[TorchEngine, list[object]]]:
    """Makes an engine that takes its device for a GPU, and the diary of how pixels went there; both on the CPU."""
    diary: list[object] = []
    really_to = Tensor.to

    def pin_memory(tensor: Tensor) -> Tensor:
        diary.append("pinned")
        return tensor

    def to(tensor: Tensor, *target: Any, **how: Any) -> Tensor:
        if not (target and isinstance(target[0], torch.device)):
            return really_to(tensor, *target, **how)
        diary.append((target[0].type, how))
        return tensor

    def make(precision: str) -> tuple[TorchEngine, list[object]]:
        engine = TorchEngine(small_vit(), "cpu", precision)
        engine._device = torch.device("cuda")
        monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
        monkeypatch.setattr(Tensor, "to", to)
        return engine, diary

    return make


@pytest.fixture
def tf32_allowed() -> Iterator[None]:
    """A process in which somebody allowed TF32; the setting is no plain attribute, so it is put back by hand."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_answers_are_float32_of_the_same_class_tokens_with_and_without_patches(
    small_vit: MakeVit, precision: str
) -> None:
    engine = TorchEngine(small_vit(), "cpu", precision)
    cls, patches = engine.tokens(pixels())
    alone = engine.class_tokens(pixels())
    assert (alone.dtype, cls.dtype, patches.dtype) == (np.float32,) * 3
    assert (alone.shape, patches.shape) == ((3, 128), (3, 4, 128))
    assert cosines(alone, cls).min() > 0.9999


@torch.inference_mode()
def test_bf16_is_the_autocast_of_the_plain_module(small_vit: MakeVit) -> None:
    given = pixels()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = small_vit()(torch.from_numpy(given).expand(-1, 3, -1, -1)).float().numpy()
    assert cosines(TorchEngine(small_vit(), "cpu", "bf16").class_tokens(given), expected).min() > 0.9999


def test_bf16_multiplies_in_bf16_and_keeps_norms_and_stream_in_float32(small_vit: MakeVit) -> None:
    engine = TorchEngine(small_vit(), "cpu", "bf16")
    products, norms, streams = set(), set(), set()
    for part in engine._vit.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.register_forward_hook(lambda part, given, out: products.add(out.dtype))
        if isinstance(part, nn.LayerNorm):
            part.register_forward_hook(lambda part, given, out: norms.add(out.dtype))
            part.register_forward_pre_hook(lambda part, given: streams.add(given[0].dtype))
    engine.tokens(pixels())
    assert products == {torch.bfloat16}
    assert norms == streams == {torch.float32}


def test_a_bf16_engine_leaves_the_tensors_it_was_made_of_unrounded(published_checkpoint: Publish) -> None:
    weights = load_weights(published_checkpoint())
    before = TorchEngine(build_module(weights), "cpu", "fp32").class_tokens(pixels())
    TorchEngine(build_module(weights), "cpu", "bf16")
    assert np.array_equal(TorchEngine(build_module(weights), "cpu", "fp32").class_tokens(pixels()), before)


def test_pixels_in_any_memory_order_are_taken(small_vit: MakeVit) -> None:
    engine, given = TorchEngine(small_vit(), "cpu", "fp32"), pixels()
    backwards = given[:, :, ::-1, ::-1]
    assert np.array_equal(engine.class_tokens(backwards), engine.class_tokens(np.ascontiguousarray(backwards)))


def test_no_gradient_is_kept(small_vit: MakeVit) -> None:
    engine, seen = TorchEngine(small_vit(), "cpu", "fp32"), []
    engine._vit.norm.register_forward_hook(lambda part, given, out: seen.append(out.is_inference()))
    engine.class_tokens(pixels())
    assert seen == [True]


def test_pixels_go_to_a_gpu_from_pinned_memory_without_waiting(
    on_cuda: Callable[[str], tuple[TorchEngine, list[object]]],
) -> None:
    engine, diary = on_cuda("fp32")
    assert engine.class_tokens(pixels()).shape == (3, 128)
    assert diary == ["pinned", ("cuda", {"non_blocking": True})]


def test_pixels_for_the_cpu_are_not_pinned(small_vit: MakeVit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pytest.fail("pinned for the CPU"))
    assert TorchEngine(small_vit(), "cpu", "fp32").class_tokens(pixels()).shape == (3, 128)


@pytest.mark.usefixtures("tf32_allowed")
def test_fp32_on_a_gpu_is_not_rounded_to_tf32_and_the_setting_comes_back(
    on_cuda: Callable[[str], tuple[TorchEngine, list[object]]],
) -> None:
    engine, _ = on_cuda("fp32")
    seen: list[bool] = []
    engine._vit.norm.register_forward_hook(lambda part, given, out: seen.append(torch.backends.cuda.matmul.allow_tf32))
    engine.class_tokens(pixels())
    assert seen == [False]
    assert torch.backends.cuda.matmul.allow_tf32 is True


@pytest.mark.usefixtures("tf32_allowed")
def test_the_tf32_setting_comes_back_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="in the middle"), full_float32_products():
        raise RuntimeError("in the middle")
    assert torch.backends.cuda.matmul.allow_tf32 is True


@pytest.mark.parametrize(("precision", "expected"), [("bf16", [("cuda", torch.bfloat16)]), ("fp32", [])])
def test_only_bf16_asks_the_gpu_for_autocast(
    on_cuda: Callable[[str], tuple[TorchEngine, list[object]]],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    expected: list[object],
) -> None:
    engine, _ = on_cuda(precision)
    asked: list[object] = []
    autocast = torch.autocast

    @contextmanager
    def on_cpu_instead(device_type: str, dtype: torch.dtype) -> Iterator[None]:
        asked.append((device_type, dtype))
        with autocast("cpu", dtype=dtype) if precision == "bf16" else nullcontext():
            yield

    monkeypatch.setattr(torch, "autocast", on_cpu_instead)
    engine.class_tokens(pixels())
    assert asked == expected


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the functions that went through `torch.compile`, which gives them back as they are."""
    names: list[str] = []

    def compile_(function: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]:
        assert dynamic  # any number of slices in a pass
        names.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    return names


@pytest.mark.parametrize(("wish", "expected"), [({}, []), ({"torch_compile": True}, ["_forward"])])
def test_torch_compiles_only_when_asked(
    published_checkpoint: Publish, compiled: list[str], wish: dict[str, bool], expected: list[str]
) -> None:
    backbone = load_backbone(published_checkpoint(), engine="torch", precision="fp32", device="cpu", **wish)
    assert backbone.class_tokens(pixels()).shape == (3, 128)
    assert compiled == expected
