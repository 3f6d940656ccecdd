"""Reverse SDE: does its tracked log-density go with that of the PF-ODE, image by image?

Samples by Euler-Maruyama with the log-density that is tracked without a divergence, as published,
against the log-density of the same images by the probability-flow ODE (`Multistep`, probes by
colours). Published: with 1,024 steps the two are correlated on images.

    python experiments/reverse_sde_correlation.py
    python experiments/reverse_sde_correlation.py --preset cifar10 --model FOLDER
"""

import claims
import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import dgjax

STEPS = (64, 256, 1024)
DIVERGENCE = dgjax.Coloured()


def sampled(field, key, *, shape, steps):
    """Return the tracked log-density of a sample by the reverse SDE, the PF-ODE's, and its s.e.

    `steps` are those of the one and of the other. The SDE runs on the VP path.
    """
    keys = jax.random.split(key, 3)
    there = dgjax.repath(field, dgjax.vp())
    found = dgjax.sample(
        there,
        dgjax.prior_sample(there, keys[0], shape),
        dgjax.grid_logsnr(there, steps[0]),
        key=keys[1],
        noise=dgjax.reverse_sde_ito(),
        divergence=dgjax.Untracked(),
        solver=diffrax.Euler(),
    )
    scale = field.path.alpha(field.t_min) / there.path.alpha(there.t_min)
    x, grid = scale * found.x, dgjax.grid_logsnr(field, steps[1])
    flow = dgjax.likelihood(field, x, grid, key=keys[2], divergence=DIVERGENCE)
    # Of the same point on two paths log-densities differ by D log alpha.
    tracked = found.log_density - x.size * jnp.log(scale)
    return tracked, flow.log_density, flow.info.standard_error


def measure(setup):
    """Return {steps: results of `sampled`}."""
    count, fine, _ = setup.preset
    shape = setup.model.meta.shape
    return {
        steps: claims.each(
            f"reverse SDE, {steps} steps",
            lambda *item, steps=steps: sampled(*item, shape=shape, steps=(steps, fine)),
            setup,
            claims.keys(setup, count),
        )
        for steps in STEPS
    }


def row(steps, tracked, flow, error):
    return [
        str(steps),
        str(len(tracked)),
        claims.mean_error(tracked),
        claims.mean_error(flow),
        claims.probe_error(error),
        claims.mean_error(tracked - flow),
        claims.between(claims.correlation(tracked, flow)),
    ]


def draw(groups):
    """Draw one log-density against the other."""
    figure, axis = plt.subplots(figsize=(6, 5), layout="constrained")
    for (steps, (tracked, flow, _)), marker in zip(groups.items(), "osD", strict=True):
        axis.scatter(flow, tracked, marker=marker, s=26, alpha=0.8, label=f"{steps:,} steps")
    low, high = np.min([g[1] for g in groups.values()]), np.max([g[1] for g in groups.values()])
    axis.plot([low, high], [low, high], color="0.4", lw=1, label="equal")
    axis.set(xlabel="log p by the PF-ODE, nats", ylabel="log p tracked along the reverse SDE, nats")
    axis.legend()
    claims.save(figure, "reverse_sde_correlation")


def main():
    setup = claims.start(__doc__)
    groups = measure(setup)
    header = [
        "steps",
        "images",
        "log p tracked, nats",
        "by the PF-ODE, nats",
        "probes, s.e.",
        "tracked - PF-ODE",
        "correlation [95 %]",
    ]
    report = [row(steps, *group) for steps, group in groups.items()]
    claims.report("reverse_sde_correlation", header, report)
    draw(groups)


if __name__ == "__main__":
    main()
