"""A backbone that is known before it is loaded.

Whether something was loaded is asked of a process without import hooks: checking a value against the protocol
`SliceEncoder`, as beartype does in tests, reads its properties, and one of them loads.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import meddinov3_stroke.backbone as backbone_room
from meddinov3_stroke.backbone import Backbone, load_backbone
from meddinov3_stroke.errors import NonFiniteEmbedding
from meddinov3_stroke.lazy_backbone import LazyBackbone, SliceEncoder, open_backbone
from meddinov3_stroke.models import BackbonePlan, plan_backbone

RandomWeights = Callable[..., Path]

PROBE = """
import json, sys
from dataclasses import asdict
from meddinov3_stroke.lazy_backbone import open_backbone
from meddinov3_stroke.models import plan_backbone
answers = []
for engine, precision in json.loads(sys.argv[2]):
    opened = open_backbone(plan_backbone(sys.argv[1], engine, precision, "cpu"))
    answers.append([type(opened).__name__, opened.device, list(opened.warnings), asdict(opened.identity)])
print(json.dumps({"answers": answers, "imported": [name for name in ("torch", "openvino") if name in sys.modules]}))
"""

TORCH = {"engine": "torch", "precision": "fp32", "device": "cpu"}


def hu(n: int = 3) -> np.ndarray:
    return np.random.default_rng(4).uniform(-1000, 1000, (n, 32, 32)).astype(np.float32)


def lazily(path: Path) -> LazyBackbone:
    """A backbone whose weights were read before, not loaded again yet."""
    load_backbone(path, **TORCH)
    plan = plan_backbone(path, **TORCH)
    identity = plan.known_identity()
    assert identity is not None
    return LazyBackbone(plan, identity)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[BackbonePlan]:
    """The plans that are loaded, each taking long enough for a second thread to come."""
    plans: list[BackbonePlan] = []
    really = backbone_room.load_planned

    def slowly(plan: BackbonePlan) -> Backbone:
        plans.append(plan)
        time.sleep(0.2)
        return really(plan)

    monkeypatch.setattr(backbone_room, "load_planned", slowly)
    return plans


def test_weights_that_were_never_read_are_loaded_and_known_ones_are_not(random_weights: RandomWeights) -> None:
    path = random_weights()
    first, second = (open_backbone(plan_backbone(path, **TORCH)) for _ in range(2))
    assert isinstance(first, Backbone)
    assert isinstance(second, LazyBackbone)
    assert second.identity == first.identity == second.loaded.identity
    assert (second.device, second.warnings) == (first.device, first.warnings)


def test_opening_what_is_known_imports_neither_torch_nor_openvino(random_weights: RandomWeights) -> None:
    path = random_weights()
    expected = load_backbone(path, **TORCH).identity
    auto = plan_backbone(path, device="cpu")
    if auto.fidelity_way is not None:
        auto.records.keep_fidelity(expected.weights_sha256, auto.fidelity_way, 1.0)
    ways = [("torch", "fp32"), ("openvino", "bf16"), ("auto", "auto")]
    result = subprocess.run(
        [sys.executable, "-c", PROBE, str(path), json.dumps(ways)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = json.loads(result.stdout)
    assert found["imported"] == []
    assert [name for name, *_ in found["answers"]] == ["LazyBackbone"] * 3
    assert found["answers"][0] == ["LazyBackbone", "cpu", [], asdict(expected)]
    runs = [(identity["engine"], identity["precision"]) for *_, identity in found["answers"]]
    assert runs == [("torch", "fp32"), ("openvino", "bf16"), (auto.execution.engine, auto.execution.precision)]


def test_a_backbone_loads_once_whoever_asks_and_however_many(
    random_weights: RandomWeights, loads: list[BackbonePlan]
) -> None:
    lazy = lazily(random_weights())
    assert loads == []
    together = threading.Barrier(2)

    def ask() -> np.ndarray:
        together.wait(timeout=10)
        return lazy.embed(hu(), resize=32).cls

    with ThreadPoolExecutor(2) as pool:
        first, second = (future.result(timeout=60) for future in [pool.submit(ask), pool.submit(ask)])
    assert len(loads) == 1
    assert np.array_equal(first, second)


def test_a_load_that_failed_is_tried_again(random_weights: RandomWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = lazily(random_weights())
    with monkeypatch.context() as patch:
        patch.setattr(backbone_room, "load_planned", lambda plan: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            lazy.side(32)
    assert lazy.side(32) == 2


@pytest.mark.parametrize(
    "ask",
    [
        lambda backbone: backbone.embed(hu(), resize=32, batch=2, patches=True).patches,
        lambda backbone: backbone.embed(hu(), resize=32, batch=2).cls,
        lambda backbone: backbone.embed_windows(iter([hu(2), hu(1)]), resize=32).cls,
        lambda backbone: backbone.prepare(hu(), 32),
        lambda backbone: backbone.class_tokens(backbone.prepare(hu(), 32)),
        lambda backbone: np.array(backbone.side(64)),
        lambda backbone: np.array(backbone.independent_rows),
    ],
    ids=["embed patches", "embed", "embed_windows", "prepare", "class_tokens", "side", "independent_rows"],
)
def test_every_question_has_the_answer_of_the_loaded_backbone(
    random_weights: RandomWeights, ask: Callable[[Any], np.ndarray]
) -> None:
    path = random_weights()
    lazy = lazily(path)
    assert np.array_equal(ask(lazy), ask(load_backbone(path, **TORCH)))


def test_the_callback_and_the_refusal_go_through(random_weights: RandomWeights) -> None:
    lazy, told = lazily(random_weights()), []
    lazy.embed(hu(), resize=32, batch=2, on_batch=told.append)
    assert told == [2, 1]
    broken = np.full((2, 64), np.nan, dtype=np.float32)
    with pytest.raises(NonFiniteEmbedding, match="at position 5"):
        lazy.refuse_non_finite(broken, first=5)


def test_both_kinds_are_slice_encoders(random_weights: RandomWeights) -> None:
    lazy = lazily(random_weights())
    assert isinstance(lazy, SliceEncoder)
    assert isinstance(lazy.loaded, SliceEncoder)
