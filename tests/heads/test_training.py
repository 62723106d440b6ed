from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from meddinov3_stroke.config import HeadConfig
from meddinov3_stroke.errors import NonFiniteLoss, UsageError
from meddinov3_stroke.heads import build_head
from meddinov3_stroke.heads.training import EpochResult, check_config, positive_weights, train_epochs
from meddinov3_stroke.types import HeadData

MakeData = Callable[[int, int], HeadData]


def last_epoch(train: HeadData, val: HeadData, options: HeadConfig) -> EpochResult:
    *_, result = train_epochs(train, val, options, positive_weights(train.labels, 20.0))
    return result


def weights_of(result: EpochResult) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in result.head.state_dict().items()}


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_pos_weight_is_negatives_per_positive_up_to_the_cap() -> None:
    labels = np.zeros((12, 3), dtype=np.int8)
    labels[:3, 0] = labels[:1, 1] = labels[:9, 2] = 1
    assert positive_weights(labels, 5.0).tolist() == [3.0, 5.0, pytest.approx(1 / 3)]


@pytest.mark.parametrize("hidden_dim", [0, 12])
def test_head_learns_a_separable_problem(separable: MakeData, options: HeadConfig, hidden_dim: int) -> None:
    val = separable(200, 2)
    result = last_epoch(separable(400, 1), val, replace(options, epochs=40, hidden_dim=hidden_dim, dropout=0.0))
    assert roc_auc_score(val.labels, result.val_logits, average="macro") > 0.99


def test_linear_head_ranks_as_well_as_logistic_regression(separable: MakeData, options: HeadConfig) -> None:
    train, val = separable(400, 1), separable(400, 2)
    rng = np.random.default_rng(5)
    noisy = [
        HeadData(d.embeddings + rng.normal(size=d.embeddings.shape).astype(np.float32), d.labels) for d in (train, val)
    ]
    result = last_epoch(*noisy, replace(options, epochs=60, hidden_dim=0))
    for label in range(3):
        reference = LogisticRegression(class_weight="balanced").fit(noisy[0].embeddings, train.labels[:, label])
        expected = roc_auc_score(val.labels[:, label], reference.decision_function(noisy[1].embeddings))
        assert roc_auc_score(val.labels[:, label], result.val_logits[:, label]) == pytest.approx(expected, abs=0.005)


def test_same_seed_gives_the_same_bits_whatever_the_thread_count(options: HeadConfig, two_threads: None) -> None:
    rng = np.random.default_rng(1)  # seven rows of this width are products that two threads cut differently from one
    embeddings = rng.normal(size=(70, 768)).astype(np.float32)
    data = HeadData(embeddings, (embeddings[:, :3] > 0).astype(np.int8))
    wide = replace(options, hidden_dim=256, batch_size=7)
    first = weights_of(last_epoch(data, data, wide))
    torch.set_num_threads(1)
    np.random.default_rng().normal()
    torch.rand(7)  # the state of the global generator before training must not matter
    second = weights_of(last_epoch(data, data, wide))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_thread_count_is_given_back(separable: MakeData, options: HeadConfig, two_threads: None) -> None:
    last_epoch(separable(40, 1), separable(40, 2), options)
    assert torch.get_num_threads() == 2


def test_another_seed_gives_another_head(separable: MakeData, options: HeadConfig) -> None:
    data = separable(100, 1), separable(50, 2)
    first, second = (weights_of(last_epoch(*data, replace(options, seed=seed))) for seed in (1, 2))
    assert not torch.equal(first["hidden.weight"], second["hidden.weight"])


def test_one_step_is_adamw_on_the_weighted_loss(separable: MakeData, options: HeadConfig) -> None:
    train = separable(30, 1)
    linear = replace(options, epochs=1, batch_size=30, hidden_dim=0)
    decay = 1 - linear.lr * linear.weight_decay
    weight = np.array([1.0, 3.0, 0.5])
    result = next(train_epochs(train, train, linear, weight))

    torch.manual_seed(options.seed)
    head = torch.nn.Linear(8, 3)
    loss_function = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weight, dtype=torch.float32))
    rows, targets = torch.tensor(train.embeddings), torch.tensor(train.labels).float()
    loss = loss_function(head(rows), targets)
    loss.backward()
    with torch.no_grad():  # Loshchilov and Hutter 2019: in the first step both moments are the gradient's own
        for parameter in head.parameters():
            parameter.mul_(decay).sub_(linear.lr * parameter.grad / (parameter.grad.abs() + 1e-8))
    assert result.train_loss == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(result.head.state_dict(), head.state_dict(), rtol=1e-4, atol=1e-6)
    assert result.val_loss == pytest.approx(loss_function(head(rows), targets).item(), rel=1e-5)


def plain_training(train: HeadData, options: HeadConfig, pos_weight: np.ndarray) -> torch.nn.Module:
    """The head that autograd and torch.optim.AdamW make of the same batches."""
    torch.manual_seed(options.seed)
    head = build_head(train.embeddings.shape[1], options.hidden_dim, train.labels.shape[1], options.dropout)
    optimizer = torch.optim.AdamW(head.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    loss_function = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(pos_weight, dtype=torch.float32))
    order = torch.Generator().manual_seed(options.seed)
    rows, targets = torch.tensor(train.embeddings), torch.tensor(train.labels).float()
    for _ in range(options.epochs):
        for batch in torch.randperm(len(rows), generator=order).split(options.batch_size):
            optimizer.zero_grad()
            loss_function(head(rows[batch]), targets[batch]).backward()
            optimizer.step()
    return head


@pytest.mark.parametrize("hidden_dim", [0, 12])
def test_training_is_that_of_a_plain_loop(separable: MakeData, options: HeadConfig, hidden_dim: int) -> None:
    train, weight = separable(150, 1), np.array([1.0, 3.0, 0.5])
    plain = replace(options, dropout=0.0, hidden_dim=hidden_dim)
    *_, result = train_epochs(train, separable(50, 2), plain, weight)
    expected = plain_training(train, plain, weight).state_dict()
    torch.testing.assert_close(result.head.state_dict(), expected, rtol=1e-3, atol=2e-5)


def test_dropout_changes_the_training_of_an_mlp_and_not_its_validation(
    separable: MakeData, options: HeadConfig
) -> None:
    data = separable(64, 1), separable(50, 2)
    with_dropout, without = (last_epoch(*data, replace(options, dropout=share)) for share in (0.5, 0.0))
    assert with_dropout.train_loss > without.train_loss
    expected = with_dropout.head(torch.tensor(data[1].embeddings)).detach().numpy()
    np.testing.assert_allclose(with_dropout.val_logits, expected, atol=1e-6)


def test_training_does_not_load_torchs_compiler() -> None:
    code = """
import sys
import numpy as np
from meddinov3_stroke.config import HeadConfig
from meddinov3_stroke.heads.training import train_epochs
from meddinov3_stroke.types import HeadData
data = HeadData(np.eye(4, dtype=np.float32), np.eye(4, dtype=np.int8))
options = HeadConfig(
    epochs=1, batch_size=2, lr=0.1, weight_decay=0.0, hidden_dim=3, dropout=0.1, seed=1, patience=0
)
next(train_epochs(data, data, options, np.ones(4)))
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_row_is_seen_once_an_epoch(
    separable: MakeData, options: HeadConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = separable(50, 1)
    seen: list[torch.Tensor] = []
    forward = lambda self, rows: seen.append(rows) or rows @ self.weight.T + self.bias  # noqa: E731
    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    next(train_epochs(train, separable(10, 2), replace(options, hidden_dim=0), np.ones(3)))
    rows = torch.cat(seen[:-1]).numpy()  # the last call is validation's
    order = np.lexsort(rows.T)
    np.testing.assert_array_equal(rows[order], train.embeddings[np.lexsort(train.embeddings.T)])
    assert not np.array_equal(rows, train.embeddings)


def test_infinite_loss_names_epoch_and_batch(separable: MakeData, options: HeadConfig) -> None:
    train = separable(64, 1)
    train.embeddings[:] *= 1e37
    with pytest.raises(NonFiniteLoss, match=r"epoch 1, batch 2 of 4.*--lr 1000"):
        next(train_epochs(train, train, replace(options, lr=1e3, hidden_dim=0), np.ones(3)))


def test_nan_loss_of_an_mlp_names_the_batch_and_yields_no_epoch(separable: MakeData, options: HeadConfig) -> None:
    train = separable(64, 1)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(options.seed))
    train.embeddings[order[35]] = np.nan
    with pytest.raises(NonFiniteLoss, match=r"loss is nan in epoch 1, batch 3 of 4"):
        next(train_epochs(train, train, options, np.ones(3)))


def test_infinite_loss_in_validation_is_named(separable: MakeData, options: HeadConfig) -> None:
    val = separable(10, 2)
    val.embeddings[3] = 1e38
    with pytest.raises(NonFiniteLoss, match="validation of epoch 1"):
        next(train_epochs(separable(64, 1), val, replace(options, lr=1e3, hidden_dim=0), np.ones(3)))


def test_weights_that_overflow_in_the_last_step_are_no_epoch(options: HeadConfig) -> None:
    data = HeadData(np.array([[1e38], [0.0]], dtype=np.float32), np.array([[1], [0]], dtype=np.int8))
    once = replace(options, epochs=1, hidden_dim=0, lr=1e-3)
    with pytest.raises(NonFiniteLoss, match="sum of the weights is nan in epoch 1"):
        next(train_epochs(data, None, replace(once, seed=0), np.array([20.0])))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("lr", 1e38),
        ("weight_decay", -0.1),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("patience", -1),
        ("seed", -1),
    ],
)
def test_option_out_of_range_is_a_usage_error_that_names_the_flag(
    options: HeadConfig, field: str, value: float
) -> None:
    with pytest.raises(UsageError, match=f"--{field.replace('_', '-')} "):
        check_config(replace(options, **{field: value}))


def test_options_at_their_limits_pass(options: HeadConfig) -> None:
    check_config(replace(options, epochs=1, batch_size=1, weight_decay=0.0, dropout=0.0, hidden_dim=-1, seed=0))
