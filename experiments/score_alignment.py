"""Score alignment: does a higher prior log-density make a higher one at each noise level?

The score at the latent is pushed through the flow, v_t, and is compared with the score s_t there
([DG] eqs 11-13): aligned is a latent with <s_t, v_t> > 0. Without the score the same number is
omega_t, the derivative of the tracked log-density. One jvp of the sampler gives both at all points
of its grid. Published: 97 % of latents aligned on CIFAR-10, 100 % with EDM2.

    python experiments/score_alignment.py
    python experiments/score_alignment.py --preset cifar10 --model FOLDER
"""

import claims
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import dgjax
from dgjax.sampling.adjoints import FORWARD

NOISE_LEVELS = 8  # noise levels looked at, the last of them t_min
DIVERGENCE = dgjax.Coloured(5, repeats=2)  # two estimates, for a standard error of omega


def align_through(field, key, *, shape, grid, at, divergence=DIVERGENCE):
    """Return the `Alignment` of one latent at each of the grid points `at`.

    What `dgjax.align` gives at the end of a grid, without the standard error of the omegas but
    that of the last. Leaves have the leading axis of `at`.
    """
    latent_key, probe_key = jax.random.split(key)
    x = dgjax.prior_sample(field, latent_key, shape)

    def flow(x, log_density):
        run = dgjax.sample(
            field,
            x,
            grid,
            key=probe_key,
            log_density=log_density,
            divergence=divergence,
            adjoint=FORWARD,
            save=dgjax.Trajectory,
        )
        return run.trajectory.x, run.trajectory.log_density, run.info.log_densities

    first = dgjax.score(field, grid[0], x)
    prior = jnp.sum(first**2)
    (xs, _, _), (pushed, omegas, last) = jax.jvp(flow, (x, jnp.zeros_like(prior)), (first, prior))
    xs, pushed = xs[at], pushed[at]
    scores = jax.lax.map(lambda a: dgjax.score(field, *a), (grid[at], xs))
    inner = lambda a, b: jnp.sum((a * b).reshape(len(at), -1), 1)
    product = inner(scores, pushed)
    return dgjax.Alignment(
        cosine=product / jnp.sqrt(inner(scores, scores) * inner(pushed, pushed)),
        product=product,
        omega=omegas[at],
        standard_error=jnp.full(len(at), divergence.standard_error(last)),
        prior=jnp.full(len(at), prior),
        x=xs,
        pushed=pushed,
        fault=jnp.zeros(len(at), jnp.int32),
    )


def measure(setup):
    """Return noise levels (levels,), and `Alignment` with leaves (latents, levels, ...)."""
    field, steps = setup.model.field, setup.preset.steps
    grid = dgjax.grid_logsnr(field, steps)
    at = np.unique(np.linspace(steps / NOISE_LEVELS, steps, NOISE_LEVELS).round().astype(int))
    sigmas = np.asarray(jax.vmap(lambda t: field.path.sigma(t) / field.path.alpha(t))(grid[at]))

    def one(field, key):
        return align_through(field, key, shape=setup.model.meta.shape, grid=grid, at=at)

    found = claims.each("alignment", one, setup, claims.keys(setup, setup.preset.count))
    return sigmas, found


def row(sigma, level):
    """Return the table row of one noise level."""
    found = dgjax.alignment_statistics(level)
    gains = level.product / level.prior, level.omega / level.prior
    return [
        f"{sigma:.3g}",
        str(found.latents),
        f"{found.share:.1%} [{found.low:.1%}, {found.high:.1%}]",
        f"{np.mean(level.omega > 0):.1%}",
        f"{found.agreement:.1%}",
        claims.between(claims.correlation(*gains), 3),
        f"{found.mean_angle:.1f}°",
        f"{found.largest_angle:.1f}°",
    ]


def draw(sigmas, found):
    """Draw angles by noise level, and one estimator against the other at t_min."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    angles = np.asarray(found.angle)
    places = np.arange(len(sigmas))
    parts = left.violinplot(list(angles.T), places, widths=0.8, showextrema=False)
    for body in parts["bodies"]:
        body.set(facecolor=claims.COLOURS[0], alpha=0.35)
    jitter = np.random.default_rng(0).uniform(-0.08, 0.08, angles.shape)
    left.plot(places + jitter, angles, ".", ms=3, color=claims.COLOURS[0])
    left.axhline(90, color="black", ls="--")
    left.text(places[0] - 0.4, 92, "above: not aligned", fontsize=8)
    left.set_xticks(places, [f"{s:.2g}" for s in sigmas])
    left.set(xlabel="noise level sigma (noise to data)", ylabel="angle of s and v, degrees")
    left.set(
        title="Angle between the score and the pushed prior score",
        ylim=(0, max(100, angles.max() + 5)),
    )

    prior = found.prior[:, -1]
    with_score, without = found.product[:, -1] / prior, found.omega[:, -1] / prior
    ends = [min(with_score.min(), without.min(), 0), max(with_score.max(), without.max())]
    right.plot(ends, ends, color="black", lw=1, label="equal")
    error = found.standard_error[:, -1] / prior
    right.errorbar(with_score, without, error, fmt="o", ms=4, alpha=0.7, color=claims.COLOURS[1])
    right.axhline(0, color="0.4", lw=0.8)
    right.axvline(0, color="0.4", lw=0.8)
    right.set(title=f"Nats gained at sigma = {sigmas[-1]:.2g} for one in the prior")
    right.set(xlabel="with the score, <s, v>/|s_T|²", ylabel="score-free, omega/|s_T|²")
    right.legend()
    claims.save(figure, "score_alignment")


def main():
    setup = claims.start(__doc__)
    sigmas, found = measure(setup)
    header = ["sigma", "latents", "aligned, with the score [95 %]", "score-free", "same verdict"]
    header += ["correlation of the two [95 %]", "mean angle", "largest"]
    levels = [jax.tree.map(lambda a, i=i: a[:, i], found) for i in range(len(sigmas))]
    claims.report("score_alignment", header, map(row, sigmas, levels))
    error = np.median(found.standard_error[:, -1] / found.prior[:, -1])
    print(f"\nProbes, median s.e. of omega/|s_T|^2 at t_min: {error:.3g}")
    draw(sigmas, found)


if __name__ == "__main__":
    main()
