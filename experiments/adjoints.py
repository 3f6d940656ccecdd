"""Adjoints: memory and time of a gradient of the log-density, for each way to compute it.

The gradient of the final log-density with respect to the latent, through STEPS steps of a
density-guided solve of one sample by a small U-Net of random weights, by default (each step is
computed again from the state before it) and for every adjoint of diffrax; with respect to the
network's parameters by default; and the derivative with respect to q in forward mode. Beside them
the same gradient through a single step. Memory is what XLA reserves for intermediate results; *a
checkpoint* is what one more of them adds to it. The last column is the largest difference from
`DirectAdjoint`, relative to the largest entry (for q, its derivative).

    python experiments/adjoints.py
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import dgjax
from dgjax.checkpoints.spec import ModelSpec, build
from dgjax.sampling.adjoints import BOTH_MODES

STEPS, Q, REPEATS = 256, 0.6, 3
SIDE, WIDTH = 16, 16
FEW, MANY = 8, 64  # checkpoints
SOLVERS = {"Heun": diffrax.Heun(), "Multistep": dgjax.Multistep()}
ADJOINTS = {
    "default": None,
    "RecursiveCheckpoint": diffrax.RecursiveCheckpointAdjoint(),
    f"RecursiveCheckpoint({FEW})": diffrax.RecursiveCheckpointAdjoint(FEW),
    f"RecursiveCheckpoint({MANY})": diffrax.RecursiveCheckpointAdjoint(MANY),
    "BothModes": BOTH_MODES,
    "Direct": diffrax.DirectAdjoint(),
}
OUT = Path(__file__).parent / "figures" / "adjoints.md"


def make_model():
    spec = ModelSpec(
        shape=(SIDE, SIDE, 1),
        network={"kind": "unet", "channels": [WIDTH, 2 * WIDTH], "blocks": 1, "embedding": 32},
        path={"kind": "edm"},
        parametrization={"kind": "preconditioned", "sigma_data": 0.5},
        t_min=0.02,
        t_max=80.0,
    )
    model = build(spec)
    # Fresh weights give zero: shift all a little, so that there is something to differentiate.
    leaves, tree = jax.tree.flatten(model.network)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    moved = [
        leaf + 0.02 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return replace(model, network=jax.tree.unflatten(tree, moved)), spec.shape


def objective(steps, solver, adjoint):
    """Return a function (latent, q, network, model) -> log-density in nats."""

    def value(x, q, network, model):
        model = replace(model, network=network)
        return dgjax.sample(
            model,
            x,
            dgjax.grid_karras(model, steps),
            key=jax.random.key(1),
            guides=(dgjax.density_guidance(q),),
            solver=solver,
            adjoint=adjoint,
        ).log_density

    return value


def cost(function, *operands):
    """Return (result, megabytes of intermediate results, seconds of one run)."""
    compiled = jax.jit(function).lower(*operands).compile()
    found = jax.block_until_ready(compiled(*operands))
    best = float("inf")
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*operands))
        best = min(best, time.perf_counter() - began)
    return found, compiled.memory_analysis().temp_size_in_bytes / 2**20, best


def apart(found, reference):
    """Return the largest difference relative to the largest entry, for latent and q."""
    return " / ".join(
        f"{np.max(np.abs(a - b)) / np.max(np.abs(b)):.1e}"
        for a, b in zip(found, reference, strict=True)
    )


def rows_of(name, steps, operands):
    """Return the table rows of one solver, and its megabytes by name of the row."""
    solver = SOLVERS[name]

    def gradient(steps, adjoint, argnums=(0, 1)):
        return jax.grad(objective(steps, solver, adjoint), argnums)

    def forward(x, q, *rest):
        value = objective(steps, solver, None)
        return jax.jvp(lambda q: value(x, q, *rest), (q,), (jnp.ones_like(q),))[1]

    yield "value alone", "", *cost(objective(steps, solver, None), *operands)[1:], ""
    yield "one step", "x, q", *cost(gradient(1, None), *operands)[1:], ""
    found = {n: cost(gradient(steps, adjoint), *operands) for n, adjoint in ADJOINTS.items()}
    direct = found["Direct"][0]
    for adjoint, (value, size, seconds) in found.items():
        yield adjoint, "x, q", size, seconds, apart(value, direct)
    pushed, size, seconds = cost(forward, *operands)
    yield "default, forward", "q", size, seconds, apart([pushed], direct[1:])
    yield "one step", "parameters", *cost(gradient(1, None, 2), *operands)[1:], ""
    size, seconds = cost(gradient(steps, None, 2), *operands)[1:]
    yield "default", "parameters", size, seconds, ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    steps = parser.parse_args().steps
    model, shape = make_model()
    x = dgjax.prior_sample(model, jax.random.key(2), shape)
    operands = x, jnp.asarray(Q), model.network, model
    lines = [
        "| solver | adjoint | in | memory, MiB | over one step | seconds | difference, x / q |",
        "|---|---|---|---|---|---|---|",
    ]
    print(*lines, sep="\n")
    notes = []
    for name in SOLVERS:
        sizes, step = {}, {}
        for row, wrt, size, seconds, difference in rows_of(name, steps, operands):
            sizes[row, wrt] = size
            if row == "one step":
                step[wrt] = size
            over = f"{size / step[wrt]:.1f}" if wrt in step else ""
            cells = name, row, wrt, f"{size:.2f}", over, f"{seconds:.3f}", difference
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
        many, few = (sizes[f"RecursiveCheckpoint({n})", "x, q"] for n in (MANY, FEW))
        each = (many - few) / (MANY - FEW)
        rest = (few - FEW * each) / step["x, q"]
        notes.append(
            f"{name}: a checkpoint takes {1024 * each:.1f} KiB; without them the gradient through "
            f"{steps} steps takes {rest:.2f} times the memory of one step's."
        )
    lines += ["", *notes]
    print("", *notes, sep="\n")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
