"""Gradients by PyTorch for `fit`: the U-Net and its loss against those of JAX."""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

FOLDER = Path(__file__).parent.parent / "experiments"
if not FOLDER.exists():
    pytest.skip("experiments/ is not in source distributions", allow_module_level=True)
sys.path.insert(0, str(FOLDER))

import train_with_torch  # noqa: E402
from conftest import slow_but  # noqa: E402

from dgjax.checkpoints.arrays import to_named  # noqa: E402
from dgjax.checkpoints.spec import build_network  # noqa: E402
from dgjax.training import TrainConfig  # noqa: E402
from dgjax.training.components import model_shapes  # noqa: E402
from dgjax.training.config import make_noise_sampler, make_weighting  # noqa: E402
from dgjax.training.objective import LossInputs, Objective  # noqa: E402


def config(shape, **network):
    return TrainConfig.from_dict(
        {
            "model": {
                "shape": list(shape),
                "network": {"kind": "unet", "embedding": 24, "frequencies": [3.0]} | network,
                "path": {"kind": "edm"},
                "parametrization": {"kind": "preconditioned", "sigma_data": 0.6},
                "t_min": 0.02,
                "t_max": 80.0,
            },
            "data": {"dataset": "npz", "sigma_data": 0.6, "path": "none.npz"},
            "loss": {"kind": "likelihood"},
            "steps": 2,
            "batch": 4,
        }
    )


def random_network(chosen):
    """Return the network with no weight at its initial value, many of which are 0."""
    leaves, structure = jax.tree.flatten(build_network(chosen.model))
    rng = np.random.default_rng(1)
    moved = [np.asarray(a + 0.1 * rng.standard_normal(a.shape), np.float32) for a in leaves]
    return jax.tree.unflatten(structure, moved)


CONFIGS = {
    "two levels, labels": config((8, 8, 3), channels=[16, 128], blocks=2, num_classes=3),
    "padded sides": config((9, 14, 1), channels=[8, 16], blocks=1),
    "no blocks": config((6, 4, 2), channels=[64], blocks=0),
}


def inputs(chosen, seed=2):
    """Return the inputs of a batch's loss, with the last label that of "no label"."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    size, count = 4, chosen.model.network.get("num_classes")
    labels = None if count is None else np.array([0, 2, 1, count], np.int32)
    return LossInputs(
        data=0.6 * normal(size, *chosen.model.shape) + 0.3,
        noise=normal(size, *chosen.model.shape),
        w=np.array([0.021, 0.3, 4.0, 75.0], np.float32),
        importance=np.array([1.5, 0.5, 0.7, 1.3], np.float32),
        labels=labels,
        keywords={},
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_the_network_is_that_of_jax(name):
    chosen, net = CONFIGS[name], random_network(CONFIGS[name])
    x, t, labels = inputs(chosen).data, np.array([-1.0, -0.2, 0.5, 1.1], np.float32), None
    spec = chosen.model.network
    weights = {k: torch.from_numpy(np.array(v)) for k, v in to_named(net).items()}
    mine = train_with_torch.TorchUNet(
        weights, len(spec["channels"]), spec["blocks"], (3.0,), torch.float32
    )
    labels = inputs(chosen).labels
    axes = (0, 0, None if labels is None else 0)
    expected = jax.vmap(net, in_axes=axes)(x, t, labels)
    there = None if labels is None else torch.from_numpy(labels).long()
    got = mine(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(t), there)
    np.testing.assert_allclose(got.permute(0, 2, 3, 1), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", slow_but(CONFIGS, "two levels, labels"))
def test_loss_and_gradient_are_those_of_jax(name):
    chosen, net = CONFIGS[name], random_network(CONFIGS[name])
    objective = Objective(make_noise_sampler(chosen), make_weighting(chosen))
    one = inputs(chosen)

    def mean_loss(network):
        each = objective.losses(replace(model_shapes(chosen), network=network), one)
        return jnp.mean(one.importance * each), each

    (loss, each), gradient = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(net)
    function = train_with_torch.torch_gradient(chosen, torch.float32)
    microbatches = jax.tree.map(lambda a: a[None], one)
    got_loss, got, got_each = jax.jit(function)(net, microbatches)
    np.testing.assert_allclose(got_loss, loss, rtol=1e-4)
    np.testing.assert_allclose(got_each[0], each, rtol=1e-4)
    for key, value in to_named(gradient).items():
        scale = float(jnp.abs(value).max())
        np.testing.assert_allclose(to_named(got)[key], value, atol=1e-3 * scale + 1e-6, err_msg=key)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (config((8, 8, 1), channels=[8], blocks=1, dropout=0.1), "without dropout"),
        (config((8, 1), channels=[8], blocks=1), "on images"),
    ],
)
def test_other_networks_are_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        train_with_torch.torch_gradient(chosen, torch.float32)
