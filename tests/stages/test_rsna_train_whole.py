"""The command as a process, with a real (tiny, random) backbone and real NIfTI files; killed and repeated."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from meddinov3_stroke.backbone import VisionTransformer
from meddinov3_stroke.features import EmbeddingStore
from meddinov3_stroke.types import LABELS
from stored_entries import stored_keys

SCRIPT = Path(__file__).resolve().parents[2] / "script" / "train_meddinov3_rsna.py"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-six small heads with labels, and a backbone in the published layout."""
    folder, generator, rows = tmp_path_factory.mktemp("whole"), np.random.default_rng(0), []
    for patient in range(36):
        types = [int(patient % 6 == k) for k in range(1, 6)]
        path = folder / f"ID_p{patient}/ID_s{patient}/_{patient}.nii.gz"
        path.parent.mkdir(parents=True)
        voxels = generator.normal(30 + 100 * types.index(1) if any(types) else 0, 30, size=(24, 24, 5)).astype(np.int16)
        image = nib.Nifti1Image(voxels, np.diag([-1.0, -1.0, 5.0, 1.0]))
        image.header.set_xyzt_units("mm")
        nib.save(image, path)
        rows.append([str(path.relative_to(folder)), f"ID_s{patient}", max(types), *types])
    pd.DataFrame(rows, columns=["nifti_path", "study_uid", *LABELS]).to_csv(folder / "series.csv", index=False)
    torch.manual_seed(0)
    vit = VisionTransformer(
        embed_dim=128, depth=2, num_heads=2, n_storage_tokens=4, qkv_bias=False, mask_k_bias=True, layerscale_init=0.3
    )
    torch.save({"teacher": {f"backbone.{k}": v for k, v in vit.state_dict().items()}}, folder / "tiny.pth")
    return folder


def command(prepared: Path, output: Path, cache: Path) -> list[str]:
    flags = {
        "--series-csv": prepared / "series.csv",
        "--backbone": prepared / "tiny.pth",
        "--output-dir": output,
        "--cache-dir": cache,
        "--checkpoints-dir": output / "checkpoints",
        "--resize": 32,
        "--epochs": 1,
        "--device": "cpu",
        "--precision": "fp32",
    }
    return [sys.executable, str(SCRIPT), *(str(word) for pair in flags.items() for word in pair), "--force"]


def run_whole(prepared: Path, output: Path, cache: Path) -> dict[str, Any]:
    result = subprocess.run(command(prepared, output, cache), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads((output / "pipeline_summary.json").read_text())


def stop_midway(prepared: Path, output: Path, cache: Path, number: int) -> int:
    """Send a signal once a few volumes are in the cache, and give back the exit status."""
    process = subprocess.Popen(command(prepared, output, cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and len(list(cache.glob("??/*.emb"))) < 3:
        time.sleep(0.002)
    process.send_signal(number)
    process.communicate()
    return process.returncode


@pytest.fixture(scope="module")
def uninterrupted(prepared: Path) -> Path:
    """The output folder of a run that nothing disturbed."""
    folder = prepared / "uninterrupted"
    summary = run_whole(prepared, folder, prepared / "uninterrupted_cache")
    assert summary["extraction"]["n_computed"] == 36
    return folder


def finished_volumes(cache: Path) -> int:
    """Number of entries in the cache, each of which must be whole."""
    store = EmbeddingStore(cache)
    keys = stored_keys(store)
    assert all(store.get(key) is not None for key in keys)
    return len(keys)


@pytest.mark.xdist_group("rsna_whole")
def test_a_killed_run_loses_no_finished_volume_and_ends_as_an_uninterrupted_one(
    prepared: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert stop_midway(prepared, tmp_path / "out", cache, signal.SIGKILL) == -signal.SIGKILL
    n_finished = finished_volumes(cache)
    assert 3 <= n_finished < 36
    assert run_whole(prepared, tmp_path / "out", cache)["extraction"]["n_from_cache"] == n_finished
    names = [f"features/{s}_{what}.npy" for s in ("train", "val", "test") for what in ("embeddings", "labels")]
    for name in (*names, "test_probs.npy", "splits/train.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (uninterrupted / name).read_bytes()


@pytest.mark.xdist_group("rsna_whole")
def test_an_interrupted_run_exits_130_with_every_finished_volume_stored(prepared: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert stop_midway(prepared, tmp_path / "out", cache, signal.SIGINT) == 130
    assert 3 <= finished_volumes(cache) < 36
