"""Train a shipped model on with a penalty on inconsistency where guided samples pass.

The section `[consistency]` of `dgjax train` has the penalty at noisy data. Samples under density
guidance leave the data, and it is there that tracked and recomputed log-densities differ most. So
here the penalty is at the points of guided trajectories, which the model draws before: q uniform in
[0.1, 0.9], half of them with a class. The denoising loss stays at noisy data.

    python experiments/guided_consistency.py --steps 300
    python experiments/agreement.py --model runs/guided-consistency
    dgjax evaluate --model runs/guided-consistency --data fashion-mnist
"""

import argparse
import time
from collections import deque
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import Progress

import dgjax
from dgjax.checkpoints import load, save
from dgjax.data.named_datasets import load_data
from dgjax.training import load_config
from dgjax.training.config import make_noise_sampler, make_weighting
from dgjax.training.consistency import compiler_options
from dgjax.training.objective import Batch, LabelDropout, Objective

NAME, STEPS, BATCH = "fashion-mnist", 32, 16
LEAST, MOST = 0.1, 0.9  # quantiles
WINDOW = 30  # steps of the moving average of the weights
SHOWN = 50  # latest steps that the printed means are of


def guided_points(model, shape, classes, count, seed):
    """Return times, points and labels of all grid points of guided samples.

    Returns:
        (n,), (n, *shape) and (n,), where the label `classes` is that of no class.
    """
    rng = np.random.default_rng(seed)
    quantiles = rng.uniform(LEAST, MOST, count).astype(np.float32)
    labels = np.where(rng.random(count) < 0.5, classes, rng.integers(classes, size=count))
    labels = labels.astype(np.int32)
    grid = dgjax.grid_logsnr(model, STEPS)

    def one(given):
        key, q, label = given
        keys = jax.random.split(key)
        x = dgjax.prior_sample(model, keys[0], shape)
        options = {"guides": dgjax.density_guidance(q), "save": dgjax.Trajectory, "cond": label}
        return dgjax.sample(model, x, grid, key=keys[1], **options).trajectory.x

    keys = jax.random.split(jax.random.key(seed), count)
    xs = jax.jit(lambda *given: jax.lax.map(one, given, batch_size=BATCH))(keys, quantiles, labels)
    times = jnp.tile(grid, count)
    return times, xs.reshape(-1, *shape), jnp.repeat(labels, len(grid))


def make_step(model, objective, rule, weight):
    """Return the step of the weights and of the memory of the optimiser."""

    def loss(network, inputs, points, keys):
        trained = replace(model, network=network)

        def squares(t, x, label, key):
            found = dgjax.inconsistency(trained, t, x, key=key, cond=label)
            return found.curl, found.transport

        denoising = jnp.mean(objective.losses(trained, inputs))
        curl, transport = jax.tree.map(jnp.mean, jax.vmap(squares)(*points, keys))
        return denoising + weight * (curl + transport), (denoising, curl, transport)

    @partial(jax.jit, compiler_options=compiler_options())
    def step(network, memory, average, batch, points, key):
        keys = jax.random.split(key)
        inputs = objective.draw((), batch, keys[0])
        probes = jax.random.split(keys[1], len(points[0]))
        gradient, told = jax.grad(loss, has_aux=True)(network, inputs, points, probes)
        updates, memory = rule.update(gradient, memory)
        network = optax.apply_updates(network, updates)
        return network, memory, optax.incremental_update(network, average, 1 / WINDOW), told

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="checkpoint of fashion-mnist, for the shipped one")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--weight", type=float, default=1.0, help="of the penalty")
    parser.add_argument("--rate", type=float, default=2e-4, help="of learning, at most")
    parser.add_argument("--latents", type=int, default=96, help="guided samples to draw")
    parser.add_argument("--points", type=int, default=8, help="penalized in each step")
    parser.add_argument("--out", type=Path, default=Path("runs/guided-consistency"))
    given = parser.parse_args()
    model, meta = load(given.model) if given.model else dgjax.load_pretrained(NAME)
    config = load_config(NAME)
    data = load_data(config.data, meta.shape, "train")
    classes = meta.model.network["num_classes"]
    times, xs, labels = guided_points(model, meta.shape, classes, given.latents, seed=7)

    dropped = LabelDropout(config.label_dropout, classes)
    objective = Objective(make_noise_sampler(config), make_weighting(config), dropped)
    rate = optax.warmup_cosine_decay_schedule(0.0, given.rate, given.steps // 10, given.steps)
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    step = make_step(model, objective, rule, given.weight)

    rng = np.random.default_rng(0)
    network = average = model.network
    memory, latest, began = rule.init(network), deque(maxlen=SHOWN), None
    with Progress() as bar:
        task = bar.add_task("penalty", total=given.steps)
        for i in range(given.steps):
            rows = rng.integers(len(data), size=config.batch)
            batch = Batch(jnp.asarray(data.batch(rows)), jnp.asarray(data.labels[rows], jnp.int32))
            chosen = rng.choice(len(times), size=given.points, replace=False)
            points = (times[chosen], xs[chosen], labels[chosen])
            state = network, memory, average
            network, memory, average, told = step(*state, batch, points, jax.random.key(i))
            latest.append(jax.device_get(told))
            began = began or time.perf_counter()  # after the first step, which compiles
            if i % SHOWN == SHOWN - 1:
                denoising, curl, transport = np.mean(latest, 0)
                bar.console.print(
                    f"step {i + 1}: denoising loss {denoising:.4f}, curl^2 {curl:.4f}, "
                    f"transport^2 {transport:.4f}",
                    highlight=False,
                )
            bar.advance(task)
    seconds = (time.perf_counter() - began) / max(given.steps - 1, 1)
    save(given.out, replace(model, network=average), meta, dtype=jnp.float32)
    print(f"{given.out}: {seconds:.2f} s a step")


if __name__ == "__main__":
    main()
