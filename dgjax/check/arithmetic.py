"""Checks of the device's arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dgjax.check.finding import PRECISION_FIX, Finding, judge, relative
from dgjax.check.oracle import rounded
from dgjax.typing import as_float

__all__ = ["convolutions", "matrix_products", "sums"]


def matrix_products() -> Finding:
    """Check that matrix products are computed in float32."""
    rng = np.random.default_rng(0)
    a, b = (rounded(rng.normal(size=size)) for size in ((256, 512), (512, 256)))
    error = relative(jax.jit(jnp.matmul)(as_float(a), as_float(b)), a @ b)
    # 4e-7. Three bfloat16 products ('high' on a TPU) leave 4.5e-6, TF32 3e-4, bfloat16 3e-3.
    return judge("matrix products: relative error", error, 2e-6, fix=PRECISION_FIX)


def convolutions() -> Finding:
    """Check that convolutions are computed in float32; devices set this apart from products."""
    rng = np.random.default_rng(0)
    x, kernel = (rounded(rng.normal(size=size)) for size in ((2, 14, 14, 64), (3, 3, 64, 64)))
    found = _convolve(as_float(x), as_float(kernel))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    error = relative(found, np.einsum("nhwcij,ijcd->nhwd", windows, kernel, optimize=True))
    # 4e-7. Three bfloat16 products leave 4.4e-6, TF32 3e-4, bfloat16 2e-3. The bound is loose
    # enough for Winograd algorithms in float32, which add before they multiply.
    return judge("convolutions: relative error", error, 3e-5, fix=PRECISION_FIX)


@jax.jit
def _convolve(x: Array, kernel: Array) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout)


def sums() -> Finding:
    """Check that sums are accumulated in float32."""
    values = rounded(np.random.default_rng(0).uniform(size=10_000))
    error = relative(jax.jit(jnp.sum)(as_float(values)), values.sum())
    # 1e-8 to 6e-8, depending on the draw; up to 1e-6 if added one by one in float32.
    return judge("a sum of 10,000 numbers: relative error", error, 3e-6)
