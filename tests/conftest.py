"""Shared fixtures; shapes and dtypes in the package's signatures are checked while tests run."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

import type_checks

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one test process a core: more threads only wait for one another

type_checks.install(["meddinov3_stroke", "dicom_writer"])

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("local", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A models folder and a user's cache and configuration folders of the tests' own; the real ones stay."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELS_DIR", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield folder


@pytest.fixture(autouse=True)
def fresh_logging() -> Iterator[None]:
    """A command sets up the package's logger on the stderr of its time; later tests have another stderr."""
    yield
    logger = logging.getLogger("meddinov3_stroke")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def any_pixels_in_scope(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most volumes of the tests are too small or plain for a head; tests marked `scope` judge pixels as users do."""
    if request.node.get_closest_marker("scope") is None:
        monkeypatch.setattr("meddinov3_stroke.ct.scope.RULES", ())


@pytest.fixture
def python_sigint() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, whatever a library or the shell that started the tests made of it."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("an interrupt ends a parallel test process; run with: pytest -n 0 -k interrupt")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data_dir() -> Path:
    """The folder of real head CT beside the checkout; tests that need it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real head CT at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def head_nifti(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small head as NIfTI: skull, brain, and blood at the patient's left and front in the upper slices.

    64 x 64 pixels of 3 mm, 8 slices of 5 mm; `seed` is that of the noise, `n_rows` the rows kept.
    """
    import nibabel as nib

    def write(name: str = "case.nii.gz", seed: int = 0, n_rows: int = 64) -> Path:
        row, column = np.mgrid[:64, :64]
        radius = np.hypot((row - 32) / 28, (column - 32) / 24)
        hu = np.full((8, 64, 64), -1000.0)
        hu[:, radius < 1] = 800
        hu[:, radius < 0.85] = 35
        hu[5:, 16:26, 38:48] = 75
        hu[:, radius < 0.85] += np.random.default_rng(seed).normal(0, 4, hu[:, radius < 0.85].shape)
        canonical = hu[:, :n_rows].round().astype(np.int16)
        image = nib.Nifti1Image(canonical.transpose(2, 1, 0), np.diag([-3.0, -3.0, 5.0, 1.0]))  # L P S
        image.header.set_xyzt_units("mm")
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
        return path

    return write


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes weights in the published layout of a random ViT, by default of 64 channels and two blocks."""
    import torch

    from meddinov3_stroke.backbone import VisionTransformer

    small = {"embed_dim": 64, "depth": 2, "num_heads": 1}
    published = {"n_storage_tokens": 4, "qkv_bias": False, "mask_k_bias": True, "layerscale_init": 0.3}

    def write(name: str = "model.pth", seed: int = 0, **architecture: Any) -> Path:
        torch.manual_seed(seed)
        vit = VisionTransformer(**(published | (architecture or small)))
        for parameter in vit.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
        path = tmp_path_factory.mktemp("weights") / name
        torch.save({"teacher": {f"backbone.{key}": value for key, value in vit.state_dict().items()}}, path)
        return path

    return write


@pytest.fixture
def random_head(tmp_path: Path) -> Callable[..., Path]:
    """Writes the checkpoint of a random head for a loaded backbone; keywords replace fields of the checkpoint."""
    import torch

    from meddinov3_stroke.heads import HeadCheckpoint, build_head, save_checkpoint
    from meddinov3_stroke.types import LABELS, Threshold

    def write(backbone: Any, pool_mode: str = "mean", name: str = "best.pt", **changes: Any) -> Path:
        torch.manual_seed(1)
        labels = changes.get("labels", LABELS)
        width = changes.pop("width", 2 if pool_mode == "mean_max" else 1) * backbone.identity.embed_dim
        head = build_head(width, 0, len(labels), 0.0)
        fields: dict[str, Any] = {
            "state_dict": {key: 3 * value.numpy() for key, value in head.state_dict().items()},
            "labels": labels,
            "input_dim": width,
            "arch": "mlp",
            "params": {"hidden_dim": 0, "dropout": 0.0},
            "pool_mode": pool_mode,
            "resize": 64,
            "backbone": dataclasses.asdict(backbone.identity),
            "thresholds": {label: Threshold(0.5, "validation Youden (12 positive of 60)") for label in labels},
            "pos_weight": dict.fromkeys(labels, 1.0),
            "seed": 42,
            "epoch": 3,
            "metric_name": "val_macro_auroc",
            "best_metric": 0.75,
        }
        path = tmp_path / name
        save_checkpoint(path, HeadCheckpoint(**(fields | changes)))
        return path

    return write
