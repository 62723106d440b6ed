from __future__ import annotations

import pytest
import torch
from torch import nn

from meddinov3_stroke.heads import MLPHead, build_head
from meddinov3_stroke.heads.mlp import MLPPass, MLPWeights, normalised_rows, weighted_loss_gradient


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


@pytest.fixture
def trained() -> MLPHead:
    """A head in float64 whose weights are all far from where they start."""
    torch.manual_seed(3)
    head = MLPHead(9, 13, 4, 0.0).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter))
    return head


@pytest.fixture
def rows() -> torch.Tensor:
    return 5 * torch.randn(21, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) + 2


def factors(n_rows: int, n_hidden: int) -> torch.Tensor:
    kept = torch.rand(n_rows, n_hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) < 0.75
    return kept / 0.75


def test_pass_of_normalised_rows_gives_the_modules_logits(trained: MLPHead, rows: torch.Tensor) -> None:
    found = MLPPass(MLPWeights.of(trained), normalised_rows(rows, trained.norm.eps)).logits
    torch.testing.assert_close(found, trained(rows).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dropout", [False, True])
def test_closed_form_gradients_of_all_weights_are_autograds(
    trained: MLPHead, rows: torch.Tensor, dropout: bool
) -> None:
    targets = (torch.rand(21, 4, generator=torch.Generator().manual_seed(6)) < 0.3).double()
    pos_weight = torch.tensor([1.0, 3.0, 0.5, 20.0], dtype=torch.float64)
    scale = factors(21, 13) if dropout else torch.ones(21, 13, dtype=torch.float64)
    logits = trained.output(nn.functional.gelu(trained.hidden(trained.norm(rows))) * scale)
    nn.functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=pos_weight).backward()

    weights = MLPWeights.of(trained)
    mlp = MLPPass(weights, normalised_rows(rows, trained.norm.eps), scale if dropout else None)
    gradients = weights.zeros()
    mlp.gradients_into(gradients, weighted_loss_gradient(mlp.logits, targets, pos_weight))
    expected = {name: parameter.grad for name, parameter in trained.named_parameters()}
    torch.testing.assert_close(gradients.by_name(), expected, rtol=1e-10, atol=1e-12)


def test_weights_in_one_vector_go_back_into_a_head_as_they_came(trained: MLPHead) -> None:
    other = MLPHead(9, 13, 4, 0.0).double()
    other.load_state_dict(MLPWeights.of(trained).by_name(), strict=True)
    assert all(torch.equal(found, trained.state_dict()[name]) for name, found in other.state_dict().items())
