"""Exact targets: requested and reached log-density.

By closed loop, which steers the tracked log-density on the way, and by shooting, which finds the
dial q whose whole trajectory ends there. *Missed* is the RMS, in nats, of the log-density of the
sample less the target, over latents and targets that are within reach (two spreads below the usual
to one above). On the mixture, 16-D, the log-density of the sample is that of the closed form. On
the shipped model it is the tracked one, and apart from that a likelihood of the sample says what
the model's own inconsistency adds.

    python experiments/targets.py
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

import dgjax
from dgjax.model.divergence import Divergence

MODEL, LATENTS, NATS = "fashion-mnist", 4, (500.0, 900.0, 1300.0, 1700.0)
OUT = Path(__file__).parent / "figures" / "targets.md"


class Way(NamedTuple):
    solver: diffrax.AbstractSolver
    steps: int
    each: int  # evaluations a step
    grid: Callable[..., jax.Array] = dgjax.grid_uniform


CLOSED = {
    "Multistep(2), sigma^(1/7)": Way(dgjax.Multistep(2), 48, 1),
    "Multistep(2), log-SNR": Way(dgjax.Multistep(2), 48, 1, dgjax.grid_logsnr),
    "Multistep(2), log-SNR, 32 steps": Way(dgjax.Multistep(2), 32, 1, dgjax.grid_logsnr),
    "Multistep(3), log-SNR": Way(dgjax.Multistep(3), 48, 1, dgjax.grid_logsnr),
    "Dopri5, 8 steps": Way(diffrax.Dopri5(), 8, 6, dgjax.grid_logsnr),
    "Dopri5": Way(diffrax.Dopri5(), 48, 6, dgjax.grid_logsnr),
}
SHOT = {"shooting, Multistep()": Way(dgjax.Multistep(), 32, 1, dgjax.grid_logsnr)}


class Case(NamedTuple):
    model: dgjax.Field
    latents: jax.Array
    targets: jax.Array
    divergence: Divergence
    measure: Callable[..., jax.Array] | None  # exact log-density of a sample


def mixture():
    keys = jax.random.split(jax.random.key(0), 3)
    turns = jnp.linalg.qr(jax.random.normal(keys[0], (5, 16, 16)))[0]
    scales = jnp.logspace(jnp.log10(0.3), 0.0, 16)
    covariances = jnp.einsum("kij,j,klj->kil", turns, scales**2, turns)
    means = jax.random.normal(keys[1], (5, 16))
    mixed = dgjax.gaussian_mixture(jnp.ones(5), means, (covariances + covariances.mT) / 2)
    model = dgjax.closed_form(mixed, dgjax.edm(7.0), t_min=0.05 ** (1 / 7), t_max=20.0 ** (1 / 7))
    latents = jax.vmap(lambda k: mixed.sample(k, 20.0))(jax.random.split(keys[2], 16))
    measure = lambda x: dgjax.log_density(model, model.t_min, x)
    usual = jax.vmap(lambda k: measure(mixed.sample(k, 0.05)))(jax.random.split(keys[2], 500))
    targets = jnp.mean(usual) + jnp.std(usual) * jnp.array([-2.0, -1.0, 0.0, 1.0])
    return Case(model, latents, targets, dgjax.Exact(), measure)


def shipped():
    model, meta = dgjax.load_pretrained(MODEL)
    model = dgjax.repath(model, dgjax.edm(7.0))
    keys = jax.random.split(jax.random.key(0), LATENTS)
    latents = jax.vmap(lambda k: dgjax.prior_sample(model, k, meta.shape))(keys)
    return Case(model, latents, jnp.array(NATS), dgjax.Coloured(2), None)


def outcome(case, way, shooting):
    """Return the samples of every latent at every target."""
    grid = way.grid(case.model, way.steps)
    options = {"divergence": case.divergence, "solver": way.solver}

    @jax.jit
    def run(model, latents, targets):
        profile = dgjax.pilot(model, latents[:4], grid, key=jax.random.key(5), **options)

        def one(x, key, target):
            if shooting:
                return dgjax.shoot(model, x, grid, target, key=key, **options).sampled
            guides = (dgjax.target_guidance(target, model, profile),)
            return dgjax.sample(model, x, grid, key=key, guides=guides, **options)

        keys = jax.random.split(jax.random.key(6), len(latents))
        return jax.vmap(jax.vmap(one, (0, 0, None)), (None, None, 0))(latents, keys, targets)

    return run(case.model, case.latents, case.targets)


def likelihoods(case, x):
    grid = dgjax.grid_logsnr(case.model, 64)

    @jax.jit
    def one(model, x):
        found = dgjax.likelihood(
            model, x, grid, key=jax.random.key(7), divergence=dgjax.Coloured(5)
        )
        return found.log_density

    return jax.lax.map(lambda x: one(case.model, x), x.reshape(-1, *x.shape[2:])).reshape(
        x.shape[:2]
    )


def row(name, case, way, shooting):
    found = outcome(case, way, shooting)
    reached = (
        found.log_density if case.measure is None else jax.vmap(jax.vmap(case.measure))(found.x)
    )
    off = np.asarray(reached - case.targets[:, None], np.float64)
    apart = ""
    if case.measure is None:
        again = np.asarray(likelihoods(case, found.x) - reached, np.float64)
        apart = f" | {again.mean():+.1f}"
    count = f"at most 27 solves of {way.steps}" if shooting else str(way.steps * way.each)
    rms, worst, met = np.sqrt(np.mean(off**2)), np.abs(off).max(), found.info.target_met.mean()
    return f"| {name} | {count} | {rms:.2g} | {worst:.2g} | {met:.0%}{apart} |"


def main():
    with jax.enable_x64(True):
        lines = table("mixture, 16-D, 16 latents", mixture())
    lines += table(f"{MODEL}, {LATENTS} latents", shipped())
    print("\n".join(lines))
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n")


def table(title, case):
    header = ["", "evaluations", "missed, nats (RMS)", "at most", "met"]
    if case.measure is None:
        header.append("likelihood less tracked, mean")
    asked = ", ".join(f"{value:.0f}" for value in case.targets)
    lines = [f"{title}; asked for {asked} nats", "", f"| {' | '.join(header)} |"]
    lines.append("|---" * len(header) + "|")
    ways = [(*way, False) for way in CLOSED.items()] + [(*way, True) for way in SHOT.items()]
    for name, way, shooting in track(ways, title):
        lines.append(row(name, case, way, shooting))
    return [*lines, ""]


if __name__ == "__main__":
    main()
