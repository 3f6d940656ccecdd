"""Checks of the shipped model, which has no closed form and is compared with itself."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dgjax.check.finding import PRECISION_FIX, Finding, judge, relative
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
    """Load the model, and make a time and two noisy pictures."""
    model, meta = load_pretrained(SHIPPED)
    x = np.random.default_rng(6).normal(size=(2, *meta.shape))
    return model, jnp.float32(0.5), jnp.asarray(x, jnp.float32)


def network_precision() -> Finding:
    """Check that the default precision gives the result of the highest precision."""
    model, t, x = _shipped()
    default = _denoise(model, t, x[0])
    with jax.default_matmul_precision("highest"):
        error = relative(default, _denoise(model, t, x[0]))
    claim = f"{SHIPPED}, default against highest precision: relative"
    # 0 on a CPU, where both are float32. Rounding x alone to TF32 moves the output by 2e-4.
    return judge(claim, error, 5e-5, fix=PRECISION_FIX)


def network_batched() -> Finding:
    """Check that the result for one sample does not depend on its batch."""
    model, t, x = _shipped()
    error = relative(_denoise_batch(model, t, x)[0], _denoise(model, t, x[0]))
    # 1e-7. A device may choose another algorithm for a batch, with other rounding errors.
    return judge(f"{SHIPPED}, in a batch against alone: relative", error, 5e-5)
