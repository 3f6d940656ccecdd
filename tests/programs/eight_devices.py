"""Run on eight virtual devices by test_scale.py: prints JSON of what several placements give."""

import json
import re

import jax
import numpy as np

from dgjax.checkpoints.spec import build_network
from dgjax.devices.sharding import device_mesh
from dgjax.training import TrainConfig
from dgjax.training.components import create_state, jit_train_step, model_shapes, state_shapes
from dgjax.training.data_parallel import global_batch, state_shardings, to_host
from dgjax.training.pipeline import HostBatch

STEPS = 4
KIND = re.compile(r"f32\[([\d,]*)\]")
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def results(text, collective):
    """Shapes of the float32 arrays that all the `collective`s in a compiled text result in."""
    lines = re.findall(rf"= (.*) {collective}(?:-start)?\(", text)
    return [
        [int(n) for n in shape.split(",") if n] for line in lines for shape in KIND.findall(line)
    ]


def config(**execution):
    return TrainConfig.from_dict(
        {
            "model": {
                "shape": [8, 8, 1],
                "network": {
                    "kind": "unet",
                    "channels": [32],
                    "blocks": 1,
                    "embedding": 32,
                    "num_classes": 3,
                    "dropout": 0.1,
                },
                "path": {"kind": "edm"},
                "parametrization": {"kind": "preconditioned", "sigma_data": 0.5},
                "t_min": 0.02,
                "t_max": 80.0,
            },
            "data": {"dataset": "npz", "sigma_data": 0.5, "path": "none"},
            "steps": 100,
            "batch": 16,
            "importance_sampling": {"bins": 4, "patience": 1},
            "label_dropout": 0.3,
            "optimiser": {"warmup": 2},
            "execution": execution,
        }
    )


def train(devices, **execution):
    """Losses, final state, compiled text and what of the state is cut."""
    chosen, mesh = config(**execution), device_mesh(jax.devices()[:devices])
    where = state_shardings(state_shapes(chosen), mesh, chosen.execution.parameters)
    state = create_state(chosen, where)
    drawn = build_network(chosen.model, chosen.seed)
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), to_host(state.network), drawn)
    del drawn
    step = jit_train_step(chosen, model_shapes(chosen), mesh, where)
    key, losses, rng = jax.random.key(0), [], np.random.default_rng(0)
    for i in range(STEPS):
        data = rng.normal(size=(16, 8, 8, 1)).astype(np.float32)
        batch = global_batch(HostBatch(data, np.arange(16, dtype=np.int32) % 3), mesh)
        arguments = (state, batch, jax.random.fold_in(key, i))
        if i == 0:
            step = step.lower(*arguments).compile()
        state, metrics = step(*arguments)
        losses.append(float(metrics.loss))
    text = step.as_text()
    cut = [s.spec for s in jax.tree.leaves(where.network) if any(s.spec)]
    moments = [leaf for leaf in jax.tree.leaves(state.optimiser) if leaf.size >= 2**12]
    return {
        "losses": losses,
        "collectives": {c: len(re.findall(rf" {c}(?:-start)?\(", text)) for c in COLLECTIVES},
        "gathered": results(text, "all-gather"),
        "scattered": results(text, "reduce-scatter"),
        "reduced": results(text, "all-reduce"),
        "cut": len(cut),
        "apart": max(map(float, jax.tree.leaves(apart))),
        "share_of_moments": [leaf.addressable_shards[0].data.size / leaf.size for leaf in moments],
        "state": [
            np.asarray(a, np.float64).ravel().tolist() for a in jax.tree.leaves(to_host(state))
        ],
        "large": [list(a.shape) for a in jax.tree.leaves(state.network) if a.size >= 2**12],
    }


if __name__ == "__main__":
    assert jax.device_count() == 8
    found = {
        "one": train(1),
        "replicated": train(8),
        "sharded": train(8, parameters="sharded"),
        "in_parts": train(2, accumulate=4),
    }
    print(json.dumps(found))
