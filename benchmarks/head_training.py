"""Head training against a plain PyTorch loop and scikit-learn's logistic regression, on made-up embeddings."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from benchmarks.bars import Bar, judged
from benchmarks.table import Table
from meddinov3_stroke import config
from meddinov3_stroke.config import HeadConfig
from meddinov3_stroke.heads import build_head
from meddinov3_stroke.heads.training import EpochResult, positive_weights, train_epochs
from meddinov3_stroke.types import HeadData

DIM = 768
N_SUBTYPES = 5
SIGNAL = 3.0
"""Standard deviation of what the embeddings say of a label, in units of the label's own noise."""

TRAINING_S = Bar(10, " s", "less than")

Scores = Float[np.ndarray, "n label"]


def measure(quick: bool) -> Table:
    """Seconds and held-out macro AUROC of each way to train, the ways taking turns; medians of the rounds."""
    n_rows, epochs, rounds = (2000, 3, 1) if quick else (25000, config.RSNA_EPOCHS, 3)
    train, held_out = made_up(n_rows, 1), made_up(max(n_rows // 5, 500), 2)
    options = HeadConfig(epochs=epochs)
    ways: dict[str, Callable[[], Scores]] = {
        "train_epochs": lambda: np.asarray(ours(train, held_out, options).val_logits),
        "plain PyTorch loop": lambda: plain_loop(train, held_out, options),
        "scikit-learn LogisticRegression": lambda: logistic_regressions(train, held_out),
    }
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # imports torch's compiler: seconds that are no training
    seconds, scores = take_turns(ways, rounds)
    rows = [
        row(name, statistics.median(seconds[name]), scores[name], held_out, n_rows, epochs if k < 2 else None)
        for k, name in enumerate(ways)
    ]
    same = bit_identical(train, held_out, options)
    notes = [
        *judged(quick, [TRAINING_S.verdict("train_epochs", statistics.median(seconds["train_epochs"]))]),
        f"{n_rows} x {DIM} rows, {N_SUBTYPES + 1} labels, {len(held_out.labels)} held out; median of {rounds} rounds "
        f"that take turns; validation after each epoch in the first two; {torch.get_num_threads()} threads by default",
        f"our loop: {options.hidden_dim} hidden units, batches of {options.batch_size}, one thread",
        f"two runs of ours with one seed: {'bit-identical weights' if same else 'DIFFERENT weights'}",
        "the plain loop's first AdamW also imports torch's compiler (3 to 4 seconds once a process), which is left out",
        "the planted signal is linear, which suits logistic regression: one for each label, standardised columns",
    ]
    return Table("head_training", "Training a head", rows, notes)


def made_up(n_rows: int, seed: int) -> HeadData:
    """Embeddings of which a few directions carry the five subtypes, and `any` as their OR."""
    directions = np.random.default_rng(0).normal(size=(DIM, N_SUBTYPES)) / np.sqrt(DIM)
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(n_rows, DIM)).astype(np.float32)
    evidence = SIGNAL * embeddings @ directions + rng.normal(size=(n_rows, N_SUBTYPES))
    subtypes = (evidence > 1.5 * SIGNAL).astype(np.int8)
    return HeadData(embeddings, np.concatenate([subtypes.max(axis=1, keepdims=True), subtypes], axis=1))


def take_turns(ways: dict[str, Callable[[], Scores]], rounds: int) -> tuple[dict[str, list[float]], dict[str, Scores]]:
    """Seconds of every round and the last scores, by name."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, Scores] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            scores[name] = way()
            seconds[name].append(time.perf_counter() - start)
    return seconds, scores


def row(
    name: str, seconds: float, scores: Scores, held_out: HeadData, n_rows: int, epochs: int | None
) -> dict[str, Any]:
    """A row of the table."""
    return {
        "way": name,
        "rows": n_rows,
        "epochs": "until converged" if epochs is None else epochs,
        "seconds": seconds,
        "held_out_macro_auroc": float(roc_auc_score(held_out.labels, scores, average="macro")),
    }


def ours(train: HeadData, held_out: HeadData, options: HeadConfig) -> EpochResult:
    """The last epoch of our training."""
    *_, last = train_epochs(train, held_out, options, positive_weights(train.labels, config.POS_WEIGHT_CAP))
    return last


def plain_loop(train: HeadData, held_out: HeadData, options: HeadConfig) -> Scores:
    """Held-out logits after the loop one would write first: module, loss, backward, step; torch's default threads."""
    torch.manual_seed(options.seed)
    head = build_head(DIM, options.hidden_dim, train.labels.shape[1], options.dropout)
    optimizer = torch.optim.AdamW(head.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    weights = torch.tensor(positive_weights(train.labels, config.POS_WEIGHT_CAP), dtype=torch.float32)
    loss_function = nn.BCEWithLogitsLoss(pos_weight=weights)
    rows, targets = torch.tensor(train.embeddings), torch.tensor(train.labels).float()
    held_out_rows = torch.tensor(held_out.embeddings)
    for _ in range(options.epochs):
        head.train()
        for batch in torch.randperm(len(rows)).split(options.batch_size):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            loss_function(head(rows[batch]), targets[batch]).backward()
            optimizer.step()
        head.eval()
        with torch.no_grad():
            logits = head(held_out_rows).numpy()
    return np.asarray(logits)


def logistic_regressions(train: HeadData, held_out: HeadData) -> Scores:
    """Held-out decision values of one regression for each label."""
    columns = []
    for labels in train.labels.T:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train.embeddings, labels)
        columns.append(model.decision_function(held_out.embeddings))
    return np.stack(columns, axis=1)


def bit_identical(train: HeadData, held_out: HeadData, options: HeadConfig) -> bool:
    """Whether two trainings give equal weights, the second with another thread count around it."""
    threads = torch.get_num_threads()
    first = ours(train, held_out, options).head.state_dict()
    torch.set_num_threads(threads + 1)
    try:
        second = ours(train, held_out, options).head.state_dict()
    finally:
        torch.set_num_threads(threads)
    return all(torch.equal(first[name], second[name]) for name in first)
