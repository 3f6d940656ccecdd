"""Nearest training images: does the model remember pictures, or draw new ones?

Samples without guidance, without the noise of t_min, and held-out images, each with the training
image that is nearest to it or to its mirror image: RMS difference of pixel values in units of the
data. A model that repeats its training images is nearer to them than held-out images are. Smooth
images have near neighbours anyway, so that both groups are to be compared, and the pictures.

    python experiments/nearest.py
    python experiments/nearest.py --model avatars --data avatars.npz
"""

import claims
import numpy as np

import dgjax
from dgjax.evaluation.intervals import share_interval
from dgjax.pictures.grid import image_grid

SHOWN = 16
NEAR = 0.05  # share of the held-out images that count as near to the training images


def sampled(field, latent_key, key, *, shape, grid):
    """Return the denoised image of one latent."""
    x = dgjax.prior_sample(field, latent_key, shape)
    found = dgjax.sample(field, x, grid, key=key, divergence=dgjax.Untracked())
    return dgjax.denoise(field, grid[-1], found.x)


def nearest(x, training):
    """Return the training image that is nearest to each x, mirrored if need be, and the distance.

    Args:
        x: images (n, H, W, C).
        training: images (m, H, W, C).
    """
    from sklearn.metrics import pairwise_distances_argmin_min

    flat = training.reshape(len(training), -1)
    found = [
        pairwise_distances_argmin_min(side.reshape(len(side), -1), flat)
        for side in (x, x[:, :, ::-1])
    ]
    (indices, distances), (mirrored_indices, mirrored_distances) = found
    as_it_is = distances <= mirrored_distances
    images = np.where(
        as_it_is[:, None, None, None], training[indices], training[mirrored_indices][:, :, ::-1]
    )
    return images, np.minimum(distances, mirrored_distances) / np.sqrt(flat.shape[1])


def row(name, distances, near):
    hits = share_interval(int(np.sum(distances <= near)), len(distances))
    return [
        name,
        str(len(distances)),
        f"{np.median(distances):.3f}",
        f"{distances.min():.3f}",
        f"{hits.value:.0%} [{hits.low:.0%}, {hits.high:.0%}]",
    ]


def main():
    setup = claims.start(__doc__)
    field, (count, steps, _) = setup.model.field, setup.preset
    options = {"shape": setup.model.meta.shape, "grid": dgjax.grid_logsnr(field, steps)}
    x = claims.each(
        "samples",
        lambda *item: sampled(*item, **options),
        setup,
        claims.keys(setup, count),
        claims.keys(setup, count, 1),
    )
    held_out = claims.images(setup, count)
    training = claims.images(setup, 10**9, "train")
    neighbours, distances = nearest(np.asarray(x), training)
    _, others = nearest(held_out, training)
    near = np.quantile(others, NEAR)
    name = f"nearest_{setup.title}"
    header = ["images", "number", "nearest: median RMS", "least", f"within {near:.3f} [95 %]"]
    rows = [row("samples", distances, near), row("held-out images", others, near)]
    claims.report(name, header, rows)
    order = np.argsort(distances)[:SHOWN]  # of all samples, those that are nearest to the training
    figure = image_grid(
        claims.levels(setup, np.stack([np.asarray(x)[order], neighbours[order]])),
        ["samples", "nearest\ntraining images"],
        title=f"The {len(order)} of {count} samples that are nearest to a training image",
        caption="By the RMS difference of pixels, mirror images allowed; the nearest pair first.",
    )
    claims.save(figure, name)


if __name__ == "__main__":
    main()
