"""From a path or a registered name to a `Backbone`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

from meddinov3_stroke.backbone.backbone import Backbone
from meddinov3_stroke.backbone.engines import TorchEngine, resolve_engine, resolve_precision
from meddinov3_stroke.backbone.weight_file import Weights, build_module, load_weights, weights_sha256
from meddinov3_stroke.errors import MissingWeights
from meddinov3_stroke.runtime.device import resolve_device, use_available_cpus
from meddinov3_stroke.types import BackboneIdentity

REGISTERED: dict[str, str] = {"demo": "demo.safetensors"}
"""Name -> file in the package's folder `backbone/weights`."""


def load_backbone(source: str | Path, engine: str = "auto", precision: str = "auto", device: str = "auto") -> Backbone:
    """The frozen backbone of a weights file or a registered name (`demo`), ready to embed.

    `engine` is auto or torch, `precision` auto, fp32 (the reference) or bf16. A name in the register wins over a file
    of that name; write `./demo` for the file. On the CPU torch is set to the cores this process may use.

    Raises:
        UsageError: no such engine, precision or device name.
        DeviceUnavailable: the device is not there.
        WeightsError: and its kinds, for weights that are missing, unsafe, damaged or do not fit.
    """
    chosen_engine, chosen_precision = resolve_engine(engine), resolve_precision(precision)
    torch_device = resolve_device(device)
    if torch_device.type == "cpu":
        use_available_cpus()
    with weights_path(source) as path:
        weights = load_weights(path)
    identity = identify(weights, str(source) if is_registered(source) else path.name, chosen_engine, chosen_precision)
    return Backbone(TorchEngine(build_module(weights), torch_device, chosen_precision), identity, str(torch_device))


def identify(weights: Weights, name: str, engine: str, precision: str) -> BackboneIdentity:
    """Everything that decides what these weights compute."""
    return BackboneIdentity(
        name=name,
        weights_sha256=weights_sha256(weights.state, weights.architecture),
        embed_dim=weights.architecture.embed_dim,
        patch_size=weights.architecture.patch_size,
        rope_dtype=weights.architecture.rope_dtype,
        preprocessing=weights.preprocessing,
        engine=engine,
        precision=precision,
    )


def is_registered(source: str | Path) -> bool:
    """Whether `source` is a name of this package's own weights."""
    return isinstance(source, str) and source in REGISTERED


@contextmanager
def weights_path(source: str | Path) -> Iterator[Path]:
    """The file that a path or a registered name stands for.

    Raises:
        MissingWeights: there is none; the message names the download command.
    """
    if is_registered(source):
        with as_file(files("meddinov3_stroke.backbone") / "weights" / REGISTERED[str(source)]) as path:
            if not path.is_file():
                raise MissingWeights(f"backbone {source!r} is not in this installation ({path}); reinstall the package")
            yield path
        return
    path = Path(source).expanduser()
    if not path.exists():
        raise MissingWeights(
            f"no backbone weights at {path}; fetch them with: python script/download_models.py --package meddinov3; or "
            f"name a file or a registered backbone ({', '.join(REGISTERED)}) with --backbone"
        )
    yield path
