"""Weights that do not stand a lower precision fall back to fp32; measured once, and only where none was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meddinov3_stroke.backbone import (
    Backbone,
    TorchEngine,
    VisionTransformer,
    load_backbone,
    loading,
)
from meddinov3_stroke.backbone.loading import cosines, measure_fidelity, sample_slices
from meddinov3_stroke.backbone.preprocessing import PREPROCESSING
from meddinov3_stroke.system import devices

MakeVit = Callable[..., VisionTransformer]
Publish = Callable[..., Path]


@pytest.fixture(autouse=True)
def bf16_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that multiplies bf16, so that `auto` would take it; slices are tried at a size that takes no time."""
    monkeypatch.setattr(loading, "SAMPLE_SIDE", 64)
    for module in (devices, loading):
        monkeypatch.setattr(module, "bf16_flag", lambda: "avx512_bf16")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The fidelities that loading measures, as it does."""
    found: list[float] = []

    def measure(*given: Any) -> float:
        found.append(measure_fidelity(*given))
        return found[-1]

    monkeypatch.setattr(loading, "measure_fidelity", measure)
    return found


def spoil_bf16(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """Let the class tokens of every bf16 engine miss by noise."""
    sound = TorchEngine.class_tokens

    def noisy(engine: TorchEngine, pixels: np.ndarray) -> np.ndarray:
        cls = sound(engine, pixels)
        noise = np.random.default_rng(0).normal(0, scale, cls.shape).astype(np.float32)
        return cls + noise if engine._precision == "bf16" else cls

    monkeypatch.setattr(TorchEngine, "class_tokens", noisy)


def load(path: Path, precision: str = "auto", device: str = "cpu", engine: str = "torch") -> Backbone:
    cache_dir = path.parent / "engine_cache"
    return load_backbone(path, engine=engine, precision=precision, device=device, cache_dir=cache_dir)


def test_weights_that_stand_bf16_keep_it_and_are_measured_once(
    published_checkpoint: Publish, measured: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    path = published_checkpoint()
    assert [load(path).identity.precision for _ in range(2)] == ["bf16", "bf16"]
    assert len(measured) == 1
    assert 0.9999 <= measured[0] < 1.0
    assert "using fp32" not in caplog.text


def test_weights_that_do_not_stand_bf16_fall_to_fp32_and_are_measured_once(
    published_checkpoint: Publish,
    measured: list[float],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, pixels = published_checkpoint(), np.zeros((1, 1, 32, 32), dtype=np.float32)
    spoil_bf16(monkeypatch, 0.05)
    backbones = [load(path) for _ in range(2)]
    assert [backbone.identity.precision for backbone in backbones] == ["fp32", "fp32"]
    assert len(measured) == 1
    assert measured[0] < 0.9999
    assert caplog.text.count(f"model.pth: CLS cosine to fp32 is {measured[0]:.6f} in bf16; using fp32") == 1
    expected = load(path, "fp32").class_tokens(pixels)
    assert all(np.array_equal(backbone.class_tokens(pixels), expected) for backbone in backbones)


def test_what_was_measured_is_on_record(published_checkpoint: Publish, measured: list[float]) -> None:
    path = published_checkpoint()
    load(path)
    (record,) = (path.parent / "engine_cache" / "records").iterdir()
    assert list(json.loads(record.read_text())["fidelity"].values()) == [measured[0]]


def test_other_weights_are_measured_for_themselves(published_checkpoint: Publish, measured: list[float]) -> None:
    load(published_checkpoint("a.pth"))
    load(published_checkpoint("b.pth", seed=1))
    assert len(set(measured)) == 2


@pytest.mark.parametrize(("cosine", "precision"), [(0.9999, "bf16"), (0.99989, "fp32"), (-1.0, "fp32")])
def test_auto_takes_bf16_from_the_least_cosine_on(
    published_checkpoint: Publish, monkeypatch: pytest.MonkeyPatch, cosine: float, precision: str
) -> None:
    path = published_checkpoint()
    monkeypatch.setattr(loading, "measure_fidelity", lambda *given: cosine)
    assert load(path).identity.precision == precision
    monkeypatch.setattr(loading, "measure_fidelity", lambda *given: pytest.fail("measured again"))
    assert load(path).identity.precision == precision


def test_another_engine_version_or_instruction_set_is_measured_for_itself(
    published_checkpoint: Publish, measured: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = published_checkpoint()
    load(path)
    load(path, engine="openvino")
    monkeypatch.setattr(loading, "version", lambda package: "9.9+local")
    load(path)
    monkeypatch.setattr(loading, "bf16_flag", lambda: "amx_bf16")
    load(path)
    load(path)
    assert len(measured) == 4


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_precision_that_was_asked_for_is_not_measured(
    published_checkpoint: Publish, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(loading, "measure_fidelity", lambda *given: pytest.fail("measured"))
    spoil_bf16(monkeypatch, 0.05)
    assert load(published_checkpoint(), precision).identity.precision == precision


def test_weights_that_overflow_in_bf16_fall_to_fp32(
    published_checkpoint: Publish, measured: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = published_checkpoint()
    spoil_bf16(monkeypatch, float("inf"))
    assert [load(path).identity.precision for _ in range(2)] == ["fp32", "fp32"]
    assert measured == [-1.0]


def test_the_engine_that_was_tried_is_the_one_that_runs(
    published_checkpoint: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    really = TorchEngine.__init__

    def counted(engine: TorchEngine, vit: VisionTransformer, device: str, precision: str, **more: bool) -> None:
        made.append(precision)
        really(engine, vit, device, precision, **more)

    monkeypatch.setattr(TorchEngine, "__init__", counted)
    load(published_checkpoint())
    assert made == ["bf16", "fp32"]  # the one tried, and the reference


def test_without_torch_bf16_is_compared_with_our_own_fp32_graph(
    published_checkpoint: Publish, measured: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchEngine, "__init__", lambda *given: pytest.fail("torch was used"))
    backbone = load(published_checkpoint(), engine="auto")
    assert (backbone.identity.engine, backbone.identity.precision) == ("openvino", "bf16")
    assert len(measured) == 1
    assert 0.9999 <= measured[0] <= 1.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_engine_is_compared_with_fp32(small_vit: MakeVit, precision: str) -> None:
    reference = TorchEngine(small_vit(), "cpu", "fp32")
    found = measure_fidelity(TorchEngine(small_vit(), "cpu", precision), reference, PREPROCESSING)
    assert (abs(found - 1) < 1e-9) == (precision == "fp32")
    assert measure_fidelity(TorchEngine(small_vit(seed=1), "cpu", precision), reference, PREPROCESSING) < 0.99


def test_one_bad_slice_is_enough(small_vit: MakeVit, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, reference = (TorchEngine(small_vit(), "cpu", "fp32") for _ in range(2))
    sound = engine.class_tokens
    signs = np.ones((len(sample_slices()), 1), dtype=np.float32)
    signs[1] = -1
    monkeypatch.setattr(engine, "class_tokens", lambda pixels: sound(pixels) * signs)
    assert abs(measure_fidelity(engine, reference, PREPROCESSING) + 1) < 1e-6


def test_a_cosine_knows_no_length() -> None:
    a = np.eye(2, dtype=np.float32)
    b = np.array([[2, 0], [1, 1]], dtype=np.float32)
    np.testing.assert_allclose(cosines(a, b), [1, np.sqrt(0.5)])


def test_sample_slices_are_heads_that_differ_and_never_change() -> None:
    first, second = sample_slices(), sample_slices()
    assert np.array_equal(first, second)
    assert len(np.unique(first.reshape(len(first), -1), axis=0)) == len(first)
    assert all((hu == -1000).any() and (hu == 1100).any() and ((hu > 0) & (hu < 80)).mean() > 0.1 for hu in first)
