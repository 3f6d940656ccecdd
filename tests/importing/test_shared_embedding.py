"""The embedding of time and label that all blocks of a DiT share is kept once."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgjax.checkpoints.arrays import to_named
from dgjax.importing.diffusers_dit import share_embedding
from dgjax.importing.state_dict import AXES, load_state_dict
from dgjax.networks import DiT

SIZE = {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8, "num_classes": 4}


def make(**options):
    return DiT((4, 4, 1), **SIZE, **options, rngs=nnx.Rngs(0))


def drawn(equal):
    """Weights under diffusers' names; the embeddings of all blocks are `equal`, or all but one."""
    random, found = np.random.default_rng(0), {}
    for name, leaf in to_named(nnx.eval_shape(make)).items():
        shape = leaf.shape
        if name.endswith("kernel"):
            shape = tuple(shape[axis] for axis in AXES[len(shape)])
        *owner, last = name.split(".")
        end = "weight" if last in ("kernel", "embedding") else last
        found[".".join([*owner, end])] = random.normal(size=shape).astype(np.float32)
    for name in found:
        if ".norm1.emb." in name:
            found[name] = found["transformer_blocks.0." + name.split(".", 2)[2]]
    if not equal:
        last = "transformer_blocks.2.norm1.emb.timestep_embedder.linear_2.bias"
        found[last] = found[last] + 1
    return found


@pytest.mark.parametrize("equal", [pytest.param(True, marks=pytest.mark.slow), False])
def test_equal_embeddings_are_kept_once(equal):
    weights = drawn(equal)
    network, kept = share_embedding({**SIZE}, weights)
    assert network == ({**SIZE, "shared_embedding": True} if equal else SIZE)
    assert len(weights) - len(kept) == (2 * 5 if equal else 0)
    shared = {"shared_embedding": True} if equal else {}
    found = load_state_dict(nnx.eval_shape(lambda: make(**shared)), kept, "test")
    whole = load_state_dict(nnx.eval_shape(make), weights, "test")
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4, 1)))
    np.testing.assert_array_equal(found(x, jnp.asarray(7.0), 2), whole(x, jnp.asarray(7.0), 2))
