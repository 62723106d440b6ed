"""Which weights file a path or a registered name stands for."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from meddinov3_stroke.errors import MissingWeights

REGISTERED: dict[str, str] = {"demo": "demo.safetensors"}
"""Name -> file in the package's folder `backbone/weights`."""


def is_registered(source: str | Path) -> bool:
    """Whether `source` is a name of this package's own weights."""
    return isinstance(source, str) and source in REGISTERED


def weights_path(source: str | Path) -> Path:
    """The file that a path or a registered name stands for.

    Raises:
        MissingWeights: there is none; the message names the download command.
    """
    if is_registered(source):
        path = Path(str(files("meddinov3_stroke") / "backbone" / "weights" / REGISTERED[str(source)]))
        if not path.is_file():
            raise MissingWeights(f"backbone {source!r} is not in this installation ({path}); reinstall the package")
        return path
    path = Path(source).expanduser()
    if not path.exists():
        raise MissingWeights(
            f"no backbone weights at {path}; fetch them with: python script/download_models.py --package meddinov3; or "
            f"name a file or a registered backbone ({', '.join(REGISTERED)}) with --backbone"
        )
    return path
