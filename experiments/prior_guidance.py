"""Four dials for the detail of an image: at equal change of PNG size, which keeps quality best?

Density guidance, prior guidance (the norm of the latent at a chi quantile, [DG] section 3) and
temperature, by rescaling the score at the scale of the data and at a fine one. Every dial is turned
over its range on the same latents, which at its neutral setting have the median norm and follow the
PF-ODE. Images are compared without the noise of t_min, which guidance itself thins or thickens:
their PNG size, and their Fréchet distance, precision and recall against as many held-out images.
Published: prior guidance moves log-density over a narrow range, density guidance over a wide one.

    python experiments/prior_guidance.py
    python experiments/prior_guidance.py --preset cifar10 --model FOLDER
"""

from functools import partial
from typing import NamedTuple

import claims
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import dgjax
from dgjax.devices.batches import map_batches
from dgjax.evaluation.frechet import frechet_distance, frechet_interval
from dgjax.evaluation.intervals import Estimate
from dgjax.evaluation.precision_recall import precision_recall
from dgjax.evaluation.vgg16 import vgg16

FINE = 0.1  # the finer scale of temperature, of data in [-1, 1]
CHANGES = (-0.2, -0.1, -0.05, 0.05, 0.1, 0.2)  # of PNG size, at which dials are compared
DIVERGENCE = dgjax.Coloured(2)
QUALITIES = ("Fréchet VGG16 distance", "precision", "recall")


class Dial(NamedTuple):
    """Settings in the order of rising log-density, and the function that applies one."""

    settings: tuple[float, ...]
    neutral: float
    turn: object  # (field, latent, setting) -> (latent, guides)


class Setting(NamedTuple):
    """Results of one setting: log p and its probe error (n/4,), PNG sizes (n,) and quality."""

    log_density: np.ndarray
    error: np.ndarray
    sizes: np.ndarray
    quality: tuple[Estimate, Estimate, Estimate]


def by_prior(field, x, quantile):
    return dgjax.prior_guidance(field, x, quantile), ()


def by_density(field, x, q):
    del field
    return x, (dgjax.density_guidance(q),)


def by_temperature(scale):
    def turn(field, x, T):
        del field
        return x, (dgjax.temperature(T, scale=scale),)

    return turn


def dials(scale):
    """Return the dials by name, for data of standard deviation `scale`."""
    coarse, fine = (1.3, 1.1, 1.0, 0.8, 0.5), (2.5, 1.5, 1.0, 0.5, 0.2)
    return {
        "density guidance, q": Dial((0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9), 0.5, by_density),
        "prior guidance, quantile": Dial((1e-4, 0.05, 0.5, 0.95, 0.9999), 0.5, by_prior),
        f"temperature, scale {scale:.2g}": Dial(coarse, 1.0, by_temperature(scale)),
        f"temperature, scale {FINE:g}": Dial(fine, 1.0, by_temperature(FINE)),
    }


def sampled(field, latent_key, key, setting, *, turn, shape, grid, divergence=DIVERGENCE):
    """Return (denoised image, log p, its standard error) of one latent."""
    x = dgjax.prior_guidance(field, dgjax.prior_sample(field, latent_key, shape), 0.5)
    x, guides = turn(field, x, setting)
    found = dgjax.sample(field, x, grid, key=key, guides=guides, divergence=divergence)
    return dgjax.denoise(field, grid[-1], found.x), found.log_density, found.info.standard_error


def turned(setup, name, turn, settings, count):
    """Return results of `sampled`, (settings, latents, ...); log p for a quarter of the images."""
    few = -(-count // 4)
    grid = dgjax.grid_logsnr(setup.model.field, 3 * setup.preset.steps // 4)
    latents, probes = claims.keys(setup, count), claims.keys(setup, count, 1)
    parts = []
    for which, divergence in ((slice(few), DIVERGENCE), (slice(few, count), dgjax.Untracked())):
        options = {"turn": turn, "grid": grid, "divergence": divergence}
        one = partial(sampled, shape=setup.model.meta.shape, **options)
        found = claims.each(
            name,
            one,
            setup,
            jnp.tile(latents[which], len(settings)),
            jnp.tile(probes[which], len(settings)),
            np.repeat(np.float32(settings), len(latents[which])),
        )
        parts.append([a.reshape(len(settings), -1, *a.shape[1:]) for a in found])
    (x, log_density, error), (others, *_) = parts
    return np.concatenate([x, others], 1), log_density, error


def features(setup, x):
    """Return (n, 1472) features of images rounded to 8 bits."""
    levels = claims.levels(setup, x)
    run = jax.jit(lambda net, x: net(x))
    return map_batches("features", run, levels / np.float32(255), setup.preset.batch, vgg16())


def qualities(seen, real):
    shares = precision_recall(seen, real)
    return frechet_interval(seen, real), shares.precision, shares.recall


def measure(setup):
    """Return {dial: {setting: Setting}}, sizes of real images, quality of other real images."""
    count = 4 * setup.preset.count
    pictures = claims.images(setup, 2 * count)
    count = min(count, len(pictures) // 2)
    seen = features(setup, pictures)
    real, others = seen[:count], seen[count:]
    groups, neutral = {}, None
    for name, dial in dials(float(pictures.std())).items():
        asked = [s for s in dial.settings if neutral is None or s != dial.neutral]
        found = turned(setup, name, dial.turn, asked, count)
        measured = {}
        for setting, x, log_density, error in zip(asked, *found, strict=True):
            quality = qualities(features(setup, x), real)
            measured[setting] = Setting(log_density, error, claims.sizes(setup, x), quality)
        neutral = neutral or measured[dial.neutral]
        groups[name] = {s: measured.get(s, neutral) for s in dial.settings}
    shares = precision_recall(others, real)
    best = frechet_distance(others, real), shares.precision.value, shares.recall.value
    return groups, neutral, claims.sizes(setup, pictures[:count]), best


def row(name, setting, found):
    distance, *shares = found.quality
    return [
        f"{name} = {setting:g}",
        claims.mean_error(found.log_density),
        claims.probe_error(found.error),
        claims.mean_error(found.sizes),
        claims.between(distance, 3),
        *(f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]" for share in shares),
    ]


def reach(name, group):
    """Return the range of a dial: mean log-density, one latent's, monotone share, PNG size."""
    courses = np.array([found.log_density for found in group.values()])
    means = courses.mean(1)
    low, high = np.sort([found.sizes.mean() for found in group.values()])[[0, -1]]
    return [
        name,
        f"{means[0]:,.0f} to {means[-1]:,.0f}",
        claims.mean_error(courses[-1] - courses[0], 0),
        f"{(np.diff(courses, axis=0) > 0).all(0).mean():.0%}",
        f"{low:.0f} to {high:.0f}",
    ]


def at_size(group, size):
    """Quality where the mean PNG size is `size`, linear between settings; None out of reach.

    Ends of the intervals likewise, which is no narrower than an interval at the size itself.
    """
    means = np.array([found.sizes.mean() for found in group.values()])
    order = np.argsort(means)
    if not means[order[0]] <= size <= means[order[-1]]:
        return None
    values = np.array([found.quality for found in group.values()])[order]
    flat = values.reshape(len(means), -1).T
    found = [np.interp(size, means[order], column) for column in flat]
    return tuple(Estimate(*found[3 * i : 3 * i + 3]) for i in range(len(QUALITIES)))


def compared(groups, neutral):
    """Return rows of the dials' qualities at equal changes of PNG size."""
    plain = neutral.sizes.mean()
    for change in CHANGES:
        for name, group in groups.items():
            found = at_size(group, plain * (1 + change))
            cells = ["out of reach", "", ""]
            if found is not None:
                distance, *shares = found
                cells = [claims.between(distance, 3)]
                cells += [f"{s.value:.0%} [{s.low:.0%}, {s.high:.0%}]" for s in shares]
            yield [f"{change:+.0%}", name.split(", q")[0], *cells]


def draw(groups, real, best):
    """Draw quality against PNG size, one curve for each dial."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained")
    for which, (axis, name) in enumerate(zip(axes, QUALITIES, strict=True)):
        for i, (dial, group) in enumerate(groups.items()):
            means = [found.sizes.mean() for found in group.values()]
            values = np.array([found.quality[which] for found in group.values()])
            style = {"color": claims.COLOURS[i], "marker": "osD^"[i], "ms": 5}
            axis.plot(means, values[:, 0], label=dial.split(", q")[0], **style)
            axis.fill_between(means, values[:, 1], values[:, 2], color=claims.COLOURS[i], alpha=0.1)
        axis.plot(real.mean(), best[which], "*", color="black", ms=13, label="other real images")
        axis.set(xlabel="PNG size, bytes (mean)", ylabel=name)
    axes[0].set_yscale("log")
    axes[1].legend(fontsize=8)
    figure.suptitle("Quality against detail: one curve a dial, bands of 95 %", fontsize=11)
    claims.save(figure, "prior_guidance")


def main():
    setup = claims.start(__doc__)
    groups, neutral, real, best = measure(setup)
    header = ["dial and setting", "log p, nats", "probes, s.e.", "PNG, bytes"]
    header += [f"{name} [95 %]" for name in QUALITIES]
    rows = [row(name, s, found) for name, group in groups.items() for s, found in group.items()]
    rows.append(
        ["other real images", "", "", claims.mean_error(real), f"{best[0]:.3f}"]
        + [f"{share:.0%}" for share in best[1:]]
    )
    claims.report("prior_guidance", header, rows)
    print()
    header = ["dial", "mean log p, nats", "of one latent, end to end", "monotone", "PNG, bytes"]
    claims.report("prior_guidance_range", header, [reach(*item) for item in groups.items()])
    print()
    header = ["PNG size", "dial", *(f"{name} [95 %]" for name in QUALITIES)]
    claims.report("prior_guidance_equal_size", header, compared(groups, neutral))
    draw(groups, real, best)


if __name__ == "__main__":
    main()
