"""Frontier: error of the log-density against network evaluations, for every solver on offer.

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
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from rich.progress import track

import dgjax

EVALUATIONS = (16, 20, 24, 32, 48, 64, 96)
BASELINE, FINE = 1024, 64  # steps
COUNT = 6  # latents, and samples whose likelihood is measured
QUANTILES = (0.3, 0.5, 0.7)  # on the mixture
DIMENSIONS, COMPONENTS, SCALES = 784, 3, (0.005, 2.0)
SOLVERS = {  # evaluations a step, those beyond, and the solver
    "Heun": (2, 0, diffrax.Heun()),
    "Bosh3": (3, 0, diffrax.Bosh3()),
    "Tsit5": (6, 0, diffrax.Tsit5()),
    "Dopri5": (6, 0, diffrax.Dopri5()),
    "Multistep(1)": (1, 1, dgjax.Multistep(1)),
    "Multistep(2)": (1, 1, dgjax.Multistep(2)),
    "Multistep(3)": (1, 1, dgjax.Multistep(3)),
}
FIGURES = Path(__file__).parent / "figures"


def contestants():
    """(name, evaluations, steps, solver), leaving out what the evaluations do not divide into."""
    for name, (each, more, solver) in SOLVERS.items():
        for count in EVALUATIONS:
            if (count - more) % each == 0:
                yield name, count, (count - more) // each, solver


def timed(run, *arguments):
    """Result and seconds, once compiled."""
    jax.block_until_ready(run(*arguments))
    began = time.perf_counter()
    found = jax.block_until_ready(run(*arguments))
    return found, time.perf_counter() - began


def rms(a):
    return float(np.sqrt(np.mean(np.square(a))))


def mixture():
    """Rows (name, evaluations, seconds, errors by q) on the closed form."""
    jax.config.update("jax_enable_x64", True)
    keys = jax.random.split(jax.random.key(0), COMPONENTS + 2)
    variances = jnp.geomspace(*SCALES, DIMENSIONS) ** 2
    covariances = [jnp.diag(jax.random.permutation(k, variances)) for k in keys[2:]]
    means = jax.random.normal(keys[0], (COMPONENTS, DIMENSIONS))
    cloud = dgjax.gaussian_mixture(jnp.ones(COMPONENTS), means, jnp.stack(covariances))
    model = dgjax.closed_form(cloud, dgjax.edm(), t_min=0.02, t_max=80.0)
    latents = jax.vmap(lambda k: cloud.sample(k, 80.0))(jax.random.split(keys[1], COUNT))

    def solve(path, grid, solver):
        there = dgjax.repath(model, path)

        @jax.jit
        def run(x, q):
            def one(x):
                x = x * there.path.alpha(there.t_max)
                guides = (dgjax.density_guidance(q),)
                found = dgjax.sample(
                    there,
                    x,
                    grid(there),
                    key=keys[0],
                    guides=guides,
                    divergence=dgjax.Exact(chunk=112),
                    solver=solver,
                )
                true = dgjax.log_density(there, there.t_min, found.x)
                return found.log_density - true

            return jax.vmap(one)(x)

        return run

    def row(run):
        found = [timed(run, latents, q) for q in QUANTILES]
        return np.mean([f[1] for f in found]), [rms(f[0]) for f in found]

    euler = solve(dgjax.vp(), lambda m: dgjax.grid_logsnr(m, BASELINE), diffrax.Euler())
    yield "Euler, VP, log-SNR", BASELINE, *row(euler)
    for name, count, steps, solver in track(list(contestants()), "frontier"):
        run = solve(dgjax.edm(), lambda m, n=steps: dgjax.grid_karras(m, n), solver)
        yield name, count, *row(run)


def shipped(name):
    """Rows (name, evaluations, seconds, errors of likelihood and of sampling) on a network."""
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
    for name, count, steps, solver in track(list(contestants()), "frontier"):
        found = row(dgjax.edm(), lambda m, n=steps: dgjax.grid_karras(m, n), solver)
        yield name, count, *found


def table(rows, columns):
    yield f"| solver | evaluations | seconds | {' | '.join(columns)} |"
    yield "|---" * (3 + len(columns)) + "|"
    for name, count, seconds, errors in rows:
        cells = " | ".join(f"{e:.3g}" for e in errors)
        yield f"| {name} | {count} | {seconds:.2f} | {cells} |"


def draw(rows, columns, file):
    figure, axes = plt.subplots(1, len(columns), figsize=(5 * len(columns), 4), sharey=True)
    for place, (axis, column) in enumerate(zip(axes, columns, strict=True)):
        for name in SOLVERS:
            points = [(r[1], r[3][place]) for r in rows if r[0] == name]
            axis.loglog(*zip(*points, strict=True), marker="o", label=name)
        axis.axhline(rows[0][3][place], color="black", ls="--", label=f"Euler, {BASELINE}")
        axis.set(title=column, xlabel="network evaluations")
    axes[0].set_ylabel("error of the log-density, nats (RMS)")
    axes[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=150)


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
