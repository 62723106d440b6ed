"""Stage `convert-weights`: a pickled weights file to safetensors, without running its code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meddinov3_stroke.backbone import Conversion, convert_weights
from meddinov3_stroke.backbone.weights import listed
from meddinov3_stroke.options import InputPath
from meddinov3_stroke.system.atomic import require_writable
from meddinov3_stroke.system.command import ConsoleOptions, run_command
from meddinov3_stroke.system.provenance import ending


@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    """Turn a weights file of torch (.pth, .pt) into safetensors, without running any code of the file."""

    input: InputPath
    """File that torch.save wrote; its teacher, or the plain state dict in it, is taken."""
    output: Path
    """File to write; must end in .safetensors."""


def run(args: Args) -> Conversion:
    """Convert and print what was written and what was left out."""
    require_writable(files=[args.output], inputs=[args.input])
    conversion = convert_weights(args.input, args.output)
    print("\n".join(_summary(conversion)))
    return conversion


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The command's exit code."""
    return run_command(Args, run, argv, prog=prog)


def _summary(conversion: Conversion) -> list[str]:
    shape = conversion.architecture
    lines = [
        f"wrote {conversion.output}: {conversion.n_tensors} tensors, {shape.depth} blocks, {shape.embed_dim} channels",
        f"weights sha256 {conversion.weights_sha256}",
    ]
    if conversion.ignored_entries:
        lines.append(f"left out {listed(conversion.ignored_entries)}")
    if conversion.ignored_names:
        lines.append(f"named by the pickle, neither imported nor run: {listed(conversion.ignored_names)}")
    return [*lines, ending(f"{conversion.n_tensors} tensors", conversion.output)]
