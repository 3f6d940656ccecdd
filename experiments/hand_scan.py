"""Hand scan: what does `sample` cost beside the shortest sampler that one can write by hand?

By hand is an Euler scan of the probability-flow ODE with one probe a step: a dozen lines, one
evaluation a step, first order, no guides and no error of the log-density. `sample` takes its
defaults (`Multistep`, one probe a step) on the same network, grid and number of evaluations. Both
are compiled anew in every round, in turn in one process, without a cache of programs, and blocked
on. The gradient is of the log-density in the latent.

    python experiments/hand_scan.py
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import dgjax
from dgjax.checkpoints.spec import ModelSpec, build

STEPS, IMAGES, LATENTS, ROUNDS, SOLVES = 32, 8, 4096, 3, 5
TOY = ModelSpec(
    shape=(2,),
    network={"kind": "mlp", "width": 128, "depth": 3},
    path={"kind": "edm"},
    parametrization={"kind": "preconditioned", "sigma_data": 0.5},
    t_min=0.02,
    t_max=80.0,
)
ROWS = (
    "traces of the network",
    "to trace and lower, s",
    "to compile, s",
    "both, s",
    "a solve, s",
    "memory of a solve, MiB",
    "its gradient, s",
    "memory of the gradient, MiB",
)
OUT = Path(__file__).parent / "figures" / "hand_scan.md"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="evaluations of both")
    parser.add_argument("--images", type=int, default=IMAGES, help="batch of the U-Net")
    parser.add_argument("--latents", type=int, default=LATENTS, help="batch of the MLP")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which the median counts")
    parser.add_argument("--solves", type=int, default=SOLVES, help="a round, the least counts")
    return parser.parse_args()


def by_sample(steps):
    def run(model, x, key):
        # `Multistep` evaluates once more at the end of its last step.
        grid = dgjax.grid_karras(model, steps - 1)
        found = dgjax.sample(model, x, grid, key=key)
        return found.log_density, found.x

    return run


def by_hand(steps):
    def run(model, x, key):
        grid = dgjax.grid_karras(model, steps)

        def step(carry, now):
            x, log_density = carry
            t, after, key = now
            probe = jax.random.rademacher(key, x.shape, x.dtype)
            velocity, push = jax.jvp(lambda x: dgjax.velocity(model, t, x), (x,), (probe,))
            dt = after - t
            return (x + dt * velocity, log_density - dt * jnp.vdot(probe, push)), None

        ends = grid[:-1], grid[1:], jax.random.split(key, steps)
        start = x, dgjax.log_prior(model, x)
        (x, log_density), _ = jax.lax.scan(step, start, ends)
        return log_density, x

    return run


def measure(make, model, xs, keys, asked):
    """Return the numbers of `ROWS` for one sampler, compiled anew."""
    jax.clear_caches()
    run = make(asked.steps)
    batched = lambda model, xs, keys: jax.vmap(run, (None, 0, 0))(model, xs, keys)
    total = lambda xs, model, keys: jnp.sum(batched(model, xs, keys)[0])
    began = time.perf_counter()
    lowered = jax.jit(batched).lower(model, xs, keys)
    traced = time.perf_counter()
    solve = lowered.compile()
    compiled = time.perf_counter()
    gradient = jax.jit(jax.grad(total)).lower(xs, model, keys).compile()
    memory = [p.memory_analysis().temp_size_in_bytes / 2**20 for p in (solve, gradient)]
    times = [
        min(seconds(program, *operands) for _ in range(asked.solves))
        for program, operands in ((solve, (model, xs, keys)), (gradient, (xs, model, keys)))
    ]
    parts = traced - began, compiled - traced, compiled - began
    return [traces(run, model, xs[0], keys[0]), *parts, times[0], memory[0], times[1], memory[1]]


def traces(run, model, x, key):
    """Count how often the network is traced in one lowering of `run`."""
    jax.clear_caches()
    seen = []
    network = model.network

    def noting(*operands):
        seen.append(1)
        return network(*operands)

    noted = replace(model, network=noting)
    jax.jit(lambda x, key: run(noted, x, key)).lower(x, key)
    return len(seen)


def seconds(program, *operands):
    began = time.perf_counter()
    jax.block_until_ready(program(*operands))
    return time.perf_counter() - began


def table(name, model, shape, batch, asked):
    keys = jax.random.split(jax.random.key(0), batch)
    xs = jax.vmap(lambda key: dgjax.prior_sample(model, key, shape))(keys)
    rounds = [
        [measure(make, model, xs, keys, asked) for make in (by_sample, by_hand)]
        for _ in range(asked.rounds)
    ]
    ours, hand = np.median(rounds, 0)
    yield f"| {name}, batch {batch}, {asked.steps} evaluations | sample | by hand | ratio |"
    yield "|---|---|---|---|"
    for row, a, b in zip(ROWS, ours, hand, strict=True):
        yield f"| {row} | {a:.3g} | {b:.3g} | {a / b:.2f} |"


def main():
    asked = arguments()
    jax.config.update("jax_enable_compilation_cache", False)
    device = jax.devices()[0]
    lines = [f"{device.device_kind} ({device.platform}), jax {jax.__version__}"]
    print(*lines)
    unet, meta = dgjax.load_pretrained("fashion-mnist")
    for rows in (
        table("fashion-mnist", unet, meta.shape, asked.images, asked),
        table("MLP in 2-D", build(TOY), TOY.shape, asked.latents, asked),
    ):
        lines.append("")
        print()
        for line in rows:
            print(line, flush=True)
            lines.append(line)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
