"""Networks with and without a derivative in their time, and what solvers do with those."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dgjax
from dgjax.model.time_derivative import has_time_derivative
from dgjax.networks import MLP, EnergyMLP

X = jnp.array([3.0, -1.0])
TABLE = jnp.linspace(0.2, 0.9, 11)
SOLVER = dgjax.Multistep(2, 2, 2)
NETWORKS = {
    "of the time": (lambda x, t, cond: x * jnp.cos(t), True),
    "interpolated": (lambda x, t, cond: x * jnp.interp(t, jnp.linspace(0, 1, 11), TABLE), True),
    "jit": (jax.jit(lambda x, t, cond: x * t), True),
    "checkpoint": (jax.checkpoint(lambda x, t, cond: x * jnp.sin(t)), True),
    "scan": (lambda x, t, cond: jax.lax.scan(lambda x, _: (x * t, None), x, length=2)[0], True),
    "one of two ways": (lambda x, t, cond: x * TABLE[jnp.int32(10 * t)] + t, True),
    "table": (lambda x, t, cond: x * TABLE[jnp.int32(10 * t)], False),
    "rounded": (lambda x, t, cond: x * jnp.cos(jnp.round(10 * t)), False),
    "jit of rounded": (jax.jit(lambda x, t, cond: x * jnp.floor(t)), False),
    "stopped": (lambda x, t, cond: x * jax.lax.stop_gradient(t), False),
    "scan of stopped": (
        lambda x, t, cond: jax.lax.scan(lambda x, _: (x * jnp.round(t), None), x, length=2)[0],
        False,
    ),
    "not used": (lambda x, t, cond: 0.9 * x, True),
    "not used in a jit": (jax.jit(lambda x, t, cond: 0.9 * x), True),
    "not used in a checkpoint": (jax.checkpoint(lambda x, t, cond: 0.9 * x), True),
    "only carried by a loop": (
        lambda x, t, cond: jax.lax.fori_loop(0, 2, lambda _, c: (0.9 * c[0], c[1]), (x, t))[0],
        True,
    ),
}


def model_of(network, path=None, kind=None):
    path = dgjax.vp() if path is None else path
    kind = dgjax.DenoisedPrediction() if kind is None else kind
    return dgjax.field(network, path, kind, t_min=0.01, t_max=1.0)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_seen(name):
    network, wanted = NETWORKS[name]
    for model in (
        model_of(network),
        dgjax.repath(model_of(network), dgjax.edm()),
        model_of(network, kind=dgjax.NoisePrediction()),
        dgjax.condition(model_of(network), X),
    ):
        assert has_time_derivative(model, model.t_max, X) is wanted
        ask = lambda x, t, model=model: jnp.asarray(has_time_derivative(model, t, x))
        assert jax.jit(ask)(X, model.t_max) == wanted
        assert jax.vmap(ask, (0, None))(X[None], model.t_max)[0] == wanted


def test_networks_of_the_library_have_one():
    mlp, energy = MLP((2,), 8, 1, rngs=nnx.Rngs(0)), EnergyMLP((2,), 8, 1, rngs=nnx.Rngs(0))
    closed = dgjax.closed_form(dgjax.gaussian(X, 2.0), dgjax.edm(), t_min=0.1, t_max=9.0)
    for model in (
        model_of(mlp, kind=dgjax.preconditioned(0.5)),
        model_of(energy, kind=dgjax.energy_prediction(0.5)),
        closed,
        dgjax.load_pretrained("fashion-mnist")[0],
    ):
        assert has_time_derivative(model, 0.4, jnp.zeros(model.shape or (2,)))


@pytest.mark.parametrize("name", ["table", "rounded", "stopped"])
def test_a_solver_with_derivatives_refuses_networks_without(name):
    model = model_of(NETWORKS[name][0])
    grid, options = dgjax.grid_logsnr(model, 4), {"key": jax.random.key(0), "solver": SOLVER}
    for run in (dgjax.sample, dgjax.likelihood):
        with pytest.raises(ValueError, match=r"time is rounded.*such as Multistep\(\)"):
            run(model, X, grid, **options)
    options["solver"] = dgjax.Multistep()
    assert np.isfinite(dgjax.likelihood(model, X, grid, **options).log_density)


@pytest.mark.slow
def test_networks_that_do_not_use_their_time_are_taken():
    model = model_of(NETWORKS["not used"][0])
    grid, options = dgjax.grid_logsnr(model, 64), {"key": jax.random.key(0)}
    found = dgjax.sample(model, X, grid, solver=SOLVER, **options)
    exact = dgjax.sample(model, X, dgjax.grid_logsnr(model, 512), **options)
    np.testing.assert_allclose(found.x, exact.x, rtol=1e-5)
