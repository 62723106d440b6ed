"""How much arithmetic a class token takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Transformer:
    """The sizes that decide it; the defaults are ViT-B/16 with four storage tokens."""

    dim: int = 768
    depth: int = 12
    patch: int = 16
    n_prefix: int = 5
    ffn: int = 3072


VIT_B = Transformer()


def flops_of_slice(side: int, vit: Transformer = VIT_B) -> int:
    """Floating-point operations of the class token of a slice of `side` pixels, two for each multiply-add.

    Counted as it is computed: one input channel; in the last block keys and values of all tokens, but query,
    attention, projection and MLP of the class token alone. Norms, rotation, softmax and GELU are left out.
    """
    n_patches = (side // vit.patch) ** 2
    n_tokens = n_patches + vit.n_prefix
    embedding = n_patches * vit.patch**2 * vit.dim
    block = n_tokens * per_token(vit) + attention(n_tokens, n_tokens, vit)
    keys_and_values = n_tokens * 2 * vit.dim**2
    for_one_token = per_token(vit) - 2 * vit.dim**2 + attention(1, n_tokens, vit)
    return 2 * (embedding + (vit.depth - 1) * block + keys_and_values + for_one_token)


def per_token(vit: Transformer) -> int:
    """Multiply-adds of a token in a block's linear layers: q, k, v, projection, MLP."""
    return 4 * vit.dim**2 + 2 * vit.dim * vit.ffn


def attention(n_queries: int, n_keys: int, vit: Transformer) -> int:
    """Multiply-adds of the two products of attention, all heads together."""
    return 2 * n_queries * n_keys * vit.dim
