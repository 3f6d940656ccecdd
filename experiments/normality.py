"""Normality of h_t: at which noise levels is q a true quantile?

h = sigma^2 (Lap log p + |s|^2)/sqrt(2D) of real test images with noise, level by level, against
N(0, 1), which quantile matching assumes ([DG] section 4). For Gaussian data its standard deviation
is the root mean square of sigma^2/(sigma^2 + lambda_i), lambda_i the variances of the data, taken
from the training images. What a deviation below 1 means: at q = 0.8 the rate of the log-density is
not at its quantile 0.8 but at Phi(Phi^-1(0.8)/deviation).

    python experiments/normality.py
    python experiments/normality.py --preset cifar10 --model FOLDER
"""

import claims
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

import dgjax

NOISE_LEVELS = 6
MORE = 4  # times the images of the preset: one evaluation is a step of the others
DIVERGENCE = dgjax.Coloured(5, repeats=4)  # four estimates, as many as the kurtosis takes
TRAINING = 20_000  # images for the covariance
Q = 0.8


def predicted(variances, sigmas):
    """Return the standard deviation of h for Gaussian data, at each noise level."""
    share = sigmas[:, None] ** 2 / (sigmas[:, None] ** 2 + variances)
    return np.sqrt(np.mean(share**2, 1))


def variances_of(x):
    """Return the (D,) eigenvalues of the covariance of (n, *shape) samples."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    return np.maximum(np.linalg.eigvalsh(np.cov(flat.T)), 0)


def at_level(field, x0, key, t, *, divergence=DIVERGENCE):
    """Return (p,) estimates of h for one image with the noise of t."""
    noise_key, key = jax.random.split(key)
    noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
    x = field.path.alpha(t) * x0 + field.path.sigma(t) * noise
    return dgjax.h_statistic(field, t, x, divergence=divergence, key=key)


def measure(setup):
    """Return noise levels (levels,) and h (levels, images, estimates)."""
    sigmas = np.geomspace(*setup.sigmas, NOISE_LEVELS)
    ts = np.asarray(jax.vmap(setup.model.field.path.time)(jnp.float32(-2 * np.log(sigmas))))
    real = claims.images(setup, MORE * setup.preset.count)
    num = len(real)
    found = claims.each(
        "h",
        at_level,
        setup,
        np.broadcast_to(real, (NOISE_LEVELS, *real.shape)).reshape(-1, *real.shape[1:]),
        claims.keys(setup, NOISE_LEVELS * num),
        np.repeat(ts, num),
    )
    return sigmas, found.reshape(NOISE_LEVELS, num, -1)


def row(sigma, expected, h):
    found = dgjax.normality(h)
    really = stats.norm.cdf(stats.norm.ppf(Q) / found.standard_deviation.value)
    return [
        f"{sigma:.3g}",
        claims.between(found.mean),
        f"{expected:.3f}",
        claims.between(found.standard_deviation),
        claims.between(found.skewness),
        claims.between(found.excess_kurtosis),
        f"{found.p_value:.2g}",
        f"{really:.3f}",
    ]


def draw(sigmas, expected, h):
    """Draw Q-Q plots of h at each level, in units of N(0, 1)."""
    columns = (len(sigmas) + 1) // 2
    figure, axes = plt.subplots(
        2, columns, figsize=(3.4 * columns, 6.6), sharex=True, sharey=True, layout="constrained"
    )
    for axis, sigma, spread, values in zip(axes.flat, sigmas, expected, h, strict=False):
        means = np.sort(values.mean(1))
        normal = stats.norm.ppf((np.arange(len(means)) + 0.5) / len(means))
        ends = np.array([-3, 3])
        axis.plot(ends, ends, color="black", ls="--", label="N(0, 1)")
        label = "Gaussian data"
        axis.plot(ends, spread * ends, color=claims.COLOURS[1], label=label)
        axis.plot(normal, means, ".", color=claims.COLOURS[0], label="found")
        axis.set(title=f"sigma = {sigma:.3g}", aspect="equal", xlim=(-3.3, 3.3))
    axes[0, 0].legend(fontsize=8, loc="upper left")
    figure.supxlabel("quantile of the standard normal")
    figure.supylabel("quantile of h")
    claims.save(figure, "normality")


def main():
    setup = claims.start(__doc__)
    sigmas, h = measure(setup)
    expected = predicted(variances_of(claims.images(setup, TRAINING, "train")), sigmas)
    header = ["sigma", "mean of h [95 %]", "deviation, Gaussian data", "deviation [95 %]"]
    header += ["skewness [95 %]", "excess kurtosis [95 %]", "p, Shapiro-Wilk"]
    header += [f"q = {Q} is really"]
    claims.report("normality", header, map(row, sigmas, expected, h))
    draw(sigmas, expected, h)


if __name__ == "__main__":
    main()
