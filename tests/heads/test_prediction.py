from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit

from meddinov3_stroke.errors import CheckpointError, NonFiniteEmbedding
from meddinov3_stroke.heads import HeadCheckpoint, applying, build_head, predict_logits


def rows(n: int, dim: int = 8) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, dim)).astype(np.float32)


def test_logits_are_the_heads_and_probabilities_their_sigmoid(checkpoint: HeadCheckpoint) -> None:
    embeddings = rows(40)
    output = predict_logits(checkpoint, embeddings)
    head = build_head(8, 12, 3, 0.2).eval()
    head.load_state_dict({name: torch.from_numpy(array) for name, array in checkpoint.state_dict.items()})
    with torch.no_grad():
        expected = head(torch.tensor(embeddings)).numpy()
    np.testing.assert_allclose(output.logits, expected, atol=1e-6)
    np.testing.assert_allclose(output.probabilities, expit(expected.astype(np.float64)), atol=1e-6)
    assert output.labels == checkpoint.labels


def test_batches_join_in_order(checkpoint: HeadCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = predict_logits(checkpoint, rows(23)).logits
    monkeypatch.setattr(applying, "ROWS_PER_BATCH", 5)
    np.testing.assert_allclose(predict_logits(checkpoint, rows(23)).logits, whole, atol=1e-6)


def test_no_rows_give_no_logits(checkpoint: HeadCheckpoint) -> None:
    assert predict_logits(checkpoint, np.empty((0, 8), dtype=np.float32)).logits.shape == (0, 3)


def test_read_only_embeddings_are_taken(checkpoint: HeadCheckpoint) -> None:
    embeddings = rows(4)
    embeddings.setflags(write=False)
    assert predict_logits(checkpoint, embeddings).logits.shape == (4, 3)


def test_wrong_size_lists_expected_and_found(checkpoint: HeadCheckpoint) -> None:
    with pytest.raises(CheckpointError, match=r"expected 8 .*found 9"):
        predict_logits(checkpoint, rows(4, 9))


def test_labels_in_another_order_are_refused(checkpoint: HeadCheckpoint) -> None:
    with pytest.raises(CheckpointError, match="expected class_0, class_1, class_2; found class_1, class_0, class_2"):
        predict_logits(checkpoint, rows(4), ("class_1", "class_0", "class_2"))


def test_rows_that_overflow_are_named(checkpoint: HeadCheckpoint) -> None:
    embeddings = rows(4)
    embeddings[2, 0] = np.inf
    with pytest.raises(NonFiniteEmbedding, match="1 of 4 rows, first 2"):
        predict_logits(checkpoint, embeddings)
