from __future__ import annotations

import pytest
import torch
from torch import nn

from meddinov3_stroke.heads import build_head
from meddinov3_stroke.heads.modules import MLPHead


def test_mlp_head_is_layernorm_linear_gelu_dropout_linear() -> None:
    torch.manual_seed(1)
    head = build_head(8, 12, 6, 0.5)
    literal = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 12), nn.GELU(), nn.Dropout(0.5), nn.Linear(12, 6))
    literal.load_state_dict(dict(zip(literal.state_dict(), head.state_dict().values(), strict=True)), strict=True)
    rows = 5 * torch.randn(20, 8)
    for train in (False, True):
        torch.manual_seed(2)
        ours = head.train(train)(rows)
        torch.manual_seed(2)
        assert torch.equal(ours, literal.train(train)(rows))


@pytest.mark.parametrize("hidden_dim", [0, -1])
def test_hidden_dim_of_zero_or_less_is_exactly_one_linear_layer(hidden_dim: int) -> None:
    head = build_head(8, hidden_dim, 6, 0.2)
    assert type(head) is nn.Linear
    assert (head.in_features, head.out_features, head.bias is not None) == (8, 6, True)


def test_published_sizes_give_the_published_parameter_count() -> None:
    head = MLPHead(768, 256, 6, 0.2)
    expected = 2 * 768 + (768 * 256 + 256) + (256 * 6 + 6)
    assert sum(parameter.numel() for parameter in head.parameters()) == expected
