"""Transition paths: spacetime geodesics between two states, which may have to avoid a region.

The density is that of the potential of Mueller and Brown (1979) at kT = 25, as a mixture of
Gaussians on a grid. From its deepest minimum to another one the geodesic of the denoising
posteriors (Karczewski et al. 2025, arXiv 2505.17517) adds noise until a posterior has a part of
both, and takes it away again. The means of the posteriors are a transition path in the space of the
data. A penalty on these means keeps the path out of a disc on its way. The divergence from the
first posterior to the last is integrated along each curve, and compared with a sum over a grid.

    python experiments/transition_paths.py
"""

import claims
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import dgjax

TEMPERATURE, SPACING = 25.0, 0.08
STATES = jnp.array([[-0.558, 1.442], [0.623, 0.028]])
DISC, RADIUS = jnp.array([0.0, 0.7]), 0.35
EXACT, KEY = dgjax.Exact(), jax.random.key(0)
T_MIN, T_MAX = 0.1, 10.0
SEGMENTS, KNOTS, STEPS = 48, 8, 300


def potential(x):
    """Return the potential of Mueller and Brown at x (..., 2)."""
    height = np.array([-200, -100, -170, 15])
    a, b, c = np.array([[-1, -1, -6.5, 0.7], [0, 0, 11, 0.6], [-10, -10, -6.5, 0.7]])
    u = x[..., :1] - np.array([1, 0, -0.5, -1])
    v = x[..., 1:] - np.array([0, 0.5, 1.5, 1])
    return np.sum(height * np.exp(a * u**2 + b * u * v + c * v**2), -1)


def square(spacing):
    """Return the points (n, 2) of a grid, without those of very high potential."""
    axes = np.arange(-1.8, 1.4, spacing), np.arange(-0.6, 2.2, spacing)
    points = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
    values = potential(points)
    return points[values < values.min() + 14 * TEMPERATURE]


def state_model():
    points = square(SPACING)
    weights = np.exp(-potential(points) / TEMPERATURE)
    covariances = np.broadcast_to(SPACING**2 * np.eye(2), (len(points), 2, 2))
    mixture = dgjax.gaussian_mixture(weights, points, covariances)
    return dgjax.closed_form(mixture, dgjax.edm(), t_min=T_MIN, t_max=T_MAX)


def means_of(model, ts, xs):
    return jax.vmap(lambda t, x: dgjax.denoise(model, t, x))(ts, xs)


def depth(means):
    """Return how far inside the disc points are, 0 outside."""
    return jnp.maximum(RADIUS - jnp.sqrt(jnp.sum((means - DISC) ** 2, -1) + 1e-12), 0)


def divergence_on_grid(points, log_density, first, last):
    """Return KL(p(x_0 | first) | p(x_0 | last)) of two points (t, x), by sums over x_0."""
    logs = []
    for t, x in (first, last):
        log_p = log_density - np.sum((points - np.asarray(x)) ** 2, -1) / (2 * float(t) ** 2)
        logs.append(log_p - np.logaddexp.reduce(log_p))
    return float(np.sum(np.exp(logs[0]) * (logs[0] - logs[1])))


def geodesics(model):
    """Return the geodesic without and with the disc, by name."""

    def penalty(ts, xs):
        return 1e4 * jnp.mean(depth(means_of(model, ts, xs)) ** 2)

    sizes = {"segments": SEGMENTS, "knots": KNOTS, "steps": STEPS, "batch": SEGMENTS + 1}
    ends = T_MIN, STATES[0], T_MIN, STATES[1]
    found = lambda out: dgjax.geodesic(
        model, *ends, key=KEY, divergence=EXACT, penalty=out, **sizes
    )
    return {"free": found(None), "disc avoided": found(penalty)}


def draws(model, t, x, num, rng):
    """Return (num, 2) draws from p(x_0 | x_t = x) of the mixture, on the EDM path."""
    mixture, total = model.network, SPACING**2 + t**2
    log_p = np.asarray(mixture.log_weights) - np.sum((mixture.means - x) ** 2, -1) / (2 * total)
    which = rng.choice(len(log_p), num, p=np.exp(log_p - np.logaddexp.reduce(log_p)))
    middle = (np.asarray(mixture.means)[which] * t**2 + np.asarray(x) * SPACING**2) / total
    return middle + SPACING * t / np.sqrt(total) * rng.normal(size=(num, 2))


def draw(model, ways):
    figure, panels = plt.subplots(1, 2, figsize=(10, 5), sharey=True, layout="constrained")
    axes = np.linspace(-1.5, 1.2, 200), np.linspace(-0.4, 2, 200)
    level = potential(np.stack(np.meshgrid(*axes), -1)) / TEMPERATURE
    rng = np.random.default_rng(0)
    for panel, (name, way) in zip(panels, ways.items(), strict=True):
        panel.contour(*axes, level, np.arange(-6, 4), colors="0.75", linewidths=0.8)
        for i in range(0, SEGMENTS + 1, 4):
            x = draws(model, float(way.ts[i]), way.xs[i], 60, rng)
            place = np.full(len(x), i / SEGMENTS)
            panel.scatter(*x.T, c=place, cmap="viridis", vmin=0, vmax=1, s=5, alpha=0.5)
        panel.plot(*np.asarray(means_of(model, way.ts, way.xs)).T, "k", lw=1.5)
        panel.add_patch(plt.Circle(DISC, RADIUS, fill=name == "disc avoided", alpha=0.25, fc="r"))
        panel.plot(*STATES.T, "ko")
        panel.set_title(f"{name}: length {float(way.length):.2f}")
        panel.grid(False)
        panel.set(aspect="equal", xlim=(-1.5, 1.2), ylim=(-0.4, 2))
    figure.suptitle("Means (line) and draws (dots) of the posteriors along geodesics")
    claims.save(figure, "transition_paths")


def row(model, name, way):
    means = means_of(model, way.ts, way.xs)
    along = dgjax.posterior_kl(model, way.ts, way.xs, key=KEY, divergence=EXACT)[-1]
    # The density of the model, on a finer grid than its means.
    points = square(SPACING / 4)
    log_p = jax.vmap(lambda x: model.network.log_density(x, 0.0))(jnp.asarray(points))
    ends = (way.ts[0], way.xs[0]), (way.ts[-1], way.xs[-1])
    return [
        name,
        f"{float(way.energies[0]):.0f}",
        f"{float(way.energy):.1f}",
        f"{float(way.length):.2f}",
        f"{float(way.ts.max()):.2f}",
        f"{potential(np.asarray(means)).max() / TEMPERATURE:.1f}",
        f"{float(depth(means).max()):.3f}",
        f"{float(along):.1f}",
        f"{divergence_on_grid(points, np.asarray(log_p), *ends):.1f}",
    ]


def main():
    model = state_model()
    ways = geodesics(model)
    header = ["path", "energy of the start, nats", "energy", "length", "noise to"]
    header += ["highest potential of a mean, kT", "depth in the disc", "KL end to end, along it"]
    claims.report(
        "transition_paths", [*header, "on a grid"], [row(model, *w) for w in ways.items()]
    )
    draw(model, ways)


if __name__ == "__main__":
    main()
