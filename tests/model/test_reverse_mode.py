"""Networks without forward mode: divergences and Hessian products by reverse mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax
from dgjax.model.reverse_mode import ReverseMode, has_forward_mode, transpose

SIZE = 6
KEYS = jax.random.split(jax.random.key(0), 4)
X = 0.7 + 2 * jax.random.normal(KEYS[0], (SIZE,))


def layer(weight, x):
    return jnp.tanh(weight @ x)


@jax.custom_vjp
def fused(weight, x):
    """The layer as a fused kernel would be: with a backward pass, without a forward derivative."""
    return layer(weight, x)


fused.defvjp(
    lambda weight, x: (layer(weight, x), (weight, x)),
    lambda saved, ct: jax.vjp(layer, *saved)[1](ct),
)


def make_model(layer, symmetric=False):
    weight = jax.random.normal(KEYS[1], (SIZE, SIZE)) / 3
    back = weight.T if symmetric else jax.random.normal(KEYS[2], (SIZE, SIZE)) / 3

    def denoised(x, t, cond):
        del cond
        scaled = x / jnp.sqrt(1 + t**2)
        hidden, _ = jax.lax.scan(lambda h, w: (layer(w, h), None), scaled, weight[None])
        return 0.3 + x / (1 + t**2) + 0.4 * back @ hidden

    return dgjax.field(
        denoised, dgjax.vp(0.1, 20.0), dgjax.DenoisedPrediction(), t_min=0.01, t_max=1.0
    )


def test_derivatives_along_a_trajectory_need_forward_mode():
    model, grid = make_model(fused), dgjax.grid_logsnr(make_model(fused), 4)
    with pytest.raises(ValueError, match="custom_vjp: use a solver without derivatives"):
        dgjax.sample(model, X, grid, key=KEYS[0], solver=dgjax.Multistep(3, 3, 2))


ESTIMATORS = {
    "exact": dgjax.Exact(2),
    "hutchinson": dgjax.Hutchinson(),
    "hutchinson 3": dgjax.Hutchinson(3),
    "coloured": dgjax.Coloured(3),
    "hutch++": dgjax.HutchPP(2, 2),
    "fixed": dgjax.FixedProbe(dgjax.Hutchinson(2), KEYS[3]),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("chosen", ["by itself", "on request"])
def test_divergence_in_reverse_mode(name, chosen):
    estimator = ESTIMATORS[name]
    model = make_model(fused if chosen == "by itself" else layer)
    asked = estimator if chosen == "by itself" else ReverseMode(estimator)

    def divergences(model, divergence):
        one = lambda x: dgjax.evaluate(model, 0.4, x, divergence=divergence, key=KEYS[3])
        return jax.jit(jax.vmap(lambda x: one(x).divergences))(jnp.stack([X, X - 1]))

    found, forward = divergences(model, asked), divergences(make_model(layer), estimator)
    if name == "hutch++":  # its subspace is that of the transpose
        assert found.shape == forward.shape
        assert np.isfinite(found).all()
    else:
        np.testing.assert_allclose(found, forward, rtol=1e-10)
    assert asked.standard_error(found[0]).shape == ()


@pytest.mark.slow
def test_hessian_products_of_the_transpose():
    models = make_model(layer), make_model(fused)
    forward, reverse = (
        dgjax.evaluate(m, 0.4, X, divergence=dgjax.Exact(), key=KEYS[3]) for m in models
    )
    hessian = jax.jacfwd(lambda x: dgjax.score(models[0], 0.4, x))(X)
    assert np.abs(hessian - hessian.T).max() > 0.01
    np.testing.assert_allclose(jax.vmap(forward.hvp)(jnp.eye(SIZE)), hessian.T, rtol=1e-10)
    np.testing.assert_allclose(jax.vmap(reverse.hvp)(jnp.eye(SIZE)), hessian, rtol=1e-10)


def test_a_map_is_transposed_once():
    model = make_model(fused)
    _, push = jax.linearize(lambda x: dgjax.denoise(model, 0.4, x), X)
    assert not has_forward_mode(push, X)
    _, forward = jax.linearize(lambda x: dgjax.denoise(make_model(layer), 0.4, x), X)
    assert has_forward_mode(forward, X)
    back = transpose(push, X)
    assert transpose(back, X) is back
    # Asking for what is done anyway does not ask for a forward derivative.
    solves = [
        dgjax.evaluate(model, 0.4, X, divergence=d, key=KEYS[3]).divergence
        for d in (dgjax.Exact(), ReverseMode(dgjax.Exact()))
    ]
    np.testing.assert_array_equal(*solves)


def test_other_errors_of_a_map_are_not_hidden():
    def broken(z):
        raise TypeError("something else")

    with pytest.raises(TypeError, match="something else"):
        has_forward_mode(broken, X)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [None, dgjax.noise_matched(0.5)], ids=["ode", "noise"])
def test_solve_and_its_gradient(noise):
    def value(x, model):
        return dgjax.sample(
            model,
            x,
            dgjax.grid_logsnr(model, 6),
            key=KEYS[3],
            guides=(dgjax.density_guidance(0.6),),
            noise=noise,
            divergence=dgjax.Hutchinson(2),
        ).log_density

    run = lambda layer: jax.jit(jax.value_and_grad(lambda x: value(x, make_model(layer, True))))(X)
    (found, gradient), (truth, right) = run(fused), run(layer)
    np.testing.assert_allclose(found, truth, rtol=1e-10)
    np.testing.assert_allclose(gradient, right, rtol=1e-8)
    assert (np.abs(right) > 1e-4).any()
