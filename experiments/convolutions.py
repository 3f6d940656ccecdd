"""Convolutions: what does reverse mode inside a loop cost, with JAX's convolution and with ours?

On processors XLA runs the transposed convolutions of JAX slowly in the body of a loop, such as that
of a solve. The networks of dgjax transpose the kernel itself. Each solve is of 8 images in 8 steps
with log-density, by the same network with either convolution, compiled, warmed up, run in turn and
blocked on. Energy networks are reverse mode in every evaluation; theirs has random weights.

    python experiments/convolutions.py
"""

import argparse
import time
from dataclasses import replace

import claims
import jax
import jax.numpy as jnp
from flax import nnx

import dgjax
from dgjax.checkpoints.spec import ModelSpec, build

IMAGES, STEPS, ROUNDS = 8, 8, 3
ENERGY = ModelSpec(
    shape=(32, 32, 1),
    network={"kind": "energy_unet", "channels": [32, 64], "embedding": 64},
    path={"kind": "edm"},
    parametrization={"kind": "energy", "sigma_data": 0.5},
    t_min=0.02,
    t_max=80.0,
)


def with_jax(model):
    """Return a model whose layers have the convolution of JAX."""
    graph, state = nnx.split(model.network)
    network = nnx.merge(graph, state)
    for _, node in nnx.iter_graph(network):
        if isinstance(node, nnx.Conv):
            node.conv_general_dilated = jax.lax.conv_general_dilated
    return replace(model, network=network)


def random_energy():
    """Return an energy network of random weights. A new one has energy 0."""
    model = build(ENERGY)
    leaves, structure = jax.tree.flatten(model.network)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [
        a + 0.02 * jax.random.normal(key, a.shape) if jnp.issubdtype(a.dtype, jnp.floating) else a
        for a, key in zip(leaves, keys, strict=True)
    ]
    return replace(model, network=jax.tree.unflatten(structure, drawn))


def total(model, xs, keys):
    """Return the sum of the log-densities of `sample` from the latents."""
    grid = dgjax.grid_logsnr(model, STEPS)
    one = lambda x, key: dgjax.sample(model, x, grid, key=key).log_density
    return jnp.sum(jax.vmap(one)(xs, keys))


def weights_gradient(model, xs, keys):
    graph, weights, rest = nnx.split(model.network, nnx.Param, ...)
    value = lambda weights: total(replace(model, network=nnx.merge(graph, weights, rest)), xs, keys)
    return jax.grad(value)(weights)


WORK = {
    "solve": total,
    "its gradient in the latents": jax.grad(total, 1),
    "its gradient in the weights": weights_gradient,
}


def row(name, work, model, shape):
    """Return a row: seconds of both, least of several, compiled and in turn, and their ratio."""
    keys = jax.random.split(jax.random.key(0), IMAGES)
    xs = jax.vmap(lambda key: dgjax.prior_sample(model, key, shape))(keys)
    models = with_jax(model), model
    programs = [jax.jit(work).lower(one, xs, keys).compile() for one in models]
    seconds = [[], []]
    for _ in range(ROUNDS + 1):  # the first is a warm-up
        for one, program, found in zip(models, programs, seconds, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(program(one, xs, keys))
            found.append(time.perf_counter() - began)
    theirs, ours = (min(found[1:]) for found in seconds)
    return [name, f"{theirs:.3g}", f"{ours:.3g}", f"{theirs / ours:.2f}"]


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}")
    unet, meta = dgjax.load_pretrained("fashion-mnist")
    cases = [(f"fashion-mnist, {name}", work, unet, meta.shape) for name, work in WORK.items()]
    cases.append(("energy U-Net, solve", total, random_energy(), ENERGY.shape))
    rows = []
    for case in cases:
        rows.append(row(*case))
        print(rows[-1], flush=True)
    claims.report("convolutions", ["", "JAX's, s", "ours, s", "ratio"], rows)


if __name__ == "__main__":
    main()
