"""A penalty on the inconsistency of a score network: does its log-density depend less on the route?

A score network of digits (8x8, an MLP) is trained by denoising, and then trained on: by denoising
alone, and with a penalty on the curl of its score and on its drift from the heat equation, at the
same noisy data, each by one probe and without bias (`dgjax.inconsistency`). Held-out digits are
measured: the denoising loss, log p by the PF-ODE, how much it differs between two routes
(`dgjax.route_gap`), and tracked under density guidance less recomputed by the PF-ODE.

    python experiments/consistency_penalty.py

The penalty is that of the section `[consistency]` of `dgjax train`, which has it for U-Nets too.
"""

import argparse
import time
from dataclasses import replace
from functools import partial

import claims
import jax
import jax.numpy as jnp
import numpy as np
import optax
from energy import MLP, T, by_ode, config_of, held_out, train
from flax import nnx
from rich.progress import track

import dgjax
from dgjax.data.named_datasets import load_data
from dgjax.training import load_config
from dgjax.training.consistency import consistency_loss
from dgjax.training.loss import EDMWeighting, denoising_loss
from dgjax.training.noise_distribution import LogNormal, low_discrepancy_draw

SHAPE, BATCH, RATE = (8, 8, 1), 128, 3e-4
QUANTILES = 0.2, 0.5, 0.8
LEVELS = LogNormal(low=0.015)


def trained_on(model, dataset, weight, steps, seed=0):
    """Train a model on, with the penalty of this weight, and return it with seconds a step."""
    rng = np.random.default_rng(seed)
    graph, weights, rest = nnx.split(model.network, nnx.Param, ...)
    rule = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(RATE, steps))
    )
    rule = optax.apply_if_finite(rule, max_consecutive_errors=steps)
    weighting = EDMWeighting(float(model.parametrization.sigma_data))

    def loss(weights, sigmas, data, keys):
        tuned = replace(model, network=nnx.merge(graph, weights, rest))

        def one(sigma, data, key):
            keys = jax.random.split(key)
            noise = jax.random.normal(keys[0], data.shape)
            denoising = denoising_loss(tuned, sigma, data, noise)
            total = weighting(sigma, LEVELS.density(sigma)) * denoising
            if weight:
                total += weight * consistency_loss(tuned, sigma, data, noise, keys[1])
            return total

        return jnp.mean(jax.vmap(one)(sigmas, data, keys))

    @jax.jit
    def step(weights, memory, data, key):
        keys = jax.random.split(key)
        sigmas = LEVELS.quantile(low_discrepancy_draw(keys[0], BATCH))
        gradient = jax.grad(loss)(weights, sigmas, data, jax.random.split(keys[1], BATCH))
        updates, memory = rule.update(gradient, memory)
        return optax.apply_updates(weights, updates), memory

    def draw():
        return jnp.asarray(dataset.batch(rng.integers(0, len(dataset), BATCH)))

    memory, keys = rule.init(weights), jax.random.split(jax.random.key(seed), steps)
    weights, memory = step(weights, memory, draw(), keys[0])
    jax.block_until_ready(weights)
    began = time.perf_counter()
    for key in track(keys[1:], f"penalty {weight:g}"):
        weights, memory = step(weights, memory, draw(), key)
    jax.block_until_ready(weights)
    seconds = (time.perf_counter() - began) / max(steps - 1, 1)
    if skipped := int(memory.total_notfinite):
        print(f"penalty {weight:g}: {skipped} of {steps} gradients were not finite", flush=True)
    return replace(model, network=nnx.merge(graph, weights, rest)), seconds


def guided_gaps(model, q, count=64):
    """Return log p tracked under density guidance less that by the PF-ODE, exact divergences."""
    grid = dgjax.grid_logsnr(model, 64)

    def one(model, key):
        x = dgjax.prior_sample(model, key, SHAPE)
        options = {"key": key, "divergence": dgjax.Exact()}
        found = dgjax.sample(model, x, grid, guides=dgjax.density_guidance(q), **options)
        return found.log_density - dgjax.likelihood(model, found.x, grid, **options).log_density

    keys = jax.random.split(jax.random.key(5), count)
    return jax.jit(lambda m, keys: jax.lax.map(partial(one, m), keys, batch_size=64))(model, keys)


def route_gaps(model, clean, noise):
    """Return log p along a line less that by the PF-ODE, in nats, with exact divergences."""
    keys = jax.random.split(jax.random.key(6), len(clean))
    grid = dgjax.grid_logsnr(model, 64)

    def gap(model, x, noise, key):
        return dgjax.route_gap(model, x, noise, grid, key=key, divergence=dgjax.Exact()).gap

    return jax.jit(jax.vmap(gap, (None, 0, 0, 0)))(model, clean, noise, keys)


def row(name, model, seconds, clean):
    """Return a row of the table on held-out digits."""
    size = clean[0].size
    noise = jax.random.normal(jax.random.key(4), clean.shape)
    log_p = by_ode(model, clean + T * noise) / size
    gaps = route_gaps(model, clean, noise) / size
    sigmas = LEVELS.quantile((jnp.arange(len(clean)) + 0.5) / len(clean))
    weighting = EDMWeighting(float(model.parametrization.sigma_data))
    lost = jax.jit(jax.vmap(partial(denoising_loss, model)))(sigmas, clean, noise)
    weights = jax.vmap(lambda s: weighting(s, LEVELS.density(s)))(sigmas)
    guided = [np.mean(guided_gaps(model, q)) / size for q in QUANTILES]
    return [
        name,
        f"{1e3 * seconds:.0f}",
        f"{float(jnp.mean(weights * lost)):.3f}",
        f"{float(log_p.mean()):.3f}",
        f"{float(gaps.mean()):+.4f}",
        f"{float(gaps.std()):.4f}",
        ", ".join(f"{value:+.4f}" for value in guided),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="before, and once more after")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 1.0, 10.0])
    given = parser.parse_args()
    config = load_config("digits")
    data = {"dataset": "digits", "sigma_data": config.data.sigma_data}
    run = config_of("score", SHAPE, given.steps, data, MLP | {"width": 256}, BATCH)
    model, _, seconds = train(run)
    dataset = load_data(config.data, SHAPE, "train")
    clean = held_out(config.data, SHAPE, 128, noise=0.0)
    header = ["network", "ms a step", "denoising loss", "log p by the PF-ODE, nats/dim"]
    header += ["line less PF-ODE: mean, nats/dim", "deviation"]
    header += [f"tracked less recomputed at q = {', '.join(map(str, QUANTILES))}, nats/dim"]
    rows = [row("score network", model, seconds, clean)]
    print(rows[-1], flush=True)
    for weight in given.weights:
        tuned, seconds = trained_on(model, dataset, weight, given.steps)
        name = f"trained on, penalty {weight:g}" if weight else "trained on by denoising alone"
        rows.append(row(name, tuned, seconds, clean))
        print(rows[-1], flush=True)
    claims.report("consistency_penalty", header, rows)


if __name__ == "__main__":
    main()
