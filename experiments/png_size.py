"""-log p against PNG size: is log-density the detail of an image?

Samples without guidance, samples of the same latents guided at several q, and real test images.
Log-densities are of the image as it is at t_min, tracked for samples and by the PF-ODE for real
images, which are given the noise of t_min. The size is that of the same image as an 8-bit PNG, and
of the image without that noise (denoised by the model; a real one as it is in the file).

    python experiments/png_size.py
    python experiments/png_size.py --preset cifar10 --model FOLDER
"""

import claims
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import dgjax

QUANTILES = (0.2, 0.35, 0.5, 0.65, 0.8)  # 0.5 is no guidance
DIVERGENCE = dgjax.Coloured()
MARKERS = "osD^v"


def sampled(field, latent_key, key, q, *, shape, grid):
    """Return (x, denoised, log p, its standard error) of one latent at q."""
    x = dgjax.prior_sample(field, latent_key, shape)
    guides = (dgjax.density_guidance(q),)
    found = dgjax.sample(field, x, grid, key=key, guides=guides, divergence=DIVERGENCE)
    denoised = dgjax.denoise(field, grid[-1], found.x)
    return found.x, denoised, found.log_density, found.info.standard_error


def measured(field, x0, key, *, grid):
    """Return the same for one real image, with the noise of t_min added."""
    noise_key, key = jax.random.split(key)
    path, t = field.path, grid[-1]
    x = path.alpha(t) * x0 + path.sigma(t) * jax.random.normal(noise_key, x0.shape, x0.dtype)
    found = dgjax.likelihood(field, x, grid, key=key, divergence=DIVERGENCE)
    return x, x0, found.log_density, found.info.standard_error


def measure(setup):
    """Return {group: (x, clean image, log p, s.e.)}; guided groups share their latents."""
    field, (count, steps, _) = setup.model.field, setup.preset
    grid, shape = dgjax.grid_logsnr(field, steps), setup.model.meta.shape
    real = claims.images(setup, count) if claims.has_images(setup) else None
    many, total = len(QUANTILES), len(QUANTILES) * count
    latents = jnp.tile(claims.keys(setup, count), many)
    qs = np.repeat(np.float32(QUANTILES), count)
    found = claims.each(
        "samples",
        lambda *item: sampled(*item, shape=shape, grid=grid),
        setup,
        latents,
        claims.keys(setup, total, 1),
        qs,
    )
    groups = {}
    for q in QUANTILES:
        name = "q = 0.5, no guidance" if q == 0.5 else f"q = {q}"
        groups[name] = tuple(a[qs == np.float32(q)] for a in found)
    if real is None:
        return groups
    groups["real test images"] = claims.each(
        "real images",
        lambda *item: measured(*item, grid=grid),
        setup,
        real,
        claims.keys(setup, len(real), 2),
    )
    return groups


def row(setup, name, x, clean, log_density, error):
    noisy, denoised = claims.sizes(setup, x), claims.sizes(setup, clean)
    return [
        name,
        str(len(x)),
        claims.mean_error(-log_density),
        claims.probe_error(error),
        claims.mean_error(noisy),
        claims.between(claims.correlation(-log_density, noisy)),
        claims.mean_error(denoised),
        claims.between(claims.correlation(-log_density, denoised)),
    ]


def pooled(groups):
    """Join all samples to one group."""
    parts = [group for name, group in groups.items() if "real" not in name]
    return tuple(map(np.concatenate, zip(*parts, strict=True)))


def draw(setup, groups):
    """Draw size against -log p, with and without the noise of t_min."""
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 4.8), sharex=True, layout="constrained")
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.88, len(QUANTILES)))
    titles = ("the image as it is at t_min", "the image without the noise of t_min")
    for which, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        for i, (name, group) in enumerate(groups.items()):
            real = "real" in name
            style = {"marker": "x" if real else MARKERS[i % 5], "s": 26}
            style |= {"color": claims.COLOURS[1] if real else shades[i], "alpha": 0.75}
            axis.scatter(-group[2], claims.sizes(setup, group[which]), label=name, **style)
        axis.set(xlabel="-log p at t_min, nats", ylabel="PNG size, bytes", title=title)
    axes[1].legend(fontsize=8)
    claims.save(figure, "png_size")


def main():
    setup = claims.start(__doc__)
    groups = measure(setup)
    header = ["group", "images", "-log p, nats", "probes, s.e.", "PNG, bytes", "correlation [95 %]"]
    header += ["PNG without noise, bytes", "correlation [95 %]"]
    rows = [row(setup, name, *group) for name, group in groups.items()]
    rows.append(row(setup, "all samples", *pooled(groups)))
    claims.report("png_size", header, rows)
    draw(setup, groups)


if __name__ == "__main__":
    main()
