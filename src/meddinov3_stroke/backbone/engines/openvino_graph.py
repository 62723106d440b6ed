"""From a folded transformer to an OpenVINO graph: traced once for a size and a view, the batch left open.

The sines and cosines are bf16 values kept as float32 constants and the rotation is computed in float32: tracing the
bf16 operations doubles the difference to the published arithmetic (3.5e-3 against 1.7e-3), because engines round them
otherwise.
"""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from meddinov3_stroke.backbone.folding import FoldedTransformer
from meddinov3_stroke.backbone.rope import angles_of_all_tokens
from meddinov3_stroke.errors import StorageError

if TYPE_CHECKING:
    import openvino

View = Literal["cls", "patches"]
"""`cls`: class tokens only, the last block for them alone; `patches`: class and patch tokens."""

TRACED_BATCH = 2
"""Slices of the example that is traced; the graph takes any number."""


class TracedView(nn.Module):
    """One view of the transformer for one grid, with the rotation's tables as constants."""

    sin: Tensor
    cos: Tensor

    def __init__(self, folded: FoldedTransformer, side: int, view: View) -> None:
        super().__init__()
        self.folded, self.view = folded, view
        grid = (side // folded.patch_size, side // folded.patch_size)
        sin, cos = (table.float() for table in folded.rope_embed(grid))
        sin, cos = angles_of_all_tokens(sin, cos, folded.prefix.shape[1])
        self.register_buffer("sin", sin)
        self.register_buffer("cos", cos)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The tokens of the view."""
        if self.view == "cls":
            return (self.folded.class_tokens(pixels, (self.sin, self.cos)),)
        return self.folded.class_and_patch_tokens(pixels, (self.sin, self.cos))


def openvino_graph(folded: FoldedTransformer, side: int, view: View) -> openvino.Model:
    """The graph of a view at `side` pixels: float32 [n, 1, side, side] -> float32 tokens, for any n."""
    ov = import_openvino()
    example = torch.zeros(TRACED_BATCH, 1, side, side)
    batch = torch.export.Dim("n", min=1, max=1 << 16)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch and OpenVINO warn of their own deprecations while tracing
        program = torch.export.export(TracedView(folded, side, view).eval(), (example,), dynamic_shapes=({0: batch},))
        return ov.convert_model(program, input=[-1, 1, side, side])


def save_graph(graph: openvino.Model, path: Path) -> None:
    """Write the graph as `path` (.xml) and its weights beside it (.bin), in float32.

    Raises:
        StorageError: the files cannot be written.
    """
    try:
        import_openvino().save_model(graph, path, compress_to_fp16=False)
    except RuntimeError as error:  # all that OpenVINO says of a full disk
        raise StorageError(f"cannot write {path} (disk full?): {str(error).splitlines()[0]}") from error


def read_graph(path: Path) -> openvino.Model:
    """The graph that `save_graph` wrote as `path`; its weights stay on disk until they are used."""
    return import_openvino().Core().read_model(path)


def converter_version() -> str:
    """What decides how a module becomes a graph: the versions of OpenVINO and of torch, which traces."""
    return f"openvino {version('openvino')}, torch {version('torch')}"


def import_openvino() -> Any:
    """The module `openvino`, its telemetry kept out: it would write files under the home folder."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
