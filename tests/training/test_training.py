"""Losses, noise levels and averages against their closed forms; runs that stop and go on."""

import gzip
import inspect
import json
import re
import signal
import threading
import tomllib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import nnx
from PIL import Image

import dgjax
from dgjax.checkpoints.arrays import to_named
from dgjax.checkpoints.checkpoint import load
from dgjax.checkpoints.spec import NETWORKS, ModelSpec, build, build_network
from dgjax.data.data_config import DataConfig
from dgjax.data.named_datasets import load_dataset, read_idx
from dgjax.model.closed_form import closed_form
from dgjax.model.field import field
from dgjax.model.gaussian_mixture import gaussian, kernel_density
from dgjax.model.parametrization import (
    NoisePrediction,
    VelocityPrediction,
    affine_time,
    preconditioned,
)
from dgjax.model.repath import repath
from dgjax.networks import MLP, UNet
from dgjax.training import TrainConfig, denoising_loss, ema, export, fit, load_config, loop
from dgjax.training.checkpointing import is_finished
from dgjax.training.config import SECTIONS
from dgjax.training.config_files import CONFIGS, shipped_configs
from dgjax.training.consistency import Consistency
from dgjax.training.data_parallel import global_batch
from dgjax.training.importance_sampling import DirectSampling, ImportanceSampling
from dgjax.training.loss import EDMWeighting
from dgjax.training.noise_distribution import LogNormal, UniformLogSNR, low_discrepancy_draw
from dgjax.training.objective import Batch, LabelDropout, Objective
from dgjax.training.pipeline import batch_indices
from dgjax.training.step import initial_state, make_train_step
from dgjax.training.time_score import TimeScore

COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.5]])
MEAN = np.array([0.5, -1.0])


@pytest.fixture
def gaussian_npz(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.multivariate_normal(MEAN, COVARIANCE, 4096).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=np.arange(4096) % 3)
    return tmp_path / "data.npz"


def config(npz, **changes):
    values = {
        "model": {
            "shape": [2],
            "network": {"kind": "mlp", "width": 16, "depth": 2},
            "path": {"kind": "edm"},
            "parametrization": {"kind": "preconditioned", "sigma_data": 1.0},
            "t_min": 0.02,
            "t_max": 80.0,
        },
        "data": {"dataset": "npz", "sigma_data": 1.0, "path": str(npz)},
        "steps": 24,
        "batch": 32,
        "records": {"save_every": 10, "log_every": 1, "validate_every": 0},
    }
    return TrainConfig.from_dict(values | changes)


def with_classes(chosen, count, **changes):
    network = {**chosen.model.network, "num_classes": count}
    return replace(chosen, model=replace(chosen.model, network=network), **changes)


# Loss


@pytest.mark.parametrize("w", [0.02, 0.5, 40.0])
def test_the_loss_of_a_new_network_is_one_at_every_noise_level(w):
    network = MLP((2000,), width=4, depth=1, rngs=nnx.Rngs(0))
    model = field(network, dgjax.edm(), preconditioned(0.7), t_min=0.01, t_max=90.0)
    data, noise = jax.random.normal(jax.random.key(0), (2, 2000))
    loss = denoising_loss(model, jnp.array(w), 0.7 * data, noise)
    loss = EDMWeighting(0.7)(w, 1.0) * loss
    np.testing.assert_allclose(loss, 1.0, atol=0.15)


def test_the_loss_of_a_network_that_predicts_no_noise_is_known():
    zero = jax.tree_util.Partial(lambda x, t, cond: jnp.zeros_like(x))
    noise = jax.random.normal(jax.random.key(0), (50,))
    for w in (0.1, 2.0):
        model = field(zero, dgjax.edm(), NoisePrediction(), t_min=0.01, t_max=90.0)
        loss = denoising_loss(model, jnp.array(w), jnp.ones(50), noise)
        expected = w**2 * jnp.mean(noise**2)  # x0hat - x0 = w eps
        np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.slow
def test_the_exact_denoiser_loses_the_posterior_variance_on_every_path():
    mixture = gaussian(MEAN, COVARIANCE)
    model = closed_form(mixture, dgjax.edm(), t_min=0.02, t_max=80.0)
    data = jax.vmap(mixture.sample)(jax.random.split(jax.random.key(0), 4096))
    noise = jax.random.normal(jax.random.key(1), data.shape)

    def loss(model, t):
        each = jax.vmap(lambda a, b: denoising_loss(model, t, a, b))
        return jnp.mean(each(data, noise))

    w, eigenvalues = 0.6, np.linalg.eigvalsh(COVARIANCE)
    posterior = np.mean(w**2 * eigenvalues / (w**2 + eigenvalues))
    here = loss(model, jnp.array(w))
    np.testing.assert_allclose(here, posterior, rtol=0.05)
    for path in (dgjax.vp(), dgjax.rectified_flow()):
        time = path.time(jnp.array(-2 * np.log(w)))
        np.testing.assert_allclose(loss(repath(model, path), time), here, rtol=1e-4)


# Noise levels


@pytest.mark.parametrize("levels", [LogNormal(uniform=0.0), LogNormal(), UniformLogSNR()])
def test_levels_have_the_distribution_they_say(levels):
    logs = np.log(levels.quantile((np.arange(20000) + 0.5) / 20000))
    low, high = np.log(levels.low), np.log(levels.high)
    at = np.linspace(low, high, 50)
    share = getattr(levels, "uniform", 1.0)
    expected = share * (at - low) / (high - low)
    if share < 1:
        cut = [(end - levels.mean) / levels.std for end in (low, high)]
        normal = scipy.stats.truncnorm(*cut, loc=levels.mean, scale=levels.std)
        expected += (1 - share) * normal.cdf(at)
    measured = np.searchsorted(np.sort(logs), at) / logs.size
    np.testing.assert_allclose(measured, expected, atol=2e-3)
    assert low - 1e-5 <= logs.min() < low + 0.2
    assert high - 0.2 < logs.max() <= high + 1e-5


def test_low_discrepancy_draws_are_uniform_and_leave_smaller_gaps_than_independent_ones():
    keys = jax.random.split(jax.random.key(0), 300)
    points = np.asarray(jax.vmap(lambda k: low_discrepancy_draw(k, 16))(keys))
    assert scipy.stats.kstest(points[:, 3], "uniform").pvalue > 0.01
    independent = np.asarray(jax.random.uniform(jax.random.key(1), points.shape))

    def discrepancy(p):
        return np.mean([scipy.stats.qmc.discrepancy(row[:, None]) for row in p])

    assert discrepancy(points) < 0.1 * discrepancy(independent)


@pytest.mark.parametrize("bad", [{"low": 0.0}, {"low": 90.0}, {"std": 0.0}, {"uniform": 1.0}])
def test_levels_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="noise_distribution"):
        LogNormal(**bad)


# Moving average


def test_average_weighs_step_k_by_a_power_of_k():
    gamma, steps = 3.0, 40
    average = jnp.zeros(steps)
    for k in range(1, steps + 1):
        average = ema.update(average, jnp.eye(steps)[k - 1], jnp.array(k), gamma)
    k = np.arange(1, steps + 1)
    exact = [1 - (1 - 1 / j) ** (gamma + 1) for j in k]
    exact *= np.array([np.prod((1 - 1 / k[j + 1 :]) ** (gamma + 1)) for j in range(steps)])
    np.testing.assert_allclose(average, exact, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(average.sum(), 1, rtol=1e-5)
    # The telescoped product is a difference of powers, so the profile is (k/t)^gamma.
    np.testing.assert_allclose(np.cumsum(average), (k / steps) ** (gamma + 1), rtol=1e-3)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_exponent_gives_the_width(width):
    gamma = ema.exponent(width)
    np.testing.assert_allclose(scipy.stats.beta(gamma + 1, 1).std(), width, rtol=1e-6)


# Training


@pytest.mark.slow
def test_training_on_a_gaussian_finds_its_score(gaussian_npz, tmp_path):
    eigenvalues = np.linalg.eigvalsh(COVARIANCE)
    changes = {
        "steps": 1500,
        "batch": 128,
        "records": {"log_every": 50, "save_every": 1500, "validate_every": 0},
    }
    chosen = config(gaussian_npz, **changes, ema_widths=[0.1])
    model = {**chosen.model.to_dict(), "network": {"kind": "mlp", "width": 48, "depth": 2}}
    chosen = TrainConfig.from_dict({**chosen.to_dict(), "model": model})
    result = fit(chosen, tmp_path / "run", progress=False)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    # The least loss there is: the weighted posterior variance, over the levels it was trained on.
    w2 = np.asarray(LogNormal().quantile((jnp.arange(2000) + 0.5) / 2000))[:, None] ** 2
    least = np.mean((w2 + 1) * eigenvalues / (w2 + eigenvalues))
    np.testing.assert_allclose(np.mean([m["loss"] for m in lines[-10:]]), least, rtol=0.1)

    mixture = gaussian(MEAN, COVARIANCE)
    for w in (0.1, 0.5, 2.0):
        keys = jax.random.split(jax.random.key(3), 200)
        x = jax.vmap(lambda k, w=w: mixture.sample(k, w))(keys)
        exact = jax.vmap(lambda x, w=w: mixture.score(x, jnp.array(w)))(x)
        learnt = -jax.vmap(lambda x, w=w: result.model.pair(jnp.array(w), x).eps)(x) / w
        error = jnp.sum((learnt - exact) ** 2) / jnp.sum(exact**2)
        assert error < 0.01, (w, float(error))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "parametrization"),
    [(dgjax.rectified_flow(), VelocityPrediction()), (dgjax.vp(), NoisePrediction())],
)
def test_other_parametrizations_train_on_other_paths(path, parametrization):
    network = MLP((2,), width=32, depth=2, rngs=nnx.Rngs(0))
    model = field(network, path, parametrization, t_min=0.01, t_max=0.99)
    optimiser = optax.adam(3e-3)
    objective = Objective(DirectSampling(UniformLogSNR(0.1, 5.0)), EDMWeighting(1.0))
    step = jax.jit(make_train_step(model, optimiser, objective, gammas=[ema.exponent(0.1)]))
    state, losses = initial_state(model.network, optimiser), []
    data = jax.random.normal(jax.random.key(0), (256, 2)) * jnp.array([[1.0, 0.1]])
    for i in range(150):
        state, metrics = step(state, Batch(data), jax.random.fold_in(jax.random.key(1), i))
        losses.append(float(metrics.loss))
    # The least loss there is: (w^2 + 1)/w^2 times the mean posterior variance, at all levels.
    w2, variances = np.geomspace(0.1, 5.0, 1001)[:, None] ** 2, np.array([[1.0, 0.01]])
    least = np.mean((w2 + 1) * variances / (w2 + variances))
    assert losses[0] > 1.5 * least
    assert np.mean(losses[-50:]) < 1.1 * least
    assert step._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize("dropped", [None, 0.4])
def test_a_stopped_run_goes_on_to_the_very_same_weights(
    gaussian_npz, tmp_path, monkeypatch, dropped
):
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals only come to the main thread")
    chosen = config(gaussian_npz)
    if dropped is not None:
        chosen = with_classes(chosen, 3, label_dropout=dropped)
    whole = fit(chosen, tmp_path / "whole", progress=False)
    assert whole.finished

    def interrupting(batch, mesh):
        brought.append(batch)
        if len(brought) == 13:
            signal.raise_signal(signal.SIGTERM)
        return global_batch(batch, mesh)

    brought = []
    monkeypatch.setattr(loop, "global_batch", interrupting)
    stopped = fit(chosen, tmp_path / "parts", progress=False)
    assert not stopped.finished
    assert int(stopped.state.step) == 13
    monkeypatch.undo()
    resumed = fit(chosen, tmp_path / "parts", progress=False)
    assert resumed.finished

    expected = to_named(whole.state)
    for name, value in to_named(resumed.state).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    runs = [
        [json.loads(line) | {"time": 0} for line in (tmp_path / run / "metrics.jsonl").open()]
        for run in ("whole", "parts")
    ]
    assert runs[0] == runs[1]
    assert [line["step"] for line in runs[0]] == list(range(1, 25))


def test_a_changed_configuration_is_refused(gaussian_npz, tmp_path):
    fit(config(gaussian_npz, steps=2), tmp_path / "run", progress=False)
    other = {"noise_distribution": {"kind": "lognormal", "mean": 0.5}}
    message = r"noise_distribution\.mean was absent and is 0\.5; restore it"
    with pytest.raises(ValueError, match=message):
        fit(config(gaussian_npz, steps=2, **other), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="restore them") as caught:
        fit(config(gaussian_npz, steps=2, seed=3, **other), tmp_path / "run", progress=False)
    assert "seed was 0 and is 3" in str(caught.value)
    assert "mean was absent and is 0.5" in str(caught.value)
    with pytest.raises(ValueError, match="is at step 2 and steps is 1: set steps to 2 or more"):
        fit(config(gaussian_npz, steps=1), tmp_path / "run", progress=False)


def test_a_run_from_before_a_key_goes_on_with_its_default(gaussian_npz, tmp_path):
    chosen = with_classes(config(gaussian_npz, steps=2), 3)
    fit(chosen, tmp_path / "run", progress=False)
    file = tmp_path / "run/config.json"
    older = json.loads(file.read_text())
    del older["label_dropout"]
    file.write_text(json.dumps(older))
    assert fit(chosen, tmp_path / "run", progress=False).finished
    with pytest.raises(ValueError, match=r"label_dropout was 0\.0 and is 0\.1"):
        fit(replace(chosen, label_dropout=0.1), tmp_path / "run", progress=False)


def test_a_licence_may_be_stated_after_the_run(gaussian_npz, tmp_path):
    chosen = config(gaussian_npz, steps=2)
    assert fit(chosen, tmp_path / "run", progress=False).meta.licence == "unknown"
    file = tmp_path / "run/config.json"
    older = json.loads(file.read_text())
    del older["data"]["licence"]
    file.write_text(json.dumps(older))
    stated = replace(chosen, data=replace(chosen.data, licence="CC-BY-4.0"))
    assert is_finished(tmp_path / "run", stated)
    assert export(tmp_path / "run", tmp_path / "model").licence == "CC-BY-4.0"
    assert load(tmp_path / "model")[1].licence == "CC-BY-4.0"
    other = replace(chosen, data=replace(chosen.data, flip=True))
    with pytest.raises(ValueError, match=r"data\.flip was False and is True"):
        is_finished(tmp_path / "run", other)


def test_export_gives_the_averaged_model(gaussian_npz, tmp_path):
    with pytest.raises(ValueError, match="not a training run"):
        export(tmp_path / "run", tmp_path / "model")
    result = fit(config(gaussian_npz, steps=3), tmp_path / "run", progress=False)
    meta = export(tmp_path / "run", tmp_path / "model")
    assert meta == result.meta
    assert meta.steps == 3
    model, loaded = load(tmp_path / "model")
    assert loaded == meta
    x, t = jnp.array([0.3, -0.2]), jnp.array(0.5)
    np.testing.assert_allclose(model.pair(t, x).x0, result.model.pair(t, x).x0, atol=1e-3)


def test_energy_networks_are_exported_without_rounding(gaussian_npz, tmp_path):
    chosen = config(gaussian_npz, steps=3)
    network = {**chosen.model.network, "kind": "energy_mlp"}
    parametrization = {"kind": "energy", "sigma_data": 1.0}
    spec = replace(chosen.model, network=network, parametrization=parametrization)
    result = fit(replace(chosen, model=spec, time_score={}), tmp_path / "run", progress=False)
    export(tmp_path / "run", tmp_path / "model")
    x = jnp.array([0.3, -0.2])
    here, there = (
        dgjax.log_density(model, 0.02, x) for model in (result.model, load(tmp_path / "model")[0])
    )
    assert here == there
    assert here != dgjax.log_density(build(spec), 0.02, x)


def test_the_penalty_of_a_run_is_recorded_and_is_not_part_of_its_loss(gaussian_npz, tmp_path):
    """The first step has the same weights and draws with and without it."""
    chosen = config(gaussian_npz, steps=4)
    with_penalty = replace(chosen, consistency={"weight": 2.0, "every": 4})
    lines = []
    for run, each in (("with", with_penalty), ("without", chosen)):
        fit(each, tmp_path / run, progress=False)
        lines.append([json.loads(line) for line in (tmp_path / run / "metrics.jsonl").open()])
    (first, *_, last), (plain_first, *_, plain_last) = lines
    assert first["loss"] == pytest.approx(plain_first["loss"], rel=1e-6)
    assert first["penalty"] == 0  # a new network returns zeros
    assert last["penalty"] != 0
    assert last["gradient_norm"] != pytest.approx(plain_last["gradient_norm"], rel=1e-3)
    assert "penalty" not in plain_first
    with pytest.raises(ValueError, match="consistency"):  # it cannot be turned off on the way
        fit(chosen, tmp_path / "with", progress=False)


def test_labels_reach_a_network_that_takes_them(gaussian_npz, tmp_path):
    chosen = config(gaussian_npz, steps=3)
    result = fit(with_classes(chosen, 3), tmp_path / "run", progress=False)
    label = result.state.network.embed.label.embedding
    fresh = initial_state(result.model.network, optax.sgd(1.0)).network.embed.label.embedding
    assert (np.asarray(label) != np.asarray(fresh)).any(axis=1).all()
    with pytest.raises(ValueError, match="labels from 0 to 1"):
        fit(with_classes(chosen, 2), tmp_path / "other", progress=False)


def test_labels_are_dropped_at_the_share_asked_for():
    labels = jnp.arange(20000) % 10
    for share in (0.1, 0.5):
        drop = LabelDropout(share, null=10)
        out = np.asarray(drop(jax.random.key(0), labels))
        dropped = out == 10
        # Within five standard deviations, over all labels and over each.
        assert abs(dropped.mean() - share) < 5 * np.sqrt(share * (1 - share) / 20000)
        for label in range(10):
            of_it = dropped[np.asarray(labels) == label].mean()
            assert abs(of_it - share) < 5 * np.sqrt(share * (1 - share) / 2000)
        np.testing.assert_array_equal(out[~dropped], labels[~dropped])
        np.testing.assert_array_equal(out, drop(jax.random.key(0), labels))
        assert (out != drop(jax.random.key(1), labels)).any()
    np.testing.assert_array_equal(LabelDropout(0.0, null=10)(jax.random.key(0), labels), labels)


@pytest.mark.slow
def test_with_dropped_labels_one_network_learns_both_scores(tmp_path):
    """Two Gaussians, one for each label, and their mixture where no label is given."""
    rng = np.random.default_rng(0)
    labels, means = rng.integers(2, size=8192), np.array([[1.0, 0.0], [-1.0, 0.5]])
    x = (means[labels] + 0.5 * rng.normal(size=(8192, 2))).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=labels)
    changes = {
        "steps": 1000,
        "batch": 256,
        "records": {"log_every": 100, "save_every": 1000, "validate_every": 0},
    }
    chosen = config(tmp_path / "data.npz", **changes, ema_widths=[0.1])
    wider = {**chosen.model.network, "width": 48}
    chosen = replace(chosen, model=replace(chosen.model, network=wider))
    chosen = with_classes(chosen, 2, label_dropout=0.3)
    model = fit(chosen, tmp_path / "run", progress=False).model

    w, keys = 0.5, jax.random.split(jax.random.key(1), 400)
    models = {0: gaussian(means[0], 0.25), 1: gaussian(means[1], 0.25)}
    for label, mixture in (models | {None: kernel_density(means, 0.5)}).items():
        x = jax.vmap(lambda k, m=mixture: m.sample(k, w))(keys)
        exact = jax.vmap(lambda x, m=mixture: m.score(x, jnp.array(w)))(x)
        learnt = -jax.vmap(lambda x, c=label: model.pair(jnp.array(w), x, c).eps)(x) / w
        error = jnp.sum((learnt - exact) ** 2) / jnp.sum(exact**2)
        # Without dropped labels that of no label is 0.99.
        assert error < 0.1, (label, float(error))


@pytest.mark.slow
def test_digits_train(tmp_path):
    pytest.importorskip("sklearn")
    chosen = replace(load_config("digits"), steps=120)
    result = fit(chosen, tmp_path / "run", progress=False)
    assert result.meta.shape == (8, 8, 1)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    (held_out,) = [line for line in lines if "loss" not in line]  # at the last step
    assert held_out["step"] == 120
    by_level = [value for name, value in held_out.items() if name.startswith("held_out_loss/")]
    assert len(by_level) == 8
    assert 0 < min(by_level) < 0.8
    assert max(by_level) < 1.2
    with Image.open(tmp_path / "run/samples/120.png") as samples:
        assert samples.size == (32, 32)  # sixteen of 8x8
    assert any((tmp_path / "run/tensorboard").iterdir())


# Data


def test_batches_are_epochs_in_fresh_orders_known_from_seed_and_step():
    batches = batch_indices(10, 6, seed=3)
    epochs = np.concatenate([batches[step] for step in range(5)]).reshape(3, 10)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(batch_indices(10, 6, seed=3)[4], epochs.reshape(-1)[24:30])
    assert (batch_indices(10, 6, seed=4)[0] != epochs[0, :6]).any()


def test_bytes_become_numbers_between_minus_one_and_one(tmp_path):
    images = np.array([0, 255, 51, 0], np.uint8).reshape(1, 2, 2, 1)
    np.savez(tmp_path / "x.npz", x=images)
    data = load_dataset("npz", tmp_path / "x.npz")
    assert data.data_range == (-1, 1)
    np.testing.assert_allclose(data.batch([0]).reshape(-1), [-1, 1, -0.6, -1], atol=1e-6)
    mirrored = data.batch([0], mirrored=np.array([True]))
    np.testing.assert_allclose(mirrored[0, 0, :, 0], [1, -1], atol=1e-6)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def test_idx_files_are_read_and_damaged_ones_refused(tmp_path):
    array, file = np.arange(12, dtype=np.uint8).reshape(3, 4), tmp_path / "x.gz"
    whole = idx(array)
    file.write_bytes(gzip.compress(whole))
    np.testing.assert_array_equal(read_idx(file), array)
    for content, message in [
        (gzip.compress(whole[:-2]), "truncated"),
        (gzip.compress(whole)[:-9], "cannot read"),
        (gzip.compress(b"PNG"), "not a gzipped IDX"),
        (b"hello", "cannot read"),
    ]:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_idx(file)


def test_fashion_mnist_that_is_nowhere_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("dgjax.data.named_datasets.DEBIAN", tmp_path / "none")
    monkeypatch.setattr("dgjax.data.named_datasets.UPSTREAM", "http://localhost:9/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="apt install dataset-fashion-mnist"):
        load_dataset("fashion-mnist")
    with pytest.raises(ValueError, match="cannot read"):
        load_dataset("fashion-mnist", tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros((3, 2))}, "an array x"),
        ({"x": np.zeros(3)}, "an array x"),
        ({"x": np.full((3, 2), np.nan)}, "finite"),
        ({"x": np.zeros((3, 2)), "labels": np.zeros(2, int)}, "labels"),
    ],
)
def test_unfit_npz_files_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_dataset("npz", tmp_path / "x.npz")


def test_damaged_npz_files_are_named(gaussian_npz):
    content = gaussian_npz.read_bytes()
    for damaged in (b"", content[:100], content[:-100]):
        gaussian_npz.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"cannot read {gaussian_npz} as npz"):
            load_dataset("npz", gaussian_npz)


def test_data_must_fit_the_model(gaussian_npz, tmp_path):
    chosen = config(gaussian_npz)
    with pytest.raises(ValueError, match=r"set it to \[2\]"):
        fit(replace(chosen, model=replace(chosen.model, shape=(3,))), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Configuration


def test_configurations_survive_a_round_trip(gaussian_npz):
    for chosen in (
        config(gaussian_npz),
        *map(load_config, shipped_configs()),
    ):
        assert TrainConfig.from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("step = 3", "'step' is unknown.*did you mean 'steps'"),
        ("batch = 1.5", r"batch must be a whole number, got 1\.5"),
        ("batch = true", "batch must be a whole number, got True"),
        ("batch = 0", "batch must be a positive"),
        ("ema_width = 0.1", "did you mean 'ema_widths'"),
        ("ema_widths = [0.5]", "ema: width"),
        ("ema_widths = 0.1", "ema_widths must be a list"),
        ("ema_widths = []", "ema_widths must be a list"),
        ("ema_widths = [0.1, 0.1]", "of different numbers"),
        ("ema_widths = ['wide']", "ema_widths must be a list"),
        ("ema_snapshots = 0", "ema_snapshots must be a positive"),
        ('noise_distribution = { kind = "lognormal", means = 1 }', "did you mean 'mean'"),
        ('noise_distribution = { kind = "normal" }', "did you mean 'lognormal'"),
        ("optimiser = { learning_rat = 1 }", "did you mean 'learning_rate'"),
        ('optimiser = { schedule = "step" }', "schedule must be"),
        ("label_dropout = 1.0", r"label_dropout must lie in \[0, 1\)"),
        ("label_dropout = -0.1", r"label_dropout must lie in \[0, 1\)"),
        ('label_dropout = "half"', "label_dropout must be"),
        ("label_dropout = 0.1", "label_dropout needs a network that takes labels"),
        ("seed = ", "not TOML"),
        ("seed = -1", r"seed must lie in \[0, 2\^32\), got -1"),
        ("seed = 0.5", "seed must be a whole number"),
        (
            "importance_sampling = { bins = 4.5 }",
            "importance_sampling.* bins must be a whole number, got 4.5",
        ),
        (
            "importance_sampling = { floor = nan }",
            "importance_sampling.* floor must be a finite number",
        ),
        (
            'noise_distribution = { kind = "lognormal", low = "a" }',
            "noise_distribution.* low must be a finite number",
        ),
        ('loss = { kind = "sigmoid", bias = [1] }', "loss.* bias must be a finite number"),
        ('loss = { kind = "edm", sigma_data = 0 }', "loss: sigma_data must be positive"),
        ("optimiser = { beta2 = 1.0 }", r"beta2 must lie in \[0, 1\), got 1\.0"),
        ("optimiser = { clip = inf }", "optimiser: clip must be a finite number"),
        ("execution = { threads = true }", "execution: threads must be a whole number"),
        ("records = { keep = 1.5 }", "records: keep must be a whole number"),
    ],
)
def test_wrong_configurations_are_refused_by_name(tmp_path, change, message):
    file = tmp_path / "config.toml"
    file.write_text(
        change
        + """
        steps = 5
        [model]
        shape = [2]
        network = { kind = "mlp" }
        path = { kind = "edm" }
        parametrization = { kind = "noise" }
        t_min = 0.02
        t_max = 80.0
        [data]
        dataset = "npz"
        sigma_data = 1.0
        """
    )
    with pytest.raises(ValueError, match=message) as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"sigma_data": "wide"}, "data: sigma_data must be a finite number"),
        ({"sigma_data": 0.0}, "data: sigma_data must be positive"),
        ({"flip": 1}, "data: flip must be true or false, got 1"),
        ({"path": 3}, "data: path must be a text, got 3"),
        ({"held_out": float("nan")}, "data: held_out must be a finite number"),
    ],
)
def test_wrong_data_are_refused_by_name(gaussian_npz, table, message):
    chosen = config(gaussian_npz).to_dict()
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(chosen | {"data": chosen["data"] | table})


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("network", {"width": 4.5}, "model.network: mlp .* width must be a whole number, got 4.5"),
        ("network", {"num_classes": "3"}, "num_classes must be a whole number, got '3'"),
        ("parametrization", {"sigma_data": -1.0}, "sigma_data must be positive"),
    ],
)
def test_wrong_models_are_refused_by_name(gaussian_npz, tmp_path, table, change, message):
    chosen = config(gaussian_npz).to_dict()
    chosen["model"][table] = {**chosen["model"][table], **change}
    with pytest.raises(ValueError, match=message):
        fit(TrainConfig.from_dict(chosen), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


TABLES_OF_A_MODEL = ("clock", "network", "path", "parametrization")
# Every table of a configuration, and what takes its values.
MAKERS = {
    "": TrainConfig,
    "model": ModelSpec,
    "model.clock": affine_time,
    "model.network": UNet.__init__,
    "model.path": dgjax.edm,
    "model.parametrization": preconditioned,
    "noise_distribution": LogNormal,
    "importance_sampling": ImportanceSampling,
    "time_score": TimeScore,
    "consistency": Consistency,
    "loss": lambda: EDMWeighting(1.0),  # takes data.sigma_data
    **SECTIONS,
}


def test_the_reference_shows_every_key_with_its_default():
    chosen = load_config("reference")  # as it is, it works
    assert chosen.data == DataConfig("fashion-mnist", 0.706)
    assert chosen.importance_sampling is None
    text = (CONFIGS / "reference.toml").read_text()
    here, hidden, examples = "", set(), set()
    for line in text.splitlines():
        if table := re.match(r"(?:# )?\[([\w.]+)\]", line):
            here = table[1]
        elif key := re.match(r"(# )?(\w+) = .* # (example)?", line):
            hidden |= {(here, key[2])} if key[1] else set()
            examples |= {(here, key[2])} if key[3] else set()
    everything = tomllib.loads(re.sub(r"^# (?=\w+ = |\[)", "", text, flags=re.MULTILINE))
    shown = {"": everything, **everything}
    shown |= {f"model.{name}": everything["model"][name] for name in TABLES_OF_A_MODEL}
    assert {name for name, value in everything.items() if isinstance(value, dict)} < MAKERS.keys()
    for name, maker in MAKERS.items():
        given = {"kind", "self", "rngs", "distribution" if name == "importance_sampling" else ""}
        given |= {"model.network": {"shape"}, "model.clock": {"parametrization"}}.get(name, set())
        expected = inspect.signature(maker).parameters
        assert shown[name].keys() - given == expected.keys() - given, name
        for key, value in shown[name].items():
            default = expected[key].default if key in expected else inspect.Parameter.empty
            known = not (isinstance(value, dict) or default is inspect.Parameter.empty)
            if known and default is not None and (name, key) not in examples:
                assert (tuple(value) if isinstance(value, list) else value) == default, (name, key)
            # What is none unless it is given is only mentioned.
            assert default is not None or isinstance(value, dict) or (name, key) in hidden
    defaults = TrainConfig(chosen.model, DataConfig("digits", 1.0), 1)
    assert everything["noise_distribution"]["kind"] == defaults.noise_distribution["kind"]
    assert everything["loss"] == defaults.loss


def test_shipped_names_win_unless_written_as_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert load_config("digits").data.dataset == "digits"
    with pytest.raises(ValueError, match=r"cannot read the config \./digits"):
        load_config("./digits")
    with pytest.raises(ValueError, match="cannot read the config digits"):
        load_config(tmp_path.joinpath("digits").relative_to(tmp_path))


def test_a_missing_configuration_is_named(tmp_path):
    with pytest.raises(ValueError, match="shipped are avatars, digits, fashion-mnist"):
        load_config(tmp_path / "none.toml")


def test_the_gradient_may_come_from_elsewhere(gaussian_npz, tmp_path):
    """A function of the user's replaces JAX's gradient; optimiser and averages stay."""
    chosen = config(gaussian_npz, steps=3)

    def gradient(network, inputs):
        assert inputs.data.shape == (1, 32, 2)
        ones = jax.tree.map(jnp.ones_like, network)
        return jnp.array(0.25), ones, jnp.zeros(inputs.w.shape)

    logged = []
    result = fit(
        chosen,
        tmp_path / "run",
        progress=False,
        log=lambda step, values: logged.append(values),
        gradient=gradient,
    )
    assert [values["loss"] for values in logged] == [0.25] * 3
    # Adam moves each weight against the sign of its gradient, by one common step each time.
    first = jax.tree.leaves(build_network(chosen.model, chosen.seed))
    moves = [
        np.asarray(b) - np.asarray(a)
        for a, b in zip(first, jax.tree.leaves(result.state.network), strict=True)
    ]
    assert all((move < 0).all() and np.ptp(move) < 1e-6 for move in moves)


def test_a_network_that_does_not_fit_is_refused_before_the_run_is_recorded(
    gaussian_npz, tmp_path, monkeypatch
):
    class Cut(MLP):
        def __call__(self, x, t, cond):
            return super().__call__(x, t, cond)[:1]

    chosen = config(gaussian_npz, steps=3)
    monkeypatch.setitem(NETWORKS, "mlp", Cut)
    with pytest.raises(ValueError, match=r"returned shape \(1,\) for one sample of shape \(2,\)"):
        fit(chosen, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_energy_networks_and_their_parametrization_come_together(gaussian_npz):
    chosen = config(gaussian_npz, steps=3).model
    with pytest.raises(
        ValueError, match=r"energy_mlp returns an energy, and model.parametrization"
    ):
        replace(chosen, network={**chosen.network, "kind": "energy_mlp"})
    with pytest.raises(ValueError, match="the kind mlp: set it to energy_mlp or energy_unet"):
        replace(chosen, parametrization={"kind": "energy", "sigma_data": 1.0})
