"""Distilled divergence: how far is its log-density from that by many products?

The model is a checkpoint that `dgjax distil` wrote. New latents are sampled along the PF-ODE, once
by the head and once by many products with the Jacobian (8 colours of pixels, which have an eighth
to a fifth of the variance of plain signs). Both trajectories are the same. The head is also
corrected by a few products on the way. Costs are those that XLA counts, in evaluations of the
network.

    dgjax distil fashion-mnist --out distilled
    python experiments/distilled.py distilled
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

import dgjax
from dgjax.checkpoints import load

STEPS, BATCH = 32, 4
MANY = dgjax.Coloured(8, 2)
FEW = {"points": 2, "repeats": 4, "divergence": dgjax.Coloured(5)}
OUT = Path(__file__).parent / "figures" / "distilled.md"


def log_densities(model, meta, latents, q):
    """Return the log-densities by many products, by the head and corrected, with their errors."""
    grid = dgjax.grid_logsnr(model, STEPS)
    guides = (dgjax.density_guidance(q),)

    @jax.jit
    @jax.vmap
    def run(key):
        keys = jax.random.split(key, 3)
        x = dgjax.prior_sample(model, keys[0], meta.shape)
        options = {"key": keys[1], "guides": guides}
        many = dgjax.sample(model, x, grid, divergence=MANY, **options)
        one = dgjax.sample(model, x, grid, divergence=dgjax.Hutchinson(), **options)
        options["save"] = dgjax.Trajectory
        head = dgjax.sample(model, x, grid, divergence=dgjax.Distilled(), **options)
        along = head.trajectory
        lacking = dgjax.head_correction(model, along.t, along.x, key=keys[2], **FEW)
        values = many.log_density, one.log_density, head.log_density
        errors = (found.info.standard_error for found in (many, one, head))
        corrected = head.log_density + lacking.nats
        return jnp.array([*values, corrected]), jnp.array([*errors, lacking.standard_error])

    keys = jax.random.split(jax.random.key(1), latents).reshape(-1, BATCH)
    parts = [jax.device_get(run(part)) for part in track(keys, f"q = {q:g}")]
    return tuple(np.concatenate(part).astype(np.float64) for part in zip(*parts, strict=True))


def costs(model, meta):
    """Return the cost of an evaluation with the head, and with a product, over the network's."""

    def flops(divergence):
        def run(model, x):
            local = dgjax.evaluate(model, 1.0, x, divergence=divergence, key=jax.random.key(0))
            return local.score, local.divergences

        program = jax.jit(run).lower(model, jnp.zeros(meta.shape)).compile()
        return program.cost_analysis()["flops"]

    kinds = (dgjax.Untracked(), dgjax.Distilled(), dgjax.Hutchinson())
    alone, head, product = map(flops, kinds)
    return head / alone, product / alone


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder that `dgjax distil` wrote")
    parser.add_argument("--latents", type=int, default=16, help="a multiple of 4")
    parser.add_argument("--q", type=float, nargs="+", default=[0.5])
    given = parser.parse_args()
    model, meta = load(given.model)
    head, product = costs(model, meta)
    names = ("one product a step", "the head", "the head, corrected")
    lines = [
        "| q | log-density by | spread over latents | off by: mean | RMS | stated error, RMS |",
        "|---|---|---|---|---|---|",
    ]
    for q in given.q:
        values, errors = log_densities(model, meta, given.latents, q)
        off = values[:, 1:] - values[:, :1]
        spread = values[:, 0].std(ddof=1)
        lines += [
            f"| {q:g} | {name} | {spread:.1f} | {mean:+.1f} | {size:.1f} | {stated:.1f} |"
            for name, mean, size, stated in zip(
                names,
                off.mean(0),
                np.sqrt((off**2).mean(0)),
                np.sqrt((errors[:, 1:] ** 2).mean(0)),
                strict=True,
            )
        ]
        noise = np.sqrt((errors[:, 0] ** 2).mean())
        lines.append(
            f"| {q:g} | {MANY.colours * MANY.repeats} products a step | | | | {noise:.1f} |"
        )
    weights = sum(leaf.size for leaf in jax.tree.leaves(model.trace_head))
    lines += [
        "",
        f"{given.latents} latents, {STEPS} steps, {np.prod(meta.shape)} elements. The head has "
        f"{weights:,} weights. An evaluation with it costs {head:.2f} times that of the network "
        f"alone, with a product {product:.2f} times.",
    ]
    print("\n".join(lines))
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
