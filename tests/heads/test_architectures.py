from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from meddinov3_stroke.heads import ARCHITECTURES, build_head


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
    head = build_head(768, 256, 6, 0.2)
    expected = 2 * 768 + (768 * 256 + 256) + (256 * 6 + 6)
    assert sum(parameter.numel() for parameter in head.parameters()) == expected


@pytest.mark.parametrize("hidden_dim", [0, 12])
def test_numpy_gives_the_logits_of_the_torch_module(hidden_dim: int) -> None:
    torch.manual_seed(3)
    head = build_head(9, hidden_dim, 4, 0.3).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter))
    rows = 5 * torch.randn(50, 9) + 2
    state = {name: tensor.numpy() for name, tensor in head.state_dict().items()}
    found = ARCHITECTURES["mlp"].logits(state, rows.numpy())
    with torch.no_grad():
        expected = head(rows).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_many_rows_give_the_logits_of_few() -> None:
    head = build_head(8, 256, 3, 0.2)
    state = {name: tensor.numpy() for name, tensor in head.state_dict().items()}
    rows = 3 * torch.randn(4200, 8).numpy()  # 4200 x 256 takes scipy's erf
    found, few = (ARCHITECTURES["mlp"].logits(state, part) for part in (rows, rows[:50]))
    np.testing.assert_allclose(found[:50], few, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("hidden_dim", [-1, 0, 12])
def test_declared_shapes_are_those_of_the_module(hidden_dim: int) -> None:
    params = {"hidden_dim": hidden_dim, "dropout": 0.2}
    found = {name: tuple(tensor.shape) for name, tensor in build_head(9, hidden_dim, 4, 0.2).state_dict().items()}
    assert ARCHITECTURES["mlp"].shapes(params, 9, 4) == found
