"""Noise of stochastic density guidance: which details does it vary?

Many noise paths of ONE latent, with noise along the level set at all noise levels, early (near the
prior) or late (near the data), under two schedules of the log-density: the published one of
quantile q, whose rate b = -div u - ... is read off wherever the path is ([DG] section 5), and one
that is fixed beforehand, the rate by log-SNR of the same latent without noise. Then the plain
reverse SDE. The spread of the final log-density is shown as tracked on the way and as the PF-ODE
finds it for the images. Early noise should change structure and late noise details: squared
distances between the images of a group are split into those of 4x4 blocks (coarse) and the rest
(fine).

    python experiments/noise_windows.py
    python experiments/noise_windows.py --preset cifar10 --model FOLDER
"""

from functools import partial

import claims
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import dgjax

Q = 0.5  # the reverse SDE has no other
BLOCK = 4  # pixels
SHOWN = 7  # images of a group in the picture
WINDOWS = {  # log-SNR, noise to data
    "all noise levels": (-np.inf, np.inf),
    "early, log-SNR < 1": (-np.inf, 1.0),
    "late, log-SNR > 1": (1.0, np.inf),
}
PUBLISHED, FIXED, SDE = f"level set, q = {Q}", "level set, fixed schedule", "reverse SDE"
DIVERGENCE = dgjax.Coloured()


def fixed_schedule(field, x, key, *, grid, q=Q):
    """Return d log p/d log-SNR of `x` at q without noise, as a schedule on `grid`."""
    options = {"guides": (dgjax.density_guidance(q),), "divergence": DIVERGENCE}
    course = dgjax.sample(field, x, grid, key=key, save=dgjax.Trajectory, **options).trajectory
    levels = jax.vmap(lambda t: dgjax.logsnr(field.path, t))(course.t)
    rates = jnp.diff(course.log_density) / jnp.diff(levels)
    return dgjax.schedule(rates, 0.5 * (levels[1:] + levels[:-1]))


def along_level_set(field, x, key, low, high, *, grid, guide):
    """Return (x, tracked log p) of one path under `guide`; the window is in log-SNR."""
    found = dgjax.sample(
        field,
        x,
        grid,
        key=key,
        guides=(guide,),
        noise=dgjax.level_set_noise(dgjax.window(low=low, high=high)),
        divergence=DIVERGENCE,
    )
    return found.x, found.log_density


def by_reverse_sde(field, x, key, low, high, *, grid):
    """Return (x, NaN) of one path: the reverse SDE in the window, the PF-ODE outside."""
    found = dgjax.sample(
        field,
        x,
        grid,
        key=key,
        noise=dgjax.reverse_sde(dgjax.window(low=low, high=high)),
        divergence=dgjax.Untracked(),
        solver=diffrax.Heun(),
    )
    return found.x, found.log_density


def recomputed(field, x, key, *, grid):
    """Return (denoised, log p by the PF-ODE, its standard error)."""
    found = dgjax.likelihood(field, x, grid, key=key, divergence=DIVERGENCE)
    return dgjax.denoise(field, grid[-1], x), found.log_density, found.info.standard_error


def scales(x, block=BLOCK):
    """Split (n, H, W, C) images into block means, at full size, and the rest."""
    count, height, width, channels = x.shape
    rows, columns = -(-height // block), -(-width // block)
    gaps = (rows * block - height, columns * block - width)
    padded = np.pad(x, ((0, 0), (0, gaps[0]), (0, gaps[1]), (0, 0)), mode="edge")
    means = padded.reshape(count, rows, block, columns, block, channels).mean((2, 4))
    coarse = means.repeat(block, 1).repeat(block, 2)[:, :height, :width]
    return coarse, x - coarse


def distance(x):
    """Return the root mean square difference per pixel between pairs of (n, ...) images."""
    return float(np.sqrt(2 * np.var(np.asarray(x, np.float64), axis=0, ddof=1).mean()))


def measure(setup):
    """Return {(kind, window): (denoised, tracked, recomputed, s.e.)}, `count`/4 paths each."""
    field, (count, steps, _) = setup.model.field, setup.preset
    paths = max(count // 4, claims.LEAST)
    coarse, fine = dgjax.grid_logsnr(field, steps), dgjax.grid_logsnr(field, 2 * steps)
    latent = dgjax.prior_sample(field, claims.keys(setup, 1)[0], setup.model.meta.shape)
    latent = dgjax.prior_guidance(field, latent, 0.5)
    rates = jax.jit(fixed_schedule)(field, latent, claims.keys(setup, 1, 1)[0], grid=fine)
    kinds = {
        PUBLISHED: partial(along_level_set, grid=fine, guide=dgjax.density_guidance(Q)),
        FIXED: partial(along_level_set, grid=fine, guide=dgjax.rate_guidance(rates)),
        SDE: partial(by_reverse_sde, grid=fine),
    }
    number = paths * len(WINDOWS)
    lows, highs = np.repeat(np.float32(list(WINDOWS.values())).T, paths, axis=1)
    finals = []
    for stream, (kind, one) in enumerate(kinds.items()):
        walk = claims.keys(setup, number, 2 + stream)
        run = lambda field, *item, one=one: one(field, latent, *item)
        finals.append(claims.each(kind, run, setup, walk, lows, highs))
    x, tracked = map(np.concatenate, zip(*finals, strict=True))
    found = claims.each(
        "likelihood",
        partial(recomputed, grid=coarse),
        setup,
        x,
        claims.keys(setup, len(x), 5),
    )
    names = [(kind, window) for kind in kinds for window in WINDOWS]
    arrays = found[0], tracked, *found[1:]
    groups = zip(*(np.split(a, len(names)) for a in arrays), strict=True)
    return dict(zip(names, groups, strict=True))


def row(key, denoised, tracked, log_density, error):
    coarse, fine = map(distance, scales(denoised))
    known = np.isfinite(tracked).all()
    return [
        *key,
        str(len(denoised)),
        claims.between(claims.deviation(tracked), 1) if known else "",
        claims.between(claims.deviation(log_density), 1),
        claims.probe_error(error),
        claims.mean_error(log_density),
        f"{coarse:.3f}",
        f"{fine:.3f}",
        f"{fine**2 / (coarse**2 + fine**2):.0%}",
    ]


def draw(setup, groups):
    """Draw images of each group, and their variation at both scales."""
    x = np.stack([group[0][:SHOWN] for group in groups.values()])
    shown = claims.levels(setup, x)
    figure = Figure(figsize=(12.4, 1.06 * len(groups) + 0.5), layout="constrained")
    axes = figure.subplots(len(groups), SHOWN + 2)
    spreads = [[part.std((0, -1)) for part in scales(group[0])] for group in groups.values()]
    top = max(spread.max() for pair in spreads for spread in pair)
    for line, (key, images, pair) in enumerate(zip(groups, shown, spreads, strict=True)):
        for axis, image in zip(axes[line], images, strict=False):
            axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        for axis, spread in zip(axes[line, SHOWN:], pair, strict=True):
            shade = axis.imshow(spread, cmap="magma", vmin=0, vmax=top)
        label = f"{key[0]}\n{key[1]}"
        axes[line, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    axes[0, 0].set_title("noise paths of one latent", loc="left", fontsize=10)
    axes[0, SHOWN].set_title("coarse", fontsize=10)
    axes[0, SHOWN + 1].set_title("fine", fontsize=10)
    bar = figure.colorbar(shade, ax=axes[:, SHOWN:], fraction=0.08, pad=0.02)
    bar.set_label("standard deviation over paths, values from -1 to 1")
    claims.save(figure, "noise_windows")


def main():
    setup = claims.start(__doc__)
    groups = measure(setup)
    header = ["noise", "window", "paths", "spread of log p tracked, nats [95 %]"]
    header += ["spread by the PF-ODE, nats [95 %]", "probes, s.e.", "log p by the PF-ODE, nats"]
    header += ["coarse distance", "fine distance", "fine share of the square"]
    claims.report("noise_windows", header, [row(key, *group) for key, group in groups.items()])
    draw(setup, groups)


if __name__ == "__main__":
    main()
