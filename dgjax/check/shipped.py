"""Claims on the shipped model. It has no closed form: it is compared with itself."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dgjax.check.finding import MEND, Finding, judge, relative
from dgjax.checkpoints.pretrained import load_pretrained
from dgjax.model.field import Field, denoise
from dgjax.typing import Sample

__all__ = ["SHIPPED", "network_batched", "network_precision"]

SHIPPED = "fashion-mnist"


@jax.jit
def _denoise(model: Field, t: Array, x: Sample) -> Sample:
    return denoise(model, t, x)


@jax.jit
def _denoise_batch(model: Field, t: Array, x: Array) -> Array:
    return jax.vmap(lambda x: denoise(model, t, x))(x)


@cache
def _shipped() -> tuple[Field, Array, Array]:
    """The model, a time, and two noisy pictures."""
    model, meta = load_pretrained(SHIPPED)
    x = np.random.default_rng(6).normal(size=(2, *meta.shape))
    return model, jnp.float32(0.5), jnp.asarray(x, jnp.float32)


def network_precision() -> Finding:
    """The network is what it is at the highest precision."""
    model, t, x = _shipped()
    default = _denoise(model, t, x[0])
    with jax.default_matmul_precision("highest"):
        error = relative(default, _denoise(model, t, x[0]))
    claim = f"{SHIPPED}, default against highest precision: relative"
    # 0 on a CPU, where both are float32. Rounding x alone to TF32 moves the output by 2e-4.
    return judge(claim, error, 5e-5, mend=MEND)


def network_batched() -> Finding:
    """The network does not depend on the batch it is in."""
    model, t, x = _shipped()
    error = relative(_denoise_batch(model, t, x)[0], _denoise(model, t, x[0]))
    # 1e-7. A batch may be convolved by another algorithm, with other rounding.
    return judge(f"{SHIPPED}, in a batch against alone: relative", error, 5e-5)
