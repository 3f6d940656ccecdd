"""Self-attention in a form that XLA computes fast on CPUs, and attention of many queries."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["attend", "attend_in_chunks"]

Heads = Float[Array, "n tokens heads size"]

LOGITS = 2**25  # logits of one sample that may be in memory at once: 128 MiB in float32


def attend(query: Heads, key: Heads, value: Heads) -> Heads:
    """Return the softmax-weighted means of values, as `jax.nn.dot_product_attention` does.

    The product with the values comes before the division by the sum of the weights, and heads come
    before tokens: for batches of samples on CPUs XLA computes this faster than
    `jax.nn.dot_product_attention`. Logits and sums are in float32 at least. Many queries are
    computed in chunks, by `attend_in_chunks`.

    Args:
        query: queries.
        key: keys.
        value: values.

    Returns:
        The means, in the dtype of `value`.
    """
    return attend_in_chunks(lambda query: _attend(query, key, value), query, key.shape[-3])


def attend_in_chunks(
    attention: Callable[[Heads], Heads], query: Heads, keys: int, limit: int | None = None
) -> Heads:
    """Apply an attention to so many queries at a time that the logits stay small.

    Where the logits of all queries have at most `limit` elements, `attention` is called once.
    Elsewhere the chunks follow each other in a loop, and derivatives compute the logits of a chunk
    again: so the matrix of all queries and keys is never in memory, neither in forward nor in
    reverse mode.

    Args:
        attention: maps queries to means of values; each mean depends on its own query only.
        query: queries.
        keys: number of keys.
        limit: elements; None for 2^25.

    Returns:
        The means for all queries.
    """
    n, tokens, heads, size = query.shape
    parts = -(-n * tokens * heads * keys // (LOGITS if limit is None else limit))
    if parts <= 1:
        return attention(query)
    rows = -(-tokens // parts)
    parts = -(-tokens // rows)
    padded = jnp.pad(query, ((0, 0), (0, parts * rows - tokens), (0, 0), (0, 0)))
    chunks = padded.reshape(n, parts, rows, heads, size).swapaxes(0, 1)
    # Without checkpoint a linearized loop would store the weights of all chunks.
    out = jax.lax.map(jax.checkpoint(attention, prevent_cse=False), chunks)
    return out.swapaxes(0, 1).reshape(n, parts * rows, heads, -1)[:, :tokens]


def _attend(query: Heads, key: Heads, value: Heads) -> Heads:
    wide = jnp.promote_types(query.dtype, jnp.float32)
    q, k, v = (array.swapaxes(-3, -2) for array in (query, key, value))
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    logits = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=wide)
    most = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp(logits - most)
    total = weights.sum(-1, keepdims=True)
    means = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=wide) / total
    return means.astype(v.dtype).swapaxes(-3, -2)
