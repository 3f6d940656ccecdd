"""The correction of a distilled log-density is right on average, however wrong the head is."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array

import dgjax
from dgjax.typing import register_dataclass

VARIANCES = jnp.array([0.3, 2.0, 5.0])
DATA = dgjax.gaussian(jnp.array([1.0, -2.0, 0.5]), jnp.diag(VARIANCES))
MODEL = dgjax.closed_form(DATA, dgjax.vp(), t_min=0.01, t_max=0.9)


@register_dataclass
@dataclass(frozen=True)
class WrongHead:
    """Off by 0.2 per element at every noise level, and more at small ones; states far less."""

    offset: Array
    layers = ()

    def __call__(self, features, y, x0, w):
        return VARIANCES / (VARIANCES + w**2) + self.offset / (1 + w)

    def error(self, w):
        return 0.01 * (1 + w)


@pytest.mark.slow
def test_the_mean_correction_is_the_integral_of_the_error():
    model = replace(MODEL, trace_head=WrongHead(jnp.array(0.2)))
    grid = dgjax.grid_logsnr(model, 24)
    x = jnp.array([1.5, -2.0, 3.0])
    options = {"key": jax.random.key(0), "save": dgjax.Trajectory}
    wrong = dgjax.sample(model, x, grid, divergence=dgjax.Distilled(), **options)
    right = dgjax.sample(MODEL, x, grid, divergence=dgjax.Exact(), **options)
    missing = right.log_density - wrong.log_density
    assert abs(missing) > 1.0
    along = wrong.trajectory

    @jax.jit
    @jax.vmap
    def correct(key):
        options = {"divergence": dgjax.Exact(), "repeats": 4}
        return dgjax.head_correction(model, along.t, along.x, key=key, **options)

    found = correct(jax.random.split(jax.random.key(1), 400))
    spread = jnp.std(found.nats)
    assert abs(jnp.mean(found.nats) - missing) < 4 * spread / 20 + 0.01 * abs(missing)
    assert jnp.allclose(jnp.sqrt(jnp.mean(found.standard_error**2)), spread, rtol=0.25)


def test_a_model_without_a_head_is_refused():
    ts, xs = jnp.array([0.9, 0.5, 0.01]), jnp.zeros((3, 3))
    with pytest.raises(ValueError, match="no trained head"):
        dgjax.head_correction(MODEL, ts, xs, key=jax.random.key(0))
