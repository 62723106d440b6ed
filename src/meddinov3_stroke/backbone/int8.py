"""The int8 graph of a backbone: made by NNCF from prepared slices, kept on disk, verified before use."""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from contextlib import redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.backbone.openvino_engine import import_openvino
from meddinov3_stroke.errors import MachineError, StorageError
from meddinov3_stroke.system.atomic import storage_error, write_bytes
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
    logged = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            import nncf

            data = nncf.Dataset([one[None] for one in pixels])
            options = {"preset": nncf.QuantizationPreset(PRESET), "model_type": nncf.ModelType.TRANSFORMER}
            return nncf.quantize(graph, data, **options, subset_size=len(pixels))
        finally:
            logging.disable(logged)


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
                write_bytes(folder / name, (Path(scratch) / name).read_bytes())
    except RuntimeError as error:  # all that OpenVINO says of a full disk
        raise StorageError(f"cannot write {folder} (disk full?): {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise storage_error(folder, error) from error
    return _graph_sha256(folder)


def read_graph(folder: Path, graph_sha256: str) -> Any | None:
    """The graph in `folder`; None unless its files have this digest."""
    try:
        is_whole = _graph_sha256(folder) == graph_sha256
    except OSError:
        return None
    return import_openvino().Core().read_model(folder / GRAPH_FILES[0]) if is_whole else None


def _graph_sha256(folder: Path) -> str:
    return sha256_of_document({name: sha256_of_file(folder / name) for name in GRAPH_FILES})
