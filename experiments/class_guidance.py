"""Classifier-free guidance and density guidance together, on a model with classes.

Two dials that are often mixed up: the weight strengthens the class, q sets the detail. Every weight
is combined with every q on the same latents, as many of each class. Log-densities are of the
conditional model, log p(x | class). Images are compared without the noise of t_min: their PNG size,
the share that a logistic regression on VGG16 features of training images puts into the class that
was asked for, and Fréchet distance, precision and recall against held-out images.

    python experiments/class_guidance.py
    python experiments/class_guidance.py --preset cifar10 --model FOLDER
"""

import sys

import claims
import jax.numpy as jnp
import numpy as np
from prior_guidance import QUALITIES, features, qualities

import dgjax
from dgjax.evaluation.intervals import share_interval
from dgjax.evaluation.reference_data import open_reference_data
from dgjax.pictures.grid import image_grid
from dgjax.pictures.latents import from_pictures

WEIGHTS, QUANTILES = (1.0, 2.0, 4.0), (0.2, 0.5, 0.8)  # 1 and 0.5 are no guidance
TAUGHT = 2000  # training images that the classifier sees; a quarter as many test it
DIVERGENCE = dgjax.Coloured(2)


def sampled(field, latent_key, key, label, weight, q, *, shape, grid):
    """Return (denoised image, log p(x | label), its standard error) of one latent."""
    x = dgjax.prior_sample(field, latent_key, shape)
    guides = dgjax.classifier_free_guidance(weight, field), dgjax.density_guidance(q)
    found = dgjax.sample(field, x, grid, key=key, guides=guides, divergence=DIVERGENCE, cond=label)
    denoised = dgjax.denoise(field, grid[-1], found.x, label)
    return denoised, found.log_density, found.info.standard_error


def real(setup, part, num):
    """Return images and their labels."""
    data = open_reference_data(setup.model, setup.data, part, None, "data", num, setup.seed)
    return from_pictures(setup.model, data.samples(0, num)), data.conditions(num)


def classifier(seen, labels):
    """Fit a function from features to labels."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return (
        make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        .fit(seen, labels)
        .predict
    )


def measure(setup):
    """Return {(weight, q): (images, log p, its error)}, and the label of each image."""
    field, preset = setup.model.field, setup.preset
    classes = setup.model.meta.model.network["num_classes"]
    count = -(-5 * preset.count // (2 * classes)) * classes
    labels = (np.arange(count) % classes).astype(np.int32)
    pairs = [(weight, q) for weight in WEIGHTS for q in QUANTILES]
    options = {
        "shape": setup.model.meta.shape,
        "grid": dgjax.grid_logsnr(field, 3 * preset.steps // 4),
    }
    found = claims.each(
        "samples",
        lambda *item: sampled(*item, **options),
        setup,
        jnp.tile(claims.keys(setup, count), len(pairs)),
        jnp.tile(claims.keys(setup, count, 1), len(pairs)),
        np.tile(labels, len(pairs)),
        *np.repeat(np.float32(pairs), count, axis=0).T,
    )
    groups = zip(*(np.split(a, len(pairs)) for a in found), strict=True)
    return dict(zip(pairs, groups, strict=True)), labels


def share(right):
    found = share_interval(int(np.sum(right)), len(right))
    return f"{found.value:.0%} [{found.low:.0%}, {found.high:.0%}]"


def row(setup, pair, group, labels, predict, seen_real):
    x, log_density, error = group
    seen = features(setup, x)
    distance, *shares = qualities(seen, seen_real)
    return [
        f"{pair[0]:g}",
        f"{pair[1]:g}",
        claims.mean_error(log_density),
        claims.probe_error(error),
        claims.mean_error(claims.sizes(setup, x)),
        share(predict(seen) == labels),
        claims.between(distance, 3),
        *(f"{s.value:.0%} [{s.low:.0%}, {s.high:.0%}]" for s in shares),
    ]


def draw(setup, groups, labels):
    """Draw images: a row for each weight and q, a column for each class."""
    shown = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)[:10]]
    figure = image_grid(
        claims.levels(setup, np.stack([group[0][shown] for group in groups.values()])),
        [f"weight {w:g}, q = {q:g}\nlog p {g[1].mean():,.0f}" for (w, q), g in groups.items()],
        title="Classifier-free weight and q, the same latents and classes in each row",
        caption="Mean log p(x | class) in nats at t_min; images without the noise of t_min.",
    )
    claims.save(figure, "class_guidance")


def main():
    setup = claims.start_unconditional(__doc__)
    if setup.model.meta.model.network.get("num_classes") is None:
        sys.exit(f"{setup.model.name} takes no classes: give --model of one trained with labels")
    groups, labels = measure(setup)
    images, known = real(setup, "held-out", max(TAUGHT // 4, 2 * len(labels)))
    seen = features(setup, images)
    taught, taught_labels = real(setup, "train", TAUGHT)
    predict = classifier(features(setup, taught), taught_labels)
    count = len(labels)
    header = ["weight", "q", "log p(x given class), nats", "probes, s.e.", "PNG, bytes"]
    header += ["in the class asked for [95 %]", *(f"{name} [95 %]" for name in QUALITIES)]
    rows = [
        row(setup, pair, group, labels, predict, seen[:count]) for pair, group in groups.items()
    ]
    distance, *shares = qualities(seen[count : 2 * count], seen[:count])
    rows.append(
        [
            "held-out images",
            "",
            "",
            "",
            claims.mean_error(claims.sizes(setup, images)),
            share(predict(seen) == known),
            claims.between(distance, 3),
            *(f"{s.value:.0%} [{s.low:.0%}, {s.high:.0%}]" for s in shares),
        ]
    )
    claims.report("class_guidance", header, rows)
    draw(setup, groups, labels)


if __name__ == "__main__":
    main()
