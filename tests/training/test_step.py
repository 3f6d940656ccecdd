"""One training step of a linear network against its closed-form expectation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate

import dgjax
from dgjax.model.field import field
from dgjax.model.parametrization import DenoisedPrediction, NoisePrediction
from dgjax.training.importance_sampling import DirectSampling, ImportanceSampling, LossHistogram
from dgjax.training.loss import EDMWeighting, LikelihoodWeighting
from dgjax.training.noise_distribution import LogNormal, UniformLogSNR, low_discrepancy_draw
from dgjax.training.objective import Batch, LabelDropout, Objective
from dgjax.training.step import initial_state, make_train_step, to_microbatches
from dgjax.training.validation import held_out_losses

THETA = 0.6
DATA = 0.8 + 0.5 * np.random.default_rng(0).normal(size=(64, 4))
MEAN_SQUARE = np.mean(DATA**2)
DISTRIBUTION = LogNormal(mean=-0.5, std=0.8, low=0.05, high=5.0, uniform=0.3)
BINS = 6
# Losses that grow with w, contrary to those below: a proposal far from the noise distribution.
HISTOGRAM = LossHistogram(jnp.geomspace(0.01, 100.0, BINS), jnp.full(BINS, 1e3))
IMPORTANCE = ImportanceSampling(DISTRIBUTION, bins=BINS, floor=0.2)
SAMPLERS = [
    pytest.param(DirectSampling(DISTRIBUTION), (), id="direct"),
    pytest.param(IMPORTANCE, HISTOGRAM, id="importance"),
]


def linear(theta, x, t, cond):
    return theta * x


def linear_model(theta=THETA, parametrization=DenoisedPrediction()):
    network = jax.tree_util.Partial(linear, jnp.asarray(theta))
    return field(network, dgjax.edm(), parametrization, t_min=0.01, t_max=90.0)


def over_noise_levels(distribution, value):
    """The expectation of value(w) over the noise distribution, by quadrature over log w."""

    def integrand(log_w):
        w = np.exp(log_w)
        return float(distribution.density(jnp.asarray(w))) * value(w)

    ends = np.log(distribution.low), np.log(distribution.high)
    return scipy.integrate.quad(integrand, *ends, epsrel=1e-9)[0]


def expected_loss(w, theta=THETA):
    """Mean of (theta (x0 + w eps) - x0)^2 over eps."""
    return (theta - 1) ** 2 * MEAN_SQUARE + theta**2 * w**2


def expected_slope(w, theta=THETA):
    return 2 * (theta - 1) * MEAN_SQUARE + 2 * theta * w**2


@pytest.mark.parametrize("weighting", [EDMWeighting(0.7), LikelihoodWeighting()])
@pytest.mark.parametrize(("sampler", "sampler_state"), SAMPLERS)
@pytest.mark.parametrize("accumulate", [1, 4])
def test_loss_and_gradient_are_unbiased_for_every_proposal(
    weighting, sampler, sampler_state, accumulate
):
    """By gradient descent at rate 1/2 the change of theta is minus half the gradient."""
    model, optimiser = linear_model(), optax.sgd(0.5)
    step = make_train_step(
        model, optimiser, Objective(sampler, weighting), gammas=[1.0], accumulate=accumulate
    )
    state = initial_state(model.network, optimiser, 1, sampler_state)

    def one(key):
        new, metrics = step(state, Batch(jnp.asarray(DATA)), key)
        slope = 2 * (THETA - jax.tree.leaves(new.network)[0])
        return metrics.loss, slope, metrics.gradient_norm

    loss, slope, norm = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 2000))
    np.testing.assert_allclose(norm, np.abs(slope), rtol=1e-6)
    weight = lambda w: float(weighting(w, DISTRIBUTION.density(jnp.asarray(w))))
    for found, value in ((loss, expected_loss), (slope, expected_slope)):
        exact = over_noise_levels(DISTRIBUTION, lambda w, value=value: weight(w) * value(w))
        error = np.std(found) / np.sqrt(len(found))
        assert error < 0.02 * abs(exact)
        assert abs(np.mean(found) - exact) < 4.5 * error


@pytest.mark.parametrize(("sampler", "sampler_state"), SAMPLERS)
@pytest.mark.parametrize("power", [0, -2, 1])
def test_weighted_draws_integrate_to_the_noise_distribution(sampler, sampler_state, power):
    u = (jnp.arange(200_000) + 0.5) / 200_000
    w, importance = sampler.draw(sampler_state, u)
    exact = over_noise_levels(DISTRIBUTION, lambda w: w**power)
    np.testing.assert_allclose(jnp.mean(importance * w**power), exact, rtol=1e-4)


def test_bins_are_drawn_by_the_density_at_their_centres_times_the_size_of_the_loss():
    edges = np.geomspace(DISTRIBUTION.low, DISTRIBUTION.high, BINS + 1)
    plain = np.asarray(DISTRIBUTION.density(jnp.asarray(np.sqrt(edges[1:] * edges[:-1]))))
    by_loss = plain * np.sqrt(HISTOGRAM.mean_square)
    expected = 0.2 * plain / plain.sum() + 0.8 * by_loss / by_loss.sum()
    np.testing.assert_allclose(IMPORTANCE.probabilities(HISTOGRAM), expected, rtol=1e-6)
    np.testing.assert_allclose(
        IMPORTANCE.probabilities(IMPORTANCE.init()), plain / plain.sum(), rtol=1e-6
    )


def test_importance_weights_stay_below_one_over_the_floor():
    _, importance = IMPORTANCE.draw(HISTOGRAM, jnp.linspace(0, 0.9999, 5000))
    assert float(importance.max()) < 1.5 / IMPORTANCE.floor
    assert float(importance.min()) < 0.5  # it does importance sampling


@pytest.mark.slow
def test_microbatches_change_nothing_but_rounding():
    model, optimiser = linear_model(), optax.sgd(0.01, momentum=0.9)
    objective = Objective(IMPORTANCE, EDMWeighting(0.7))
    results = []
    for accumulate in (1, 8):
        step = jax.jit(
            make_train_step(model, optimiser, objective, gammas=[1.0], accumulate=accumulate)
        )
        state = initial_state(model.network, optimiser, 1, HISTOGRAM)
        for i in range(3):
            state, metrics = step(state, Batch(jnp.asarray(DATA)), jax.random.key(i))
        results.append((state, metrics))
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-6), results[0], other)


def test_row_i_of_a_batch_goes_to_microbatch_i_mod_count():
    parts = to_microbatches(jnp.arange(24).reshape(12, 2), 3)
    assert parts.shape == (3, 4, 2)
    np.testing.assert_array_equal(parts[..., 0] // 2 % 3, np.arange(3)[:, None] * np.ones(4))


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_histogram_learns_the_loss_at_each_noise_level_without_importance_weights(accumulate):
    model, optimiser = linear_model(), optax.sgd(0.0)
    sampler = ImportanceSampling(DISTRIBUTION, bins=BINS, memory=1e9, floor=0.2)
    objective = Objective(sampler, EDMWeighting(0.7))
    step = jax.jit(
        make_train_step(model, optimiser, objective, gammas=[1.0], accumulate=accumulate)
    )
    state = initial_state(model.network, optimiser, 1, HISTOGRAM._replace(seen=jnp.zeros(BINS)))
    count, total = np.zeros(BINS), np.zeros(BINS)
    edges = np.geomspace(DISTRIBUTION.low, DISTRIBUTION.high, BINS + 1)
    for i in range(20):
        key = jax.random.key(i)
        inputs = objective.draw(state.noise_sampler, Batch(jnp.asarray(DATA)), key)
        w = np.asarray(inputs.w)
        noisy = DATA + w[:, None] * np.asarray(inputs.noise)
        loss = np.mean((THETA * noisy - DATA) ** 2, axis=1)
        loss *= (w**2 + 0.7**2) / (w * 0.7) ** 2
        index = np.clip(np.searchsorted(edges, w) - 1, 0, BINS - 1)
        np.add.at(count, index, 1)
        np.add.at(total, index, loss**2)
        state, _ = step(state, Batch(jnp.asarray(DATA)), key)
    np.testing.assert_allclose(state.noise_sampler.seen, count)
    np.testing.assert_allclose(state.noise_sampler.mean_square, total / count, rtol=1e-6)


def test_the_histogram_is_a_plain_mean_up_to_its_memory_and_a_moving_average_after():
    sampler = ImportanceSampling(UniformLogSNR(0.1, 10.0), bins=2, memory=8.0)
    rng = np.random.default_rng(0)
    state, mean, seen = sampler.init(), np.ones(2), np.zeros(2)
    for _ in range(12):
        w, losses = rng.choice([0.2, 5.0], size=4, p=[0.7, 0.3]), rng.exponential(size=4)
        state = sampler.update(state, jnp.asarray(w), jnp.asarray(losses))
        for i, level in enumerate([0.2, 5.0]):
            new = losses[w == level] ** 2
            seen[i] += len(new)
            if len(new):
                mean[i] += len(new) / min(seen[i], 8.0) * (new.mean() - mean[i])
    np.testing.assert_allclose(state.seen, seen)
    np.testing.assert_allclose(state.mean_square, mean, rtol=1e-6)


def test_averages_weigh_the_weights_of_each_step_by_the_integral_of_the_profile():
    gammas = (1.5, 6.0)
    model, optimiser = linear_model(), optax.sgd(0.05)
    objective = Objective(DirectSampling(DISTRIBUTION), EDMWeighting(0.7))
    step = jax.jit(make_train_step(model, optimiser, objective, gammas=gammas))
    state, weights = initial_state(model.network, optimiser, 2), []
    for i in range(6):
        state, _ = step(state, Batch(jnp.asarray(DATA)), jax.random.key(i))
        assert int(state.step) == i + 1
        weights.append(float(jax.tree.leaves(state.network)[0]))
    assert np.std(weights) > 1e-3
    for average, gamma in zip(state.averages, gammas, strict=True):
        profile = np.diff((np.arange(7) / 6) ** (gamma + 1))
        np.testing.assert_allclose(jax.tree.leaves(average)[0], profile @ weights, rtol=1e-6)


# What is drawn


@pytest.mark.parametrize("n", [7, 64])
def test_low_discrepancy_draws_are_evenly_spaced_with_a_uniform_shift(n):
    draws = jax.vmap(lambda key: low_discrepancy_draw(key, n))
    u = np.asarray(draws(jax.random.split(jax.random.key(0), 4000)))
    assert u.min() >= 0
    assert u.max() < 1
    around = np.concatenate([np.sort(u, axis=1), 1 + u.min(axis=1, keepdims=True)], axis=1)
    np.testing.assert_allclose(np.diff(around, axis=1), 1 / n, rtol=1e-6)
    # Means of e^(2 pi i k u) vanish: the shift is uniform on the whole circle.
    for k in (1, 2, 3):
        assert abs(np.mean(np.exp(2j * np.pi * k * u[:, 0]))) < 4.5 / np.sqrt(4000)


def test_every_sample_and_element_has_standard_normal_noise_of_its_own():
    objective = Objective(DirectSampling(DISTRIBUTION), EDMWeighting(0.7))
    keys = jax.random.split(jax.random.key(0), 4000)
    batch = Batch(jnp.zeros((4, 3)))
    inputs = jax.vmap(lambda key: objective.draw((), batch, key))(keys)
    together = np.concatenate([inputs.noise.reshape(4000, 12), np.log(inputs.w[:, :1])], axis=1)
    noise = together[:, :12]
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=4.5 / np.sqrt(4000))
    np.testing.assert_allclose(np.mean(noise**2, axis=0), 1, atol=4.5 * np.sqrt(2 / 4000))
    # Uncorrelated with each other and with the noise level.
    np.testing.assert_allclose(np.corrcoef(together.T), np.eye(13), atol=4.5 / np.sqrt(4000))


@pytest.mark.slow
def test_labels_are_dropped_anew_in_every_step_and_change_no_other_draw():
    labels = jnp.arange(16) % 3
    plain = Objective(DirectSampling(DISTRIBUTION), EDMWeighting(0.7))
    dropping = Objective(plain.noise_sampler, plain.weighting, LabelDropout(0.3, null=3))
    batch, keys = Batch(jnp.zeros((16, 2)), labels), jax.random.split(jax.random.key(0), 2000)
    inputs = jax.vmap(lambda key: dropping.draw((), batch, key))(keys)
    dropped = np.asarray(inputs.labels) == 3
    np.testing.assert_allclose(dropped.mean(axis=0), 0.3, atol=4.5 * np.sqrt(0.21 / 2000))
    correlations = np.corrcoef(np.c_[dropped, inputs.noise[:, 0, 0], np.log(inputs.w[:, 0])].T)
    np.testing.assert_allclose(correlations, np.eye(18), atol=5 / np.sqrt(2000))
    kept = np.broadcast_to(labels, dropped.shape)
    np.testing.assert_array_equal(np.asarray(inputs.labels)[~dropped], kept[~dropped])
    same = jax.vmap(lambda key: plain.draw((), batch, key))(keys)
    np.testing.assert_array_equal(inputs.noise, same.noise)
    np.testing.assert_array_equal(inputs.w, same.w)


# Validation


def test_held_out_losses_of_a_linear_network_are_those_of_its_closed_form():
    """With one element a sample, one noise for all samples would show as a shift of about 1."""
    data = 0.8 + 0.5 * np.random.default_rng(1).normal(size=(20_000, 1))
    w = np.array([0.05, 0.4, 3.0])
    found = held_out_losses(linear_model(), Batch(jnp.asarray(data)), jnp.asarray(w), 0.7)
    scale = (w**2 + 0.49) / (w * 0.7) ** 2
    a, b = (THETA - 1) * data, THETA * w  # the error of a sample is a + b eps
    exact = np.mean(a**2) + b**2
    error = np.sqrt((4 * b**2 * np.mean(a**2) + 2 * b**4) / len(data))
    assert (error < 0.03 * exact).all()
    assert (np.abs(found / scale - exact) < 4 * error).all()


def test_held_out_noise_differs_between_samples_and_is_the_same_at_every_noise_level():
    """Where no noise is predicted, each sample loses w^2 times its mean squared noise."""
    model = linear_model(0.0, NoisePrediction())
    w = jnp.array([0.1, 1.0, 10.0])
    scale = np.asarray((w**2 + 0.49) / (w * 0.7) ** 2 * w**2)

    def mean_square(size, parts=1):
        losses = held_out_losses(model, Batch(jnp.zeros((size, 1))), w, 0.7, parts)
        return np.asarray(losses) / scale

    many = mean_square(20_000)
    np.testing.assert_allclose(many, many[0], rtol=1e-6)
    np.testing.assert_array_equal(mean_square(20_000), many)
    np.testing.assert_allclose(mean_square(20_000, parts=8), many, rtol=1e-6)
    # The mean of n squares of independent standard normal numbers has variance 2/n.
    assert abs(many[0] - 1) < 4 * np.sqrt(2 / 20_000)
