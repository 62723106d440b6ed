"""Flags that several stages share, and the backbone they name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from meddinov3_stroke import config
from meddinov3_stroke.errors import MissingInput
from meddinov3_stroke.runtime.command import ConsoleOptions

if TYPE_CHECKING:
    from meddinov3_stroke.backbone import Backbone

InputPath = Annotated[Path, tyro.conf.arg(aliases=["-i"])]
OutputDir = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
OptionalPath = Annotated[Path | None, tyro.conf.arg(aliases=["-i"])]
OptionalOutputDir = Annotated[Path | None, tyro.conf.arg(aliases=["-o"])]
DeviceName = Annotated[str, tyro.conf.arg(aliases=["-d"], metavar="auto|cpu|gpu|cuda:N|mps")]

NIFTI_SUFFIXES = (".nii.gz", ".nii")
"""Endings of volumes; the longer first."""


@dataclass(frozen=True, kw_only=True)
class BackboneOptions(ConsoleOptions):
    """Which backbone, where and how it runs."""

    backbone: str | None = None
    """Weights file (.pth, .safetensors) or a registered name such as demo (default: MEDDINOV3_CKPT_PATH)."""
    device: DeviceName = config.DEVICE
    """Where to compute; only auto may fall back."""
    engine: Literal["auto", "torch"] = config.ENGINE
    """What runs the backbone."""
    precision: Literal["auto", "fp32", "bf16"] = config.PRECISION
    """Arithmetic of the backbone; fp32 is the reference."""
    batch: int = config.BATCH
    """Slices in a forward pass."""

    def load_backbone(self) -> Backbone:
        """The backbone these flags name, loaded; missing weights are an error that names the download command."""
        from meddinov3_stroke.backbone import load_backbone

        source = self.backbone or config.load_settings().meddinov3_ckpt_path
        return load_backbone(source, engine=self.engine, precision=self.precision, device=self.device)


def input_or_first(path: Path | None, folder: Path = config.INPUT_DIR) -> Path:
    """`path`, or without one the first .nii or .nii.gz file in `folder`, in order of names.

    Raises:
        MissingInput: no path and no such file.
    """
    if path is not None:
        return path
    found = sorted(file for file in folder.glob("*") if file.is_file() and case_name(file) != file.name)
    if not found:
        raise MissingInput(f"no --input, and no .nii or .nii.gz file in {folder}/; name the volume with --input")
    return found[0]


def case_name(path: Path) -> str:
    """The file's name without .nii or .nii.gz; other names as they are."""
    for suffix in NIFTI_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name
