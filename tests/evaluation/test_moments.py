"""Moments of values that arrive in parts are those of all values at once."""

import numpy as np

from dgjax.evaluation.moments import Moments, moments


def test_moments_of_pieces_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    whole = 1e6 + rng.standard_normal((5, 3, 50))
    pieces = [moments(whole[..., a:b]) for a, b in [(0, 1), (1, 30), (30, 50)]]
    joined = Moments.join(Moments.join(*pieces[:2]), pieces[2])
    assert joined.number == 50
    np.testing.assert_allclose(joined.mean, whole.mean(-1), rtol=1e-14)
    np.testing.assert_allclose(joined.squares / 49, whole.var(-1, ddof=1), rtol=1e-8)
    np.testing.assert_allclose(joined.deviation, whole.std(-1, ddof=1), rtol=1e-8)
    assert pieces[0].deviation is None
