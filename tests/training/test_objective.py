"""What training minimises: weightings, adapted noise levels, dropout, augmentations, precision."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgjax.checkpoints.spec import build
from dgjax.data.dataset import Dataset, UncroppedImages
from dgjax.model.closed_form import closed_form
from dgjax.model.gaussian_mixture import gaussian
from dgjax.model.paths import cosine, edm
from dgjax.model.repath import repath
from dgjax.networks import MLP, UNet
from dgjax.training import TrainConfig
from dgjax.training.components import check_data, make_augment
from dgjax.training.importance_sampling import DirectSampling, ImportanceSampling, LossHistogram
from dgjax.training.loss import (
    EDMWeighting,
    LikelihoodWeighting,
    SigmoidWeighting,
    denoising_loss,
)
from dgjax.training.noise_distribution import LogNormal, UniformLogSNR, low_discrepancy_draw
from dgjax.training.objective import Batch, LabelDropout, Objective
from dgjax.training.pipeline import Augment, training_batches
from dgjax.training.precision import in_precision

VARIANCES = np.array([1.0, 0.04, 0.3])
LEVELS = [LogNormal(), LogNormal(uniform=0.0), UniformLogSNR(0.05, 5.0)]


@pytest.mark.parametrize("levels", LEVELS)
def test_density_is_that_of_the_quantile_function(levels):
    """Mass below each w by the density, against the share of u that falls below it."""
    grid = np.geomspace(levels.low, levels.high, 4001)
    density = np.asarray(levels.density(jnp.asarray(grid)))
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    mass *= np.log(grid[1] / grid[0])
    w = np.sort(np.asarray(levels.quantile((jnp.arange(20000) + 0.5) / 20000)))
    below = np.searchsorted(w, grid) / w.size
    np.testing.assert_allclose(mass, below, atol=2e-3)


def expected(levels, weighting, importance_of=None, key=jax.random.key(0), n=64):
    """Mean loss of the exact denoiser of N(0, diag VARIANCES), by the objective's own draws."""
    model = closed_form(gaussian(jnp.zeros(3), jnp.diag(VARIANCES)), edm(), t_min=0.01, t_max=90.0)
    levels_state = importance_of if importance_of is not None else levels.init()
    objective = Objective(levels, weighting)

    def one(key):
        data = jax.random.normal(jax.random.fold_in(key, 9), (256, 3)) * jnp.sqrt(VARIANCES)
        inputs = objective.draw(levels_state, Batch(data), key)
        return jnp.mean(inputs.importance * objective.losses(model, inputs))

    values = jax.lax.map(one, jax.random.split(key, n))
    return float(values.mean()), float(values.std() / np.sqrt(n))


@pytest.mark.parametrize("levels", [LogNormal(low=0.05, high=5.0), UniformLogSNR(0.05, 5.0)])
def test_likelihood_weighting_gives_the_integral_whatever_the_levels(levels):
    """The integral of mean s^2/(w^2 + s^2) d log w is half the log of (1 + s^2/w^2) at its ends."""
    exact = np.mean(np.log((1 + VARIANCES / 0.05**2) / (1 + VARIANCES / 5.0**2)) / 2)
    mean, error = expected(DirectSampling(levels), LikelihoodWeighting())
    assert error < 0.03 * exact
    assert abs(mean - exact) < 4 * error


def test_sigmoid_weighting_is_the_likelihood_weighting_where_the_noise_is_strong():
    w, density = jnp.array([0.01, 0.3, 50.0]), jnp.array(0.4)
    ratio = SigmoidWeighting(2.0)(w, density) / LikelihoodWeighting()(w, density)
    odds = np.exp(2.0) * np.asarray(w) ** 2
    np.testing.assert_allclose(ratio, odds / (1 + odds), rtol=1e-5)


# Adaptation


def learnt(adaptive, loss_of):
    """The state after losses at levels drawn by it, and those levels' importance weights."""

    def step(state, key):
        w, importance = adaptive.draw(state, low_discrepancy_draw(key, 64))
        return adaptive.update(state, w, loss_of(w)), (w, importance)

    keys = jax.random.split(jax.random.key(0), 200)
    return jax.lax.scan(step, adaptive.init(), keys)


def test_adapted_levels_are_drawn_as_the_root_mean_square_loss_says():
    adaptive = ImportanceSampling(UniformLogSNR(0.1, 10.0), bins=4, floor=0.2)
    edges = np.geomspace(0.1, 10.0, 5)
    heights = jnp.array([1.0, 4.0, 0.5, 2.0])
    state, _ = learnt(adaptive, lambda w: heights[jnp.clip(jnp.searchsorted(edges, w) - 1, 0, 3)])
    wanted = 0.2 / 4 + 0.8 * np.asarray(heights) / 7.5
    np.testing.assert_allclose(adaptive.probabilities(state), wanted, rtol=1e-3)
    w, importance = adaptive.draw(state, (jnp.arange(10000) + 0.5) / 10000)
    found = np.histogram(w, edges)[0] / 10000
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    # Each counts by how much more often it should have come: a quarter over the share.
    bins = np.searchsorted(edges, np.asarray(w)) - 1
    np.testing.assert_allclose(importance, 0.25 / wanted[bins], rtol=1e-3)


def test_nothing_is_adapted_until_every_bin_has_been_seen():
    adaptive = ImportanceSampling(LogNormal(), bins=8, patience=5)
    early = LossHistogram(jnp.linspace(1, 9, 8), jnp.array([9.0] * 7 + [4.0]))
    late = LossHistogram(early.mean_square, early.seen.at[-1].set(5.0))
    plain = adaptive.probabilities(adaptive.init())
    np.testing.assert_array_equal(adaptive.probabilities(early), plain)
    assert (np.asarray(adaptive.probabilities(late)) != np.asarray(plain)).all()


@pytest.mark.slow
@pytest.mark.parametrize("weighting", [EDMWeighting(0.5), LikelihoodWeighting()])
def test_adaptation_changes_the_variance_and_not_the_expectation(weighting):
    levels = LogNormal(low=0.05, high=5.0)
    adaptive = ImportanceSampling(levels, bins=32, floor=0.2)
    model_loss = lambda w: (
        weighting(w, levels.density(w))
        * jnp.mean(w[:, None] ** 2 * VARIANCES / (w[:, None] ** 2 + VARIANCES), axis=1)
    )
    state, _ = learnt(adaptive, model_loss)
    assert np.ptp(np.asarray(adaptive.probabilities(state))) > 0.01
    plain, plain_error = expected(DirectSampling(levels), weighting)
    adapted, error = expected(adaptive, weighting, importance_of=state)
    assert abs(adapted - plain) < 4 * np.hypot(error, plain_error)


def test_likelihood_weighting_varies_less_with_adapted_levels():
    levels = UniformLogSNR(0.01, 80.0)
    u = jax.random.uniform(jax.random.key(1), (20000,))
    loss = lambda w: LikelihoodWeighting()(w, levels.density(w)) * w**2 * 0.1 / (w**2 + 0.1)
    adaptive = ImportanceSampling(levels, bins=48)
    state, _ = learnt(adaptive, loss)
    w, importance = adaptive.draw(state, u)
    fixed = np.asarray(loss(levels.quantile(u)))
    adapted = np.asarray(importance * loss(w))
    np.testing.assert_allclose(adapted.mean(), fixed.mean(), rtol=0.03)
    assert adapted.std() < 0.6 * fixed.std()


@pytest.mark.parametrize("change", [{"bins": 1}, {"floor": 0.0}, {"memory": 0.5}])
def test_adaptations_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match="importance_sampling: bins must be at least 2"):
        ImportanceSampling(LogNormal(), **change)


# Networks in training


def unet(**changes):
    network = UNet((8, 8, 1), (16,), 1, 16, rngs=nnx.Rngs(0), **changes)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: a + 0.1 * rng.normal(size=a.shape).astype(a.dtype), network)


@pytest.mark.slow
def test_units_are_dropped_only_where_a_key_says_which():
    network, plain = unet(dropout=0.3), unet()
    x, t = jax.random.normal(jax.random.key(0), (8, 8, 1)), jnp.array(0.3)
    np.testing.assert_array_equal(network(x, t), plain(x, t))
    keys = jax.random.split(jax.random.key(1), 200)
    dropped = jax.vmap(lambda key: network(x, t, key=key))(keys)
    assert np.asarray(dropped.std(0)).min() > 0
    np.testing.assert_array_equal(network(x, t, key=keys[0]), network(x, t, key=keys[0]))
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\)"):
        unet(dropout=1.0)


@pytest.mark.slow
def test_an_augmentation_is_told_and_none_is_the_plain_network():
    network = unet(num_augmentations=1, num_classes=2)
    x, t = jax.random.normal(jax.random.key(0), (8, 8, 1)), jnp.array(0.3)
    np.testing.assert_array_equal(network(x, t, augmentation=1), network(x, t))
    assert np.abs(np.asarray(network(x, t, augmentation=0) - network(x, t))).max() > 1e-3


def test_mirrored_images_are_mirrored_and_say_so():
    values = np.random.default_rng(0).normal(size=(10, 4, 4, 1)).astype(np.float32)
    data = Dataset(values, 1.0, 0.0, (-1.0, 1.0), np.arange(10), "none")
    augment = Augment(0.5, frozenset({"labels", "augmentations"}))
    batch = next(training_batches(data, augment, batch=400, seed=0, start=0))
    mirrored = batch.augmentations == 0
    assert 150 < mirrored.sum() < 250
    assert set(batch.augmentations[~mirrored]) == {1}  # none
    for x, label, flipped in zip(batch.data, batch.labels, mirrored, strict=True):
        np.testing.assert_array_equal(x, values[label][:, ::-1] if flipped else values[label])


@pytest.mark.parametrize("cropped", [False, True])
def test_rows_of_a_batch_are_the_same_wherever_they_are_made(cropped):
    values = np.random.default_rng(0).normal(size=(10, 4, 50, 1)).astype(np.float32)
    values = UncroppedImages(list(values), (4, 4, 1)) if cropped else values[:, :, :4]
    data = Dataset(values, 1.0, 0.0, (-1.0, 1.0), np.arange(10), "none")
    augment = Augment(0.5, frozenset({"labels"}))
    make = lambda rows: next(training_batches(data, augment, batch=8, seed=0, start=3, rows=rows))
    whole, first, second = make(slice(None)), make(slice(0, 4)), make(slice(4, 8))
    for one, *parts in zip(whole[:2], first[:2], second[:2], strict=True):
        np.testing.assert_array_equal(one, np.concatenate(parts))


@pytest.mark.slow
def test_labels_keys_and_augmentations_reach_the_network():
    class Spy(nnx.Module):
        def __call__(self, x, t, cond=None, *, key=None, augmentation=None):
            seen.update(cond=cond, key=key, augmentation=augmentation)
            return jnp.zeros_like(x)

    seen = {}
    base = build(config().model)
    model = replace(base, network=Spy())
    drop = LabelDropout(0.5, 3)
    objective = Objective(DirectSampling(LogNormal()), EDMWeighting(1.0), drop, dropout=True)
    ones = jnp.ones(8, jnp.int32)
    batch = Batch(jnp.ones((8, 4, 4, 1)), ones, 1 - ones)
    inputs = objective.draw((), batch, jax.random.key(0))
    assert set(np.asarray(inputs.labels).tolist()) == {1, 3}
    objective.losses(model, inputs)
    assert all(value is not None for value in seen.values())
    assert len({tuple(k) for k in np.asarray(jax.random.key_data(inputs.keywords["key"]))}) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: UNet((8, 8, 1), (16,), 1, 16, rngs=nnx.Rngs(0)),
        lambda: MLP((8, 8, 1), 16, 2, rngs=nnx.Rngs(0)),
    ],
)
def test_products_read_rounded_numbers_and_weights_stay(make):
    network = make()
    rng = np.random.default_rng(1)
    network = jax.tree.map(lambda a: a + 0.1 * rng.normal(size=a.shape).astype(a.dtype), network)
    x, t = jax.random.normal(jax.random.key(0), (8, 8, 1), jnp.float32), jnp.float32(0.3)
    rounded = in_precision(make, "bfloat16")
    run = lambda network: rounded(network)(x, t)
    text = jax.jit(run).lower(network).as_text()
    products = [
        line
        for line in text.splitlines()
        if "stablehlo.convolution" in line or "dot_general" in line
    ]
    kernels = [line for line in products if "f32>" in line.split("->")[0]]
    assert products
    assert not kernels  # all of them read bfloat16
    exact, found = np.asarray(network(x, t)), np.asarray(run(network))
    assert found.dtype == np.float32
    error = np.abs(found - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.05
    gradient = jax.jit(jax.grad(lambda network: jnp.sum(rounded(network)(x, t) ** 2)))(network)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    assert in_precision(make, "float32")(network) is network
    with pytest.raises(ValueError, match="did you mean 'bfloat16'"):
        in_precision(make, "bfloat")


# Configuration


def config(**changes):
    values = {
        "model": {
            "shape": [4, 4, 1],
            "network": {"kind": "unet", "channels": [8], "blocks": 1, "num_augmentations": 1},
            "path": {"kind": "edm"},
            "parametrization": {"kind": "preconditioned", "sigma_data": 1.0},
            "t_min": 0.02,
            "t_max": 80.0,
        },
        "data": {"dataset": "npz", "sigma_data": 1.0, "path": "x.npz", "flip": True},
        "steps": 2,
    }
    return TrainConfig.from_dict(values | changes)


def test_what_a_configuration_says_is_what_is_made():
    assert make_augment(config()) == Augment(0.5, frozenset({"augmentations"}))
    labels = np.arange(5)
    data = Dataset(np.zeros((5, 4, 4, 1)), 1.0, 0.0, (-1.0, 1.0), labels, "none")
    check_data(config(), data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": {"kind": "likelihod"}}, "did you mean 'likelihood'"),
        ({"loss": {"kind": "sigmoid", "bais": 1.0}}, "did you mean 'bias'"),
        ({"importance_sampling": {"bin": 3}}, "did you mean 'bins'"),
        ({"importance_sampling": 3}, "importance_sampling must be a section"),
        ({"execution": {"precision": "float16"}}, "'bfloat16'|is unknown"),
        ({"execution": {"parameters": "shard"}}, "did you mean 'sharded'"),
        ({"execution": {"accumulate": 0}}, "accumulate, threads and ahead"),
        ({"records": {"keep": 0}}, "keep must be at least 1"),
        ({"records": {"keep_every": 300}}, "must be a multiple of save_every"),
        ({"save_every": 3}, "'save_every' is unknown"),
    ],
)
def test_wrong_values_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        config(**change)


def test_the_loss_of_the_exact_denoiser_on_a_path_that_scales():
    """The denoiser of N(m, s^2 I) moves x/alpha towards m."""
    mean, variance = jnp.array([3.0, -2.0]), 4.0
    exact = closed_form(gaussian(mean, variance), edm(), t_min=0.1, t_max=20.0)
    model = repath(exact, cosine())
    t, data, noise = jnp.asarray(0.6), jnp.array([4.0, -1.0]), jnp.array([0.3, -1.2])
    w = model.path.sigma(t) / model.path.alpha(t)
    denoised = mean + (data + w * noise - mean) * variance / (variance + w**2)
    found = denoising_loss(model, t, data, noise)
    np.testing.assert_allclose(found, jnp.mean((denoised - data) ** 2), rtol=1e-9)
