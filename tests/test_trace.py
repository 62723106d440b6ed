"""How far a prediction reaches into the package, and what it imports; traced in a process of its own.

Modules and frames are counted at the `call` events of `sys.setprofile`, in every thread, for functions defined in the
package. The bodies of modules and classes do not count, nor do lambdas, comprehensions and generator expressions. A
frame counts while its function is on the stack. The weights are new: their record is not there yet.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meddinov3_stroke.backbone import load_backbone
from meddinov3_stroke.types import LABELS

MOST_MODULES = 42
"""35; `cases`, which many inputs need; `system/names`, through which all text passes; `views`, `features/extraction`,
`backbone/head_patches`, `heads/applying` of any kind and `scoring`, for heads that see slices and patches."""

MOST_FRAMES = 15  # 14, and passes of slices of one length

TRACED = """
import hashlib, inspect, json, sys, threading
from pathlib import Path
import meddinov3_stroke
ours = str(Path(meddinov3_stroke.__file__).parent)
modules, deepest, opened, hashed = set(), [], [], []
sha256 = hashlib.sha256

def counted(content=b"", **options):
    hashed.append(sha256(content).hexdigest())
    return sha256(content, **options)


def is_ours(code):
    return code.co_filename.startswith(ours) and code.co_flags & inspect.CO_OPTIMIZED and code.co_name[0] != "<"

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
hashlib.sha256 = counted
from meddinov3_stroke import cli
if "--no-trace" not in sys.argv:
    threading.setprofile(trace)
    sys.setprofile(trace)
code = cli.main([word for word in sys.argv[1:] if word != "--no-trace"])
sys.setprofile(None)
print("TRACE " + json.dumps({
    "code": code, "modules": sorted(modules), "deepest": deepest, "opened": opened, "hashed": hashed,
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
    found = traced(
        "predict", "--force", "--input", head_nifti(), *(word for pair in flags.items() for word in pair), *CPU
    )
    assert len(found["modules"]) <= MOST_MODULES, "\n".join(found["modules"])
    assert len(found["deepest"]) <= MOST_FRAMES, "\n".join(found["deepest"])


@pytest.mark.parametrize("verb", ["predict", "embed"])
def test_neither_predict_nor_embed_imports_torch_pandas_scikit_learn_or_scipy(traced, flags, head_nifti, verb) -> None:
    words = [word for pair in flags.items() for word in pair if verb == "predict" or pair[0] == "--backbone"]
    words += ["--resize", "64"] if verb == "embed" else ["--force"]  # the head is a plain one
    found = traced(verb, "--input", head_nifti(), *words, *CPU, "--no-trace")
    assert set(found["imported"]) & {"torch", "pandas", "sklearn", "scipy"} == set()


def test_training_a_head_draws_its_curve_without_matplotlib(traced, tmp_path) -> None:
    numbers = np.random.default_rng(0)
    np.save(tmp_path / "embeddings.npy", numbers.standard_normal((40, 8)).astype(np.float32))
    labels = (numbers.random((40, len(LABELS))) < 0.2).astype(np.float32)
    labels[:, 0] = labels[:, 1:].max(axis=1)
    np.save(tmp_path / "labels.npy", labels)
    rows = ("embeddings", tmp_path / "embeddings.npy"), ("labels", tmp_path / "labels.npy")
    arrays = [word for part in ("train", "val") for name, path in rows for word in (f"--{part}-{name}", path)]
    found = traced("train-head", *arrays, "--epochs", 2, "--device", "cpu", "--quiet", "--no-trace")
    assert (tmp_path / "out" / "training_curve.png").exists()
    assert "matplotlib" not in found["imported"]


@pytest.fixture
def dicom_folder(head_nifti: Callable[..., Path], tmp_path: Path) -> Path:
    """The 50 DICOM files of one series."""
    from dicom_writer import DicomOptions, axial_geometry, write_dicom_series
    from meddinov3_stroke.ct import read_volume

    hu = np.concatenate([read_volume(head_nifti()).hu] * 7)[:50]
    write_dicom_series(tmp_path / "series", hu, axial_geometry([5.0] * 49, (64, 64)), DicomOptions())
    return tmp_path / "series"


@pytest.mark.parametrize("verb", ["predict", "extract"])
def test_every_file_of_a_dicom_row_is_opened_and_hashed_once(traced, dicom_folder, tmp_path, flags, verb) -> None:
    words = [
        "--force",
        "--input",
        dicom_folder,
        "--backbone",
        flags["--backbone"],
        "--checkpoint",
        flags["--checkpoint"],
    ]
    if verb == "extract":
        csv = tmp_path / "rows.csv"
        csv.write_text(f"dicom_path,study_uid,{','.join(LABELS)}\n{dicom_folder},S1,{','.join('0' * len(LABELS))}\n")
        words = ["--series-csv", csv, "--cache-dir", tmp_path / "cache", "--resize", 64, *words[3:5]]
    found = traced(verb, *words, *CPU, "--no-trace")
    files = [path for path in dicom_folder.rglob("*") if path.is_file()]
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert len(files) == len(digests) == 50
    assert sorted(path for path in found["opened"] if Path(path) in files) == sorted(map(str, files))
    assert sorted(one for one in found["hashed"] if one in digests) == sorted(digests)
