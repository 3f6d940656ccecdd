"""Two models along one trajectory: tracking by (A), and the Ito density estimator.

`superpose` follows an ODE and returns the log-density of both models from quadrature along it. The
published superposition (arXiv 2412.17762) follows the reverse SDE and sums, without a divergence,

    d log p_i = (-D f - f <x, s_i> + g^2/2 |s_i|^2) dt + <s_i, dx>,    dt < 0,

by Euler-Maruyama, here on the VP path and uniform in log-SNR. OR is the mixture of both with equal
weights, AND keeps both log-densities equal. The cost is in passes of the network for each model:
one a step of the SDE, and `JVP` for each of the 6 evaluations of a step of `superpose`.

1. Two Gaussian mixtures in 16-D: the stated log-densities against the closed forms.
2. Two classes of fashion-mnist, or two checkpoints of images of one shape: against the PF-ODE of
   each, converged, at the same image.

    python experiments/superposition.py mixtures
    python experiments/superposition.py --count 32
    python experiments/superposition.py --count 32 --other FOLDER
"""

import argparse
import sys
from functools import partial
from typing import NamedTuple

import claims
import jax
import jax.numpy as jnp
import numpy as np

import dgjax
from dgjax.checkpoints.opened import open_model
from dgjax.model.conditioned import condition
from dgjax.model.paths import coefficients
from dgjax.pictures.grid import image_grid
from dgjax.pictures.quantization import to_uint8

CLASSES = 1, 3  # trouser and dress
JVP, EVALUATIONS = 2.3, 6
OURS, THEIRS = (8, 16, 32, 72), (110, 440, 1000)  # steps
ON_IMAGES = {"superpose": (8, 32), "Ito": (110, 440)}
SHOWN, FINE = 8, 32  # pictures; steps of the PF-ODE
PROBES = dgjax.Coloured()


class Found(NamedTuple):
    """End of a trajectory.

    Attributes:
        x: (*shape) the sample in EDM coordinates, x/alpha.
        stated: (2,) log-densities of both models as the method states them, in nats.
        largest: the largest |kappa|.
    """

    x: jax.Array
    stated: jax.Array
    largest: jax.Array


def both_kappas(name, log_densities, gap, square):
    """Return the weights of two scores: `gap` is what AND must close, by kappa_1 times `square`."""
    if name == "OR":
        return jax.nn.softmax(log_densities)
    first = 0.5 + gap / jnp.where(square == 0, -1, square)
    return jnp.stack([first, 1 - first])


def ito(models, name, x, key, *, steps):
    """Sample two models on the EDM path by the reverse SDE, with the Ito density estimator."""
    path = dgjax.vp()
    there = [dgjax.repath(model, path) for model in models]
    x = path.alpha(there[0].t_max) * x
    grid = dgjax.grid_logsnr(there[0], steps)
    log_densities = jnp.stack([dgjax.log_prior(model, x) for model in there])

    def step(state, item):
        x, log_densities, largest = state
        t, dt, key = item
        c = coefficients(path, t)
        scores = jnp.stack([dgjax.score(model, t, x) for model in there])
        inner = lambda a, b: jnp.sum((a * b).reshape(len(a), -1), 1)
        own = -x.size * c.f - c.f * inner(scores, x[None]) + 0.5 * c.g2 * inner(scores, scores)
        own = own * dt
        noise = jnp.sqrt(-c.g2 * dt) * jax.random.normal(key, x.shape)
        middle = (c.f * x - c.g2 * jnp.mean(scores, 0)) * dt + noise
        apart = scores[:1] - scores[1:]
        gap = own[0] - own[1] + inner(apart, middle[None])[0]
        kappas = both_kappas(name, log_densities, gap, c.g2 * dt * inner(apart, apart)[0])
        dx = (c.f * x - c.g2 * jnp.tensordot(kappas, scores, 1)) * dt + noise
        log_densities = log_densities + own + inner(scores, dx[None])
        return (x + dx, log_densities, jnp.maximum(largest, jnp.abs(kappas).max())), None

    state = x, log_densities, jnp.zeros((), x.dtype)
    items = grid[:-1], jnp.diff(grid), jax.random.split(key, steps)
    (x, log_densities, largest), _ = jax.lax.scan(step, state, items)
    alpha = path.alpha(there[0].t_min)
    return Found(x / alpha, log_densities + x.size * jnp.log(alpha), largest)


def ours(models, name, x, key, *, steps, divergence=PROBES):
    """Sample two models on the EDM path by `superpose`."""
    grid = dgjax.grid_logsnr(models[0], steps)
    combination = dgjax.mixture(jnp.ones(2)) if name == "OR" else dgjax.intersection()
    found = dgjax.superpose(models, x, grid, combination, key=key, divergence=divergence)
    return Found(found.x, found.log_densities, jnp.zeros((), x.dtype))


def by_ode(models, x, key):
    """Return (2,) log-densities of x by the PF-ODE of each model."""
    grid = dgjax.grid_logsnr(models[0], FINE)
    run = lambda model: dgjax.likelihood(model, x, grid, key=key, divergence=PROBES).log_density
    return jnp.stack([run(model) for model in models])


def row(name, method, steps, found, true):
    """Return a row of the table from `Found` and the (n, 2) true log-densities."""
    passes = steps if method == "Ito" else round(JVP * EVALUATIONS * steps)
    log_p = lambda a: np.logaddexp(*a.T) - np.log(2) if name == "OR" else a.mean(1)
    off = log_p(found.stated) - log_p(true)
    apart = [np.abs(a[:, 0] - a[:, 1]) for a in (found.stated, true)]
    rms = lambda a: f"{np.sqrt(np.mean(np.square(a))):.3g}"
    return [
        name,
        method,
        f"{steps:,}",
        f"{passes:,}",
        claims.mean_error(log_p(true)),
        claims.mean_error(off, 2),
        rms(off),
        *(rms(a) if name == "AND" else "" for a in apart),
    ]


METHODS = {"superpose": (ours, OURS), "Ito": (ito, THEIRS)}


def clouds(size=16):
    """Return the closed forms of two Gaussian mixtures of three components."""

    def one(seed):
        rng = np.random.default_rng(seed)
        roots = 0.4 * rng.normal(size=(3, size, size)) / np.sqrt(size)
        covariances = roots @ roots.mT + 0.05 * np.eye(size)
        means = 0.3 + 0.5 * rng.normal(size=(3, size))
        mixture = dgjax.gaussian_mixture(jnp.ones(3), jnp.asarray(means), jnp.asarray(covariances))
        return dgjax.closed_form(mixture, dgjax.edm(), t_min=0.02, t_max=80.0)

    return [one(0), one(1)]


def mixtures(count=16):
    """Yield rows on two mixtures whose log-densities are known, in float64."""
    models = clouds()
    keys = jax.random.split(jax.random.key(0), (2, count))
    latents = jax.vmap(lambda k: dgjax.prior_sample(models[0], k, (16,)))(keys[0])
    for name in ("OR", "AND"):
        for method, (sampler, sizes) in METHODS.items():
            extra = {"divergence": dgjax.Exact()} if method == "superpose" else {}
            for steps in sizes:
                one = partial(sampler, models, name, steps=steps, **extra)
                found = jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(latents, keys[1]))
                log_p = lambda model, x: dgjax.log_density(model, model.t_min, x)
                true = [jax.vmap(partial(log_p, model))(found.x) for model in models]
                yield row(name, method, steps, found, np.stack(true, 1))


def pair_of(field, other):
    """Return the two models: two classes of one, or it and another checkpoint."""
    if other is not None:
        return [field, other.field]
    return [condition(field, jnp.asarray(label)) for label in CLASSES]


def images(setup, other):
    """Return rows on two models of images, and pictures of the first latents."""
    count, shape = max(setup.preset.count // 4, claims.LEAST), setup.model.meta.shape
    keys = claims.keys(setup, count), claims.keys(setup, count, 1)
    rows, shown = [], []
    start = lambda field, key: dgjax.prior_sample(field, key, shape)

    def alone(field, key, index):
        model, grid = pair_of(field, other)[index], dgjax.grid_logsnr(field, 32)
        found = dgjax.sample(model, start(field, key), grid, key=key, divergence=PROBES)
        return dgjax.denoise(model, grid[-1], found.x)

    for index in range(2):
        shown.append(claims.each("alone", partial(alone, index=index), setup, keys[0]))
    for name in ("OR", "AND"):
        for method, (sampler, _) in METHODS.items():
            for steps in ON_IMAGES[method]:

                def one(field, latent_key, key, sampler=sampler, name=name, steps=steps):
                    models = pair_of(field, other)
                    found = sampler(models, name, start(field, latent_key), key, steps=steps)
                    clean = dgjax.denoise(models[0], field.t_min, found.x)
                    return found, by_ode(models, found.x, key), clean

                found, true, clean = claims.each(f"{name} {method}", one, setup, *keys)
                rows.append(row(name, method, steps, found, np.asarray(true)))
                print(rows[-1], f"largest kappa {np.max(found.largest):.3g}", flush=True)
            shown.append(clean)
    return rows, [np.asarray(images)[:SHOWN] for images in shown]


def draw(setup, other, shown):
    """Draw images of the same latents, a row for each method."""
    meta = setup.model.meta
    names = [meta.labels[label] if meta.labels else f"class {label}" for label in CLASSES]
    if other is not None:
        names = [setup.model.name, other.name]
    names += [f"{name}, {method}" for name in ("OR", "AND") for method in METHODS]
    levels = np.stack([to_uint8(images, meta.data_range) for images in shown])
    figure = image_grid(levels, names, title="One latent a column")
    claims.save(figure, "superposition" if other is None else "superposition-checkpoints")


def main():
    header = ["combination", "method", "steps", "passes", "log p, nats", "stated less true", "RMS"]
    header += ["log p_1 - log p_2 stated, RMS", "true, RMS"]
    if sys.argv[1:] == ["mixtures"]:
        with jax.enable_x64():
            claims.report("superposition_mixtures", header, list(mixtures()))
        return
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--other", help="checkpoint or shipped model, for two classes of --model")
    setup = claims.start_unconditional(__doc__, options)
    name = options.parse_known_args()[0].other
    other = None if name is None else open_model(name)
    if other is not None and other.meta.shape != setup.model.meta.shape:
        raise SystemExit(
            f"error: samples of {name} have the shape {other.meta.shape}, those of "
            f"{setup.model.name} {setup.model.meta.shape}: both must be equal"
        )
    rows, shown = images(setup, other)
    claims.report("superposition", header, rows)
    draw(setup, other, shown)


if __name__ == "__main__":
    main()
