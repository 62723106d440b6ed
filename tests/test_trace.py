"""How far a prediction reaches into the package, and what it imports; traced in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meddinov3_stroke.backbone import load_backbone

MOST_MODULES = 39
MOST_FRAMES = 14

TRACED = """
import inspect, json, sys, threading
from pathlib import Path
import meddinov3_stroke
ours = str(Path(meddinov3_stroke.__file__).parent)
modules, deepest, opened = set(), [], []

def is_ours(code):  # a function of the package: not the body of a module or class, nor a list comprehension
    return code.co_filename.startswith(ours) and code.co_flags & inspect.CO_OPTIMIZED and code.co_name != "<listcomp>"

def trace(frame, event, argument):
    if event != "call" or not is_ours(frame.f_code):
        return
    modules.add(frame.f_code.co_filename[len(ours) + 1:])
    stack = []
    while frame is not None:
        if is_ours(frame.f_code):
            stack.append(f"{frame.f_code.co_filename[len(ours) + 1:]}:{frame.f_code.co_name}")
        frame = frame.f_back
    if len(stack) > len(deepest):
        deepest[:] = stack[::-1]

sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from meddinov3_stroke import cli
if "--no-trace" not in sys.argv:
    threading.setprofile(trace)
    sys.setprofile(trace)
code = cli.main([word for word in sys.argv[1:] if word != "--no-trace"])
sys.setprofile(None)
print("TRACE " + json.dumps({
    "code": code, "modules": sorted(modules), "deepest": deepest, "opened": opened,
    "imported": [name for name in ("torch", "pandas", "sklearn", "scipy", "matplotlib") if name in sys.modules],
}))
"""


@pytest.fixture
def traced(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What a command did, run in a process of its own."""

    def run(*words: object) -> dict[str, Any]:
        command = [sys.executable, "-c", TRACED, *map(str, words), "--output-dir", str(tmp_path / "out")]
        result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert "TRACE " in result.stdout, result.stderr
        found: dict[str, Any] = json.loads(result.stdout.split("TRACE ")[1])
        assert found["code"] == 0, result.stderr
        return found

    return run


@pytest.fixture
def flags(random_weights: Callable[..., Path], random_head: Callable[..., Path]) -> dict[str, Path]:
    """Weights and head of a `predict` on OpenVINO in fp32."""
    weights = random_weights()
    head = random_head(load_backbone(weights, device="cpu", engine="openvino", precision="fp32"))
    return {"--backbone": weights, "--checkpoint": head}


CPU = ("--device", "cpu", "--engine", "openvino", "--precision", "fp32", "--quiet")


def test_a_prediction_enters_few_modules_and_few_frames(traced, flags, head_nifti) -> None:
    found = traced("predict", "--input", head_nifti(), *(word for pair in flags.items() for word in pair), *CPU)
    assert len(found["modules"]) <= MOST_MODULES, found["modules"]
    assert len(found["deepest"]) <= MOST_FRAMES, found["deepest"]


@pytest.mark.parametrize("verb", ["predict", "embed"])
def test_neither_predict_nor_embed_imports_torch_pandas_scikit_learn_or_scipy(traced, flags, head_nifti, verb) -> None:
    words = [word for pair in flags.items() for word in pair if verb == "predict" or pair[0] == "--backbone"]
    words += ["--resize", "64"] if verb == "embed" else []
    found = traced(verb, "--input", head_nifti(), *words, *CPU, "--no-trace")
    assert set(found["imported"]) & {"torch", "pandas", "sklearn", "scipy"} == set()


def test_every_file_of_a_dicom_row_is_opened_once(head_nifti, traced, tmp_path, flags) -> None:
    import numpy as np

    from dicom_writer import DicomOptions, axial_geometry, write_dicom_series
    from meddinov3_stroke.ct import read_volume

    hu = np.concatenate([read_volume(head_nifti()).hu] * 7)[:50]
    folder = tmp_path / "series"
    write_dicom_series(folder, hu, axial_geometry([5.0] * 49, (64, 64)), DicomOptions())
    words = [word for pair in flags.items() for word in pair]
    found = traced("predict", "--input", folder, *words, *CPU, "--no-trace")
    opened = [path for path in found["opened"] if path.startswith(str(folder)) and Path(path).is_file()]
    assert len(set(opened)) == 50
    assert len(opened) == 50
