"""Claims on the arithmetic that everything else stands on."""

import jax
import jax.numpy as jnp
import numpy as np

from dgjax.check.finding import MEND, Finding, judge, relative
from dgjax.check.oracle import rounded
from dgjax.typing import as_float

__all__ = ["matrix_products", "sums"]


def matrix_products() -> Finding:
    """Matrix products carry float32."""
    rng = np.random.default_rng(0)
    a, b = (rounded(rng.normal(size=size)) for size in ((256, 512), (512, 256)))
    error = relative(jax.jit(jnp.matmul)(as_float(a), as_float(b)), a @ b)
    # 4e-7. Three bfloat16 products ('high' on a TPU) leave 4.5e-6, TF32 3e-4, bfloat16 3e-3.
    return judge("matrix products: relative error", error, 2e-6, mend=MEND)


def sums() -> Finding:
    """Sums are accumulated in float32."""
    values = rounded(np.random.default_rng(0).uniform(size=10_000))
    error = relative(jax.jit(jnp.sum)(as_float(values)), values.sum())
    # 1e-8 to 6e-8 by the draw; added one after the other in float32, up to 1e-6.
    return judge("a sum of 10,000 numbers: relative error", error, 3e-6)
