"""Energy models: the log-density, its gradient and its change with the noise level."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import dgjax
from dgjax.model.gaussian_prior import gaussian_prior
from dgjax.networks import MLP, EnergyMLP, EnergyUNet
from dgjax.training.time_score import dual_loss

SCALE = 3.0
MIXTURE = dgjax.gaussian_mixture(
    [0.3, 0.7],
    [[3.0, -1.0, 2.0], [-2.0, 4.0, 1.0]],
    jnp.stack([jnp.diag(jnp.array(v)) for v in ([0.5, 2.0, 1.5], [3.0, 0.25, 1.0])]),
)
X = jnp.array([1.0, -0.5, 2.5])


def exact_energy(z, t, cond):
    """The energy of the mixture, in the coordinates in which a network is called."""
    w = SCALE * jnp.exp(4 * t)
    y = z * jnp.sqrt(w**2 + SCALE**2)
    return gaussian_prior(SCALE).log_density(y, w) - MIXTURE.log_density(y, w)


def energy_model(network=exact_energy, path=None, **values):
    path = dgjax.vp() if path is None else path
    return dgjax.field(
        network, path, dgjax.energy_prediction(SCALE, **values), t_min=0.01, t_max=1.0
    )


def random_network(network, seed=1):
    keys = iter(jax.random.split(jax.random.key(seed), 1000))
    return jax.tree.map(lambda a: a + 0.2 * jax.random.normal(next(keys), a.shape), network)


@pytest.mark.parametrize("path", [dgjax.vp(), dgjax.rectified_flow()])
def test_an_exact_energy_is_the_closed_form(path):
    exact = dgjax.closed_form(MIXTURE, dgjax.vp(), t_min=0.01, t_max=0.9)
    model = energy_model()
    exact, model = (dgjax.repath(m, path) for m in (exact, model))
    t = 0.6
    true = dgjax.log_density(exact, t, X)
    assert jnp.allclose(dgjax.log_density(model, t, X), true, rtol=1e-5, atol=1e-4)
    local, wanted = (
        dgjax.evaluate(m, t, X, divergence=dgjax.Exact(), key=jax.random.key(0))
        for m in (model, exact)
    )
    assert jnp.allclose(local.score, wanted.score, rtol=1e-3, atol=1e-4)
    assert jnp.allclose(local.laplacian, wanted.laplacian, rtol=1e-3, atol=1e-3)
    assert jnp.allclose(local.hvp(X), wanted.hvp(X), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EnergyMLP((3,), 16, 2, rngs=nnx.Rngs(0)),
        pytest.param(
            lambda: EnergyUNet((3, 1), (8,), 1, 8, rngs=nnx.Rngs(0)), marks=pytest.mark.slow
        ),
    ],
    ids=["mlp", "unet"],
)
def test_score_is_the_gradient_of_the_log_density(make):
    network = make()
    x = X.reshape(network.inner.shape)
    zero = energy_model(network)
    assert zero.parametrization.energy(network, x, 0.3, None) == 0
    model = energy_model(random_network(network))
    slope = jax.grad(lambda x: dgjax.log_density(model, 0.3, x))(x)
    found = dgjax.score(model, 0.3, x)
    assert jnp.max(jnp.abs(found)) > 0.01
    assert jnp.allclose(found, slope, rtol=1e-4, atol=1e-5)


def test_the_energy_has_a_limit_at_low_noise_and_vanishes_at_high_noise():
    network = EnergyMLP((3,), 8, 2, rngs=nnx.Rngs(0))
    network.inner = lambda z, t, cond: 2 * z
    energy = lambda w: network(X, jnp.log(jnp.float32(w)) / 4)
    assert jnp.isclose(energy(1e-4), energy(1e-6), rtol=1e-4)
    assert jnp.isclose(energy(100.0), 10 * energy(1000.0), rtol=1e-4)
    seen = X / jnp.sqrt(1 + jnp.mean(X**2) / 9)
    assert jnp.isclose(energy(1.0), -2 * X @ seen / jnp.sqrt(1 + 0.3**2), rtol=1e-4)
    assert abs(energy(1e30)) < 1e-28


def test_the_normalizer_is_that_of_the_density():
    shifted = lambda z, t, cond: exact_energy(z, t, cond) + 5.0
    path = dgjax.edm()
    model = dgjax.field(shifted, path, dgjax.energy_prediction(SCALE), t_min=0.1, t_max=60.0)
    model, error = dgjax.normalize(model, jax.random.key(0), (3,), samples=2000)
    exact = dgjax.closed_form(MIXTURE, path, t_min=0.1, t_max=60.0)
    found = dgjax.log_density(model, 0.5, X) - dgjax.log_density(exact, 0.5, X)
    assert 0 < error < 0.01
    assert abs(found) < 4 * error + 1e-4


def test_far_from_the_data_the_gaussian_wins():
    # Whatever the weights: log p falls as -|y|^2/2 of the Gaussian, and the score points back.
    network = EnergyMLP((3,), 16, 2, rngs=nnx.Rngs(0))
    network = jax.tree.map(
        lambda a: 2 * jax.random.normal(jax.random.key(a.size), a.shape), network
    )
    model = dgjax.field(
        network, dgjax.edm(), dgjax.energy_prediction(0.7), t_min=0.02, t_max=80.0, shape=(3,)
    )
    way, t = jnp.array([1.0, -2.0, 0.5]), 0.05
    for sign in (1, -1):
        near, far = (float(dgjax.log_density(model, t, sign * size * way)) for size in (1e4, 1e5))
        expected = -0.5 * (1e10 - 1e8) * float(way @ way) / (0.7**2 + t**2)
        assert far - near == pytest.approx(expected, rel=0.05)
        x = sign * 1e5 * way
        assert float(dgjax.score(model, t, x) @ x) < 0


@pytest.mark.slow
def test_the_loss_is_smallest_at_the_exact_energy():
    """The minimum of the loss is the truth, and it sees a constant that depends on w."""
    keys = jax.random.split(jax.random.key(2), 3)
    data = jax.vmap(MIXTURE.sample)(jax.random.split(keys[0], 4096))
    noise = jax.random.normal(keys[1], data.shape)
    w = jnp.exp(jax.random.uniform(keys[2], (4096,), minval=-1.5, maxval=1.5))

    def loss(a):
        drifting = lambda z, t, cond: exact_energy(z, t, cond) + a[0] * t + a[1] * z[0]
        model = dgjax.field(
            drifting, dgjax.edm(), dgjax.energy_prediction(SCALE), t_min=0.01, t_max=1.0
        )
        return jax.vmap(lambda w, x, n: dual_loss(model, w, x, n) / w**2)(w, data, noise)

    gradients = jax.jacfwd(loss)(jnp.zeros(2))
    mean, error = gradients.mean(0), gradients.std(0) / jnp.sqrt(len(gradients))
    assert jnp.all(jnp.abs(mean) < 4 * error)
    assert jnp.all(jnp.abs(jax.jacfwd(loss)(jnp.array([6.0, 0.5])).mean(0)) > 4 * error)


def test_other_models_have_no_log_density():
    network = MLP((3,), 8, 2, rngs=nnx.Rngs(0))
    model = dgjax.field(network, dgjax.edm(), dgjax.preconditioned(), t_min=0.1, t_max=9.0)
    with pytest.raises(ValueError, match="likelihood or quadrature"):
        dgjax.log_density(model, 1.0, X)
    with pytest.raises(ValueError, match="an energy is one number"):
        dgjax.log_density(energy_model(network), 0.5, X)
    with pytest.raises(ValueError, match=r"t must be one number, got shape \(1,\)"):
        dgjax.log_density(energy_model(network), jnp.array([0.5]), X)
