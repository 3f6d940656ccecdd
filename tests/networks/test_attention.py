"""Attention is that of JAX, in another order of operations."""

import jax
import jax.numpy as jnp
import numpy as np

from dgjax.networks.attention import attend


def drawn(scale=1.0, dtype=float):
    random = np.random.default_rng(0)
    return [jnp.asarray(scale * random.normal(size=(2, 7, 3, 4)), dtype) for _ in range(3)]


def test_values_and_derivatives_are_those_of_jax():
    arrays = drawn()
    tangents = [jnp.cos(array) for array in arrays]
    found = jax.jvp(attend, arrays, tangents)
    expected = jax.jvp(jax.nn.dot_product_attention, arrays, tangents)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_large_logits_are_finite():
    found = attend(*drawn(100.0))
    np.testing.assert_allclose(found, jax.nn.dot_product_attention(*drawn(100.0)), atol=1e-6)


def test_half_precision():
    found = attend(*drawn(dtype=jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(float), attend(*drawn()), atol=0.05)
