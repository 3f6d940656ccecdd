"""Configurations: the optimiser that they describe, and keys and fields of earlier versions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dgjax.checkpoints.arrays import to_named
from dgjax.training import TrainConfig, checkpointing, export, fit, load_config, loop
from dgjax.training.config import make_noise_sampler, make_optimiser
from dgjax.training.data_parallel import global_batch
from dgjax.training.importance_sampling import ImportanceSampling
from dgjax.training.noise_distribution import UniformLogSNR

FORMER = """
steps = 24
batch = 8
[model]
shape = [2]
network = { kind = "mlp", width = 8, depth = 1 }
path = { kind = "edm" }
parametrization = { kind = "preconditioned", sigma_data = 1.0 }
t_min = 0.02
t_max = 80.0
[levels]
kind = "uniform_logsnr"
low = 0.05
high = 5.0
[adaptive]
bins = 4
patience = 1
[data]
dataset = "npz"
sigma_data = 1.0
path = "PATH"
[records]
save_every = 10
watch_every = 0
watch_samples = 16
"""


@pytest.fixture
def file(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(64, 2)))
    (tmp_path / "former.toml").write_text(FORMER.replace("PATH", str(tmp_path / "x.npz")))
    return tmp_path / "former.toml"


# Optimiser


def adam(gradients, rates, beta2, clip):
    """Weights after each step from 0, with one weight, by the formulas of Adam."""
    m = v = weight = 0.0
    weights = []
    for k, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        gradient *= min(1.0, clip / abs(gradient))
        m, v = 0.9 * m + 0.1 * gradient, beta2 * v + (1 - beta2) * gradient**2
        weight -= rate * (m / (1 - 0.9**k)) / (np.sqrt(v / (1 - beta2**k)) + 1e-8)
        weights.append(weight)
    return weights


@pytest.mark.parametrize("warmup", [0, 6])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_optimiser_is_adam_with_clipping_warm_up_and_schedule(file, schedule, warmup):
    values = load_config(file).to_dict()
    section = {"learning_rate": 0.1, "warmup": warmup, "schedule": schedule}
    section |= {"clip": 2.0, "beta2": 0.9}
    optimiser = make_optimiser(TrainConfig.from_dict({**values, "optimiser": section}))
    gradients = np.random.default_rng(0).normal(size=24) * 3
    k = np.arange(24)
    part = (k - warmup) / (24 - warmup)
    after = 0.1 if schedule == "constant" else 0.05 * (1 + np.cos(np.pi * part))
    rates = np.where(k < warmup, 0.1 * k / max(warmup, 1), after)
    weight, found = jnp.zeros(()), []
    state = optimiser.init(weight)
    for gradient in gradients:
        updates, state = optimiser.update(jnp.asarray(gradient), state, weight)
        weight = optax.apply_updates(weight, updates)
        found.append(float(weight))
    np.testing.assert_allclose(found, adam(gradients, rates, 0.9, 2.0), rtol=1e-5)


def test_a_network_larger_than_the_memory_is_refused_before_it_is_made(file, tmp_path):
    values = load_config(file).to_dict()
    values["model"]["network"] = {"kind": "mlp", "width": 10**6, "depth": 3}
    with pytest.raises(ValueError, match=r"averages take .* GB and this machine has .* GB"):
        fit(TrainConfig.from_dict(values), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# Earlier versions


def with_former_keys(values):
    """What the version before the keys were renamed wrote of the same configuration."""
    former = {
        "noise_distribution": "levels",
        "importance_sampling": "adaptive",
        "validate_every": "watch_every",
        "validation_samples": "watch_samples",
    }
    return {
        former.get(key, key): with_former_keys(value) if isinstance(value, dict) else value
        for key, value in values.items()
    }


def test_former_keys_are_read(file):
    config = load_config(file)
    distribution = UniformLogSNR(0.05, 5.0)
    assert make_noise_sampler(config) == ImportanceSampling(distribution, bins=4, patience=1)
    assert (config.records.validate_every, config.records.validation_samples) == (0, 16)
    values = config.to_dict()
    assert values["noise_distribution"]["low"] == 0.05
    assert TrainConfig.from_dict(with_former_keys(values)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_distribution": {"kind": "lognormal"}}, "levels is the former name of noise_dist"),
        ({"importance_sampling": {}}, "adaptive is the former name of importance_sampling"),
        ({"records": {"watch_every": 1, "validate_every": 1}}, "records: watch_every is the form"),
    ],
)
def test_a_key_by_both_its_names_is_refused(file, change, message):
    values = with_former_keys(load_config(file).to_dict())
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict({**values, **change})


@pytest.mark.slow
def test_a_run_of_an_earlier_version_is_resumed_and_exported(file, tmp_path, monkeypatch):
    config = load_config(file)
    whole = fit(config, tmp_path / "whole", progress=False)
    seen = []

    def killed(batch, mesh):
        seen.append(batch)
        if len(seen) == 15:
            raise KeyboardInterrupt
        return global_batch(batch, mesh)

    def with_former_fields(state):
        return {
            name.replace("noise_sampler.", "levels."): array
            for name, array in to_named(state).items()
        }

    monkeypatch.setattr(loop, "global_batch", killed)
    monkeypatch.setattr(checkpointing, "to_named", with_former_fields)
    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path / "run", progress=False)
    monkeypatch.undo()
    recorded = tmp_path / "run/config.json"
    recorded.write_text(json.dumps(with_former_keys(json.loads(recorded.read_text()))))
    assert "levels" in json.loads(recorded.read_text())

    assert export(tmp_path / "run", tmp_path / "model").steps == 10
    resumed = fit(config, tmp_path / "run", progress=False)
    assert resumed.finished
    assert jax.tree.leaves(resumed.state.noise_sampler)
    expected = to_named(whole.state)
    for name, value in to_named(resumed.state).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
