"""From a plain graph to an int8 graph, by NNCF, on the user's own slices."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.backbone.engines.openvino_graph import import_openvino
from meddinov3_stroke.errors import MachineError

if TYPE_CHECKING:
    import openvino

PRESET = "mixed"
"""Weights symmetric, activations asymmetric: GELU's outputs lie on one side of zero."""


def require_quantizer() -> None:
    """Nothing, where NNCF is installed.

    Raises:
        MachineError: it is not; names the extra that brings it.
    """
    if find_spec("nncf") is None:
        raise MachineError("NNCF is not installed; int8 calibration needs it: pip install 'meddinov3-stroke[int8]'")


def quantize_graph(graph: openvino.Model, pixels: Float32[np.ndarray, "n 1 row col"]) -> openvino.Model:
    """The graph with its matrix products in int8, scales taken from these prepared slices (NNCF post-training, for
    transformers: SmoothQuant moves outlier channels from activations into weights).
    """
    import_openvino()
    with _quiet():
        import nncf

        dataset = nncf.Dataset([one[None] for one in pixels])
        return nncf.quantize(
            graph.clone(),
            dataset,
            preset=nncf.QuantizationPreset(PRESET),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(pixels),
        )


def quantizer_settings() -> dict[str, str]:
    """Versions and options, for the record."""
    return {
        "nncf": version("nncf"),
        "openvino": version("openvino"),
        "preset": PRESET,
        "model_type": "transformer",
        "smooth_quant": "nncf default",
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep NNCF's progress bars and its notes on other frameworks off the terminal."""
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
