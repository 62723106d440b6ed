"""Train the default model, a small backbone and its evidence head, on generated head CTs, and write both.

    uv run python tools/train_default_model.py --real-head PATH

Anatomy comes from phantoms, from the template in the package, and from the real heads that are given. A pool of scans is
drawn first (`phantom.generator`); the trunk and a linear evidence head learn from it which patches show blood of which
type. Both steps resume from `--work-dir`. Held-out scans come from other seeds and other phantoms.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional

from meddinov3_stroke.backbone.vit import VisionTransformer
from meddinov3_stroke.phantom.atlas import Atlas, atlas_of_phantom, atlas_of_volume, template_atlas
from meddinov3_stroke.phantom.generator import Scan, draw_scan
from meddinov3_stroke.system.devices import available_cpus
from meddinov3_stroke.system.provenance import seed_everything
from meddinov3_stroke.types import LABELS, Preprocessing

ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 192,
    "depth": 6,
    "num_heads": 3,
    "n_storage_tokens": 4,
    "layerscale_init": 1.0,
    "qkv_bias": False,
}
PREPROCESSING = Preprocessing(hu_min=-20.0, hu_max=140.0, mean=40.0, std=30.0, version="meddinov3-1")
SIDE, PATCH = 224, 16
GRID = SIDE // PATCH
FIRST_PHANTOM, FIRST_HELD_OUT_PHANTOM = 6_000_000, 6_100_000
FIRST_SCAN, FIRST_HELD_OUT_SCAN = 7_000_000, 7_500_000
POSITIVE_SHARE, IGNORED_SHARE = 0.08, 0.01
SOURCES_P = {"real": 0.4, "template": 0.15, "phantom": 0.45}


@dataclass(frozen=True)
class Args:
    """Train the default model."""

    real_head: tuple[Path, ...] = ()
    """Real head CTs without haemorrhage to learn from, NIfTI or DICOM."""
    scans: int = 2000
    """Scans to learn from."""
    held_out: int = 150
    """Scans to measure on."""
    phantoms: int = 40
    """Invented heads behind the scans."""
    hours: float = 1.5
    """Time of training, generation not included."""
    batch: int = 24
    lr: float = 6e-4
    seed: int = 42
    work_dir: Path = Path("outputs/default_model")
    workers: int = 0


def atlas_names(args: Args, held_out: bool) -> list[str]:
    first = FIRST_HELD_OUT_PHANTOM if held_out else FIRST_PHANTOM
    n = 12 if held_out else args.phantoms
    names = [f"phantom:{first + k}" for k in range(n)]
    return names if held_out else [*names, "template:0", *(f"real:{path}" for path in args.real_head)]


_ATLASES: dict[str, Atlas] = {}


def atlas_of(name: str) -> Atlas:
    if name not in _ATLASES:
        kind, what = name.split(":", 1)
        if kind == "phantom":
            _ATLASES[name] = atlas_of_phantom(int(what))
        elif kind == "template":
            _ATLASES[name] = template_atlas()
        else:
            from meddinov3_stroke.ct import read_volume

            _ATLASES[name] = atlas_of_volume(read_volume(what), "real", 3.0)
        if len(_ATLASES) > 6:  # a worker keeps a few
            _ATLASES.pop(next(iter(_ATLASES)))
    return _ATLASES[name]


def chunk(job: tuple[int, int, list[str], str]) -> str:
    """Draw the scans of some seeds from one atlas; writes pixels, patches that are not air, blood shares."""
    first, n, names, path = job
    torch.set_num_threads(1)
    random = np.random.default_rng([first, 17])
    kinds = sorted({name.split(":")[0] for name in names})
    weights = np.array([SOURCES_P[kind] for kind in kinds])
    kind = kinds[int(random.choice(len(kinds), p=weights / weights.sum()))]
    mine = [name for name in names if name.startswith(kind)]
    atlas = atlas_of(mine[int(random.integers(len(mine)))])
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for seed in range(first, first + n):
        parts.append(prepared(draw_scan(seed, atlas, matrix=SIDE, most_slices=36)))
    starts = np.cumsum([0, *(len(part[0]) for part in parts)])
    pixels, kept, shares = (np.concatenate([part[k] for part in parts]) for k in range(3))
    partial = Path(path).with_suffix(".part.npz")
    np.savez(partial, pixels=pixels, kept=kept, shares=shares, starts=starts)
    partial.replace(path)
    return path


def prepared(scan: Scan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pixels uint8 over the HU range, patches that are not air, share of blood of each label in each patch x 255)."""
    low, high = PREPROCESSING.hu_min, PREPROCESSING.hu_max
    pixels = np.rint((np.clip(scan.hu, low, high) - low) * (255 / (high - low))).astype(np.uint8)
    blocks = scan.hu.reshape(-1, GRID, PATCH, GRID, PATCH)
    kept = (blocks.max(axis=(2, 4)) >= -900).reshape(len(pixels), -1)
    shares = np.zeros((len(pixels), GRID * GRID, len(LABELS)), dtype=np.float32)
    for label, share in scan.blood.items():
        means = share.reshape(-1, GRID, PATCH, GRID, PATCH).mean(axis=(2, 4)).reshape(len(pixels), -1)
        shares[:, :, LABELS.index(label)] = means
    shares[:, :, 0] = shares[:, :, 1:].sum(axis=-1).clip(0, 255)
    return pixels, kept, np.rint(shares).astype(np.uint8)


def make_pool(args: Args, held_out: bool) -> list[Path]:
    folder = args.work_dir / ("held_out" if held_out else "pool")
    folder.mkdir(parents=True, exist_ok=True)
    n, first, size = (args.held_out, FIRST_HELD_OUT_SCAN, 5) if held_out else (args.scans, FIRST_SCAN, 10)
    names = atlas_names(args, held_out)
    paths = [folder / f"{seed}.npz" for seed in range(first, first + n, size)]
    jobs = [(int(path.stem), size, names, str(path)) for path in paths if not path.exists()]
    began = time.monotonic()
    with ProcessPoolExecutor(args.workers or available_cpus(), mp_context=get_context("spawn")) as pool:
        for k, _ in enumerate(pool.map(chunk, jobs), start=1):
            if k % 10 == 0:
                print(f"{folder.name}: {k} of {len(jobs)} files, {time.monotonic() - began:.0f} s", flush=True)
    return paths


@dataclass(frozen=True, eq=False)
class Pool:
    """Slices in memory."""

    pixels: np.ndarray
    kept: np.ndarray
    shares: np.ndarray
    starts: np.ndarray

    @classmethod
    def load(cls, paths: list[Path]) -> Pool:
        files = [np.load(path) for path in paths]
        starts, before = [np.zeros(1, dtype=np.int64)], 0
        for one in files:
            starts.append(one["starts"][1:] + before)
            before += int(one["starts"][-1])
        arrays = (np.concatenate([one[name] for one in files]) for name in ("pixels", "kept", "shares"))
        return cls(*arrays, np.concatenate(starts))


class Model(nn.Module):
    """The trunk and a linear evidence head on its patch tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = VisionTransformer(**ARCHITECTURE)
        self.evidence = nn.Linear(ARCHITECTURE["embed_dim"], len(LABELS))
        self.sharpness = nn.Parameter(torch.zeros(len(LABELS)))
        self.bias = nn.Parameter(torch.zeros(len(LABELS)))
        nn.init.constant_(self.evidence.bias, -3.0)

    def forward(self, x: Tensor, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(patch logits [n, t, C], slice logits [n, C]) of pixels [n, 1, 224, 224]; of the patches at `places` alone."""
        trunk = self.trunk
        tokens, (sin, cos) = trunk.prepare_tokens(x.expand(-1, 3, -1, -1))
        n_prefix = 1 + trunk.n_storage_tokens
        if places is not None:
            index = places[..., None].expand(-1, -1, tokens.shape[-1])
            tokens = torch.cat([tokens[:, :n_prefix], tokens[:, n_prefix:].gather(1, index)], dim=1)
            sin, cos = sin[places][:, None], cos[places][:, None]
        for block in trunk.blocks:
            tokens = block(tokens, (sin, cos))
        patches = self.evidence(trunk.norm(tokens)[:, n_prefix:])
        return patches, self.slices(patches)

    def slices(self, patches: Tensor) -> Tensor:
        """Log-sum-exp of the patch logits, sharpened, with a bias for each label."""
        sharp = 1 + functional.softplus(self.sharpness)
        return torch.logsumexp(patches * sharp, dim=1) / sharp + self.bias


def losses(model: Model, pixels: Tensor, shares: Tensor, places: Tensor | None) -> tuple[Tensor, Tensor]:
    patches, slices = model(pixels, places)
    if places is not None:
        taken = shares.gather(1, places[..., None].expand(-1, -1, shares.shape[-1]))
    else:
        taken = shares
    target = (taken > POSITIVE_SHARE).float()
    weight = torch.where(target > 0, 4.0, 1.0) * ((taken <= IGNORED_SHARE) | (target > 0)).float()
    patch_loss = functional.binary_cross_entropy_with_logits(patches, target, weight=weight, reduction="none").mean(
        dim=(0, 1)
    )
    positive = (shares > POSITIVE_SHARE).any(dim=1).float()
    sure = ((shares.amax(dim=1) <= IGNORED_SHARE) | (positive > 0)).float()
    slice_loss = functional.binary_cross_entropy_with_logits(slices, positive, weight=sure, reduction="none").mean(
        dim=0
    )
    heavy = torch.ones(len(LABELS))
    heavy[0] = 3.0
    return (patch_loss * heavy).sum(), (slice_loss * heavy).sum() / heavy.sum()


def batches(pool: Pool, size: int, random: np.random.Generator) -> Iterator[tuple[np.ndarray, int]]:
    """(slices, patches of each that are not air at most): of similar length in a batch; bleeding slices are drawn more."""
    counts = pool.kept.sum(axis=1)
    positive = (pool.shares[:, :, 0] > 255 * POSITIVE_SHARE).any(axis=1)
    weights = np.where(positive, 0.5 / max(positive.sum(), 1), 0.5 / max((~positive).sum(), 1)) * (counts > 20)
    weights /= weights.sum()
    while True:
        some = random.choice(len(counts), size * 32, p=weights)
        some = some[np.argsort(counts[some])]
        for group in random.permutation(32):
            chosen = some[group * size : (group + 1) * size]
            yield chosen, int(counts[chosen].max())


def pick_places(kept: np.ndarray, n: int, random: np.random.Generator) -> Tensor:
    """The `n` patches of each slice that the pass sees: all that are not air, filled up with air."""
    order = np.argsort(~kept * 1.0 + random.random(kept.shape) * 0.5, axis=1)[:, :n]
    return torch.from_numpy(np.sort(order, axis=1))


def augmented(pixels: np.ndarray, random: np.random.Generator) -> Tensor:
    """HU standardised; small shifts, gains and noise of their own."""
    low, high = PREPROCESSING.hu_min, PREPROCESSING.hu_max
    hu = torch.from_numpy(pixels).float() * ((high - low) / 255) + low
    n = len(hu)
    shift = torch.from_numpy(random.normal(0, 1.5, (n, 1, 1)).astype(np.float32))
    gain = torch.from_numpy(np.exp(random.normal(0, 0.02, (n, 1, 1))).astype(np.float32))
    noisy = hu + torch.randn_like(hu) * torch.from_numpy(random.exponential(1.0, (n, 1, 1)).astype(np.float32))
    hu = torch.where((hu > low) & (hu < high), noisy * gain + shift, hu).clamp(low, high)
    return ((hu - PREPROCESSING.mean) / PREPROCESSING.std)[:, None]


@torch.no_grad()
def start_from_block_means(trunk: VisionTransformer) -> None:
    """Begin with a patch projection that reads the means of 4 x 4 blocks against a ladder of levels."""
    weight, bias = trunk.patch_embed.proj.weight, trunk.patch_embed.proj.bias
    levels, block, gain = (-1.0, -0.6, -0.3, -0.1, 0.1, 0.3, 0.5, 0.7, 0.9, 1.2, 1.6, 2.4), 4, 2.0
    weight.mul_(0.2)
    for channel in range(len(weight)):
        row, column = divmod(channel % 16, 4)
        rows, columns = slice(row * block, (row + 1) * block), slice(column * block, (column + 1) * block)
        weight[channel, :, rows, columns] += gain / (weight.shape[1] * block**2)
        bias[channel] = -gain * levels[channel // 16 % len(levels)]


def learning_rate(done: float, lr: float) -> float:
    """Warm-up over 2 % of the time, then a cosine to a hundredth."""
    return lr * min(1.0, done / 0.02) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def train(args: Args, pool: Pool, held_out: Pool) -> Model:
    seed_everything(args.seed)
    torch.set_num_threads(available_cpus())
    model = Model()
    start_from_block_means(model.trunk)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.03}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    averaged = {name: value.detach().clone() for name, value in model.state_dict().items()}
    random, spent, step = np.random.default_rng(args.seed), 0.0, 0
    state_path = args.work_dir / "training.pt"
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        averaged, spent, step = state["averaged"], state["spent"], state["step"]
        random = np.random.default_rng([args.seed, step])
    budget, last, running = args.hours * 3600, time.monotonic(), np.zeros(2)
    saved = spent
    for chosen, n_kept in batches(pool, args.batch, random):
        done = spent / budget
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(done, args.lr)
        all_tokens = random.random() < (0.15 if done < 0.8 else 0.6)
        places = None if all_tokens else pick_places(pool.kept[chosen], min(GRID * GRID, n_kept + 6), random)
        pixels, shares = augmented(pool.pixels[chosen], random), torch.from_numpy(pool.shares[chosen]).float() / 255
        patch_loss, slice_loss = losses(model, pixels, shares, places)
        optimizer.zero_grad(set_to_none=True)
        (patch_loss + 0.3 * slice_loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        keep = min(0.999, 1 - 1 / (step / 10 + 1))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                averaged[name].lerp_(
                    value, 1 - keep
                ) if value.is_floating_point() and value.dtype == torch.float32 else averaged[name].copy_(value)
        now = time.monotonic()
        spent, last = spent + now - last, now
        running += (float(patch_loss.detach()) / 100, float(slice_loss.detach()) / 100)
        if step % 100 == 0:
            print(
                f"step {step}, {spent:.0f} s, {args.batch * step / spent:.1f} slices/s: patch {running[0]:.4f} slice {running[1]:.4f}",
                flush=True,
            )
            running[:] = 0
        if spent - saved > 240:
            saved = spent
            torch.save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "averaged": averaged,
                    "spent": spent,
                    "step": step,
                },
                state_path,
            )
            best = Model()
            best.load_state_dict(averaged)
            print("held out:", json.dumps(measure(best, held_out)), flush=True)
            last = time.monotonic()
    model.load_state_dict(averaged)
    torch.save({"averaged": averaged}, args.work_dir / "model.pt")
    return model


@torch.no_grad()
def measure(model: Model, pool: Pool) -> dict[str, float]:
    """AUROC of slices (any and each type), of the case maximum, and how often the best patch is blood."""
    from sklearn.metrics import roc_auc_score

    model.eval()
    low, high = PREPROCESSING.hu_min, PREPROCESSING.hu_max
    patches, slices = [], []
    for start in range(0, len(pool.pixels), 48):
        hu = torch.from_numpy(pool.pixels[start : start + 48]).float() * ((high - low) / 255) + low
        p, s = model(((hu - PREPROCESSING.mean) / PREPROCESSING.std)[:, None])
        patches.append(p[:, :, 0].numpy())
        slices.append(s.numpy())
    model.train()
    p, s = np.concatenate(patches), np.concatenate(slices)
    shares = pool.shares.astype(np.float32) / 255
    positive = (shares > POSITIVE_SHARE).any(axis=1)
    found = {
        label: round(float(roc_auc_score(positive[:, k], s[:, k])), 4)
        for k, label in enumerate(LABELS)
        if positive[:, k].sum() > 0
    }
    bounds = list(zip(pool.starts[:-1], pool.starts[1:], strict=True))
    truth = np.array([positive[a:b, 0].any() for a, b in bounds])
    found["case"] = round(float(roc_auc_score(truth, [s[a:b, 0].max() for a, b in bounds])), 4)
    rows = np.flatnonzero(positive[:, 0])
    found["pointing"] = round(float((shares[rows, p[rows].argmax(axis=1), 0] > IGNORED_SHARE).mean()), 4)
    return found


if __name__ == "__main__":
    arguments = tyro.cli(Args)
    held = make_pool(arguments, True)
    paths = make_pool(arguments, False)
    trained = train(arguments, Pool.load(paths), Pool.load(held))
    print(measure(trained, Pool.load(held)))
