"""The int8 graph of a backbone: made by NNCF from prepared slices, kept on disk, verified before use."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.backbone.openvino_engine import import_openvino
from meddinov3_stroke.errors import MachineError, StorageError
from meddinov3_stroke.system.atomic import atomic_file, storage_error
from meddinov3_stroke.system.digest import sha256_of_document, sha256_of_file

if TYPE_CHECKING:
    import openvino

PRESET = "mixed"
"""Weights symmetric, activations asymmetric: GELU's outputs lie on one side of zero."""

GRAPH_FILES = ("graph.xml", "graph.bin")
"""Structure and weights, as OpenVINO writes and reads them."""


def require_quantizer() -> None:
    """Raise MachineError, naming the extra to install, unless NNCF is installed."""
    if find_spec("nncf") is None:
        raise MachineError("NNCF is not installed; int8 calibration needs it: pip install 'meddinov3-stroke[int8]'")


def quantize_graph(graph: openvino.Model, pixels: Float32[np.ndarray, "n 1 row col"]) -> openvino.Model:
    """The graph with its matrix products in int8, scales taken from these prepared slices (NNCF post-training for
    transformers: SmoothQuant moves outlier channels from activations into weights).
    """
    with _quiet():
        import nncf

        return nncf.quantize(
            graph,
            nncf.Dataset([one[None] for one in pixels]),
            preset=nncf.QuantizationPreset(PRESET),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(pixels),
        )


def quantizer_settings() -> dict[str, str]:
    """Versions and options, for the record."""
    versions = {name: version(name) for name in ("nncf", "openvino")}
    return {**versions, "preset": PRESET, "model_type": "transformer", "smooth_quant": "nncf default"}


def save_graph(graph: openvino.Model, folder: Path) -> str:
    """Digest of the graph, written into `folder` in place of an older one; raises StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as scratch:
            import_openvino().save_model(graph, Path(scratch) / GRAPH_FILES[0], compress_to_fp16=False)
            for name in GRAPH_FILES:
                with (Path(scratch) / name).open("rb") as made, atomic_file(folder / name) as kept:
                    shutil.copyfileobj(made, kept)
    except RuntimeError as error:  # all that OpenVINO says of a full disk
        raise StorageError(f"cannot write {folder} (disk full?): {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise storage_error(folder, error) from error
    digest = _graph_sha256(folder)
    assert digest is not None  # just written
    return digest


def read_graph(folder: Path, graph_sha256: str) -> Any | None:
    """The graph in `folder`; None unless its files have this digest."""
    if _graph_sha256(folder) != graph_sha256:
        return None
    return import_openvino().Core().read_model(folder / GRAPH_FILES[0])


def _graph_sha256(folder: Path) -> str | None:
    try:
        return sha256_of_document({name: sha256_of_file(folder / name) for name in GRAPH_FILES})
    except OSError:
        return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("nncf", "torch.utils.cpp_extension")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
