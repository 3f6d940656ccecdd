"""Density guidance of a part of an image: does the rest stay, and are the nats all there?

From the same latents: all of the image guided, a disc in the middle, the same disc with the rest
held on the unguided trajectory, and a band of spatial frequencies, alone and with the other band
held. Shown are root mean square changes of the denoised image from the unguided one, in the part
and in the rest, the nats that all guides together force (the integral of <v - u, s>), and how far
the log-density rises or falls. The nats that come by themselves differ, so both are compared with
and without `hold`.

    python experiments/parts.py
    python experiments/parts.py --model photo-patches
    python experiments/parts.py --count 8 --bound 2
"""

import argparse
from functools import partial

import claims
import jax
import jax.numpy as jnp
import numpy as np
from guided_score import NoDivergence, forced
from matplotlib.figure import Figure

import dgjax

QUANTILES = (0.3, 0.7)
SHOWN = 8
EDGE = 0.125  # cycles per pixel between the bands
DIVERGENCE = dgjax.Coloured()
KINDS = ("all", "disc", "disc, rest held", "high band", "high band, low held")


def disc(shape):
    """The disc in the middle with half of the area of the image, as (H, W, 1) weights."""
    height, width = shape[:2]
    rows, columns = np.ogrid[:height, :width]
    middle = (height - 1) / 2, (width - 1) / 2
    far = ((rows - middle[0]) / height) ** 2 + ((columns - middle[1]) / width) ** 2
    return (far < 0.5 / np.pi).astype(np.float32)[..., None]


def make_parts(shape):
    """The part and whether the rest is held, by kind."""
    middle, fine = dgjax.region(disc(shape)), dgjax.band(shape, low=EDGE)
    return {
        "all": (None, False),
        **dict(
            zip(
                KINDS[1:],
                [(middle, False), (middle, True), (fine, False), (fine, True)],
                strict=True,
            )
        ),
    }


def run(field, x, key, *, grid, parts, bound):
    """Return denoised images (1 + kinds * quantiles, ...), log p, error and nats forced."""
    options = {"key": key, "divergence": DIVERGENCE}
    free = dgjax.sample(field, x, grid, save=dgjax.Trajectory, **options)
    found, forces = [free], []
    for part, held in parts.values():
        before = ()
        if held:
            course = free.trajectory
            before = (dgjax.hold(part.rest(), field, course.t, course.x),)
        for q in QUANTILES:
            guides = (*before, dgjax.density_guidance(q, bound=bound, part=part))
            found.append(dgjax.sample(field, x, grid, guides=guides, **options))
            bare = dgjax.sample(field, x, grid, guides=guides, key=key, divergence=NoDivergence())
            forces.append(forced(field, x, bare))
    stack = lambda values: jnp.stack(list(values))
    return (
        stack(dgjax.denoise(field, grid[-1], a.x) for a in found),
        stack(a.log_density for a in found),
        stack(a.info.solver_error for a in found),
        stack(forces),
    )


def nats(values):
    return f"{values.mean():+.1f} +- {values.std(ddof=1) / len(values) ** 0.5:.1f}"


def share(values, i, alone):
    return "" if alone == i else f"{values[:, i].mean() / values[:, alone].mean():.1%}"


def rows_of(parts, images, log_density, forces):
    """One row for each kind and quantile."""
    shape = images.shape[2:]
    change = np.asarray(images - images[:, :1], np.float64)
    gain = np.asarray(log_density - log_density[:, :1], np.float64)
    forces = np.insert(forces, 0, 0.0, axis=1)  # nothing without a guide
    names = [(kind, q) for kind in parts for q in QUANTILES]
    rms = lambda a, size: float(np.sqrt(np.sum(a**2) / size / len(images)))
    for i, (kind, q) in enumerate(names, 1):
        part = parts[kind][0] or dgjax.region(disc(shape))
        inside = jax.vmap(part)(jnp.asarray(change[:, i], jnp.float32))
        sizes = [float(p.trace_of_square(jnp.zeros(shape))) for p in (part, part.rest())]
        moved = rms(np.asarray(inside), sizes[0]), rms(change[:, i] - inside, sizes[1])
        alone = names.index((kind.split(",")[0], q)) + 1
        yield [
            kind,
            str(q),
            f"{moved[0]:.4f}",
            f"{moved[1]:.4f}",
            f"{moved[1] / moved[0]:.3f}",
            nats(forces[:, i]),
            share(forces, i, alone),
            nats(gain[:, i]),
            share(gain, i, alone),
        ]


def draw(setup, name, parts, images):
    """Draw the first latents: unguided, and every kind at both quantiles."""
    lines = [("unguided", "")] + [(kind, f"q = {q}") for kind in parts for q in QUANTILES]
    shown = claims.levels(setup, np.asarray(images[:SHOWN]))
    figure = Figure(figsize=(1.0 * shown.shape[0] + 2.2, 1.0 * len(lines)), layout="constrained")
    axes = figure.subplots(len(lines), shown.shape[0])
    for i, (line, label) in enumerate(zip(axes, lines, strict=True)):
        for axis, image in zip(line, shown[:, i], strict=True):
            axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel("\n".join(label), rotation=0, ha="right", va="center", fontsize=9)
    claims.save(figure, name)


def main():
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--bound", type=float, default=1.0, help="of the score weight minus one")
    setup = claims.start(__doc__, options)
    bound = options.parse_known_args()[0].bound
    field, (count, steps, _) = setup.model.field, setup.preset
    shape = setup.model.meta.shape
    parts = make_parts(shape)
    keys = claims.keys(setup, count)
    latents = jax.vmap(lambda key: dgjax.prior_sample(field, key, shape))(keys)
    one = partial(run, grid=dgjax.grid_logsnr(field, steps), parts=parts, bound=bound)
    images, log_density, error, forces = claims.each(
        "parts", one, setup, latents, claims.keys(setup, count, 1)
    )
    header = [
        "guided",
        "q",
        "RMS change in the part",
        "in the rest",
        "ratio",
        "nats forced",
        "of those without hold",
        "gain, nats",
        "of the gain without hold",
    ]
    name = f"parts-{setup.title}" + ("" if bound == 1 else f"-bound-{bound:g}")
    claims.report(name, header, rows_of(parts, images, log_density, forces))
    print(f"solver's error, nats: median {np.median(error):.2g}, largest {error.max():.2g}")
    draw(setup, name, parts, images)


if __name__ == "__main__":
    main()
