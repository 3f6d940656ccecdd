"""Fields and `evaluate` against derivatives of the closed-form log-density."""

from dataclasses import dataclass, replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import W_MAX, W_MIN
from flax import nnx
from jax.tree_util import Partial
from jaxtyping import Array
from scipy import stats

import dgjax
from dgjax.model.closed_form import closed_form
from dgjax.model.conditioned import condition
from dgjax.model.divergence import Exact, Hutchinson
from dgjax.model.field import log_prior
from dgjax.model.gaussian_prior import gaussian_prior
from dgjax.model.local import evaluate, evaluate_with_rates
from dgjax.model.log_density import log_density
from dgjax.model.parametrization import DenoisedPrediction, NoisePrediction, VelocityPrediction
from dgjax.model.paths import coefficients
from dgjax.model.repath import repath
from dgjax.networks import MLP
from dgjax.typing import inner, register_dataclass

KEY = jax.random.key(0)
W = np.array([W_MIN, 0.4, W_MAX])
LEVELS = -2 * np.log(W)


@jax.jit
def local(model, t, x, z):
    """Return the result of `evaluate`, the product of the Hessian with z, and two properties."""
    got = evaluate(model, t, x, divergence=Exact(), key=KEY)
    return got._replace(hvp=None), got.hvp(z), got.divergence, got.laplacian


@jax.jit
def derivatives(mixture, y, w):
    """Return slope in w, gradient and Hessian of the log-density of data plus noise."""
    shape = y.shape

    def log_q(w, flat):
        return mixture.log_density(flat.reshape(shape), w)

    slope, gradient = jax.grad(log_q, (0, 1))(w, y.ravel())
    return slope, gradient, jax.hessian(log_q, 1)(w, y.ravel())


def truth(model, t, x, z):
    """Return score, Hessian times z, Laplacian and time derivative of log p_t.

    They follow from log p_t(x) = log q(x/alpha) - D log alpha by the chain rule, so that one
    compilation of `derivatives` serves every path.
    """
    c = coefficients(model.path, t)
    y, w = x / c.alpha, c.sigma / c.alpha
    slope, gradient, hessian = derivatives(model.network, y, w)
    dw = (c.dsigma - w * c.dalpha) / c.alpha
    rate = slope * dw - c.dalpha / c.alpha * (gradient @ y.ravel() + x.size)
    product = hessian @ z.ravel() / c.alpha**2
    trace = jnp.trace(hessian) / c.alpha**2
    return gradient.reshape(x.shape) / c.alpha, product.reshape(x.shape), trace, rate


@jax.jit
def draw(mixture, seed, w):
    y = mixture.sample(jax.random.key(seed), w)
    return y, jax.random.normal(jax.random.key(9), y.shape)


def marginal_points(model):
    """Draw one point of the model at each of three noise levels, and a direction."""
    for i, t in enumerate(jax.vmap(model.path.time)(LEVELS)):
        y, z = draw(model.network, i, W[i])
        yield t, model.path.alpha(t) * y, z


@pytest.fixture(scope="module")
def points(span, mixture2):
    """Points on every path with the result of `evaluate` and the truth."""
    model = closed_form(mixture2.model, span.path, t_min=span.t_min, t_max=span.t_max)
    return span, [
        (t, x, local(model, t, x, z), truth(model, t, x, z)) for t, x, z in marginal_points(model)
    ]


def test_local_is_the_closed_form_on_every_path(points):
    span, rows = points
    for t, x, (got, product, divergence, laplacian), (score, hessian, trace, _) in rows:
        c = coefficients(span.path, t)
        np.testing.assert_allclose(got.score, score, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(product, hessian, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(got.velocity, c.f * x - c.g2 / 2 * score, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(divergence, 2 * c.f - c.g2 / 2 * trace, rtol=1e-7)
        np.testing.assert_allclose(laplacian, trace, rtol=1e-6)
        np.testing.assert_allclose(got.score_norm2, score @ score, rtol=1e-7)
        said = (got.t, got.alpha, got.sigma, got.f, got.g2, got.logsnr)
        np.testing.assert_allclose(said, (t, c.alpha, c.sigma, c.f, c.g2, c.logsnr), rtol=1e-10)
        np.testing.assert_array_equal(got.x, x)


def test_the_denoised_sample_changes_along_a_drift_as_it_does(points, mixture2):
    """Against differences of E[x_0 | x_t] along a straight line through (t, x)."""
    span, rows = points
    model = closed_form(mixture2.model, span.path, t_min=span.t_min, t_max=span.t_max)
    for t, x, *_ in rows:
        drift, h = jnp.array([0.7, -2.0]) / t, 1e-6 * t
        got, along = evaluate_with_rates(model, t, x, divergence=Exact(), key=KEY)
        same = evaluate(model, t, x, divergence=Exact(), key=KEY)
        jax.tree.map(np.testing.assert_array_equal, got._replace(hvp=None), same._replace(hvp=None))
        before, after = (dgjax.denoise(model, t + s * h, x + s * h * drift) for s in (-1, 1))
        np.testing.assert_allclose(along(drift), (after - before) / (2 * h), rtol=1e-5, atol=1e-7)


def test_the_velocity_carries_the_density(points):
    """Continuity: d log p_t(x)/dt at fixed x is - div u - <u, s>."""
    for _, _, (got, _, divergence, _), (_, _, _, rate) in points[1]:
        np.testing.assert_allclose(rate, -divergence - got.velocity @ got.score, rtol=1e-6)


def test_local_is_the_closed_form_in_more_dimensions(spans, mixture16):
    """Samples of shape (2, 8) on a path where neither coefficient is 1."""
    span, mixture = spans["vp"], mixture16.model
    model = closed_form(mixture, span.path, t_min=span.t_min, t_max=span.t_max)
    for t, x, z in marginal_points(model):
        got, product, divergence, laplacian = local(model, t, x, z)
        score, hessian, trace, rate = truth(model, t, x, z)
        assert got.score.shape == got.velocity.shape == product.shape == mixture.shape
        np.testing.assert_allclose(got.score, score, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(product, hessian, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(laplacian, trace, rtol=1e-6)
        np.testing.assert_allclose(rate, -divergence - inner(got.velocity, got.score), rtol=1e-6)


def test_estimates_stay_apart_and_their_mean_is_the_value(mixture16):
    model = closed_form(mixture16.model, dgjax.vp(), t_min=0.01, t_max=1.0)
    x = jax.random.normal(KEY, (2, 8))
    tracked = jnp.array([1.0, 2.0, 6.0])
    z = Hutchinson(3).sample(jax.random.split(KEY, 3)[1], x)

    @jax.jit
    def both(model, x):
        def velocity(x):
            return evaluate(model, 0.3, x, divergence=Hutchinson(), key=KEY).velocity

        got = evaluate(model, 0.3, x, divergence=Hutchinson(3), key=KEY, log_densities=tracked)
        return got._replace(hvp=None), jax.jvp(velocity, (x,), (z,))[1]

    got, slope = both(model, x)
    assert got.divergences.shape == (3,)
    assert len(set(got.divergences.tolist())) == 3
    np.testing.assert_allclose(got.divergence, np.mean(got.divergences))
    np.testing.assert_allclose(got.log_density, 3.0)
    # Each estimate belongs to one probe z: div u is a trace, estimated by z^T (du/dx) z.
    np.testing.assert_allclose(got.divergences[1], jnp.sum(z * slope), rtol=1e-10)


# Score, velocity and denoised sample alone


MEAN = np.array([3.0, -1.5, 0.4])
COVARIANCE = np.array([[4.0, 1.2, 0.0], [1.2, 2.5, -0.3], [0.0, -0.3, 0.09]])


def test_score_velocity_and_denoise_of_a_gaussian(span):
    """All three agree with formulas in matrices.

    The marginal of x_t is N(alpha m, V) with V = alpha^2 C + sigma^2 I, and the velocity that
    transports it is u = alpha' m + V'/2 V^-1 (x - alpha m).
    """
    model = closed_form(
        dgjax.gaussian(MEAN, COVARIANCE), span.path, t_min=span.t_min, t_max=span.t_max
    )

    @jax.jit
    def read(model, t, x):
        return tuple(f(model, t, x) for f in (dgjax.score, dgjax.velocity, dgjax.denoise))

    for t in jax.vmap(model.path.time)(LEVELS):
        c = jax.tree.map(float, coefficients(model.path, t))
        x = c.alpha * (MEAN + np.array([0.9, -2.0, 0.1])) + c.sigma * np.array([1.0, -0.5, 2.0])
        offset = x - c.alpha * MEAN
        V = c.alpha**2 * COVARIANCE + c.sigma**2 * np.eye(3)
        slope = c.alpha * c.dalpha * COVARIANCE + c.sigma * c.dsigma * np.eye(3)  # V'/2
        solved = np.linalg.solve(V, offset)
        score, velocity, denoised = read(model, t, jnp.asarray(x))
        np.testing.assert_allclose(score, -solved, rtol=1e-7, atol=1e-9)
        expected = c.dalpha * MEAN + slope @ solved
        np.testing.assert_allclose(velocity, expected, rtol=1e-7, atol=1e-8)
        expected = MEAN + c.alpha * COVARIANCE @ solved
        np.testing.assert_allclose(denoised, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["score", "velocity", "denoise"])
def test_they_take_one_pass_with_the_condition_and_agree_with_evaluate(name):
    passes = []

    def network(x, t, cond):
        passes.append(cond)
        return jnp.sin(x) * cond

    model = dgjax.field(network, dgjax.vp(), NoisePrediction(), t_min=0.01, t_max=1.0)
    x, cond = jnp.array([0.4, 2.0]), jnp.array(3.0)
    for moved_to in (model, repath(model, dgjax.rectified_flow())):
        passes.clear()
        got = getattr(dgjax, name)(moved_to, 0.6, x, cond)
        assert len(passes) == 1
        assert passes[0] is cond
        local = evaluate(moved_to, 0.6, x, divergence=Exact(), key=KEY, cond=cond)
        c = coefficients(moved_to.path, 0.6)
        expected = {
            "score": local.score,
            "velocity": local.velocity,
            "denoise": (x + c.sigma**2 * local.score) / c.alpha,
        }[name]
        np.testing.assert_allclose(got, expected, rtol=1e-9)


# Moving to another path


def moved(model, target, t, x):
    """Return the same point on the path of `target`: equal log-SNR, x rescaled."""
    s = target.path.time(dgjax.logsnr(model.path, t))
    return s, x * target.path.alpha(s) / model.path.alpha(t)


def same_model(model, target, t, x):
    """Check that scores and drifts agree in coordinates that do not depend on the path."""
    s, y = moved(model, target, t, x)
    both = []
    for m, time, point in ((model, t, x), (target, s, y)):
        got, _, divergence, laplacian = local(m, time, point, jnp.ones_like(point))
        c = coefficients(m.path, time)
        # d(x/alpha)/d logsnr, its divergence, and the score of x/alpha.
        both.append(
            (
                (got.velocity - c.f * point) / c.alpha / c.dlogsnr,
                (divergence - point.size * c.f) / c.dlogsnr,
                got.score * c.alpha,
                laplacian * c.alpha**2,
            )
        )
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


def trained():
    """Make a model of a network on the VP path, with an asymmetric Jacobian."""
    weights = np.random.default_rng(0).normal(size=(2, 2))

    def network(x, t, cond):
        return jnp.tanh(weights @ x + t) + 0.3 * x

    return dgjax.field(network, dgjax.vp(), NoisePrediction(), t_min=0.004, t_max=0.7)


@pytest.mark.slow
def test_a_repathed_network_is_the_same_model(span):
    model = trained()
    target = repath(model, span.path)
    for end in ("t_min", "t_max"):
        np.testing.assert_allclose(
            dgjax.logsnr(target.path, getattr(target, end)),
            dgjax.logsnr(model.path, getattr(model, end)),
            rtol=1e-9,
        )
    x = jnp.array([0.3, -1.1])
    for t in (0.01, 0.6):
        same_model(model, target, jnp.array(t), x)
    # The density of the prior differs by the change of volume only.
    y = x * target.path.alpha(target.t_max) / model.path.alpha(model.t_max)
    volume = 2 * jnp.log(target.path.alpha(target.t_max) / model.path.alpha(model.t_max))
    np.testing.assert_allclose(log_prior(target, y), log_prior(model, x) - volume, rtol=1e-9)


def test_repathed_twice_is_repathed_once():
    model = trained()
    once = repath(model, dgjax.rectified_flow())
    twice = repath(repath(model, dgjax.edm(7.0)), dgjax.rectified_flow())
    assert jax.tree.structure(once) == jax.tree.structure(twice)
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(twice), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)
    same_model(model, repath(twice, dgjax.vp()), jnp.array(0.2), jnp.array([0.3, -1.1]))


def test_a_repathed_closed_form_has_its_density_there(span, mixture2):
    """log p changes by -D log of the ratio of the alphas, the change of volume."""
    model = closed_form(mixture2.model, dgjax.edm(), t_min=W_MIN, t_max=W_MAX)
    target = repath(model, span.path)
    direct = closed_form(mixture2.model, span.path, t_min=span.t_min, t_max=span.t_max)
    x = jnp.array([0.3, -1.1])
    s, y = moved(model, target, jnp.array(0.4), x)
    volume = 2 * jnp.log(span.path.alpha(s))
    expected = log_density(model, 0.4, x) - volume
    np.testing.assert_allclose(log_density(target, s, y), expected, rtol=1e-9)
    np.testing.assert_allclose(log_density(direct, s, y), expected, rtol=1e-9)
    # The mixture is its own prior.
    np.testing.assert_allclose(log_prior(target, y), log_density(target, target.t_max, y))


@pytest.mark.parametrize("scale", [0.0, 0.8])
def test_the_gaussian_prior_on_a_path(scale):
    """x_T = alpha x_0 + sigma eps with x_0 of standard deviation `scale`."""
    model = replace(trained(), prior=gaussian_prior(scale))
    x = np.array([0.7, -1.6])
    alpha, sigma = float(model.path.alpha(model.t_max)), float(model.path.sigma(model.t_max))
    expected = stats.norm(0, np.hypot(alpha * scale, sigma)).logpdf(x).sum()
    np.testing.assert_allclose(log_prior(model, jnp.asarray(x)), expected, rtol=1e-10)


# Conditions


def labelled():
    def network(x, t, cond):
        return jnp.sin(x) * (0.0 if cond is None else cond)

    return dgjax.field(network, dgjax.vp(), NoisePrediction(), t_min=0.01, t_max=1.0)


def test_condition_is_what_the_network_is_called_with():
    model, x, t = labelled(), jnp.array([0.4, 2.0]), jnp.array(0.5)

    def eps(model, cond=None):
        return np.asarray(model.pair(t, x, cond).eps)

    fixed = condition(model, jnp.array(3.0))
    np.testing.assert_array_equal(eps(model), 0)
    np.testing.assert_allclose(eps(fixed), 3 * np.sin(x), rtol=1e-12)
    np.testing.assert_array_equal(eps(fixed), eps(model, 3.0))
    # A condition given at the call has priority; None is no condition.
    np.testing.assert_allclose(eps(fixed, 5.0), 5 * np.sin(x), rtol=1e-12)
    assert condition(model, None) is model
    # The condition is a leaf, so sweeping it takes one trace, and `repath` keeps it.
    assert any(leaf is fixed.network.cond for leaf in jax.tree.leaves(fixed))
    target = repath(fixed, dgjax.edm())
    s, y = moved(model, target, t, x)
    np.testing.assert_allclose(target.pair(s, y).eps, 3 * np.sin(x), rtol=1e-8)


# Networks


@register_dataclass
@dataclass(frozen=True)
class Linear:
    weights: Array

    def __call__(self, x, t, cond):
        return self.weights @ x


def apply(weights, x, t, cond):
    return weights @ x


@pytest.mark.parametrize("wrap", [Linear, lambda w: Partial(apply, w)], ids=["class", "partial"])
def test_gradients_reach_the_parameters(wrap):
    """x0 = W x: the score is (alpha W x - x)/sigma^2, and Lap log p (alpha tr W - D)/sigma^2."""
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)))
    model = dgjax.field(wrap(weights), dgjax.vp(), DenoisedPrediction(), t_min=0.01, t_max=1.0)
    t, x = jnp.array(0.3), jnp.array([1.0, -2.0, 0.5])
    c = coefficients(model.path, t)
    assert any(leaf is weights for leaf in jax.tree.leaves(model))

    @jax.jit
    def read(model):
        got = evaluate(model, t, x, divergence=Exact(), key=KEY)
        return jnp.stack([got.score[1], got.laplacian])

    (leaf,) = jax.tree.leaves(jax.jit(jax.jacrev(read))(model).network)
    gradients = leaf * c.sigma**2 / c.alpha
    score, laplacian = read(model)
    np.testing.assert_allclose(score, (c.alpha * (weights @ x) - x)[1] / c.sigma**2, rtol=1e-10)
    np.testing.assert_allclose(laplacian, (c.alpha * jnp.trace(weights) - 3) / c.sigma**2)
    np.testing.assert_allclose(gradients[0], np.outer([0, 1, 0], x), atol=1e-10)
    np.testing.assert_allclose(gradients[1], np.eye(3), atol=1e-9)


def test_a_plain_function_is_static_and_a_module_brings_its_leaves():
    def network(x, t, cond):
        return x

    def make(network):
        return dgjax.field(network, dgjax.edm(), NoisePrediction(), t_min=0.1, t_max=1.0)

    assert jax.tree.leaves(make(network).network) == []
    module = MLP((2,), width=4, depth=1, rngs=nnx.Rngs(0))
    ours, theirs = jax.tree.leaves(make(module).network), jax.tree.leaves(module)
    assert len(ours) > 3
    assert all(a is b for a, b in zip(ours, theirs, strict=True))


def test_changed_numbers_do_not_retrace(mixture2):
    @jax.jit
    @chex.assert_max_traces(1)
    def velocity(model, t, x, key):
        return evaluate(model, t, x, divergence=Hutchinson(), key=key).velocity

    x = jnp.ones(2)
    outs = [
        velocity(closed_form(mixture2.model, dgjax.vp(0.1, high), t_min=low, t_max=1), t, x, key)
        for high, low, t, key in [
            (20.0, 0.01, jnp.array(0.3), jax.random.key(0)),
            (10, 0.1, jnp.array(0.5), jax.random.key(1)),
            (np.float32(5), jnp.array(0.2), jnp.array(0.9), jax.random.key(2)),
        ]
    ]
    assert len({float(u[0]) for u in outs}) == 3


# Errors


def make_field(path, low, high):
    return dgjax.field(lambda x, t, cond: x, path, VelocityPrediction(), t_min=low, t_max=high)


@pytest.mark.parametrize(
    ("path", "low", "high", "message"),
    [
        (dgjax.vp(), 0.5, 0.5, "t_min must be below t_max, got 0.5 and 0.5"),
        (dgjax.vp(), 1.0, 0.01, "swap them"),
        (dgjax.vp(), 0.0, 1.0, "at t_min = 0"),
        (dgjax.edm(), 0, 80, "at t_min = 0"),
        (dgjax.cosine(), 0.01, 1.0, "at t_max = 1"),
        (dgjax.rectified_flow(), 0.01, 1.0, "at t_max = 1"),
        (dgjax.rectified_flow(), 0.01, 1.5, "at t_max = 1.5"),
        (dgjax.edm(), 0.01, np.inf, "at t_max = inf"),
        (dgjax.vp(), np.nan, 1.0, "t_min must be below t_max"),
        (dgjax.ve(50.0, 0.01), 0.1, 0.9, "log-SNR must fall"),
        (dgjax.edm(-1.0), 0.1, 0.9, "log-SNR must fall"),
    ],
)
def test_times_outside_the_path_are_refused(path, low, high, message):
    with pytest.raises(ValueError, match=message):
        make_field(path, low, high)


def short_path():
    """Make a path on which w = sigma/alpha is at most 1."""
    return dgjax.custom(lambda t: 1 - 0.5 * t, lambda t: 0.5 * t)


@pytest.mark.parametrize(
    ("t_max", "path"),
    [(1e20, dgjax.cosine()), (1e20, dgjax.rectified_flow()), (1e20, dgjax.vp())],
    ids=["cosine", "rectified_flow", "vp"],
)
def test_repath_onto_a_vanishing_alpha_is_refused(t_max, path):
    with pytest.raises(ValueError, match="at t_max"):
        repath(make_field(dgjax.edm(), 0.01, t_max), path)


def test_repath_onto_a_path_that_ends_before_the_models_noise_is_refused():
    """Otherwise the network would be called at another noise level than the given one."""
    target = repath(make_field(dgjax.edm(), 0.02, 0.9), short_path())
    np.testing.assert_allclose(dgjax.logsnr(target.path, target.t_max), -2 * np.log(0.9))
    with pytest.raises(ValueError, match="log-SNR"):
        repath(make_field(dgjax.edm(), 0.02, 20.0), short_path())


def test_the_shape_of_samples_is_part_of_the_structure():
    """It stays through changes of the model, and no leaf is made of it."""
    data = dgjax.kernel_density(jnp.ones((3, 2, 5)), 0.3)
    exact = dgjax.closed_form(data, dgjax.edm(), t_min=0.1, t_max=9.0)
    ends = {"t_min": 0.1, "t_max": 9.0}
    parts = (lambda x, t, cond: x, dgjax.edm(), dgjax.DenoisedPrediction())
    made, free = dgjax.field(*parts, **ends, shape=[2, 5]), dgjax.field(*parts, **ends)
    assert free.shape is None
    assert len(jax.tree.leaves(made)) == len(jax.tree.leaves(free))
    assert jax.tree.structure(made) != jax.tree.structure(free)
    for model in (exact, made):
        assert model.shape == (2, 5)
        changed = dgjax.condition(dgjax.repath(model, dgjax.vp()), 3)
        assert changed.shape == (2, 5)
        assert jax.tree.map(lambda leaf: leaf, changed).shape == (2, 5)


@pytest.mark.parametrize("shape", [4, (4, 0), ("a",), (2.0,)])
def test_a_shape_is_a_tuple_of_positive_ints(shape):
    with pytest.raises(ValueError, match="shape must be a tuple of positive ints"):
        dgjax.field(
            lambda x, t, cond: x,
            dgjax.edm(),
            dgjax.DenoisedPrediction(),
            t_min=0.1,
            t_max=9.0,
            shape=shape,
        )


def test_a_module_of_pytorch_is_told_from_a_function():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match=r"pass dgjax.torch_network\(module\)"):
        dgjax.field(
            torch.nn.Linear(4, 4), dgjax.edm(), dgjax.DenoisedPrediction(), t_min=0.1, t_max=9.0
        )
