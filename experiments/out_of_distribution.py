"""Log-density out of distribution: to which unseen images does a model assign a high density?

Likelihood of test images of the training set, the same blurred, handwritten digits, photographs,
constant images and uniform noise, all as 8-bit levels, dequantized. Whether log p tells them from
test images is the area under the ROC curve: the share of pairs in which the test image has the
higher log p (1: always, 0.5: no better than chance, 0: the other image always has).

    python experiments/out_of_distribution.py
    python experiments/out_of_distribution.py --preset cifar10 --model FOLDER
"""

import claims
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from scipy import ndimage, stats

import dgjax
from dgjax.pictures.image_files import fit_image
from dgjax.pictures.png import encode_png
from dgjax.pictures.quantization import to_uint8

BLURS = (0.5, 1.0, 2.0)  # standard deviation in pixels
PATCH = 4  # a photograph's patch is this many times as large before it is scaled down
DIVERGENCE = dgjax.Coloured()


def digits(shape, num, rng):
    """Return (num, *shape) uint8: scikit-learn's 8x8 digits, enlarged."""
    from sklearn.datasets import load_digits

    found = load_digits().images
    levels = np.uint8(found[rng.permutation(len(found))[:num]] * (255 / 16))
    return np.stack([fit_image(Image.fromarray(image), shape) for image in levels])


def photographs(shape, num, rng):
    """Return (num, *shape) uint8: patches of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    found, height, width = load_sample_images().images, PATCH * shape[0], PATCH * shape[1]
    patches = []
    for i in range(num):
        image = found[i % len(found)]
        top = rng.integers(0, image.shape[0] - height + 1)
        left = rng.integers(0, image.shape[1] - width + 1)
        patch = Image.fromarray(image[top : top + height, left : left + width])
        patches.append(fit_image(patch, shape))
    return np.stack(patches)


def blurred(levels, width):
    """Blur (n, H, W, C) uint8 images by a Gaussian."""
    wide = ndimage.gaussian_filter(levels.astype(np.float64), (0, width, width, 0))
    return wide.round().astype(np.uint8)


def collect(setup):
    """Return {group: (n, *shape) uint8}, test images first."""
    shape, num = setup.model.meta.shape, setup.preset.count
    rng = np.random.default_rng(setup.seed)
    test = to_uint8(claims.images(setup, num), setup.model.meta.data_range)
    even = np.linspace(0, 255, num).round().astype(np.uint8)
    groups = {"test images": test}
    groups |= {f"test images, blurred by {width:g} px": blurred(test, width) for width in BLURS}
    groups |= {
        "digits": digits(shape, num, rng),
        "photographs": photographs(shape, num, rng),
        "constant, black to white": np.broadcast_to(even.reshape(-1, 1, 1, 1), (num, *shape)),
        "uniform noise": rng.integers(0, 256, (num, *shape), np.uint8),
    }
    return groups


def measured(field, levels, noise_key, key, *, grid, data_range):
    """Return (log p, its standard error) of one image of 8-bit levels, dequantized."""
    x = dgjax.dequantize(noise_key, levels, data_range)
    found = dgjax.likelihood(field, x, grid, key=key, divergence=DIVERGENCE)
    return found.log_density, found.info.standard_error


def measure(setup, groups):
    """Return {group: (log p, standard error)}."""
    grid = dgjax.grid_logsnr(setup.model.field, setup.preset.steps)
    levels = np.concatenate(list(groups.values()))
    found = claims.each(
        "likelihood",
        lambda *item: measured(*item, grid=grid, data_range=setup.model.meta.data_range),
        setup,
        levels,
        claims.keys(setup, len(levels)),
        claims.keys(setup, len(levels), 1),
    )
    ends = np.cumsum([len(group) for group in groups.values()])[:-1]
    parts = zip(*(np.split(a, ends) for a in found), strict=True)
    return dict(zip(groups, parts, strict=True))


def area(test, other):
    """Return the area under the ROC curve: the share of pairs in which `test` is higher."""
    return stats.mannwhitneyu(test, other).statistic / (len(test) * len(other))


def row(setup, name, levels, log_density, error, test):
    bits = dgjax.bits_per_dim(log_density, setup.model.size, setup.model.meta.data_range)
    return [
        name,
        str(len(levels)),
        claims.mean_error(log_density),
        claims.probe_error(error),
        claims.mean_error(bits, 3),
        "" if log_density is test else f"{area(test, log_density):.2f}",
        f"{np.mean([len(encode_png(image)) for image in levels]):.0f}",
    ]


def draw(setup, groups, found):
    """Draw bits per dimension of every image by group, and one image of each group."""
    figure, (axis, beside) = plt.subplots(
        1, 2, figsize=(10.5, 5.4), width_ratios=(5, 1.6), layout="constrained"
    )
    rng = np.random.default_rng(0)
    span = setup.model.meta.data_range
    for place, (name, (log_density, _)) in enumerate(found.items()):
        bits = np.asarray(dgjax.bits_per_dim(log_density, setup.model.size, span))
        height = place + rng.uniform(-0.25, 0.25, len(bits))
        colour = claims.COLOURS[0 if place == 0 else 1 if "blurred" in name else 2]
        axis.plot(bits, height, ".", ms=4, alpha=0.6, color=colour)
        axis.plot(np.median(bits), place, "|", ms=22, mew=2.5, color="black")
    median = np.median(dgjax.bits_per_dim(found["test images"][0], setup.model.size, span))
    axis.axvline(median, color=claims.COLOURS[0], ls="--", lw=1)
    axis.set_yticks(range(len(found)), list(found))
    axis.set(xlabel="bits per dimension (to the left: higher log p)", ylim=(len(found) - 0.5, -0.5))
    axis.set_title("Each image a dot, medians as bars", fontsize=10)
    some = np.linspace(2, len(next(iter(groups.values()))) - 2, 3).astype(int)
    strip = np.concatenate([np.concatenate(list(g[some]), 1) for g in groups.values()], 0)
    beside.imshow(strip.squeeze(), cmap="gray", vmin=0, vmax=255, aspect="auto")
    beside.set_axis_off()
    beside.set_title("three of each", fontsize=10)
    claims.save(figure, "out_of_distribution")


def main():
    setup = claims.start(__doc__)
    groups = collect(setup)
    found = measure(setup, groups)
    test = found["test images"][0]
    header = ["images", "number", "log p, nats", "probes, s.e.", "bits/dim"]
    header += ["area under ROC against test images", "PNG, bytes"]
    rows = [row(setup, name, groups[name], *found[name], test) for name in groups]
    claims.report("out_of_distribution", header, rows)
    draw(setup, groups, found)


if __name__ == "__main__":
    main()
