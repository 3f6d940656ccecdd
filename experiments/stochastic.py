"""Stochastic density guidance: does the log-density of a noisy path follow the requested schedule?

True minus tracked log-density at the end (RMS over paths, nats) at equal network evaluations, with
noise along the level set at all noise levels and q = 0.7, on two mixtures. The published scheme
is on its own conventions: VP path, equal steps of log-SNR, Euler, the Ito correction by one
Rademacher probe a step (its tracking is given the exact divergence all the same, so that only the
scheme differs). All others are on the grid of sigma^(1/7). The last column is the published error
over theirs at equal evaluations, least and largest.

What a scheme tracks is what was asked for, but for `LevelSetEuler`, which measures where it is
and pays what it owes a step later: a last row has what it owes at the end.

    python experiments/stochastic.py
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy.interpolate import CubicSpline

import dgjax
from dgjax.guidance.guide import apply_guides
from dgjax.model import paths

EVALUATIONS, Q = (32, 64, 128, 256), 0.7
ALONG = dgjax.level_set_noise()
OUT = Path(__file__).parent / "figures"


class Scheme(NamedTuple):
    each: int  # evaluations a step
    more: int  # and beyond
    path: paths.Path
    solver: diffrax.AbstractSolver
    noise: object


class Case(NamedTuple):
    mixture: dgjax.GaussianMixture
    sigmas: tuple[float, float]
    paths: int


@jax.tree_util.register_static
@dataclass(frozen=True)
class WithProbe:
    """Divergence estimates: the exact one first, then a Rademacher estimate."""

    def __call__(self, jvp, x, key):
        exact = dgjax.Exact(chunk=64)(jvp, x, key)
        return jnp.concatenate([exact, dgjax.Hutchinson()(jvp, x, key)])

    def standard_error(self, estimates, scatter=jnp.nan):
        del scatter
        return jnp.zeros((), estimates.dtype)


@jax.tree_util.register_static
@dataclass(frozen=True)
class PublishedWithProbe:
    """The published step by the probe, tracked by the exact divergence."""

    def step(self, drift, local, dt, dW):
        probe = local._replace(divergences=local.divergences[1:])
        dx, _ = dgjax.published_stochastic().step(drift, probe, dt, dW)
        _, gain = dgjax.published_stochastic().step(drift, local, dt, dW)
        return dx, jnp.broadcast_to(gain[:1], gain.shape)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Kappa(paths.Path):
    """The state is x/sigma and time linear in 1/sigma, which makes steps exponential."""

    def alpha(self, t):
        return -t

    def sigma(self, t):
        return jnp.ones_like(t)

    def time(self, logsnr):
        return -jnp.exp(0.5 * logsnr)


PROBED = "published (Ito, Rademacher probe)"
OURS, ASKED = "LevelSetEuler", "LevelSetEuler, true minus asked-for"
SCHEMES = {
    PROBED: Scheme(1, 0, dgjax.vp(), diffrax.Euler(), PublishedWithProbe()),
    "published (Ito, exact Laplacian)": Scheme(
        1, 0, dgjax.vp(), diffrax.Euler(), dgjax.published_stochastic()
    ),
    "noise-matched Ito (and a jvp)": Scheme(
        1, 0, dgjax.edm(7.0), diffrax.Euler(), dgjax.noise_matched()
    ),
    "Stratonovich Heun": Scheme(2, 0, dgjax.edm(7.0), diffrax.Heun(), ALONG),
    "Stratonovich RK4": Scheme(4, 0, dgjax.edm(7.0), dgjax.RK4(), ALONG),
    "Stratonovich RK4, x/sigma": Scheme(4, 0, Kappa(), dgjax.RK4(), ALONG),
    "Stratonovich Dopri5": Scheme(6, 0, dgjax.edm(7.0), diffrax.Dopri5(), ALONG),
    "Stratonovich Dopri5, x/sigma": Scheme(6, 0, Kappa(), diffrax.Dopri5(), ALONG),
    OURS: Scheme(1, 1, dgjax.edm(), dgjax.LevelSetEuler(), ALONG),
}


def small():
    """Make a 16-D mixture: five full covariances, standard deviations from 0.3 to 1."""
    keys = jax.random.split(jax.random.key(0), 2)
    turns = jnp.linalg.qr(jax.random.normal(keys[0], (5, 16, 16)))[0]
    scales = jnp.logspace(jnp.log10(0.3), 0.0, 16)
    covariances = jnp.einsum("kij,j,klj->kil", turns, scales**2, turns)
    covariances = 0.5 * (covariances + covariances.transpose(0, 2, 1))
    means = jax.random.normal(keys[1], (5, 16))
    return dgjax.gaussian_mixture(jnp.ones(5), means, covariances)


def large():
    """Make a 256-D mixture: three components, scales from 0.005 to 2 in different orders."""
    keys = jax.random.split(jax.random.key(0), 4)
    variances = jnp.geomspace(0.005, 2.0, 256) ** 2
    covariances = [jnp.diag(jax.random.permutation(key, variances)) for key in keys[1:]]
    means = jax.random.normal(keys[0], (3, 256))
    return dgjax.gaussian_mixture(jnp.ones(3), means, jnp.stack(covariances))


def rms(errors):
    return float(np.sqrt(np.mean(np.square(errors))))


def errors_of(case, scheme, evaluations):
    """Return RMS errors in nats: true minus tracked, and true minus requested log-density."""
    low, high = case.sigmas
    model = dgjax.closed_form(case.mixture, dgjax.edm(), t_min=low, t_max=high)
    model = dgjax.repath(model, scheme.path)
    steps = (evaluations - scheme.more) // scheme.each
    published = isinstance(scheme.path, paths.VP)
    grid = (dgjax.grid_logsnr if published else dgjax.grid_karras)(model, steps)
    probed = isinstance(scheme.noise, PublishedWithProbe)
    guides, exact = (dgjax.density_guidance(Q),), dgjax.Exact(chunk=64)
    ours = isinstance(scheme.solver, dgjax.LevelSetEuler)

    def rate(t, x, log_density):
        """Return log sigma and the requested d log p/d log sigma at one point."""
        at = dgjax.evaluate(model, t, x, divergence=exact, key=jax.random.key(0))
        away = apply_guides(guides, at) - at.velocity
        asked = jnp.sum(away * at.score) - at.divergence
        return -0.5 * at.logsnr, asked * 2 * at.sigma**2 / at.g2

    @jax.jit
    @jax.vmap
    def one(key):
        start, walk = jax.random.split(key)
        x = model.path.alpha(model.t_max) * case.mixture.sample(start, high)
        found = dgjax.sample(
            model,
            x,
            grid,
            key=walk,
            guides=guides,
            noise=scheme.noise,
            divergence=WithProbe() if probed else exact,
            solver=scheme.solver,
            save=rate if ours else None,
        )
        true = dgjax.log_density(model, model.t_min, found.x)
        gained = true - dgjax.log_prior(model, x)
        return true - found.log_density, gained, found.trajectory

    errors, gained, course = one(jax.random.split(jax.random.key(1), case.paths))
    if not ours:
        return rms(errors), rms(errors)
    log_sigmas, rates = (np.asarray(a) for a in course)
    pairs = zip(-log_sigmas, -rates, strict=True)
    asked = [CubicSpline(u, r).integrate(u[0], u[-1]) for u, r in pairs]
    return rms(errors), rms(gained - np.array(asked))


def figures(number):
    """Write a number with two digits."""
    return f"{float(f'{number:.2g}'):g}"


def row(name, errors, published):
    ratios = np.array(published) / errors
    cells = " | ".join(figures(e) for e in errors)
    return f"| {name} | {cells} | {figures(ratios.min())} to {figures(ratios.max())} |"


def draw(axis, name, errors):
    for place, (scheme, found) in enumerate(errors.items()):
        style = {"color": f"C{place}", "marker": "osv^DPX*"[place % 8]}
        if place == 0:  # the second lies upon it
            style |= {"lw": 5, "ms": 11, "alpha": 0.5}
        if scheme in (OURS, ASKED):
            style |= {"color": "black", "lw": 2.5}
        line = "--" if "published" in scheme else ":" if scheme == ASKED else "-"
        shown = [e if e < 1e3 else np.nan for e in found]
        axis.loglog(EVALUATIONS, shown, ls=line, label=scheme, **style)
    axis.set(title=f"{name}, q = {Q}", xlabel="network evaluations")
    axis.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
    axis.minorticks_off()


def main():
    jax.config.update("jax_enable_x64", True)
    plt.style.use("petroff10")
    cases = {
        "16-D, five components": Case(small(), (0.05, 20.0), 64),
        "256-D, three components": Case(large(), (0.02, 80.0), 12),
    }
    figure, axes = plt.subplots(1, len(cases), figsize=(13, 4.5))
    lines = []
    for axis, (name, case) in zip(axes, cases.items(), strict=True):
        columns = " | ".join(f"{n} evaluations" for n in EVALUATIONS)
        lines += [f"| {name} | {columns} | published over this |"]
        lines += ["|---" * (2 + len(EVALUATIONS)) + "|"]
        print("\n".join(lines[-2:]))
        errors = {}
        for scheme, parts in SCHEMES.items():
            tracked, asked = zip(*(errors_of(case, parts, n) for n in EVALUATIONS), strict=True)
            errors[scheme] = tracked
            print(row(scheme, tracked, errors[PROBED]), flush=True)
        errors[ASKED] = asked
        print(row(ASKED, asked, errors[PROBED]), flush=True)
        lines += [row(scheme, found, errors[PROBED]) for scheme, found in errors.items()]
        lines += [""]
        draw(axis, name, errors)
    axes[0].set_ylabel("true minus tracked log-density, nats (RMS)")
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.tight_layout()
    OUT.mkdir(exist_ok=True)
    (OUT / "stochastic.md").write_text("\n".join(lines))
    figure.savefig(OUT / "stochastic.png", dpi=150)


if __name__ == "__main__":
    main()
