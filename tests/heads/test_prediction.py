from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit

from meddinov3_stroke.errors import CheckpointError, NonFiniteEmbedding
from meddinov3_stroke.heads import HeadCheckpoint, architectures, build_head, predict_logits, save_checkpoint


def rows(n: int, dim: int = 8) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, dim)).astype(np.float32)


def test_logits_are_the_heads_and_probabilities_their_sigmoid(checkpoint: HeadCheckpoint) -> None:
    embeddings = rows(40)
    output = predict_logits(checkpoint, embeddings)
    with torch.no_grad():
        expected = checkpoint.head()(torch.tensor(embeddings)).numpy()
    np.testing.assert_allclose(output.logits, expected, atol=1e-6)
    np.testing.assert_allclose(output.probabilities, expit(expected.astype(np.float64)), atol=1e-6)
    assert output.labels == checkpoint.labels


@pytest.mark.parametrize("hidden_dim", [0, 256])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("large", [1, 10**9], ids=["scipy", "math"])
def test_numpy_and_torch_give_the_same_logits(
    checkpoint: HeadCheckpoint, hidden_dim: int, scale: float, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architectures, "LARGE", large)
    torch.manual_seed(5)
    head = build_head(768, hidden_dim, 6, 0.2).eval()
    labels = tuple("abcdef")
    fitted = replace(
        checkpoint,
        state_dict={name: value.numpy() for name, value in head.state_dict().items()},
        arch="mlp" if hidden_dim else "linear",
        params={"hidden_dim": hidden_dim, "dropout": 0.2},
        labels=labels,
        input_dim=768,
    )
    embeddings = (scale * rows(50, 768)).astype(np.float32)
    with torch.no_grad():
        expected = head(torch.tensor(embeddings)).numpy()
    tolerance = 1e-6 * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(predict_logits(fitted, embeddings).logits, expected, rtol=0, atol=tolerance)


def test_batches_join_in_order(checkpoint: HeadCheckpoint) -> None:
    whole = predict_logits(checkpoint, rows(23)).logits
    np.testing.assert_allclose(predict_logits(checkpoint, rows(23), batch_size=5).logits, whole, atol=1e-6)


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


def test_loading_and_applying_a_head_imports_no_torch(checkpoint: HeadCheckpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    code = f"""
import sys
import numpy as np
from meddinov3_stroke.heads import load_checkpoint, predict_logits
from meddinov3_stroke import head_model
predict_logits(load_checkpoint({str(tmp_path / "best.pt")!r}), np.ones((2, 8), np.float32)).probabilities
from meddinov3_stroke.system import torch_file
names = ("torch", "scipy", "sklearn") if hasattr(torch_file, "read_torch_file") else ("scipy", "sklearn")
print([name for name in names if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_rows_that_overflow_are_named(checkpoint: HeadCheckpoint) -> None:
    embeddings = rows(4)
    embeddings[2, 0] = np.inf
    with pytest.raises(NonFiniteEmbedding, match="1 of 4 rows, first 2"):
        predict_logits(replace(checkpoint), embeddings)
