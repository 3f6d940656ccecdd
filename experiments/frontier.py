"""Frontier: error of the log-density against network evaluations, for every solver.

On a Gaussian mixture (D = 784, float64, exact divergence) the error is against the closed form at
the point reached. On a shipped model it is against a converged solve with the same fixed probe, so
that only the solver differs: for given data (likelihood), and for given latents (sampling). The
baseline is what is common: 1,024 Euler steps uniform in log-SNR on the VP path, over the same
noise levels.

    python experiments/frontier.py mixture
    python experiments/frontier.py fashion-mnist
"""

import argparse
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator
from rich.progress import track

import dgjax

EVALUATIONS = (16, 20, 24, 32, 48, 64)
BASELINE, FINE = 1024, 64  # steps
COUNT = 4  # latents, and samples whose likelihood is measured
QUANTILES = (0.3, 0.5, 0.7)  # on the mixture
DIMENSIONS, COMPONENTS, SCALES = 784, 3, (0.005, 2.0)
KARRAS = dgjax.grid_karras  # uniform in sigma^(1/7)
SOLVERS = {  # evaluations a step, those beyond, solver and grid
    "Heun": (2, 0, diffrax.Heun(), KARRAS),
    "Bosh3": (3, 0, diffrax.Bosh3(), KARRAS),
    "Tsit5": (6, 0, diffrax.Tsit5(), KARRAS),
    "Dopri5": (6, 0, diffrax.Dopri5(), KARRAS),
    "Dopri5, log-SNR": (6, 0, diffrax.Dopri5(), dgjax.grid_logsnr),
    "Multistep(1)": (1, 1, dgjax.Multistep(1), KARRAS),
    "Multistep(2)": (1, 1, dgjax.Multistep(2), KARRAS),
    "Multistep(3)": (1, 1, dgjax.Multistep(3), KARRAS),
    "Multistep(4)": (1, 1, dgjax.Multistep(4), KARRAS),
    "Multistep(3), log-SNR": (1, 1, dgjax.Multistep(3), dgjax.grid_logsnr),
    "Multistep(4), log-SNR": (1, 1, dgjax.Multistep(4), dgjax.grid_logsnr),
}
ON_NETWORKS = ("Heun", "Tsit5", "Multistep(3)", "Multistep(3), log-SNR", "Multistep(4), log-SNR")
MARKERS = "osDv^<>PhX*"
MORE_COLOURS = ("#9467bd",)  # the style has ten, one less than there are solvers
FIGURES = Path(__file__).parent / "figures"


def contestants(names):
    """Yield (name, evaluations, steps, solver, grid) where evaluations make whole steps."""
    for name in names:
        each, more, solver, grid = SOLVERS[name]
        for count in EVALUATIONS:
            if (count - more) % each == 0:
                yield name, count, (count - more) // each, solver, grid


def timed(run, *arguments):
    """Return result and seconds, without compilation."""
    jax.block_until_ready(run(*arguments))
    began = time.perf_counter()
    found = jax.block_until_ready(run(*arguments))
    return found, time.perf_counter() - began


def rms(a):
    return float(np.sqrt(np.mean(np.square(a))))


@dgjax.register_dataclass
@dataclass(frozen=True)
class DiagonalMixture:
    """Equal parts of Gaussians with variances (k, D) along the axes, as a denoiser on EDM's path.

    What `dgjax.gaussian_mixture` is for full covariances, at a cost linear in D.
    """

    means: jax.Array
    variances: jax.Array

    def logits(self, x, sigma):
        total = self.variances + sigma**2
        squares = (x - self.means) ** 2 / total + jnp.log(2 * jnp.pi * total)
        return -0.5 * jnp.sum(squares, 1) - jnp.log(len(self.means))

    def log_density(self, x, sigma):
        return jax.nn.logsumexp(self.logits(x, sigma))

    def __call__(self, x, t, cond):
        del cond
        share = self.variances / (self.variances + t**2)
        return jax.nn.softmax(self.logits(x, t)) @ (self.means + share * (x - self.means))

    def sample(self, key, sigma):
        keys = jax.random.split(key)
        k = jax.random.randint(keys[0], (), 0, len(self.means))
        spread = jnp.sqrt(self.variances[k] + sigma**2)
        return self.means[k] + spread * jax.random.normal(keys[1], self.means[k].shape)


def mixture():
    """Return rows (name, evaluations, seconds, errors by q) on the closed form."""
    jax.config.update("jax_enable_x64", True)
    keys = jax.random.split(jax.random.key(0), COMPONENTS + 2)
    scales = jnp.geomspace(*SCALES, DIMENSIONS)
    variances = jnp.stack([jax.random.permutation(k, scales) ** 2 for k in keys[2:]])
    cloud = DiagonalMixture(jax.random.normal(keys[0], (COMPONENTS, DIMENSIONS)), variances)
    model = dgjax.field(cloud, dgjax.edm(), dgjax.DenoisedPrediction(), t_min=0.02, t_max=80.0)
    latents = jax.vmap(lambda k: cloud.sample(k, 80.0))(jax.random.split(keys[1], COUNT))

    def solve(path, grid, solver):
        there = dgjax.repath(model, path)

        @jax.jit
        def run(x, q):
            def one(x):
                first, last = path.alpha(there.t_max), path.alpha(there.t_min)
                found = dgjax.sample(
                    there,
                    x * first,
                    grid(there),
                    key=keys[0],
                    log_density=cloud.log_density(x, 80.0) - DIMENSIONS * jnp.log(first),
                    guides=(dgjax.density_guidance(q),),
                    divergence=dgjax.Exact(chunk=DIMENSIONS),
                    solver=solver,
                )
                true = cloud.log_density(found.x / last, 0.02) - DIMENSIONS * jnp.log(last)
                return found.log_density - true

            return jax.vmap(one)(x)

        return run

    def row(run):
        found = [timed(run, latents, q) for q in QUANTILES]
        return np.mean([f[1] for f in found]), [rms(f[0]) for f in found]

    euler = solve(dgjax.vp(), lambda m: dgjax.grid_logsnr(m, BASELINE), diffrax.Euler())
    yield "Euler, VP, log-SNR", BASELINE, *row(euler)
    for name, count, steps, solver, grid in track(list(contestants(SOLVERS)), "frontier"):
        yield name, count, *row(solve(dgjax.edm(), partial(grid, steps=steps), solver))


def shipped(name):
    """Return rows (name, evaluations, seconds, errors of likelihood and sampling) on a network."""
    model, meta = dgjax.load_pretrained(name)
    keys = jax.random.split(jax.random.key(0), COUNT)
    latents = jax.vmap(lambda k: dgjax.prior_sample(model, k, meta.shape))(keys)

    def solves(path, grid, solver):
        there = dgjax.repath(model, path)

        @jax.jit
        def sampled(there, latents):
            def one(x, key):
                probe = dgjax.FixedProbe(dgjax.Hutchinson(), key)
                x = x * there.path.alpha(there.t_max)
                found = dgjax.sample(
                    there, x, grid(there), key=key, divergence=probe, solver=solver
                )
                return found.x / there.path.alpha(there.t_min), found.log_density

            return jax.vmap(one)(latents, keys)

        @jax.jit
        def measured(there, data):
            def one(x, key):
                probe = dgjax.FixedProbe(dgjax.Hutchinson(), key)
                x = x * there.path.alpha(there.t_min)
                return dgjax.likelihood(
                    there, x, grid(there), key=key, divergence=probe, solver=solver
                ).log_density

            return jax.vmap(one)(data, keys)

        return (lambda x: sampled(there, x)), (lambda x: measured(there, x))

    fine = solves(dgjax.edm(), lambda m: dgjax.grid_karras(m, FINE), diffrax.Tsit5())
    data, reached = fine[0](latents)
    likelihoods = fine[1](data)

    def row(path, grid, solver):
        sampled, measured = solves(path, grid, solver)
        there = dgjax.repath(model, path)
        # Of the same point on two paths log-densities differ by D log alpha at t_min.
        shift = np.prod(meta.shape) * float(jnp.log(there.path.alpha(there.t_min)))
        _, ahead = sampled(latents)
        back, seconds = timed(measured, data)
        return seconds, [rms(back + shift - likelihoods), rms(ahead + shift - reached)]

    yield (
        "Euler, VP, log-SNR",
        BASELINE,
        *row(dgjax.vp(), lambda m: dgjax.grid_logsnr(m, BASELINE), diffrax.Euler()),
    )
    for name, count, steps, solver, grid in track(list(contestants(ON_NETWORKS)), "frontier"):
        yield name, count, *row(dgjax.edm(), partial(grid, steps=steps), solver)


def table(rows, columns):
    yield f"| solver | evaluations | seconds | {' | '.join(columns)} |"
    yield "|---" * (3 + len(columns)) + "|"
    for name, count, seconds, errors in rows:
        cells = " | ".join(f"{e:.3g}" for e in errors)
        yield f"| {name} | {count} | {seconds:.2f} | {cells} |"


def draw(rows, columns, file):
    """Draw the error against evaluations (above) and against seconds (below)."""
    names = list(dict.fromkeys(row[0] for row in rows[1:]))
    base, *_ = rows
    with plt.style.context("tableau-colorblind10"):
        colours = (*plt.rcParams["axes.prop_cycle"].by_key()["color"], *MORE_COLOURS)
        figure, axes = plt.subplots(
            2, len(columns), figsize=(4 * len(columns) + 2.5, 7), sharey=True, layout="constrained"
        )
        for place, column in enumerate(columns):
            for axis, cost in zip(axes[:, place], (1, 2), strict=True):
                for i, name in enumerate(names):
                    points = [(row[cost], row[3][place]) for row in rows if row[0] == name]
                    style = {"marker": MARKERS[i], "color": colours[i]}
                    axis.loglog(*zip(*points, strict=True), **style, label=name)
                axis.axhline(base[3][place], color="black", ls="--", label=f"Euler, {BASELINE}")
                axis.grid(alpha=0.3)
            axes[0, place].set_xticks(EVALUATIONS, [str(count) for count in EVALUATIONS])
            axes[0, place].minorticks_off()
            axes[0, place].set(title=column, xlabel="network evaluations")
            axes[1, place].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes[1, place].xaxis.set_major_formatter("{x:g}")
            axes[1, place].minorticks_off()
            axes[1, place].set(xlabel=f"seconds (Euler: {base[2]:.0f})")
        figure.supylabel("error of the log-density, nats (RMS)")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
        figure.savefig(file, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=["mixture", *dgjax.pretrained_models()])
    name = parser.parse_args().model
    if name == "mixture":
        columns, found = [f"q = {q}" for q in QUANTILES], mixture()
    else:
        columns, found = ["likelihood", "sampling"], shipped(name)
    rows = list(found)
    FIGURES.mkdir(exist_ok=True)
    lines = list(table(rows, columns))
    print("\n".join(lines))
    (FIGURES / f"frontier-{name}.md").write_text("\n".join(lines) + "\n")
    draw(rows, columns, FIGURES / f"frontier-{name}.png")


if __name__ == "__main__":
    main()
