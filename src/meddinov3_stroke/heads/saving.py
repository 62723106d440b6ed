"""Writing head checkpoints. Needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meddinov3_stroke.heads.architectures import LabelCalibration
from meddinov3_stroke.heads.checkpoint import CHECKPOINT_SCHEMA, EXPECTED, FORMAT, HeadCheckpoint
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.system.torch_file import save_torch_file


def save_checkpoint(path: Path, checkpoint: HeadCheckpoint) -> str:
    """The sha256 of the file, written atomically as plain containers and tensors."""
    document = {name: _plain(getattr(checkpoint, name)) for name in EXPECTED}
    save_torch_file(path, {"format": FORMAT, "schema_version": CHECKPOINT_SCHEMA, **document})
    return sha256_of_file(path)


def _plain(value: Any) -> Any:
    import torch

    if isinstance(value, LabelCalibration):
        value = value.document()
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
