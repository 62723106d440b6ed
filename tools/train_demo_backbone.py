"""Train the small `demo` backbone on phantoms and write it into the package.

    uv run python tools/train_demo_backbone.py

The backbone is a ViT of MedDINOv3's architecture, only smaller. It learns from phantoms alone, by three losses at once:
which haemorrhages a slice shows (class token), which of its patches show them (patch tokens), and which the whole
volume shows (mean of the class tokens). The three linear heads are thrown away; the trunk is kept in float16.

Seeds start at `FIRST_TRAINING_SEED`; the demo cohort and the tests draw theirs far below it, so no phantom of theirs
was seen here. The same seed, package versions and thread count give the same weights.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from meddinov3_stroke.backbone.preprocessing import prepare_channel
from meddinov3_stroke.backbone.vit import VisionTransformer
from meddinov3_stroke.backbone.weights import save_backbone
from meddinov3_stroke.phantom import PhantomSpec, draw_spec, make_phantom
from meddinov3_stroke.system.devices import available_cpus
from meddinov3_stroke.system.provenance import seed_everything
from meddinov3_stroke.types import LABELS, Preprocessing

DEMO_ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 128,
    "depth": 4,
    "num_heads": 2,
    "n_storage_tokens": 4,
    "layerscale_init": 1.0,
    "qkv_bias": False,
    "mask_k_bias": True,
}
"""MedDINOv3's ViT-B/16 with 128 channels and 4 blocks: 0.9 M parameters, heads of 64 as there."""

FIRST_TRAINING_SEED = 5_000_000
"""Phantoms from this seed on were seen in training; no cohort draws its heads from here (a test holds it)."""

RESIZE = 224
PATCH = 16
MASK_FRACTION = 0.05
"""Share of a patch that a haemorrhage must fill for the patch to count as positive."""

DEMO_PREPROCESSING = Preprocessing(hu_min=-20.0, hu_max=120.0, mean=40.0, std=30.0, version="meddinov3-1")
"""A brain window. After MedDINOv3's own z-score 40 HU of blood are 0.22 standard deviations, which so small a network
does not learn to see in an hour on two cores; preprocessing belongs to the weights, and these weights state theirs."""

BLOCK, BLOCK_GAIN = 4, 2.0
LEVELS = (-1.0, -0.4, 0.0, 0.3, 0.6, 0.9, 1.3, 2.0)
"""Standard deviations of the input, from CSF to clot and bone."""

N_LESIONS_P = (0.25, 0.35, 0.25, 0.15)
"""Probabilities of 0, 1, 2 and 3 types of haemorrhage in a training phantom: richer than a cohort."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training with a learning-rate schedule of its own."""

    steps: int
    volumes: int
    slices: int
    """Slices of each volume in a step."""
    lesion_share: float
    """Share of those slices drawn from the ones that show a haemorrhage; the rest is evenly spread."""
    volume_weight: float
    """Weight of the volume loss, which needs slices as they come (`lesion_share` 0)."""
    lr: float
    crop: int = 0
    """Side in patches of the window cut from a slice, around a haemorrhage where it shows one; 0 is all of it."""


PHASES = (
    Phase(600, 8, 30, 0.6, 0.0, 2e-3, crop=6),
    Phase(700, 4, 12, 0.5, 0.0, 1e-3),
    Phase(250, 4, 24, 0.0, 1.0, 3e-4),
    Phase(450, 4, 24, 0.0, 1.0, 6e-4),
)
"""Windows first: what blood looks like is local, and a window of 6 x 6 patches costs a fifth of a slice."""


@dataclass(frozen=True)
class Args:
    """Train the demo backbone."""

    output: Path = Path("src/meddinov3_stroke/backbone/weights/demo.safetensors")
    volumes: int = 900
    """Phantom volumes to learn from."""
    seed: int = 42
    init: Path | None = None
    """Go on from this safetensors file instead of from random weights."""
    first_phase: int = 0
    """Phase to begin with, for going on from `init`."""
    work_dir: Path = Path("outputs/demo_backbone")
    """Prepared slices are kept here between runs."""


def training_spec(seed: int) -> PhantomSpec:
    """A phantom with 0 to 3 types of haemorrhage."""
    random = np.random.default_rng([seed, 99])
    n_types = int(random.choice(len(N_LESIONS_P), p=N_LESIONS_P))
    return draw_spec(seed, [str(label) for label in random.permutation(LABELS[1:])[:n_types]])


def prepare_volume(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Network input float16 [slice, 224, 224] (one channel) and patch targets uint8 [slice, 14, 14, 5]."""
    torch.set_num_threads(1)
    phantom = make_phantom(training_spec(seed))
    pixels = prepare_channel(phantom.hu.astype(np.float32), RESIZE, DEMO_PREPROCESSING)[:, 0]
    types = torch.stack([torch.from_numpy(phantom.mask == k) for k in range(1, len(LABELS))], dim=1).float()
    side = RESIZE // PATCH
    fractions = functional.adaptive_avg_pool2d(functional.interpolate(types, size=(RESIZE, RESIZE)), (side, side))
    targets = (fractions > MASK_FRACTION).permute(0, 2, 3, 1)
    return pixels.astype(np.float16), targets.numpy().astype(np.uint8)


def prepared_volumes(args: Args) -> list[tuple[np.ndarray, np.ndarray]]:
    """All training volumes, made once and kept in `args.work_dir`."""
    args.work_dir.mkdir(parents=True, exist_ok=True)
    seeds = range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + args.volumes)
    missing = [seed for seed in seeds if not (args.work_dir / f"{seed}.npz").exists()]
    with ProcessPoolExecutor(available_cpus(), mp_context=get_context("spawn")) as pool:
        for done, (seed, (pixels, targets)) in enumerate(zip(missing, pool.map(prepare_volume, missing), strict=True)):
            np.savez(args.work_dir / f"{seed}.npz", pixels=pixels, targets=targets)
            if done % 100 == 99:
                print(f"prepared {done + 1} of {len(missing)} volumes", flush=True)
    loaded = (np.load(args.work_dir / f"{seed}.npz") for seed in seeds)
    return [(entry["pixels"], entry["targets"]) for entry in loaded]


class Heads(nn.Module):
    """The three linear heads that teach the trunk and are then thrown away."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.slice = nn.Linear(embed_dim, len(LABELS))
        self.patch = nn.Linear(embed_dim, len(LABELS) - 1)
        self.volume = nn.Linear(embed_dim, len(LABELS))


def with_any(types: Tensor) -> Tensor:
    """Labels in the order of LABELS from the five types: [..., 5] -> [..., 6]."""
    return torch.cat([types.amax(-1, keepdim=True), types], dim=-1)


def draw_slices(targets: np.ndarray, phase: Phase, rng: np.random.Generator) -> np.ndarray:
    """Slice indices of one volume: some that show a haemorrhage (where there are any), the rest evenly spread."""
    positive = np.flatnonzero(targets.any(axis=(1, 2, 3)))
    n_positive = round(phase.slices * phase.lesion_share) if len(positive) else 0
    n_spread = phase.slices - n_positive
    spread = ((np.arange(n_spread) + rng.random()) * len(targets) / n_spread).astype(int)
    return np.concatenate([rng.choice(positive, n_positive), spread]) if n_positive else spread


def window(
    pixels: np.ndarray, targets: np.ndarray, crop: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A square of `crop` x `crop` whole patches that holds a positive patch, or else one that is not air; 0 for all."""
    if crop == 0:
        return pixels, targets
    candidates = np.argwhere(targets.any(axis=-1))
    if not len(candidates):
        side = len(targets)
        means = pixels.reshape(side, PATCH, side, PATCH).mean(axis=(1, 3), dtype=np.float32)
        candidates = np.argwhere(means > means.min() + 0.5) if np.ptp(means) > 0.5 else np.argwhere(means == means)
    centre = candidates[rng.integers(len(candidates))]
    row, column = np.clip(centre - rng.integers(0, crop, 2), 0, len(targets) - crop)
    rows, columns = slice(row * PATCH, (row + crop) * PATCH), slice(column * PATCH, (column + crop) * PATCH)
    return pixels[rows, columns], targets[row : row + crop, column : column + crop]


def draw_batch(
    volumes: list[tuple[np.ndarray, np.ndarray]], phase: Phase, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels [v*s, 224, 224], patch targets [v*s, 14, 14, 5], volume labels [v, 6]; half are mirrored."""
    pixels, targets, labels = [], [], []
    for index in rng.choice(len(volumes), phase.volumes, replace=False):
        volume_pixels, volume_targets = volumes[index]
        picked = draw_slices(volume_targets, phase, rng)
        flip = -1 if rng.random() < 0.5 else 1
        windows = [window(volume_pixels[k], volume_targets[k], phase.crop, rng) for k in picked]
        pixels.append(torch.from_numpy(np.stack([w[0] for w in windows])[:, :, ::flip].astype(np.float32)))
        targets.append(torch.from_numpy(np.stack([w[1] for w in windows])[:, :, ::flip].astype(np.float32)))
        labels.append(with_any(torch.from_numpy(volume_targets.max(axis=(0, 1, 2)).astype(np.float32))))
    return torch.cat(pixels), torch.cat(targets), torch.stack(labels)


def losses(trunk: VisionTransformer, heads: Heads, batch: tuple[Tensor, Tensor, Tensor], phase: Phase) -> Tensor:
    """The slice, patch and volume losses of one batch [3]."""
    pixels, targets, volume_labels = batch
    tokens = trunk.forward_features(pixels[:, None].expand(-1, 3, -1, -1))
    cls, patches = tokens["x_norm_clstoken"], tokens["x_norm_patchtokens"]
    pooled = cls.unflatten(0, (phase.volumes, phase.slices)).mean(1)
    bce = functional.binary_cross_entropy_with_logits
    return torch.stack(
        [
            bce(heads.slice(cls), with_any(targets.amax(dim=(1, 2))), pos_weight=torch.tensor(3.0)),
            bce(heads.patch(patches), targets.flatten(1, 2), pos_weight=torch.tensor(10.0)),
            bce(heads.volume(pooled), volume_labels),
        ]
    )


def learning_rate(step: int, phase: Phase) -> float:
    """Linear warm-up over a twentieth of the steps, then a cosine to zero."""
    warm = max(1, phase.steps // 20)
    if step < warm:
        return phase.lr * (step + 1) / warm
    return phase.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, phase.steps - warm)))


@torch.no_grad()
def start_from_block_means(trunk: VisionTransformer) -> None:
    """Begin with a patch projection that reads the means of 4 x 4 blocks against a ladder of levels.

    A patch of 16 mm hides a small haemorrhage in its mean; from a random projection the network takes far longer to
    find it. Training goes on from here.
    """
    weight, bias = trunk.patch_embed.proj.weight, trunk.patch_embed.proj.bias
    n_blocks = PATCH // BLOCK
    weight.zero_()
    for channel in range(len(weight)):
        row, column = divmod(channel % n_blocks**2, n_blocks)
        rows, columns = slice(row * BLOCK, (row + 1) * BLOCK), slice(column * BLOCK, (column + 1) * BLOCK)
        weight[channel, :, rows, columns] = BLOCK_GAIN / (weight.shape[1] * BLOCK**2)
        bias[channel] = -BLOCK_GAIN * LEVELS[channel // n_blocks**2 % len(LEVELS)]


def train(args: Args) -> VisionTransformer:
    """The trained trunk."""
    seed_everything(args.seed)
    volumes = prepared_volumes(args)
    torch.set_num_threads(available_cpus())
    trunk = VisionTransformer(**DEMO_ARCHITECTURE)
    start_from_block_means(trunk)
    if args.init is not None:
        trunk.load_state_dict({name: value.float() for name, value in load_file(args.init).items()}, strict=True)
    heads = Heads(DEMO_ARCHITECTURE["embed_dim"])
    rng = np.random.default_rng(args.seed)
    for phase in PHASES[args.first_phase :]:
        print(phase, flush=True)
        run_phase(trunk, heads, volumes, phase, rng)
        save(trunk, args)
    return trunk


def run_phase(
    trunk: VisionTransformer,
    heads: Heads,
    volumes: list[tuple[np.ndarray, np.ndarray]],
    phase: Phase,
    rng: np.random.Generator,
) -> None:
    """Train trunk and heads in place."""
    parameters = [*trunk.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=phase.lr, weight_decay=0.02, betas=(0.9, 0.98))
    weights = torch.tensor([1.0, 1.0, phase.volume_weight])
    running, start = torch.zeros(3), time.perf_counter()
    for step in range(phase.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, phase)
        parts = losses(trunk, heads, draw_batch(volumes, phase, rng), phase)
        optimizer.zero_grad()
        (parts * weights).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        running += parts.detach() / 50
        if step % 50 == 49:
            rate = (step + 1) / (time.perf_counter() - start)
            means = " ".join(f"{value:.4f}" for value in running)
            print(f"step {step + 1}: slice, patch, volume loss {means}; {rate:.2f} steps/s", flush=True)
            running.zero_()


def save(trunk: VisionTransformer, args: Args) -> None:
    """Write the trunk in float16, named demo."""
    save_backbone(trunk, args.output, "demo", np.float16, DEMO_PREPROCESSING)


if __name__ == "__main__":
    arguments = tyro.cli(Args)
    save(train(arguments), arguments)
    print(f"wrote {arguments.output}: {arguments.output.stat().st_size / 2**20:.2f} MiB")
