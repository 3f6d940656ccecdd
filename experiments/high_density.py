"""High-density sampler: which images have the highest log-density, for each threshold?

The PF-ODE until the log-SNR reaches a threshold, and from there on the score counts double ([HD]).
Log-density as tracked and as the PF-ODE finds it for the images reached, and their PNG size, of the
same latents at every threshold. Published: the images become cartoons, and blurs when the threshold
lies early, and their log-density is far above that of any sample.

    python experiments/high_density.py
    python experiments/high_density.py --preset cifar10 --model FOLDER
"""

import claims
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import dgjax
from dgjax.pictures.grid import image_grid

SIGMAS = (0.0, 0.1, 0.3, 1.0, 3.0, np.inf)  # thresholds; 0 is the PF-ODE alone
SHOWN = 8  # latents in the picture
DIVERGENCE = dgjax.Coloured()


def sampled(field, latent_key, key, sigma, *, shape, steps):
    """Return (x, denoised, tracked log p, its s.e., by the PF-ODE, its s.e.) of one latent.

    In two solves, before the threshold `sigma` and after it, for no solver of high order goes
    over a jump of the drift without loss. Where there is none, they meet half-way.
    """
    x = dgjax.prior_sample(field, latent_key, shape)
    grid = dgjax.grid_logsnr(field, steps)
    ends = dgjax.logsnr(field.path, field.t_max), dgjax.logsnr(field.path, field.t_min)
    threshold = -2 * jnp.log(sigma)
    late, always = threshold >= ends[1], threshold <= ends[0]
    middle = jnp.where(late | always, 0.5 * (ends[0] + ends[1]), threshold)
    legs = jnp.stack(
        [jnp.linspace(ends[0], middle, steps + 1), jnp.linspace(middle, ends[1], steps + 1)]
    )
    times = jax.vmap(jax.vmap(field.path.time))(legs)
    times = times.at[0, 0].set(grid[0]).at[1, -1].set(grid[-1])  # to the last digit

    def leg(state, item):
        x, log_density, variance = state
        times, doubled, key = item
        found = dgjax.sample(
            field,
            x,
            times,
            key=key,
            log_density=log_density,
            guides=(dgjax.high_density(jnp.where(doubled, -jnp.inf, jnp.inf)),),
            divergence=DIVERGENCE,
        )
        return (found.x, found.log_density, variance + found.info.standard_error**2), None

    first = x, dgjax.log_prior(field, x), jnp.zeros((), x.dtype)
    items = times, jnp.stack([always, ~late]), jax.random.split(key)
    (x, log_density, variance), _ = jax.lax.scan(leg, first, items)
    again = dgjax.likelihood(field, x, grid, key=key, divergence=DIVERGENCE)
    denoised = dgjax.denoise(field, grid[-1], x)
    tracked = log_density, jnp.sqrt(variance)
    return x, denoised, *tracked, again.log_density, again.info.standard_error


def measure(setup):
    """Return {sigma: results of `sampled` without x}, each with a quarter of the latents."""
    count, many = max(setup.preset.count // 4, claims.LEAST), len(SIGMAS)
    options = {"shape": setup.model.meta.shape, "steps": setup.preset.steps}
    found = claims.each(
        "high density",
        lambda *item: sampled(*item, **options)[1:],
        setup,
        jnp.tile(claims.keys(setup, count), many),
        claims.keys(setup, many * count, 1),
        np.repeat(np.float32(SIGMAS), count),
    )
    parts = [np.split(a, many) for a in found]
    return {sigma: tuple(part[i] for part in parts) for i, sigma in enumerate(SIGMAS)}


def name(sigma):
    return {0.0: "never (PF-ODE)", np.inf: "always"}.get(sigma, f"{sigma:g}")


def row(setup, groups, sigma):
    denoised, tracked, error, again, again_error = groups[sigma]
    plain = groups[0.0]
    return [
        name(sigma),
        f"{-2 * np.log(sigma) + 0.0:.1f}" if 0 < sigma < np.inf else "",
        str(len(denoised)),
        claims.mean_error(tracked),
        claims.probe_error(error),
        claims.mean_error(again),
        claims.probe_error(again_error),
        f"{np.mean(tracked > plain[1].max()):.0%}",
        claims.mean_error(claims.sizes(setup, denoised)),
    ]


def curves(setup, groups):
    """Draw log-density and PNG size against the threshold."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(6.5, 6), sharex=True, layout="constrained")
    places = np.arange(len(groups))
    series = [
        (top, "tracked", [g[1] for g in groups.values()]),
        (top, "by the PF-ODE, for the image reached", [g[3] for g in groups.values()]),
        (bottom, None, [claims.sizes(setup, g[0]) for g in groups.values()]),
    ]
    for i, (axis, label, values) in enumerate(series):
        values = np.array(values)
        axis.plot(places, values, color=claims.COLOURS[i], lw=0.5, alpha=0.35)
        style = {"marker": "osD"[i], "color": claims.COLOURS[i], "lw": 2}
        axis.plot(places, values.mean(1), label=label, **style)
    top.set(ylabel="log p at t_min, nats", title="Mean (thick) and each latent (thin)")
    top.legend()
    bottom.set(ylabel="PNG size, bytes", xlabel="score counts double below this sigma")
    bottom.set_xticks(places, [name(s) for s in groups])
    claims.save(figure, "high_density")


def picture(setup, groups):
    """Draw images: a row for each threshold, a column for each latent."""
    x = np.stack([group[0][:SHOWN] for group in groups.values()])
    labels = [
        f"{f'below {sigma:g}' if 0 < sigma < np.inf else name(sigma)}\nlog p {group[1].mean():,.0f}"
        for sigma, group in groups.items()
    ]
    figure = image_grid(
        claims.levels(setup, x),
        labels,
        title="The score counts double below sigma ..., the same latents in each row",
        caption="Mean tracked log p in nats at t_min; images without the noise of t_min.",
    )
    claims.save(figure, "high_density_images")


def main():
    setup = claims.start(__doc__)
    groups = measure(setup)
    header = ["double score below sigma", "log-SNR", "latents", "log p tracked, nats"]
    header += ["probes, s.e.", "by the PF-ODE, nats", "probes, s.e."]
    header += ["above all of the PF-ODE", "PNG, bytes"]
    claims.report("high_density", header, [row(setup, groups, sigma) for sigma in groups])
    curves(setup, groups)
    picture(setup, groups)


if __name__ == "__main__":
    main()
