"""The penalty on inconsistency: its expectation and gradient in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_step import over_noise_levels

import dgjax
from dgjax.model.closed_form import closed_form
from dgjax.model.field import field
from dgjax.model.gaussian_mixture import gaussian_mixture
from dgjax.model.parametrization import DenoisedPrediction
from dgjax.training.consistency import Consistency, consistency_loss
from dgjax.training.importance_sampling import DirectSampling, ImportanceSampling, LossHistogram
from dgjax.training.loss import EDMWeighting
from dgjax.training.noise_distribution import LogNormal
from dgjax.training.objective import Batch, Objective
from dgjax.training.step import initial_state, make_train_step

THETA, WEIGHT = 0.6, 0.3
TWIST = np.array([[1.0, 0.5, 0.0], [-0.2, 0.8, 0.3], [0.1, 0.0, 1.1]])
DATA = (np.array([0.8, -0.3, 0.5]) + 0.5 * np.random.default_rng(0).normal(size=(64, 3))).astype(
    np.float32
)
DISTRIBUTION = LogNormal(mean=-0.5, std=0.8, low=0.2, high=5.0, uniform=0.3)
SAMPLERS = [
    pytest.param(DirectSampling(DISTRIBUTION), (), id="direct"),
    pytest.param(
        ImportanceSampling(DISTRIBUTION, bins=6, floor=0.2),
        LossHistogram(jnp.geomspace(0.1, 10.0, 6), jnp.full(6, 1e3)),
        id="importance",
    ),
]


def twisted(theta, x, t, cond):
    return theta * TWIST.astype(np.float32) @ x


def twisted_model():
    network = jax.tree_util.Partial(twisted, jnp.asarray(THETA, jnp.float32))
    return field(network, dgjax.edm(), DenoisedPrediction(), t_min=0.01, t_max=90.0)


def expected_penalty(w, theta):
    """Curl and transport of D(y) = theta A y, so that s = M y/w^2 with M = theta A - I.

    w r = (2 M^T M + 2 M) y/w, and the curl turns w s = M y/w by theta (A - A^T).
    """
    matrix, turn = theta * TWIST - np.eye(3), theta * (TWIST - TWIST.T)
    transport = 2 * matrix.T @ matrix + 2 * matrix + turn @ matrix
    second = DATA.T.astype(float) @ DATA / len(DATA) + w**2 * np.eye(3)
    return (np.sum(turn**2) + np.trace(transport @ second @ transport.T) / w**2) / 3


def expected_loss(w, theta):
    matrix = theta * TWIST
    error = DATA.astype(float) @ (matrix - np.eye(3)).T
    weight = float(EDMWeighting(0.7)(w, 1.0))
    return weight * (np.mean(error**2) + w**2 * np.sum(matrix**2) / 3)


def slope_of(value, step=1e-4):
    """The derivative in theta of value(w, theta), by central differences."""
    return lambda w: (value(w, THETA + step) - value(w, THETA - step)) / (2 * step)


@pytest.mark.parametrize(("sampler", "sampler_state"), SAMPLERS)
@pytest.mark.parametrize(("every", "accumulate"), [(1, 1), (8, 1), (4, 2)])
def test_penalty_and_gradient_are_unbiased(sampler, sampler_state, every, accumulate):
    """By gradient descent at rate 1/2 the change of theta is minus half the gradient."""
    model, optimiser = twisted_model(), optax.sgd(0.5)
    objective = Objective(sampler, EDMWeighting(0.7), consistency=Consistency(WEIGHT, every))
    step = make_train_step(model, optimiser, objective, gammas=[1.0], accumulate=accumulate)
    state = initial_state(model.network, optimiser, 1, sampler_state)

    def one(key):
        rows = jax.random.permutation(jax.random.fold_in(key, 9), jnp.asarray(DATA))
        new, metrics = step(state, Batch(rows), key)
        slope = 2 * (THETA - jax.tree.leaves(new.network)[0])
        return metrics.loss, metrics.penalty, slope

    loss, penalty, slope = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 4000))
    whole = lambda w, theta: expected_loss(w, theta) + WEIGHT * expected_penalty(w, theta)
    for found, value in (
        (loss, lambda w: expected_loss(w, THETA)),
        (penalty, lambda w: WEIGHT * expected_penalty(w, THETA)),
        (slope, slope_of(whole)),
    ):
        exact = over_noise_levels(DISTRIBUTION, value)
        error = np.std(found) / np.sqrt(len(found))
        assert error < 0.05 * abs(exact)
        assert abs(np.mean(found) - exact) < 4.5 * error


@pytest.mark.parametrize("t", [0.3, 0.7])
def test_the_noisy_sample_is_that_of_the_path(t):
    """On a path with alpha < 1 the penalty is that of the same w with alpha = 1."""
    path = dgjax.vp()
    w = float(path.sigma(t) / path.alpha(t))
    turned = field(
        jax.tree_util.Partial(lambda a, x, t, cond: twisted(THETA, x / path.alpha(t), t, cond), 0),
        path,
        DenoisedPrediction(),
        t_min=0.01,
        t_max=1.0,
    )

    def mean(model, t):
        def one(key):
            keys = jax.random.split(key)
            data = jnp.asarray(DATA)[jax.random.randint(keys[0], (), 0, len(DATA))]
            noise = jax.random.normal(keys[1], (3,))
            return consistency_loss(model, t, data, noise, key)

        values = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), 40_000))
        return np.mean(values), np.std(values) / np.sqrt(len(values))

    for model, at in ((twisted_model(), w), (turned, t)):
        found, error = mean(model, jnp.float32(at))
        exact = expected_penalty(w, THETA)
        assert error < 0.03 * exact
        assert abs(found - exact) < 4.5 * error


def test_a_true_score_has_no_penalty():
    means = np.array([[1.0, -0.5], [-0.5, 2.0]])
    covariances = np.array([[[0.5, 0.2], [0.2, 0.3]], [[0.2, 0.0], [0.0, 1.1]]])
    mixture = gaussian_mixture(jnp.array([0.3, 0.7]), means, covariances)
    model = closed_form(mixture, dgjax.edm(), t_min=0.01, t_max=90.0)
    key = jax.random.key(0)
    data, noise = jnp.array([0.8, -0.1]), jax.random.normal(key, (2,))
    for w in (0.1, 1.0, 10.0):
        keys = jax.random.split(key, 64)
        of = jax.vmap(lambda k, w=w: consistency_loss(model, jnp.float32(w), data, noise, k))
        found = of(keys)
        # Single ones are products of two estimates with opposite errors; their mean is 0.
        assert abs(np.mean(found)) < 4.5 * np.std(found) / 8 + 1e-5, w


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": 0.0}, "weight must be positive"),
        ({"weight": -1.0}, "weight must be positive"),
        ({"every": 0}, "every must be at least 1"),
    ],
)
def test_wrong_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Consistency(**values)
