"""The distilled divergence: exact with an exact head, and with the error that its head states."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Array

import dgjax
from dgjax.model.paths import coefficients
from dgjax.model.trace_head import find_layers, record, recorded_pair
from dgjax.networks import MLP, EnergyMLP, UNet
from dgjax.networks.trace_head import DiagonalHead
from dgjax.networks.unet import unfold
from dgjax.training import distil
from dgjax.training.trace_points import measure, points_of_data
from dgjax.typing import register_dataclass

VARIANCES = jnp.array([0.3, 2.0, 5.0])
KEY = jax.random.key(0)


@register_dataclass
@dataclass(frozen=True)
class ExactHead:
    """Knows the Jacobian of the denoiser of a Gaussian with these variances."""

    variances: Array
    stated: Array
    layers = ()

    def __call__(self, features, y, x0, w):
        return self.variances / (self.variances + w**2)

    def error(self, w):
        return self.stated


def gaussian_model(path, stated=0.0):
    data = dgjax.gaussian(jnp.array([1.0, -2.0, 0.5]), jnp.diag(VARIANCES))
    model = dgjax.closed_form(data, dgjax.vp(), t_min=0.01, t_max=0.9)
    return dgjax.repath(replace(model, trace_head=ExactHead(VARIANCES, jnp.array(stated))), path)


@pytest.mark.parametrize("path", [dgjax.vp(), dgjax.edm()])
def test_an_exact_head_gives_the_exact_divergence(path):
    model = gaussian_model(path)
    x, t = jnp.array([0.3, 1.0, -2.0]), 0.7 * model.t_max
    exact, found = (
        dgjax.evaluate(model, t, x, divergence=kind, key=KEY)
        for kind in (dgjax.Exact(), dgjax.Distilled())
    )
    assert jnp.allclose(found.divergence, exact.divergence, rtol=1e-5)
    assert jnp.allclose(found.score, exact.score)


def test_the_stated_error_is_the_integral_of_the_error_of_the_head():
    model = gaussian_model(dgjax.vp(), stated=0.25)
    grid = dgjax.grid_logsnr(model, 24)
    found = jax.jit(
        lambda model, x: dgjax.likelihood(model, x, grid, key=KEY, divergence=dgjax.Distilled())
    )(model, jnp.array([1.0, -2.0, 3.0]))
    w = [model.path.sigma(t) / model.path.alpha(t) for t in (model.t_min, model.t_max)]
    assert jnp.allclose(found.info.standard_error, 0.25 * jnp.log(w[1] / w[0]), rtol=1e-3)
    data = dgjax.gaussian(jnp.array([1.0, -2.0, 0.5]), jnp.diag(VARIANCES))
    scale = model.path.alpha(model.t_min)
    true = data.log_density(jnp.array([1.0, -2.0, 3.0]) / scale, w[0]) - 3 * jnp.log(scale)
    assert abs(found.log_density - true) < 0.1  # the prior leaves the data out


@pytest.mark.slow
def test_a_trained_head_is_as_accurate_as_it_says():
    """A mixture of two modes, whose divergence depends on where the point lies."""
    covariances = jnp.array([[[0.3, 0.1], [0.1, 0.2]], [[0.5, -0.2], [-0.2, 0.4]]])
    means = jnp.array([[2.0, 0.5], [-1.0, 1.5]])
    mixture = dgjax.gaussian_mixture(jnp.array([0.3, 0.7]), means, covariances)
    model = dgjax.closed_form(mixture, dgjax.vp(), t_min=0.01, t_max=1.0)
    keys = jax.random.split(KEY, 5)
    data = jax.vmap(mixture.sample)(jax.random.split(keys[0], 2048))
    # The times follow the order of the data, so that held-out points have all of them.
    points = points_of_data(model, data, keys[1])
    mixed = jax.random.permutation(keys[2], len(data))
    points = jax.tree.map(lambda a: a[mixed], points)
    lessons = measure(model, points, (), keys[3], products=4, batch=2048)
    losses = []
    log = lambda step, loss: losses.append(loss)
    head = distil(lessons, (), key=keys[4], steps=400, batch=128, width=32, log=log)
    assert np.mean(losses[-40:]) < 0.05 * np.mean(losses[:40])
    distilled = replace(model, trace_head=head)

    @jax.jit
    @jax.vmap
    def errors(t, x):
        exact, found = (
            dgjax.evaluate(distilled, t, x, divergence=kind, key=KEY)
            for kind in (dgjax.Exact(), dgjax.Distilled())
        )
        slope = found.g2 / (2 * found.sigma**2) * found.alpha  # of the divergence in the trace
        return (found.divergence - exact.divergence) / slope, jnp.ptp(found.divergences) / 2 / slope

    found, stated = errors(jnp.asarray(points.t[-256:]), jnp.asarray(points.x[-256:]))
    size = jnp.sqrt(jnp.mean(found**2))
    assert size < 0.1
    assert 0.5 * size < jnp.sqrt(jnp.mean(stated**2)) < 2.5 * size


def filled(network):
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    return jax.tree.map(lambda a: a + 0.1 * jax.random.normal(next(keys), a.shape), network)


@pytest.mark.slow
def test_layers_are_read_in_the_pass_that_the_model_makes():
    network = filled(UNet((6, 6, 1), (8,), 1, 16, num_classes=3, rngs=nnx.Rngs(0)))
    model = dgjax.field(network, dgjax.edm(), dgjax.preconditioned(0.5), t_min=0.02, t_max=80.0)
    x = jax.random.normal(KEY, (6, 6, 1))
    layers = find_layers(model, x, 3)
    assert list(layers) == ["detail", "middle", "up.0.0"]
    conditional = dgjax.condition(model, 2)
    pair, features = recorded_pair(conditional, jnp.array(0.7), x, None, tuple(layers))
    assert jnp.array_equal(pair.x0, conditional.pair(jnp.array(0.7), x).x0)
    assert [f.shape for f in features] == list(layers.values())
    # After the last block come a norm and a convolution, and the shallow path is beside them.
    wanted = network.leave[0](nnx.silu(network.norm(features[2])))
    wanted = unfold(wanted + network.shallow(features[0]))[0]
    c = coefficients(model.path, jnp.array(0.7))
    raw = lambda *args: wanted
    assert jnp.allclose(model.parametrization(raw, x, jnp.array(0.7), c, None).x0, pair.x0)
    head = DiagonalHead((6, 6, 1), tuple(layers), tuple(layers.values()), 0.5, 8, rngs=nnx.Rngs(0))
    assert head(features, x, pair.x0, jnp.array(0.7)).shape == x.shape


def model_of(network, parametrization=None):
    parametrization = dgjax.preconditioned(0.5) if parametrization is None else parametrization
    return dgjax.field(network, dgjax.edm(), parametrization, t_min=0.02, t_max=80.0)


def test_layers_that_a_head_can_read_are_found():
    x = jnp.zeros((2, 2, 1))
    layers = find_layers(model_of(MLP(x.shape, 8, 3, rngs=nnx.Rngs(0))), x, 9)
    # Those of the noise level alone are left out.
    assert list(layers) == ["enter", "hidden.0", "hidden.1", "leave"]
    head = DiagonalHead(x.shape, tuple(layers), tuple(layers.values()), 0.5, 8, rngs=nnx.Rngs(0))
    features = tuple(jnp.zeros(shape) for shape in layers.values())
    assert head(features, x, x, jnp.array(0.5)).shape == x.shape
    # The network of an energy model is differentiated inside, so its layers cannot be read.
    energy = model_of(EnergyMLP(x.shape, 8, 3, rngs=nnx.Rngs(0)), dgjax.energy_prediction(0.5))
    assert find_layers(energy, x, 9) == {}
    assert find_layers(model_of(lambda x, t, cond: x), x, 9) == {}


def test_no_product_is_computed():
    model = model_of(MLP((64,), 128, 3, rngs=nnx.Rngs(0)))
    layers = find_layers(model, jnp.zeros(64), 2)
    head = DiagonalHead((64,), tuple(layers), tuple(layers.values()), 0.5, 8, rngs=nnx.Rngs(0))

    def cost(model, divergence):
        def run(model, x):
            local = dgjax.evaluate(model, 1.0, x, divergence=divergence, key=KEY)
            return local.score, local.divergences

        return jax.jit(run).lower(model, jnp.zeros(64)).compile().cost_analysis()["flops"]

    alone = cost(model, dgjax.Untracked())
    extra = cost(replace(model, trace_head=head), dgjax.Distilled()) - alone
    assert 0 < extra < 0.3 * (cost(model, dgjax.Hutchinson()) - alone)


def test_a_model_without_a_head_is_refused():
    model = replace(gaussian_model(dgjax.vp()), trace_head=None)
    x = jnp.zeros(3)
    with pytest.raises(ValueError, match="needs a model that carries a trained head"):
        dgjax.evaluate(model, 0.5, x, divergence=dgjax.Distilled(), key=KEY)
    headed = replace(model, trace_head=ExactHead(VARIANCES, jnp.array(0.0)))
    with pytest.raises(ValueError, match="of its velocity only"):
        dgjax.h_statistic(headed, 0.5, x, divergence=dgjax.Distilled(), key=KEY)


def test_reverse_mode_and_fixed_probes_take_a_model_with_a_head():
    model, x = gaussian_model(dgjax.vp()), jnp.array([0.3, 1.0, -2.0])
    kinds = (
        dgjax.Exact(),
        dgjax.ReverseMode(dgjax.Exact()),
        dgjax.FixedProbe(dgjax.Distilled(), KEY),
    )
    found = [dgjax.evaluate(model, 0.5, x, divergence=kind, key=KEY).divergence for kind in kinds]
    assert jnp.allclose(jnp.array(found), found[0], rtol=1e-5)


def test_a_network_without_the_layers_of_the_head_is_refused():
    with pytest.raises(ValueError, match="no layer"):
        record(MLP((4,), 8, 2, rngs=nnx.Rngs(0)), ("middle",), lambda name, out: None)
    with pytest.raises(ValueError, match="Flax NNX module"):
        record(lambda x, t, cond: x, ("middle",), lambda name, out: None)
