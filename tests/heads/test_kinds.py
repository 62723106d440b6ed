"""Every kind of head: numpy against torch, what it learns, many at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from meddinov3_stroke.config import AnyHeadConfig, HeadConfig
from meddinov3_stroke.errors import DatasetError
from meddinov3_stroke.heads.applying import apply_head
from meddinov3_stroke.heads.bags import BAG_HEADS, position_inputs
from meddinov3_stroke.heads.fitting import Fit, fit_heads, taken
from meddinov3_stroke.heads.registry import ARCHITECTURES
from meddinov3_stroke.types import HeadData

LABELS = ("any", "subdural")
DIM, PATCHES = 6, 9
KINDS = [
    (kind, pool, hidden, position)
    for kind in BAG_HEADS
    for pool in ("lse", "topk", "max")
    for hidden in (0, 8)
    for position in (False, True)
    if kind != "mil" or (pool == "lse" and not position)
]


def cases(n: int, seed: int = 0, kind: str = "slices", signal: float = 3.0) -> HeadData:
    """Cases of 3 to 9 slices; positive ones have a slice (or a patch of it) that is shifted along the first axis."""
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 10, n)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    shape = (starts[-1], PATCHES, DIM) if kind == "patches" else (starts[-1], DIM)
    values = random.normal(size=shape).astype(np.float32)
    labels = np.zeros((n, 2), dtype=np.int8)
    slices = np.zeros((starts[-1], 2), dtype=np.int8)
    for k in range(n):
        if k % 2:
            one = int(random.integers(starts[k], starts[k + 1]))
            where = (one, int(random.integers(PATCHES)), 0) if kind == "patches" else (one, 0)
            values[where] += signal
            labels[k, 0] = slices[one, 0] = 1
            labels[k, 1] = slices[one, 1] = k % 4 == 1
    groups = tuple(f"p{k // 2}" for k in range(n))
    positions = np.concatenate([np.arange(length) - length / 2 for length in lengths]).astype(np.float32) * 5
    return HeadData(values, labels, groups, None, starts, slices, positions)


def rows(n: int, seed: int = 0) -> HeadData:
    random = np.random.default_rng(seed)
    values = random.normal(size=(n, DIM)).astype(np.float32)
    labels = np.stack([values[:, 0] > 0, values[:, 0] + values[:, 1] > 0.5], axis=1).astype(np.int8)
    return HeadData(values, labels, tuple(f"p{k // 2}" for k in range(n)))


def data_for(kind: str, n: int, seed: int = 0) -> HeadData:
    takes = ARCHITECTURES[kind].takes
    return rows(n, seed) if takes == "rows" else cases(n, seed, takes, 6.0 if kind in ("gru", "mil") else 3.0)


def accuracy(labels: np.ndarray, logits: np.ndarray) -> float:
    order = np.argsort(logits)
    ranks = np.empty(len(order))
    ranks[order] = np.arange(1, len(order) + 1)
    n = labels.sum()
    return float((ranks[labels == 1].sum() - n * (n + 1) / 2) / (n * (len(labels) - n)))


@pytest.mark.parametrize(("kind", "pool", "hidden", "position"), KINDS)
def test_numpy_gives_what_the_torch_module_gives(kind: str, pool: str, hidden: int, position: bool) -> None:
    data = data_for(kind, 4)
    params = {"hidden_dim": hidden, "dropout": 0.3, "pool": pool, "position": position}
    torch.manual_seed(5)
    module = ARCHITECTURES[kind].module(params, DIM, 2).eval()
    with torch.no_grad():
        for one in module.parameters():
            one.add_(torch.randn_like(one) * 0.3)
    state = {name: one.numpy() for name, one in module.state_dict().items()}
    assert {name: one.shape for name, one in state.items()} == ARCHITECTURES[kind].shapes(params, DIM, 2)
    found = apply_head(kind, params, state, data, LABELS)
    longest = int(np.diff(data.starts).max())
    for k in range(4):  # padded with rubbish, which the mask hides
        low, high = data.starts[k : k + 2]
        values = torch.full((1, longest, *data.embeddings.shape[1:]), 7.0)
        values[0, : high - low] = torch.from_numpy(data.embeddings[low:high])
        positions = torch.zeros(1, longest, 2)
        positions[0, : high - low] = torch.from_numpy(position_inputs(data.positions_mm[low:high]))
        mask = torch.arange(longest)[None] < high - low
        with torch.no_grad():
            case, slices = module(values, mask, positions)
        np.testing.assert_allclose(found.logits[k], case[0].numpy(), rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(found.slice_logits[low:high], slices[0, : high - low].numpy(), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_every_kind_learns_and_finds_the_slice(kind: str) -> None:
    data, other = data_for(kind, 160, 1), data_for(kind, 80, 2)
    config = AnyHeadConfig(
        head=kind, epochs=25, lr=0.02, hidden_dim=16 if kind == "mil" else 0, dropout=0.0, batch_size=16
    )
    (head,) = fit_heads([Fit(config, np.arange(160))], data)
    found = head.outputs(other, LABELS)
    assert accuracy(other.labels[:, 0], found.logits[:, 0]) > 0.85
    if found.slice_logits is not None and kind != "mil":
        assert accuracy(other.slice_labels[:, 0], found.slice_logits[:, 0]) > 0.9


def test_the_map_of_the_evidence_head_points_at_the_patch() -> None:
    data, other = cases(160, 1, "patches"), cases(60, 3, "patches")
    config = AnyHeadConfig(head="evidence", epochs=25, lr=0.02, hidden_dim=0, dropout=0.0, batch_size=16)
    (head,) = fit_heads([Fit(config, np.arange(160))], replace(data, slice_labels=None))  # from labels of cases alone
    found = apply_head("evidence", head.params, head.state, other, LABELS, with_patches=True)
    positive = np.flatnonzero(other.slice_labels[:, 0])
    best = found.patch_logits[positive, :, 0].argmax(axis=1)
    assert (best == other.embeddings[positive, :, 0].argmax(axis=1)).mean() > 0.9


@pytest.mark.parametrize("kind", ["mlp", "slices", "evidence", "mil"])
def test_heads_that_train_together_are_those_that_train_alone(kind: str) -> None:
    data = data_for(kind, 60)
    configs = [AnyHeadConfig(head=kind, epochs=3, dropout=0.0, hidden_dim=8, batch_size=16, seed=k) for k in range(3)]
    halves = [np.arange(0, 60, 2), np.arange(1, 60, 2), np.arange(50)]
    fits = [Fit(config, half) for config, half in zip(configs, halves, strict=True)]
    together = fit_heads(fits, data)
    for fit, head in zip(fits, together, strict=True):
        (alone,) = fit_heads([fit], data)
        found, expected = (one.outputs(data, LABELS).logits for one in (head, alone))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_a_head_depends_on_its_training_rows_alone(kind: str) -> None:
    data = data_for(kind, 24)
    train = np.arange(16)
    held = slice(16, None) if data.starts is None else slice(int(data.starts[16]), None)
    values, labels = data.embeddings.copy(), data.labels.copy()
    values[held] += 5.0
    labels[16:] = 1 - labels[16:]
    of_slices = None if data.slice_labels is None else data.slice_labels.copy()
    if of_slices is not None:
        of_slices[held] = 1
    other = replace(data, embeddings=values, labels=labels, slice_labels=of_slices)
    config = AnyHeadConfig(head=kind, epochs=2, dropout=0.0, hidden_dim=8, batch_size=8)
    heads = [fit_heads([Fit(config, train)], one)[0] for one in (data, other)]
    for name, tensor in heads[0].state.items():
        assert np.array_equal(tensor, heads[1].state[name]), name


def test_codes_with_a_scale_are_the_values_they_stand_for() -> None:
    data = cases(20, 1, "patches")
    scale = np.linspace(0.1, 0.6, DIM).astype(np.float32)
    codes = np.clip(np.rint(data.embeddings / scale), -127, 127).astype(np.int8)
    coded = replace(data, embeddings=codes, scale=scale)
    plain = replace(data, embeddings=codes * scale)
    fits = [Fit(AnyHeadConfig(head="evidence", epochs=2, dropout=0.0, hidden_dim=4), np.arange(20))]
    heads = [fit_heads(fits, one)[0] for one in (coded, plain)]
    outputs = [head.outputs(one, LABELS).logits for head, one in zip(heads, (coded, plain), strict=True)]
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)


def test_the_epoch_is_the_one_that_the_score_likes() -> None:
    data = rows(80)
    calls: list[float] = []

    def score(labels: np.ndarray, logits: np.ndarray) -> float:
        calls.append(-float(len(calls)))  # the first is the best
        return calls[-1]

    fit = Fit(HeadConfig(epochs=4), np.arange(60), np.arange(60, 80))
    assert fit_heads([fit], data, score)[0].epoch == 1
    assert fit_heads([fit], data)[0].epoch == 4


def test_a_probe_is_a_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    from meddinov3_stroke.heads import shallow

    data = rows(300)
    noisy = replace(data, labels=(data.labels ^ (np.random.default_rng(3).random((300, 2)) < 0.2)).astype(np.int8))
    (head,) = fit_heads([Fit(AnyHeadConfig(head="probe"), np.arange(300))], noisy)
    mean, spread = noisy.embeddings.mean(axis=0), noisy.embeddings.std(axis=0)
    scaled = (noisy.embeddings - mean) / spread
    fitted = []
    for cost in shallow.COSTS:
        weights = {0: 1.0, 1: float((noisy.labels[:, 0] == 0).sum() / noisy.labels[:, 0].sum())}
        model = LogisticRegression(C=1 / (cost * 300), class_weight=weights, tol=1e-8, max_iter=2000)
        fitted.append(model.fit(scaled, noisy.labels[:, 0]).coef_[0] / spread)
    assert min(np.abs(head.state["weight"][0] - one).max() for one in fitted) < 2e-3


def test_knn_is_that_of_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    data, other = rows(200), rows(50, 9)
    (head,) = fit_heads([Fit(AnyHeadConfig(head="knn"), np.arange(200))], data)
    model = KNeighborsClassifier(20, metric="cosine").fit(data.embeddings, data.labels[:, 0])
    shares = (model.predict_proba(other.embeddings)[:, 1] * 20 + 0.5) / 21
    logits = head.outputs(other, LABELS).logits[:, 0]
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), shares, rtol=1e-4)


def test_heads_say_what_they_take() -> None:
    with pytest.raises(DatasetError, match="head evidence takes patches; found one vector a case"):
        fit_heads([Fit(AnyHeadConfig(head="evidence"), np.arange(4))], rows(4))
    with pytest.raises(DatasetError, match="head mlp takes rows"):
        fit_heads([Fit(HeadConfig(), np.arange(4))], cases(4))


def test_taken_keeps_the_slices_of_each_case() -> None:
    data = cases(6)
    some = taken(data, np.array([4, 1]))
    assert np.array_equal(some.embeddings[: some.starts[1]], data.embeddings[data.starts[4] : data.starts[5]])
    assert np.array_equal(some.slice_labels[some.starts[1] :], data.slice_labels[data.starts[1] : data.starts[2]])
    assert some.groups == ("p2", "p0")
