"""Latent ascent: what does it cost to raise the log-density by gradients in the latent?

The direct way to a high log-density is to differentiate log p of the sample in the latent x_T and
climb. It costs a gradient through the whole solve at each step; density guidance costs one solve.
Both start from the same latents. The norm of the latent, whose quantile is what prior guidance
turns, is either held or left free. Each step of the ascent has fresh probes, so that it cannot
climb their error. It climbs the log-density by 16 solver steps; the table measures what it reached
by the steps of the preset and probes by colours.

    python experiments/latent_ascent.py
    python experiments/latent_ascent.py --preset cifar10 --model FOLDER
"""

import argparse
import time
from functools import partial

import claims
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import dgjax
from dgjax.pictures.grid import image_grid

CLIMB = 40  # steps of the ascent
SOLVE = 16  # steps of the solver within it
EVERY = 10  # of these steps are measured
RATE = 0.05  # of Adam, in units of the noise
QUANTILES = (0.65, 0.8)
DIVERGENCE = dgjax.Coloured()


def measured(field, x, key, q, *, grid):
    """Return (denoised, log p, its s.e.) of the sample of one latent."""
    guides = (dgjax.density_guidance(q),)
    found = dgjax.sample(field, x, grid, key=key, guides=guides, divergence=DIVERGENCE)
    return dgjax.denoise(field, grid[-1], found.x), found.log_density, found.info.standard_error


def log_densities(x, field, keys, *, grid):
    """Return the sum over latents of log p of their samples, with one probe a step."""
    one = lambda x, key: dgjax.sample(field, x, grid, key=key).log_density
    return jnp.sum(jax.vmap(one)(x, keys))


@jax.jit
def slopes(x, field, keys, grid):
    """Return the gradient of each log-density in its latent."""
    return jax.grad(log_densities)(x, field, keys, grid=grid)


def held_norm(x, start):
    """Scale each latent of `x` to the norm of that of `start`."""
    axes = tuple(range(1, x.ndim))
    norm = lambda a: jnp.sqrt(jnp.sum(a**2, axes, keepdims=True))
    return x * norm(start) / norm(x)


def free_norm(x, start):
    """Leave the latents as they are."""
    del start
    return x


NORMS = {"norm held": held_norm, "norm free": free_norm}


def climb(field, start, key, project, *, grid, steps, every):
    """Yield (step, latents) of gradient ascent in the latents by Adam."""
    scale = field.path.sigma(field.t_max)
    optimiser = optax.adam(RATE * scale)

    x, state = start, optimiser.init(start)
    for i in range(1, steps + 1):
        keys = jax.random.split(jax.random.fold_in(key, i), len(x))
        update, state = optimiser.update(-slopes(x, field, keys, grid), state)
        x = project(optax.apply_updates(x, update), start)
        if i % every == 0:
            yield i, x


def seconds(run):
    """Return the time of the second call, the first compiles."""
    jax.block_until_ready(run())
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


def measure(setup, steps):
    """Return {name: (denoised, log p, its s.e.)} of all methods."""
    field, (count, fine, _) = setup.model.field, setup.preset
    count = max(count // 8, claims.LEAST)
    grid, coarse = dgjax.grid_logsnr(field, fine), dgjax.grid_logsnr(field, SOLVE)
    draw = lambda key: dgjax.prior_sample(field, key, setup.model.meta.shape)
    start = jax.vmap(draw)(claims.keys(setup, count))

    asked = {"no guidance": (start, 0.5)}
    asked |= {f"density guidance, q = {q}": (start, q) for q in QUANTILES}
    for name, project in NORMS.items():
        options = {"grid": coarse, "steps": steps, "every": EVERY}
        parts = [start[i : i + setup.preset.batch] for i in range(0, count, setup.preset.batch)]
        key = jax.random.key(setup.seed)
        walks = [
            climb(field, part, jax.random.fold_in(key, i), project, **options)
            for i, part in enumerate(parts)
        ]
        for found in zip(*walks, strict=True):
            asked[f"ascent, {name}, {found[0][0]} steps"] = (
                np.concatenate([x for _, x in found]),
                0.5,
            )
    found = claims.each(
        "log-densities",
        partial(measured, grid=grid),
        setup,
        np.concatenate([x for x, _ in asked.values()]),
        claims.keys(setup, count * len(asked), 1),
        np.repeat(np.float32([q for _, q in asked.values()]), count),
    )
    parts = [np.split(a, len(asked)) for a in found]
    return {name: tuple(part[i] for part in parts) for i, name in enumerate(asked)}


def costs(setup):
    """Return the seconds of one solve at q and of one step of the ascent, in turn."""
    field, count = setup.model.field, claims.LEAST
    grid = dgjax.grid_logsnr(field, SOLVE)
    draw = lambda key: dgjax.prior_sample(field, key, setup.model.meta.shape)
    x, keys = jax.vmap(draw)(claims.keys(setup, count)), claims.keys(setup, count, 3)

    @jax.jit
    def guided(field, x, keys):
        guides = (dgjax.density_guidance(0.8),)
        one = lambda x, key: dgjax.sample(field, x, grid, key=key, guides=guides).log_density
        return jax.vmap(one)(x, keys)

    runs = (lambda: guided(field, x, keys)), (lambda: slopes(x, field, keys, grid))
    return np.median([[seconds(run) for run in runs] for _ in range(3)], 0)


def row(setup, name, group, plain):
    x, log_density, error = group
    moved = np.sqrt(np.mean((x - plain[0]) ** 2, axis=tuple(range(1, x.ndim))))
    return [
        name,
        str(len(x)),
        claims.mean_error(log_density),
        claims.probe_error(error),
        claims.mean_error(log_density - plain[1]),
        claims.mean_error(moved, 2),
        claims.mean_error(claims.sizes(setup, x)),
    ]


def draw(setup, groups, steps):
    names = ["no guidance", f"density guidance, q = {QUANTILES[-1]}"]
    names += [f"ascent, {name}, {steps} steps" for name in NORMS]
    x = np.stack([groups[name][0][:8] for name in names])
    lines = [name.replace(", ", "\n") for name in names]  # a long line would be cut off
    labels = [
        f"{line}\nlog p {groups[name][1].mean():,.0f}"
        for line, name in zip(lines, names, strict=True)
    ]
    figure = image_grid(
        claims.levels(setup, x),
        labels,
        title="The same latents, guided or climbed from",
        caption="Mean log p in nats at t_min; images without the noise of t_min.",
    )
    claims.save(figure, "latent_ascent")
    plt.close(figure)


def main():
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--climb", type=int, default=CLIMB, help="steps of the ascent")
    setup = claims.start(__doc__, options)
    steps = options.parse_known_args()[0].climb
    if steps < EVERY or steps % EVERY:
        options.error(f"--climb must be a positive multiple of {EVERY}, got {steps}")
    groups = measure(setup, steps)
    header = ["method", "latents", "log p, nats", "probes, s.e.", "gain, nats"]
    header += ["distance from unguided, RMS", "PNG, bytes"]
    plain = groups["no guidance"]
    claims.report(
        "latent_ascent", header, [row(setup, n, group, plain) for n, group in groups.items()]
    )
    draw(setup, groups, steps)
    solve, step = costs(setup)
    print(f"\nA step of the ascent takes {step / solve:.1f} times a density-guided solve.")


if __name__ == "__main__":
    main()
