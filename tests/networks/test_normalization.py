"""The group normalization is Flax's, with sums in another order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgjax.networks.normalization import GroupNorm


def pair(shape, **options):
    """Both normalizations with the same drawn weights, and an input far from zero."""
    random = np.random.default_rng(0)
    made = []
    for make in (GroupNorm, nnx.GroupNorm):
        norm = make(
            shape[-1],
            num_groups=3,
            epsilon=1e-3,
            use_fast_variance=False,
            rngs=nnx.Rngs(0),
            **options,
        )
        made.append(norm)
    ours, theirs = made
    for name in ("scale", "bias"):
        if getattr(theirs, name) is not None:
            drawn = jnp.asarray(random.normal(size=shape[-1]))
            getattr(theirs, name)[...] = getattr(ours, name)[...] = drawn
    return ours, theirs, jnp.asarray(5 + random.normal(size=shape))


@pytest.mark.parametrize("shape", [(2, 5, 4, 6), (1, 7, 12), (3, 6)])
def test_values_and_derivatives_are_those_of_flax(shape):
    ours, theirs, x = pair(shape)
    v = jnp.ones_like(x).at[0].set(2.0)
    for found, expected in zip(jax.jvp(ours, (x,), (v,)), jax.jvp(theirs, (x,), (v,)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_without_weights_and_in_half_precision():
    ours, theirs, x = pair((1, 4, 4, 6), use_bias=False, use_scale=False)
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-6)
    half = ours(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(float), ours(x), atol=0.1)
