"""From a weights file to a backbone: what is learned of it once, and int8 that has to show its record."""

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

from meddinov3_stroke.backbone import Backbone, VisionTransformer, load_backbone, load_weights, loading, save_backbone
from meddinov3_stroke.backbone.int8 import save_graph
from meddinov3_stroke.backbone.openvino_engine import build_graph
from meddinov3_stroke.backbone.records import Calibration, calibration_folder, write_calibration
from meddinov3_stroke.errors import UsageError, WeightsError, WeightsMismatch
from meddinov3_stroke.system.digest import sha256_of_file

MakeVit = Callable[..., VisionTransformer]
Publish = Callable[..., Path]

SIDE = 32


def load(path: Path, **changes: Any) -> Backbone:
    where = {"cache_dir": path.parent / "engine_cache"}
    return load_backbone(path, **({"engine": "torch", "precision": "fp32", "device": "cpu"} | where | changes))


def pixels(n: int = 2, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(n, 1, side, side)).astype(np.float32)


def only_record(path: Path) -> Path:
    """The one record kept beside a weights file."""
    (record,) = (path.parent / "engine_cache" / "records").iterdir()
    return record


def test_the_identity_is_on_record_under_the_digest_of_the_file(
    published_checkpoint: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = published_checkpoint()
    identity = load(path).identity
    assert only_record(path).name == f"{sha256_of_file(path)}.json"
    assert json.loads(only_record(path).read_text())["weights_sha256"] == identity.weights_sha256
    monkeypatch.setattr(loading, "load_weights", lambda *given: pytest.fail("the weights were read again"))
    assert load(path).identity == identity


def test_other_bytes_under_the_same_name_are_read_anew(published_checkpoint: Publish) -> None:
    path = published_checkpoint()
    first = load(path).identity
    assert load(published_checkpoint(seed=1)).identity.weights_sha256 != first.weights_sha256
    assert len(list((path.parent / "engine_cache" / "records").iterdir())) == 2


def test_a_damaged_record_is_said_and_the_weights_are_read(
    published_checkpoint: Publish, caplog: pytest.LogCaptureFixture
) -> None:
    path = published_checkpoint()
    identity = load(path).identity
    only_record(path).write_text(only_record(path).read_text().replace(identity.weights_sha256, "0" * 64))
    assert load(path).identity == identity
    assert caplog.text.count("is damaged or unreadable") == 1
    load(path)
    assert caplog.text.count("is damaged or unreadable") == 1


def test_a_pth_and_our_safetensors_of_the_same_weights_share_their_digest(
    published_checkpoint: Publish, small_vit: MakeVit, tmp_path: Path
) -> None:
    digest = save_backbone(small_vit(), tmp_path / "own.safetensors", "own")
    ours, published = load(tmp_path / "own.safetensors"), load(published_checkpoint())
    assert ours.identity.weights_sha256 == published.identity.weights_sha256 == digest
    assert np.array_equal(ours.class_tokens(pixels()), published.class_tokens(pixels()))


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_weights_that_change_between_opening_and_loading_are_refused(
    published_checkpoint: Publish, engine: str
) -> None:
    path = published_checkpoint()
    load(path)
    backbone = load(path, engine=engine)
    published_checkpoint(seed=1)
    with pytest.raises(WeightsMismatch, match=r"model\.pth changed since it was opened"):
        backbone.class_tokens(pixels())


def test_weights_that_were_touched_and_not_changed_load(published_checkpoint: Publish) -> None:
    path = published_checkpoint()
    expected = load(path).class_tokens(pixels())
    backbone = load(path)
    path.touch()
    assert np.array_equal(backbone.class_tokens(pixels()), expected)


def test_weights_that_change_under_a_loaded_backbone_are_refused_at_another_size(
    published_checkpoint: Publish,
) -> None:
    backbone = load(published_checkpoint(), engine="openvino")
    backbone.class_tokens(pixels())
    published_checkpoint(seed=1)
    with pytest.raises(WeightsMismatch, match="changed since it was opened"):
        backbone.class_tokens(pixels(side=64))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_weights_are_refused_before_the_first_slice(
    published_checkpoint: Publish, small_vit: MakeVit, tmp_path: Path, suffix: str
) -> None:
    path = published_checkpoint() if suffix == ".pth" else tmp_path / "own.safetensors"
    if suffix == ".safetensors":
        save_backbone(small_vit(), path, "own")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match="truncated"):
        load(path, engine="openvino")


@pytest.fixture
def calibrated(published_checkpoint: Publish) -> Callable[..., Path]:
    """Writes weights with an "int8" graph of 32 pixels beside them, which is the plain graph of other weights: its
    tokens show that it is the one that ran. Keywords replace fields of the record.
    """

    def make(**changes: Any) -> Path:
        other = load_weights(published_checkpoint("other.pth", seed=9))
        path = published_checkpoint()
        weights = load(path).identity.weights_sha256
        folder = calibration_folder(path.parent / "engine_cache", weights)
        digest = save_graph(build_graph(other, SIDE, class_tokens_only=True), folder)
        record: dict[str, Any] = {
            "weights_sha256": weights,
            "resize": SIDE,
            "graph_sha256": digest,
            "cls_cosine_min": 0.9995,
            "cls_cosine_mean": 0.9997,
            "n_calibration_volumes": 2,
            "n_calibration_slices": 20,
            "n_check_volumes": 2,
            "n_check_slices": 20,
            "calibration_inputs_sha256": ("11" * 32,),
            "check_inputs_sha256": ("22" * 32,),
            "settings": {},
        }
        write_calibration(folder, Calibration(**(record | changes)))
        return path

    return make


def int8(path: Path, **changes: Any) -> Backbone:
    return load(path, engine="auto", precision="int8", **changes)


def graph_folder(path: Path) -> Path:
    """Where the calibrated graph lies."""
    (folder,) = (path.parent / "engine_cache" / "int8").iterdir()
    return folder


def test_int8_runs_the_calibrated_graph_and_says_what_it_keeps(calibrated: Callable[..., Path]) -> None:
    path = calibrated()
    backbone = int8(path)
    other = load(path).class_tokens(pixels())
    assert backbone.class_tokens(pixels()).shape == other.shape
    assert np.abs(backbone.class_tokens(pixels()) - other).max() > 0.1
    assert (backbone.identity.engine, backbone.identity.precision) == ("openvino", "int8")
    assert backbone.identity.calibration_sha256 is not None
    assert backbone.warnings == (
        "int8 backbone: CLS cosine to fp32 at least 0.99950, mean 0.99970, on 20 held-out slices",
    )


def test_int8_at_another_size_is_a_usage_error(calibrated: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="--resize 64: the int8 calibration was made at 32"):
        int8(calibrated()).class_tokens(pixels(side=64))


def test_a_low_cosine_is_refused_unless_it_is_accepted_and_then_said(calibrated: Callable[..., Path]) -> None:
    path = calibrated(cls_cosine_min=0.98)
    with pytest.raises(WeightsError, match="--accept-int8"):
        int8(path)
    backbone = int8(path, accept_int8=True)
    assert backbone.class_tokens(pixels()).shape == (2, 128)
    assert "accepted with --accept-int8" in backbone.warnings[0]


def test_a_damaged_int8_graph_is_an_error_and_not_made_anew(
    calibrated: Callable[..., Path],
) -> None:
    path = calibrated()
    binary = graph_folder(path) / "graph.bin"
    binary.write_bytes(binary.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(WeightsError, match="calibrate again"):
        int8(path).class_tokens(pixels())


def test_a_sound_int8_graph_that_is_not_the_records_is_an_error(calibrated: Callable[..., Path]) -> None:
    with pytest.raises(WeightsError, match="damaged, missing or another one; calibrate again"):
        int8(calibrated(graph_sha256="00" * 32)).class_tokens(pixels())


def test_a_calibration_of_other_weights_is_refused(calibrated: Callable[..., Path]) -> None:
    path = calibrated(weights_sha256="ba" * 32)
    for accept_int8 in (False, True):
        with pytest.raises(WeightsMismatch, match=r"is of weights babababababa, expected .*; calibrate again"):
            int8(path, accept_int8=accept_int8)


def test_accepting_int8_changes_nothing_if_its_cosine_is_good(calibrated: Callable[..., Path]) -> None:
    assert int8(calibrated(), accept_int8=True).warnings == int8(calibrated()).warnings


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_other_precisions_have_nothing_to_warn_of(published_checkpoint: Publish, engine: str) -> None:
    assert load(published_checkpoint(), engine=engine).warnings == ()


@pytest.mark.parametrize("name", ["graph.bin", "graph.xml"])
def test_a_missing_file_of_the_int8_graph_is_an_error(calibrated: Callable[..., Path], name: str) -> None:
    path = calibrated()
    (graph_folder(path) / name).unlink()
    with pytest.raises(WeightsError, match="calibrate again"):
        int8(path).class_tokens(pixels())


def test_without_a_calibration_int8_names_the_command(published_checkpoint: Publish) -> None:
    message = r"no int8 calibration of model\.pth.*run meddinov3-stroke calibrate"
    with pytest.raises(WeightsError, match=message) as caught:
        int8(published_checkpoint())
    assert caught.value.exit_code == 6
    with pytest.raises(WeightsError, match="meddinov3-stroke calibrate"):
        load_backbone("demo", precision="int8", device="cpu")


def test_records_are_kept_in_the_users_cache_folder_or_in_the_folder_given(
    published_checkpoint: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, given = published_checkpoint(), tmp_path / "given"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for source in (path, "demo"):
        load_backbone(source, device="cpu", precision="fp32")
        load_backbone(source, device="cpu", precision="fp32", cache_dir=given)
    for folder in (given, tmp_path / "cache" / "meddinov3-stroke" / "engine_cache"):
        assert len(list((folder / "records").iterdir())) == 2
    assert not (path.parent / "engine_cache").exists()


def test_a_folder_that_cannot_be_written_does_no_harm(
    published_checkpoint: Publish, caplog: pytest.LogCaptureFixture
) -> None:
    path = published_checkpoint()
    expected = load(path, engine="openvino").class_tokens(pixels())
    only_record(path).unlink()
    (path.parent / "engine_cache" / "records").rmdir()
    (path.parent / "engine_cache" / "records").write_text("a file where the folder should be")
    assert np.array_equal(load(path, engine="openvino").class_tokens(pixels()), expected)
    assert "it will be measured again next time" in caplog.text


def test_a_folder_in_place_of_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a directory"):
        load(tmp_path)


PROBE = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from meddinov3_stroke import load_backbone
answers = []
for engine, precision in json.loads(sys.argv[2]):
    opened = load_backbone(sys.argv[1], engine, precision, "cpu", cache_dir=Path(sys.argv[1]).parent / "engine_cache")
    answers.append([opened.device, list(opened.warnings), asdict(opened.identity)])
print(json.dumps({"answers": answers, "imported": [name for name in ("torch", "openvino") if name in sys.modules]}))
"""


def test_opening_known_weights_imports_neither_torch_nor_openvino(published_checkpoint: Publish) -> None:
    path = published_checkpoint()
    expected = [load(path), load(path, engine="auto", precision="auto")]
    ways = [("torch", "fp32"), ("auto", "auto"), ("openvino", "bf16")]
    result = subprocess.run(
        [sys.executable, "-c", PROBE, str(path), json.dumps(ways)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = json.loads(result.stdout)
    assert found["imported"] == []
    assert found["answers"][:2] == [["cpu", [], asdict(backbone.identity)] for backbone in expected]
    assert (found["answers"][2][2]["engine"], found["answers"][2][2]["precision"]) == ("openvino", "bf16")


def test_the_engine_is_made_once_whoever_asks_and_however_many(
    published_checkpoint: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, made = published_checkpoint(), []
    load(path)
    really = loading.build_module

    def slowly(weights: object) -> VisionTransformer:
        made.append(weights)
        time.sleep(0.2)
        return really(weights)

    monkeypatch.setattr(loading, "build_module", slowly)
    backbone, together = load(path), threading.Barrier(2)
    assert made == []

    def ask() -> np.ndarray:
        together.wait(timeout=10)
        return backbone.class_tokens(pixels())

    with ThreadPoolExecutor(2) as pool:
        first, second = (future.result(timeout=60) for future in [pool.submit(ask), pool.submit(ask)])
    assert len(made) == 1
    assert np.array_equal(first, second)


def test_an_engine_that_failed_is_tried_again(published_checkpoint: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load(published_checkpoint())
    with monkeypatch.context() as patch:
        patch.setattr(loading, "build_module", lambda weights: (_ for _ in ()).throw(OSError("busy")))
        with pytest.raises(OSError, match="busy"):
            backbone.class_tokens(pixels())
    assert backbone.class_tokens(pixels()).shape == (2, 128)
