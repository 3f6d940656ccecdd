"""Attention is that of JAX, in another order of operations."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

from dgjax.networks.attention import attend, attend_in_chunks


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


def test_chunks_change_neither_values_nor_derivatives_and_hold_no_whole_matrix():
    """11 queries in chunks of 3: value, jvp, linear map and vjp; the largest array is known."""
    random = np.random.default_rng(1)
    query, key, value = (jnp.asarray(random.normal(size=(1, n, 2, 4))) for n in (11, 13, 13))

    def both(limit):
        def run(query, key, value):
            attention = lambda query: jax.nn.dot_product_attention(query, key, value)
            return attend_in_chunks(attention, query, 13, limit)

        def all_of(*arrays):
            out, push = jax.linearize(run, *arrays)
            return out, push(*arrays), jax.vjp(run, *arrays)[1](jnp.sin(out))

        return all_of

    chunked, whole = both(3 * 2 * 13), both(None)
    arrays = (query, key, value)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        jax.jit(chunked)(*arrays),
        jax.jit(whole)(*arrays),
    )
    largest = {
        name: max(int(np.prod(a.shape)) for a in _arrays(jax.make_jaxpr(run)(*arrays).jaxpr))
        for name, run in (("chunked", chunked), ("whole", whole))
    }
    assert largest == {"chunked": 13 * 2 * 4, "whole": 2 * 11 * 13}  # the keys, the logits


def _arrays(jaxpr):
    for equation in jaxpr.eqns:
        yield from (v.aval for v in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from _arrays(inner)
