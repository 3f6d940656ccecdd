"""Which score the density dial uses beside classifier-free guidance.

Three ways to combine both. "Conditional, last": density guidance with the conditional score s,
after classifier-free guidance, of which it keeps what is perpendicular to s. "Conditional, first":
density guidance, then all of classifier-free guidance. "Guided": density guidance along the guided
score weight s + (1 - weight) s', after classifier-free guidance.

Nats asked are Phi^-1(q) `forcing_nats`. Nats forced are the integral of <v - u, s>, which is
what all guides together do to log p(x | class) beside the divergence of u. Both are measured on a
mixture with four classes, where log p and the probability of the class are known, and on a model of
images. There the class is the one with which the network predicts noise best that was added to the
denoised image, in the mean over a few levels.

    python experiments/guided_score.py
    python experiments/guided_score.py --count 16
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import claims
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

import dgjax

WEIGHTS, QUANTILES = (1.0, 3.0), (0.2, 0.5, 0.8)  # 1 is no guidance
JUDGED = (0.5, 1.0, 2.0)  # levels sigma/alpha at which the class is judged
CLASSES, SIZE = 4, 64  # of the mixture
LATENTS = 512  # of the mixture


@dgjax.register_dataclass
@dataclass(frozen=True)
class NoDivergence:
    """Zero in place of the divergence, so that the nats forced alone change the log-density.

    What remains is the divergence of x/sigma, which solvers know.
    """

    def __call__(self, jvp, x, key):
        return jnp.zeros(1, x.dtype)

    def standard_error(self, estimates, scatter=jnp.inf):
        return jnp.zeros((), estimates.dtype)


@dgjax.register_dataclass
@dataclass(frozen=True)
class GuidedScoreDial:
    """Density guidance along the guided score, which the drift so far contains."""

    probit: jax.Array

    def __call__(self, drift, local):
        guided = local.score + 2 * (local.velocity - drift) / local.g2
        norm2 = local.sigma**2 * jnp.sum(guided**2)
        change = jnp.sqrt(2.0 * local.x.size) * self.probit / norm2
        return drift - 0.5 * local.g2 * jnp.clip(change, -1, 1) * guided


WAYS = {
    "conditional, last": lambda towards, q: (towards, dgjax.density_guidance(q)),
    "conditional, first": lambda towards, q: (dgjax.density_guidance(q), towards),
    "guided": lambda towards, q: (towards, GuidedScoreDial(ndtri(q))),
}


class Found(NamedTuple):
    """Of one latent: sample, nats forced, log p(x | class), and the class seen in it."""

    x: jax.Array
    forced: jax.Array
    log_density: jax.Array
    label: jax.Array | None = None


class Masked:
    """Denoise by the components of one class of a mixture, or by all of them without a class."""

    def __init__(self, mixture):
        self.mixture = mixture

    def of(self, label):
        """Return the mixture of one class."""
        classes = jnp.arange(self.mixture.log_weights.size) % CLASSES
        kept = jnp.where(classes == label, self.mixture.log_weights, -jnp.inf)
        kept = kept - jax.nn.logsumexp(kept)
        return dgjax.GaussianMixture(
            kept,
            self.mixture.means,
            self.mixture.basis,
            self.mixture.variances,
            self.mixture.rest,
            self.mixture.shape,
        )

    def __call__(self, x, t, cond):
        return (self.mixture if cond is None else self.of(cond))(x, t)


def mixture():
    """Return a mixture of two components for each class, and its model."""
    rng = np.random.default_rng(0)
    count = 2 * CLASSES
    spread = np.exp(rng.uniform(-1.5, 0.0, SIZE))  # standard deviations from 0.22 to 1
    means = 0.25 * spread * rng.standard_normal((count, SIZE))  # so near that classes overlap
    covariances = np.tile(np.diag(spread**2), (count, 1, 1))
    data = dgjax.gaussian_mixture(np.ones(count), means, covariances)
    network = Masked(data)
    model = dgjax.field(
        network, dgjax.edm(), dgjax.DenoisedPrediction(), t_min=0.05, t_max=40.0, shape=(SIZE,)
    )
    return network, model


def solve(field, guides, x, key, label, grid, divergence):
    return dgjax.sample(field, x, grid, key=key, guides=guides, divergence=divergence, cond=label)


def forced(field, x, run):
    """Return the nats that all guides force, from a solve with `NoDivergence`."""
    ends = (dgjax.logsnr(field.path, t) for t in (field.t_min, field.t_max))
    known = 0.5 * x.size * (next(ends) - next(ends))  # the divergence of x/sigma
    return run.log_density - dgjax.log_prior(field, x) - known


def on_mixture():
    """Return {(weight, way, q): Found}, the probabilities of the class, and the model."""
    network, field = mixture()
    grid = dgjax.grid_logsnr(field, 64)
    keys = jax.random.split(jax.random.key(0), LATENTS)
    labels = jnp.arange(LATENTS) % CLASSES
    groups, shares = {}, {}

    def one(key, label, weight, q, way):
        x = dgjax.prior_sample(field, key, (SIZE,))
        guides = way(dgjax.classifier_free_guidance(weight, field), q)
        found = solve(field, guides, x, key, label, grid, NoDivergence())
        true = network.of(label).log_density(found.x, field.t_min)
        share = jnp.exp(true - network.mixture.log_density(found.x, field.t_min)) / CLASSES
        return Found(found.x, forced(field, x, found), true), share

    for weight in WEIGHTS:
        for name, way in WAYS.items():
            run = jax.jit(jax.vmap(partial(one, way=way), (0, 0, None, None)))
            for q in QUANTILES:
                key = (weight, name, q)
                found = run(keys, labels, jnp.float32(weight), jnp.float32(q))
                groups[key], shares[key] = jax.tree.map(np.asarray, found)
    return groups, shares, field


def judge(field, image, key, classes):
    """Return the label with which the network predicts added noise best."""
    eps = jax.random.normal(key, (len(JUDGED), *image.shape))

    def error(label, level, eps):
        t = field.path.time(-2 * jnp.log(level))
        x = field.path.alpha(t) * image + field.path.sigma(t) * eps
        return jnp.sum((field.pair(t, x, label).eps - eps) ** 2)

    levels = jnp.asarray(JUDGED)
    errors = jax.lax.map(
        lambda label: jnp.sum(jax.vmap(partial(error, label))(levels, eps)), jnp.arange(classes)
    )
    return jnp.argmin(errors)


def on_images(setup):
    """Return {(weight, way, q): Found} of denoised images, and their labels."""
    field, preset = setup.model.field, setup.preset
    classes = setup.model.meta.model.network["num_classes"]
    labels = (np.arange(preset.count) % classes).astype(np.int32)
    grid = dgjax.grid_logsnr(field, preset.steps // 2)
    groups = {}
    for name, way in WAYS.items():

        def one(field, latent_key, key, label, weight, q, way=way):
            x = dgjax.prior_sample(field, latent_key, setup.model.meta.shape)
            guides = way(dgjax.classifier_free_guidance(weight, field), q)
            plain = solve(field, guides, x, key, label, grid, NoDivergence())
            full = solve(field, guides, x, key, label, grid, dgjax.Coloured(1))
            clean = dgjax.denoise(field, grid[-1], full.x, label)
            seen = judge(field, clean, key, classes)

            return Found(clean, forced(field, x, plain), full.log_density, seen)

        pairs = [(weight, q) for weight in WEIGHTS for q in QUANTILES]
        pairs = [pair for pair in pairs if pair[0] != 1 or name == "conditional, last"]
        found = claims.each(
            name,
            one,
            setup,
            jnp.tile(claims.keys(setup, preset.count), len(pairs)),
            jnp.tile(claims.keys(setup, preset.count, 1), len(pairs)),
            np.tile(labels, len(pairs)),
            *np.repeat(np.float32(pairs), preset.count, axis=0).T,
        )
        parts = zip(*(np.split(a, len(pairs)) for a in found), strict=True)
        groups |= {(w, name, q): Found(*part) for (w, q), part in zip(pairs, parts, strict=True)}
    return groups, labels


def rows(groups, per_unit, last):
    """Return the rows of a table; `last` adds cells from the key and the group."""
    for (weight, way, q), found in groups.items():
        if weight == 1 and way != "conditional, last":
            continue  # the same without guidance
        rest = groups[weight, way, 0.5]
        change = np.sqrt(np.mean((found.x - rest.x) ** 2, axis=tuple(range(1, found.x.ndim))))
        asked = float(ndtri(q)) * per_unit
        yield [
            f"{weight:g}",
            way if weight != 1 else "",
            f"{q:g}",
            f"{asked:,.1f}",
            claims.mean_error(found.forced),
            f"{np.std(found.forced - asked):,.1f}",
            claims.mean_error(found.log_density),
            "" if q == 0.5 else f"{np.mean(change):.3f}",
            *last((weight, way, q), found),
        ]


HEADER = [
    "weight",
    "score of the dial",
    "q",
    "nats asked",
    "nats forced",
    "spread of it",
]
HEADER += ["log p(x given class), nats", "RMS change from q = 0.5"]


def main():
    setup = claims.start_unconditional(__doc__)
    groups, shares, field = on_mixture()
    unit = float(dgjax.forcing_nats(field, SIZE))
    claims.report(
        "guided_score_mixture",
        [*HEADER, "probability of the class"],
        rows(groups, unit, lambda key, found: [f"{shares[key].mean():.1%}"]),
    )
    print()
    groups, labels = on_images(setup)

    def last(key, found):
        right = found.label == labels
        return [f"{right.mean():.0%}", claims.mean_error(claims.sizes(setup, found.x))]

    unit = float(dgjax.forcing_nats(setup.model.field, setup.model.size))
    header = [*HEADER, "in the class asked for", "PNG, bytes"]
    claims.report("guided_score", header, rows(groups, unit, last))


if __name__ == "__main__":
    main()
