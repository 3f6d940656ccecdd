"""Overhead: what does a density-guided sampler cost on top of its network?

The same evaluations twice, in turn in one process: by `sample`, and as bare calls of the jitted
batched network, each fed with what the one before gave. With log-density the bare calls are of the
network with one jvp. The first table is of the shipped U-Net. The second says what the sampler's
own work is, in microseconds a step: a network so small that this is most of it, less the same
number of its evaluations in a bare compiled loop. The third is what the derivatives of
`Multistep(2, 2, 2)` add to a solve of the U-Net with log-density.

    python experiments/overhead.py
"""

import argparse
import time
from functools import partial
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import dgjax
from dgjax.checkpoints.spec import ModelSpec, build

MODEL, Q, STEPS, BATCH, ROUNDS = "fashion-mnist", 0.7, 24, 16, 5
SMALL = {"kind": "mlp", "width": 32, "depth": 1}
SMALL_STEPS, SMALL_ROUNDS = 200, 15
SOLVERS = {"Multistep": dgjax.Multistep(), "Heun": diffrax.Heun(), "Euler": diffrax.Euler()}
DERIVATIVES = dgjax.Multistep(2, 2, 2)
PROBES = {"1 probe": dgjax.Hutchinson(1), "probes by 5 colours": dgjax.Coloured(5)}
KEPT = {"samples alone": dgjax.Untracked(), "with log-density": dgjax.Hutchinson(1)}
OUT = Path(__file__).parent / "figures" / "overhead.md"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--steps", type=int, default=STEPS, help="of Multistep; half for Heun")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which the median counts")
    return parser.parse_args()


def small_model(shape):
    spec = ModelSpec(
        shape=shape,
        network=SMALL,
        path={"kind": "edm"},
        parametrization={"kind": "preconditioned", "sigma_data": 0.5},
        t_min=0.02,
        t_max=80.0,
    )
    return build(spec)


def evaluations(solver, steps):
    """Count the evaluations of the network in one solve."""
    seen = []

    def network(x, t, cond):
        jax.debug.callback(seen.append, t)
        return x / (1 + t**2)

    prediction = dgjax.DenoisedPrediction()
    model = dgjax.field(network, dgjax.edm(), prediction, t_min=0.02, t_max=80.0)
    grid = dgjax.grid_karras(model, steps)
    x = dgjax.prior_sample(model, jax.random.key(0), (2,))
    found = dgjax.sample(model, x, grid, key=jax.random.key(1), solver=solver)
    jax.block_until_ready(found)
    jax.effects_barrier()
    return len(seen)


def sampler(model, grid, solver, divergence):
    """Make a function (latents, keys) that solves the batch."""

    @jax.jit
    def run(model, xs, keys):
        def one(x, key):
            return dgjax.sample(
                model,
                x,
                grid,
                key=key,
                guides=(dgjax.density_guidance(Q),),
                divergence=divergence,
                solver=solver,
            )

        found = jax.vmap(one)(xs, keys)
        tracked = not isinstance(divergence, dgjax.Untracked)
        return found.x, found.log_density if tracked else None

    return partial(run, model)


def pass_of(divergence):
    """Make a function (model, t, latents, probes) of the cheapest evaluation of the batch."""

    def network(model, t, xs, probes):
        return jax.vmap(lambda x: model.pair(t, x))(xs), None

    def network_and_jvp(model, t, xs, probes):
        return jax.vmap(lambda x, z: jax.jvp(lambda x: model.pair(t, x), (x,), (z,)))(xs, probes)

    return network if isinstance(divergence, dgjax.Untracked) else network_and_jvp


def calls(model, ts, divergence):
    """Make a function (latents, probes) that evaluates at each of `ts` in a separate call."""
    call = jax.jit(pass_of(divergence))

    def run(xs, probes):
        for t in ts:
            pair, pushed = call(model, t, xs, probes)
            xs = pair.x0
        return xs, pushed

    return run


def loop(model, ts, divergence):
    """Make a function (latents, probes) that evaluates at all `ts` in one compiled loop."""

    @jax.jit
    def run(model, xs, probes):
        def step(xs, t):
            pair, pushed = pass_of(divergence)(model, t, xs, probes)
            return pair.x0, None if pushed is None else jax.tree.map(jnp.sum, pushed)

        return jax.lax.scan(step, xs, jnp.stack(ts))

    return partial(run, model)


def seconds(run, *operands):
    began = time.perf_counter()
    jax.block_until_ready(run(*operands))
    return time.perf_counter() - began


def compare(model, shape, solver, divergence, bare, steps, batch, rounds):
    """Return the evaluations, and (rounds, 2) seconds of the solve and of `bare` evaluations."""
    count = evaluations(solver, steps)
    grid = dgjax.grid_karras(model, steps)
    ts = list(jnp.linspace(model.t_max, model.t_min, count))
    keys = jax.random.split(jax.random.key(0), batch)
    xs = jax.vmap(lambda key: dgjax.prior_sample(model, key, shape))(keys)
    probes = jax.random.rademacher(jax.random.key(1), xs.shape, xs.dtype)
    solve, alone = sampler(model, grid, solver, divergence), bare(model, ts, divergence)
    seconds(solve, xs, keys), seconds(alone, xs, probes)  # compile
    pairs = [(seconds(solve, xs, keys), seconds(alone, xs, probes)) for _ in range(rounds)]
    return count, np.array(pairs)


def table_of_network(asked):
    model, meta = dgjax.load_pretrained(MODEL)
    yield "| solver | | evaluations | solve, s | network alone, s | ratio |"
    yield "|---|---|---|---|---|---|"
    for name in ("Multistep", "Heun"):
        steps = asked.steps // 2 if name == "Heun" else asked.steps
        for kept, divergence in KEPT.items():
            count, pairs = compare(
                model,
                meta.shape,
                SOLVERS[name],
                divergence,
                calls,
                steps,
                asked.batch,
                asked.rounds,
            )
            cells = *np.median(pairs, 0), np.median(pairs[:, 0] / pairs[:, 1])
            cells = " | ".join(f"{c:.3f}" for c in cells)
            yield f"| {name} | {kept} | {count} | {cells} |"


def table_of_steps(batch):
    _, meta = dgjax.load_pretrained(MODEL)
    model = small_model(meta.shape)
    yield "| solver | | batch | a step, µs | evaluations alone, µs | the sampler's own, µs |"
    yield "|---|---|---|---|---|---|"
    for size in (1, batch):
        for name, solver in SOLVERS.items():
            for kept, divergence in KEPT.items():
                _, pairs = compare(
                    model, meta.shape, solver, divergence, loop, SMALL_STEPS, size, SMALL_ROUNDS
                )
                each = 1e6 * pairs / SMALL_STEPS
                cells = *np.median(each, 0), np.median(each[:, 0] - each[:, 1])
                cells = " | ".join(f"{c:.0f}" for c in cells)
                yield f"| {name} | {kept} | {size} | {cells} |"


def table_of_derivatives(asked):
    model, meta = dgjax.load_pretrained(MODEL)
    grid = dgjax.grid_karras(model, asked.steps)
    keys = jax.random.split(jax.random.key(0), asked.batch)
    xs = jax.vmap(lambda key: dgjax.prior_sample(model, key, meta.shape))(keys)
    yield "| log-density by | Multistep(), s | Multistep(2, 2, 2), s | ratio |"
    yield "|---|---|---|---|"
    for name, probes in PROBES.items():
        runs = [sampler(model, grid, s, probes) for s in (SOLVERS["Multistep"], DERIVATIVES)]
        for run in runs:
            seconds(run, xs, keys)  # compile
        pairs = np.array([[seconds(run, xs, keys) for run in runs] for _ in range(asked.rounds)])
        cells = *np.median(pairs, 0), np.median(pairs[:, 1] / pairs[:, 0])
        yield f"| {name} | " + " | ".join(f"{c:.3f}" for c in cells) + " |"


def main():
    asked = arguments()
    device = jax.devices()[0]
    lines = [f"{device.device_kind} ({device.platform}), jax {jax.__version__}", ""]
    print(*lines, sep="\n")
    tables = table_of_network(asked), table_of_steps(asked.batch), table_of_derivatives(asked)
    for rows in tables:
        for line in (*rows, ""):
            print(line, flush=True)
            lines.append(line)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
