"""The transformer that a set of tensors belongs to (shapes show most of it, metadata states the rest), and its RoPE."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int64

from meddinov3_stroke.errors import WeightsMismatch

if TYPE_CHECKING:
    from meddinov3_stroke.backbone.vit import VisionTransformer

NORM_EPS: dict[str, float] = {"layernorm": 1e-6, "layernormbf16": 1e-5}
"""LayerNorm epsilon by its published name: MedDINOv3 uses the first, Meta's hub weights the second."""

ROPE_BASE = 100.0
"""Base of the RoPE periods, base^(2k / (head_dim/2)) (MedDINOv3 and DINOv3: `pos_embed_rope_base`)."""

ROPE_DTYPES = ("bf16", "fp32")
"""Arithmetic of the rotation: bf16 for MedDINOv3, fp32 for Meta's own hub weights."""

HEAD_DIM = 64
"""Width of a head in every ViT of the DINOv3 family (arXiv 2508.10104), unless metadata names the number of heads."""

HIDDEN_FIELDS = ("num_heads", "norm_layer", "rope_base", "rope_dtype")
"""What shapes do not show; metadata may state these, and they enter the digest of the weights in this order."""


Pixels = Float32[np.ndarray, "n channel row col"]
"""One channel that stands for three equal ones, or three."""
ClassTokens = Float32[np.ndarray, "n dim"]
PatchTokens = Float32[np.ndarray, "n patch dim"]
"""Row-major."""
Kept = Int64[np.ndarray, "n kept"]
"""Row-major places of the patches that make up the token sequence of each slice; each keeps its own rotation."""
Features = tuple[ClassTokens, PatchTokens, Float32[np.ndarray, "n four_dim"]]
"""Class tokens, patch tokens, and the class tokens after the blocks of `evenly_spaced`, side by side."""


def evenly_spaced(depth: int) -> tuple[int, ...]:
    """The last blocks of four equal parts of a transformer: 2, 5, 8 and 11 of twelve (0-based)."""
    return tuple(max(0, depth * part // 4 - 1) for part in (1, 2, 3, 4))


@dataclass(frozen=True)
class Architecture:
    """What it takes to build the module that a state dict fits; the defaults are MedDINOv3's published ones."""

    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    patch_size: int = 16
    in_chans: int = 3
    ffn_dim: int = 3072
    n_storage_tokens: int = 4
    qkv_bias: bool = False
    mask_k_bias: bool = False
    """Whether a stored mask holds the key bias at zero; says nothing without a qkv bias."""
    proj_bias: bool = True
    ffn_bias: bool = True
    layerscale: bool = True
    norm_layer: str = "layernorm"
    rope_base: float = ROPE_BASE
    rope_dtype: str = "bf16"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor of the state dict, under the published names."""
        dim, ffn, patch = self.embed_dim, self.ffn_dim, self.patch_size
        shapes: dict[str, tuple[int, ...]] = {
            "cls_token": (1, 1, dim),
            "mask_token": (1, dim),
            "patch_embed.proj.weight": (dim, self.in_chans, patch, patch),
            "patch_embed.proj.bias": (dim,),
            "rope_embed.periods": (dim // self.num_heads // 4,),
            "norm.weight": (dim,),
            "norm.bias": (dim,),
        }
        shapes |= {"storage_tokens": (1, self.n_storage_tokens, dim)} if self.n_storage_tokens else {}
        layers = {
            "attn.qkv": (3 * dim, dim, self.qkv_bias),
            "attn.proj": (dim, dim, self.proj_bias),
            "mlp.fc1": (ffn, dim, self.ffn_bias),
            "mlp.fc2": (dim, ffn, self.ffn_bias),
        }
        block: dict[str, tuple[int, ...]] = {f"{name}.weight": (n, m) for name, (n, m, _) in layers.items()}
        block |= {f"{name}.bias": (n,) for name, (n, _, has_bias) in layers.items() if has_bias}
        block |= {f"{norm}.{part}": (dim,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        block |= {"ls1.gamma": (dim,), "ls2.gamma": (dim,)} if self.layerscale else {}
        block |= {"attn.qkv.bias_mask": (3 * dim,)} if self.qkv_bias and self.mask_k_bias else {}
        return shapes | {f"blocks.{i}.{name}": shape for i in range(self.depth) for name, shape in block.items()}

    def problem(self) -> str:
        """Why no transformer can be built of it, empty if one can."""
        dim, heads = self.embed_dim, self.num_heads
        if not isinstance(heads, int) or heads < 1 or dim % heads or (dim // heads) % 4:
            return f"{dim} channels do not divide into {heads} heads of a width divisible by 4; change num_heads"
        if self.norm_layer not in NORM_EPS:
            return f"norm_layer {self.norm_layer!r}, expected one of {', '.join(NORM_EPS)}; change it"
        if self.rope_dtype not in ROPE_DTYPES:
            return f"rope_dtype {self.rope_dtype!r}, expected one of {', '.join(ROPE_DTYPES)}; change it"
        return ""

    def build(self, device: str = "meta") -> VisionTransformer:
        """The torch module, by default without memory of its own."""
        from meddinov3_stroke.backbone.vit import VisionTransformer

        same = dataclasses.asdict(self)
        ratio, scale = same.pop("ffn_dim") / self.embed_dim, 1.0 if same.pop("layerscale") else None
        rope = {f"pos_embed_{name}": same.pop(name) for name in ("rope_base", "rope_dtype")}
        return VisionTransformer(**same, **rope, ffn_ratio=ratio, layerscale_init=scale, device=device)


def architecture_of(
    state: Mapping[str, Any], metadata: Mapping[str, str] | None = None, where: str = "weights"
) -> Architecture:
    """The architecture of a state dict under the published names; raises WeightsMismatch if metadata contradicts it.

    Shapes decide what they show; `metadata` (a safetensors header) states the rest, under `architecture` as JSON or
    under the field's own name. Without it heads are 64 wide, and a masked qkv bias means Meta's own hub weights, with
    float32 RoPE and an epsilon of 1e-5. A tensor that is missing leaves the published value, so that the strict
    comparison can name it.
    """
    visible = _visible_fields(state)
    stated = _stated_fields(metadata or {}, where)
    for name in stated.keys() & visible.keys():
        if stated[name] != visible[name]:
            raise WeightsMismatch(
                f"{where}: metadata states {name} {stated[name]!r}, the tensors show {visible[name]!r}; convert again"
            )
    assumed: dict[str, Any] = {"num_heads": max(1, visible["embed_dim"] // HEAD_DIM)}
    if visible["mask_k_bias"]:
        assumed |= {"norm_layer": "layernormbf16", "rope_dtype": "fp32"}
    found = Architecture(**(assumed | visible | stated))
    if problem := found.problem():
        raise WeightsMismatch(f"{where}: {problem} (in the metadata of a safetensors file)")
    return found


def _visible_fields(state: Mapping[str, Any]) -> dict[str, Any]:
    published = Architecture()
    dim = _axis(state, "norm.weight", 0) or _axis(state, "cls_token", -1) or published.embed_dim
    blocks = {match.group(1) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}
    first = f"blocks.{min(blocks, key=int, default='0')}"
    return {
        "embed_dim": dim,
        "depth": len(blocks) or published.depth,  # a gap in the numbers shows as missing and unexpected tensors
        "patch_size": _axis(state, "patch_embed.proj.weight", 2) or published.patch_size,
        "in_chans": _axis(state, "patch_embed.proj.weight", 1) or published.in_chans,
        "ffn_dim": _axis(state, f"{first}.mlp.fc1.weight", 0) or 4 * dim,
        "n_storage_tokens": _axis(state, "storage_tokens", 1) or 0,
        "qkv_bias": f"{first}.attn.qkv.bias" in state,
        "mask_k_bias": f"{first}.attn.qkv.bias_mask" in state,
        "proj_bias": not blocks or f"{first}.attn.proj.bias" in state,
        "ffn_bias": not blocks or f"{first}.mlp.fc1.bias" in state,
        "layerscale": not blocks or f"{first}.ls1.gamma" in state,
    }


def _axis(state: Mapping[str, Any], name: str, axis: int) -> int | None:
    shape = state[name].shape if name in state else ()
    return int(shape[axis]) if -len(shape) <= axis < len(shape) else None


def _stated_fields(metadata: Mapping[str, str], where: str) -> dict[str, Any]:
    known = {field.name: field.type for field in dataclasses.fields(Architecture)}
    try:
        flat = {name: metadata[name] for name in known.keys() & metadata.keys()}
        flat = {name: text if known[name] == "str" else json.loads(text.lower()) for name, text in flat.items()}
        stated: dict[str, Any] = flat | json.loads(metadata.get("architecture", "{}"))
    except (ValueError, TypeError) as error:
        raise WeightsMismatch(f"{where}: metadata states no readable architecture: {error}; convert again") from error
    unknown = sorted(stated.keys() - known.keys())
    if unknown:
        raise WeightsMismatch(f"{where}: metadata states unknown fields {', '.join(unknown[:8])}; update the package")
    return stated


def round_bf16(x: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Values rounded to the nearest bf16 (ties to even), still as float32."""
    bits = np.array(x, dtype=np.float32).view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    bits &= np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def rope_periods(head_dim: int, base: float = ROPE_BASE) -> Float32[np.ndarray, " period"]:
    """The head_dim/4 periods of the angles, in float32."""
    exponents = np.arange(head_dim // 4, dtype=np.float32) / np.float32(head_dim // 4)
    return np.asarray(np.power(np.float32(base), exponents))


def rope_tables(
    grid: tuple[int, int], periods: Float32[np.ndarray, " period"], dtype: str
) -> tuple[Float32[np.ndarray, "patch head_dim"], Float32[np.ndarray, "patch head_dim"]]:
    """(sines, cosines) of every patch, row-major: row angles, column angles, and that block twice.

    With `dtype` bf16 each operation is rounded by itself, as the published code does; the order of the roundings
    matters: 2*pi*(c/period) differs by 1.7e-3 in the tokens.
    """
    rounded = round_bf16 if dtype == "bf16" else np.asarray

    def angles(n: int) -> np.ndarray:
        centres = rounded(np.arange(0.5, n, dtype=np.float32))
        centres = rounded(rounded(rounded(centres / np.float32(n)) * np.float32(2)) - np.float32(1))
        return np.asarray(rounded(rounded(np.float32(2 * np.pi) * centres)[:, None] / rounded(periods)))

    n_rows, n_columns = grid
    by_row = np.repeat(angles(n_rows), n_columns, axis=0)
    by_column = np.tile(angles(n_columns), (n_rows, 1))
    block = np.concatenate((by_row, by_column, by_row, by_column), axis=1)
    return rounded(np.sin(block)), rounded(np.cos(block))
