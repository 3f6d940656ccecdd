"""Self-normalized importance weights, against Gaussians."""

import numpy as np
import pytest

import dgjax


def test_means_under_another_gaussian():
    """From N(1, 2^2) to N(0.5, 1.5^2): the interval covers the mean as often as it says."""
    rng = np.random.default_rng(0)
    x = 1 + 2 * rng.normal(size=(400, 2000))
    log_p = -0.5 * ((x - 0.5) / 1.5) ** 2  # the constants are left out
    log_q = -0.5 * ((x - 1) / 2) ** 2
    found = [
        dgjax.weighted_mean(a, w, confidence=0.9) for a, w in zip(x, log_p - log_q, strict=True)
    ]
    covered = np.mean([a.low < 0.5 < a.high for a in found])
    assert 0.85 < covered < 0.95
    sizes = [dgjax.effective_sample_size(w) for w in log_p - log_q]
    # E[w]^2/E[w^2] of the two Gaussians: sqrt(2/v - 1) exp(-d^2/(2 - v)) v, v = 1.5^2/2^2, in 2s.
    v, d = 1.5**2 / 2**2, 0.5 / 2
    share = np.sqrt(v * (2 - v)) * np.exp(-(d**2) / (2 - v))
    assert np.mean(sizes) / 2000 == pytest.approx(share, rel=0.02)


def test_weights_add_up_and_large_log_weights_do_not_overflow():
    weights = dgjax.importance_weights([2000.0, 2000.0 + np.log(3), -np.inf])
    np.testing.assert_allclose(weights, [0.25, 0.75, 0])
    assert dgjax.effective_sample_size([5.0, 5.0, 5.0]) == pytest.approx(3)


@pytest.mark.parametrize("wrong", [[], [[1.0]], [np.nan], [np.inf], [-np.inf, -np.inf]])
def test_what_is_refused(wrong):
    with pytest.raises(ValueError, match="weights"):
        dgjax.importance_weights(wrong)


def test_values_must_fit():
    with pytest.raises(ValueError, match="one for each weight"):
        dgjax.weighted_mean([1.0, 2.0], [0.0])
