from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score

from meddinov3_stroke.metrics import weighted_average_precision


@settings(deadline=None)
@given(st.data())
def test_auprc_is_scikit_learns_average_precision_on_the_repeated_rows(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 20))
    truth = data.draw(arrays(np.int8, n, elements=st.integers(0, 1)))
    scores = data.draw(arrays(np.float64, n, elements=st.integers(0, 5).map(float)))
    weights = data.draw(arrays(np.int64, (3, n), elements=st.integers(0, 3)))
    for found, multiplicity in zip(weighted_average_precision(truth, scores, weights), weights, strict=True):
        repeated = np.repeat(truth, multiplicity)
        if 0 < repeated.sum() < len(repeated):
            expected = average_precision_score(repeated, np.repeat(scores, multiplicity))
            assert found == pytest.approx(expected, abs=1e-12)
        else:
            assert np.isnan(found)
