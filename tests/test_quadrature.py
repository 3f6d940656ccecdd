"""Spacetime quadrature against closed forms, along trajectories of every kind.

Most trajectories here are no solution of anything: log p_t(x) does not depend on the route, so
any curve through spacetime must give the same difference between its ends.
"""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial import legendre

from dgjax import analytic, divergence, fields, grids, guidance, noise, paths
from dgjax.quadrature import _kronrod, chord, node_quadrature, quadrature
from dgjax.sampling import Trajectory, sample

EXACT = divergence.Exact()
KEY = jax.random.key(0)


def model_on(span, mixture):
    return analytic.closed_form(mixture, span.path, t_min=span.t_min, t_max=span.t_max)


def truth(model, ts, xs):
    return jax.vmap(lambda t, x: analytic.log_density(model, t, x))(ts, xs)


def curve(model, shape, steps):
    """A smooth curve from noise to data that follows no equation, w^(1/7) uniform."""
    ts = grids.grid_karras(model, steps)
    a, b, c = jax.random.normal(jax.random.key(1), (3, *shape))
    u = jnp.linspace(0, 1, steps + 1)

    def point(t, u):
        alpha, sigma = model.path.alpha(t), model.path.sigma(t)
        return alpha * (a + 0.2 * b * jnp.sin(3 * u)) + sigma * c * jnp.cos(2 * u)

    return ts, jax.vmap(point)(ts, u)


def slope(steps, error):
    return -np.polyfit(np.log(steps), np.log(error), 1)[0]


# Rough trajectories.


def cloud(count, size=32):
    """`count` components of scales 0.05 to 2 in random directions."""
    keys = jax.random.split(jax.random.key(2), count)
    basis = jax.vmap(lambda k: jnp.linalg.qr(jax.random.normal(k, (size, size)))[0])(keys)
    scales = jnp.geomspace(0.05, 2, size) ** 2
    covariances = jnp.einsum("kij,j,klj->kil", basis, scales, basis)
    means = jax.random.normal(jax.random.key(3), (count, size)) * (count > 1)
    return analytic.gaussian_mixture(jnp.ones(count), means, covariances)


@pytest.mark.parametrize("count", [1, 3])
def test_reverse_sde_where_its_own_tracking_fails(count):
    """64 steps, log-SNR -10 to 10: nats per dimension, of each of eight paths."""
    path, mixture = paths.vp(), cloud(count)
    t_min, t_max = path.time(jnp.array(10.0)), path.time(jnp.array(-10.0))
    model = analytic.closed_form(mixture, path, t_min=t_min, t_max=t_max)
    grid = grids.grid_logsnr(model, 64)

    @jax.jit
    @jax.vmap
    def errors(key):
        start, walk = jax.random.split(key)
        x = path.alpha(t_max) * mixture.sample(start, jnp.exp(5.0))
        run = sample(
            model,
            x,
            grid,
            key=walk,
            noise=noise.reverse_sde_ito(),
            solver=diffrax.Euler(),
            save=Trajectory,
        )
        t, x, _ = run.trajectory
        measured = quadrature(model, t, x, key=walk, divergence=EXACT).log_density[-1]
        end = analytic.log_density(model, t_min, x[-1])
        return (run.log_density - end) / x[0].size, (measured - end) / x[0].size

    tracked, measured = errors(jax.random.split(jax.random.key(4), 8))
    assert 0.3 < np.mean(tracked) < 0.9
    assert np.abs(measured).max() < 2e-3
    assert np.abs(measured).max() < 0.005 * np.mean(tracked)


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_gauss_order_on_smooth_curves(spans, mixture2, nodes):
    model, steps = model_on(spans["edm7"], mixture2.model), {1: (64, 128), 2: (32, 64), 3: (16, 32)}

    def error(steps):
        ts, xs = curve(model, (2,), steps)
        run = quadrature(model, ts, xs, key=KEY, divergence=EXACT, nodes=nodes, batch=64)
        assert np.allclose(run.log_density[0], truth(model, ts, xs)[0])  # the model's own prior
        return np.abs(run.log_density - truth(model, ts, xs)).max()

    errors = [error(n) for n in steps[nodes]]
    assert 2 * nodes - 0.4 < slope(steps[nodes], errors) < 2 * nodes + 0.6


def test_route_and_direction_do_not_matter(spans, mixture2):
    """A random walk through spacetime, back and forth in time, against the straight way."""
    model = model_on(spans["cosine"], mixture2.model)
    rng = np.random.default_rng(0)
    levels = np.append(rng.uniform(-4, 4, 11), [-5.0])
    ts = model.path.time(jnp.asarray(levels))
    xs = jnp.asarray(rng.normal(size=(12, 2)))
    ends = jnp.array([0, -1])

    def change(ts, xs, nodes):
        run = quadrature(
            model, ts, xs, key=KEY, log_density=0.0, divergence=EXACT, nodes=nodes, batch=80
        )
        assert run.log_density[0] == 0
        return run.log_density[-1]

    around, straight = change(ts, xs, 40), change(ts[ends], xs[ends], 160)
    back = change(ts[ends[::-1]], xs[ends[::-1]], 160)
    exact = jnp.diff(truth(model, ts[ends], xs[ends]))[0]
    np.testing.assert_allclose([around, straight, -back], exact, atol=1e-6)


@pytest.mark.parametrize("name", ["vp", "cosine", "rectified_flow", "custom"])
def test_same_on_every_path(spans, mixture2, name):
    """Only the volume term -D log alpha differs between paths, for both quadratures."""
    reference, model = (model_on(spans[n], mixture2.model) for n in ("edm", name))
    ws, ys = curve(reference, (2,), 12)
    ts = model.path.time(-2 * jnp.log(ws)).at[jnp.array([0, -1])].set([model.t_max, model.t_min])
    alphas = jax.vmap(model.path.alpha)(ts)
    for method in (quadrature, node_quadrature):
        scaled = method(reference, ws, ys, key=KEY, divergence=EXACT).log_density
        here = method(model, ts, ys * alphas[:, None], key=KEY, divergence=EXACT).log_density
        np.testing.assert_allclose(here + 2 * jnp.log(alphas), scaled, atol=1e-7)


def test_probes_are_fresh_and_their_error_is_stated(spans, mixture16):
    model = model_on(spans["edm7"], mixture16.model)
    ts, xs = curve(model, (2, 8), 16)
    estimator = divergence.Hutchinson(8, divergence.gaussian)

    @jax.jit
    @jax.vmap
    def fresh(key):
        return [
            method(model, ts, xs, key=key, divergence=estimator)
            for method in (quadrature, node_quadrature)
        ]

    @jax.jit
    @jax.vmap
    def fixed(key):
        held = divergence.FixedProbe(estimator, key)
        return [
            method(model, ts, xs, key=key, divergence=held)
            for method in (quadrature, node_quadrature)
        ]

    keys = jax.random.split(jax.random.key(5), 400)
    for method, new, old in zip((quadrature, node_quadrature), fresh(keys), fixed(keys), strict=1):
        exact = method(model, ts, xs, key=KEY, divergence=EXACT).log_density
        spread = np.std(new.log_density, 0)[1:]
        miss = np.mean(new.log_density, 0)[1:] - exact[1:]
        stated = np.sqrt(np.mean(np.square(new.standard_error), 0))[1:]
        assert new.log_densities.shape == (400, 17, 8)
        assert np.abs(miss).max() < 4.5 * spread[-1] / 20  # unbiased
        np.testing.assert_allclose(stated, spread, rtol=0.15)
        held = np.std(old.log_density, 0)[-1]
        assert held > 1.5 * spread[-1]  # errors of a held probe add up
        held_stated = np.sqrt(np.mean(np.square(old.standard_error[:, -1])))
        np.testing.assert_allclose(held_stated, held, rtol=0.15)
    assert np.all(quadrature(model, ts, xs, key=KEY, divergence=EXACT).standard_error == 0)


def test_memory_does_not_grow_with_the_trajectory():
    mixture = analytic.kernel_density(jnp.zeros((1, 4096)), 0.1)
    model = analytic.closed_form(mixture, paths.edm(), t_min=0.1, t_max=10.0)

    def scratch(method, steps, batch):
        ts = grids.grid_uniform(model, steps)
        run = jax.jit(lambda xs: method(model, ts, xs, key=KEY, batch=batch))
        like = jax.ShapeDtypeStruct((steps + 1, 4096), jnp.float64)
        compiled = run.lower(like).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (4096 * 8)

    for method in (quadrature, node_quadrature):
        narrow, wide = scratch(method, 128, 2), scratch(method, 128, 128)
        longer = scratch(method, 256, 2)
        assert wide > 3 * narrow
        assert longer - narrow < 1.5 * 128  # the scaled points, but no network's work


# Smooth trajectories.


@functools.cache
def smooth_errors(solver, steps):
    """|tracked - true| and |node quadrature - true|, root mean square over latents; for two q.

    The wide components keep eta off its bound, where the guided drift would have kinks.
    """
    mixture = cloud(3, 16)
    model = analytic.closed_form(
        mixture, paths.edm(7.0), t_min=0.05 ** (1 / 7), t_max=20.0 ** (1 / 7)
    )

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    @functools.partial(jax.vmap, in_axes=(0, None))
    def errors(q, key):
        run = sample(
            model,
            mixture.sample(key, 20.0),
            grids.grid_uniform(model, steps),
            key=key,
            guides=(guidance.density_guidance(q),),
            divergence=EXACT,
            solver=solver(),
            save=Trajectory,
        )
        t, x, _ = run.trajectory
        nodes = node_quadrature(model, t, x, key=key, divergence=EXACT, batch=8).log_density
        exact = truth(model, t, x)
        return run.log_density - exact[-1], jnp.abs(nodes - exact).max(), run.info.bound_share

    keys = jax.random.split(jax.random.key(6), 6)
    tracked, nodes, bounded = errors(jnp.array([0.5, 0.6]), keys)
    assert np.all(bounded == 0)
    return [np.sqrt(np.mean(np.square(e), 0)) for e in (tracked, nodes)]


def test_node_quadrature_converges_at_order_six():
    steps = (64, 128, 256)
    errors = np.stack([smooth_errors(diffrax.Heun, n)[1] for n in steps])
    print(errors)
    for column in errors.T:  # the PF-ODE, and density guidance at q = 0.6
        assert 5.5 < slope(steps, column) < 7


@pytest.mark.parametrize(("solver", "gain"), [(diffrax.Heun, 1000), (diffrax.Bosh3, 30)])
def test_the_solvers_error_drops_out(solver, gain):
    tracked, nodes = smooth_errors(solver, 64)
    print(tracked, nodes)
    assert np.all(nodes < tracked / gain)


def test_node_quadrature_is_exact_for_what_it_interpolates():
    """log p quadratic in y on a polynomial curve at one w: differences and weights are exact."""
    mixture = analytic.gaussian(jnp.zeros(3), jnp.array(0.7))
    model = analytic.closed_form(mixture, paths.edm(), t_min=0.1, t_max=10.0)
    ts = jnp.linspace(1.0, 1.0 + 1e-12, 9)
    u = jnp.linspace(-1, 1, 9)
    xs = jnp.stack([u**3, 1 - u**2, u], -1)
    run = node_quadrature(model, ts, xs, key=KEY, log_density=0.0, divergence=EXACT)
    exact = truth(model, ts, xs)
    np.testing.assert_allclose(run.log_density, exact - exact[0], atol=1e-9)


# Chords.


def test_kronrod_rule_is_quadpacks():
    points, kronrod, gauss = _kronrod(7)
    order = np.argsort(points)[:3]
    places = [0.991455371120812639206854697526, 0.949107912342758524526189684048]
    np.testing.assert_allclose(1 - 2 * points[order][:2], places, rtol=1e-13)
    weights = [0.022935322010529224963732008059, 0.063092092629978553290700663189]
    np.testing.assert_allclose(2 * kronrod[order][:2], weights, rtol=1e-12)
    np.testing.assert_allclose(2 * gauss[order][:2], [0, 0.129484966168869693270611432679])
    for nodes in (1, 2, 5, 30):
        points, kronrod, _ = _kronrod(nodes)
        for power in range(3 * nodes + 2):
            np.testing.assert_allclose(kronrod @ points**power, 1 / (power + 1), rtol=1e-12)


@pytest.mark.parametrize("w", [0.05, 0.5])
def test_chord_states_its_error(spans, mixture16, w):
    """Chords of all lengths: the bound holds, and is the error of the Gauss rule inside."""
    model = model_on(spans["rectified_flow"], mixture16.model)
    t = model.path.time(jnp.asarray(-2 * np.log(w)))
    ends = jax.random.split(jax.random.key(7), 60)
    lengths = jnp.tile(jnp.geomspace(0.01, 1, 6), 10)

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    def errors(nodes, key, length):
        one, other = jax.random.split(key)
        x0, x1 = (model.path.alpha(t) * mixture16.model.sample(k, w) for k in (one, other))
        x1 = x0 + length * (x1 - x0)
        run = chord(model, t, x0, x1, nodes=nodes)
        exact = analytic.log_density(model, t, x1) - analytic.log_density(model, t, x0)
        places, weights = legendre.leggauss(nodes)
        scores = jax.vmap(jax.grad(lambda x: analytic.log_density(model, t, x)))(
            x0[None] + jnp.asarray(0.5 * (places + 1))[:, None, None] * (x1 - x0)[None]
        )
        gauss = 0.5 * jnp.sum(jnp.asarray(weights) * jnp.sum(scores * (x1 - x0)[None], (1, 2)))
        return run.difference - exact, gauss - exact, run.error, jnp.abs(exact)

    medians = []
    for nodes in (2, 4, 8):
        actual, gauss, stated, size = (np.asarray(a) for a in errors(nodes, ends, lengths))
        assert np.all(np.abs(actual) <= stated + 1e-12 * size)
        clear = np.abs(gauss) > 1e-9 * size
        print(nodes, (stated / np.abs(gauss))[clear].round(2))
        assert np.all(stated[clear] > 0.3 * np.abs(gauss)[clear])
        assert np.all(stated[clear] < 3 * np.abs(gauss)[clear])
        medians.append(np.abs(actual).reshape(10, 6))
    print(np.median(medians, 1))


def test_chord_order(spans, mixture2):
    """Kronrod's rule is exact to degree 3 nodes + 1, its even error one power further."""
    model = model_on(spans["vp"], mixture2.model)
    t, x0, way = model.path.time(jnp.array(0.0)), jnp.array([0.3, -0.2]), jnp.array([0.8, 0.6])
    exact = functools.partial(analytic.log_density, model, t)
    lengths = np.array([0.5, 1.0])

    def error(length):
        x1 = x0 + length * way
        run = chord(model, t, x0, x1, nodes=2)
        return abs(run.difference - exact(x1) + exact(x0)), run.error

    actual, stated = np.array([error(n) for n in lengths]).T
    print(actual, stated)
    assert 4 < -slope(lengths, stated) < 6.5  # Gauss: 5
    assert 7 < -slope(lengths, actual) < 11  # Kronrod: 9


# Wrong use.


@pytest.fixture
def model(spans, mixture2):
    return model_on(spans["edm7"], mixture2.model)


BAD_POINTS = {
    "(n\\+1,)": lambda ts, xs: (ts[:-1], xs),
    "NaN": lambda ts, xs: (ts, xs.at[3, 0].set(jnp.nan)),
    "floating": lambda ts, xs: (ts, xs.astype(int)),
    "own range": lambda ts, xs: (ts * 1.1, xs),
    "points are needed": lambda ts, xs: (ts[:1], xs[:1]),
    "prior is known at t_max": lambda ts, xs: (ts[1:], xs[1:]),
}


@pytest.mark.parametrize("method", [quadrature, node_quadrature])
@pytest.mark.parametrize("message", BAD_POINTS)
def test_bad_points(model, method, message):
    ts, xs = BAD_POINTS[message](*curve(model, (2,), 12))
    with pytest.raises(ValueError, match=message):
        method(model, ts, xs, key=KEY)


def test_what_only_some_refuse(model):
    ts, xs = curve(model, (2,), 12)
    with pytest.raises(ValueError, match="at least 7 points"):
        node_quadrature(model, ts[:6], xs[:6], key=KEY)
    with pytest.raises(ValueError, match="monotone"):
        node_quadrature(model, ts.at[4].set(ts[6]), xs, key=KEY)
    for method, what in [(quadrature, "nodes"), (quadrature, "batch"), (node_quadrature, "batch")]:
        with pytest.raises(ValueError, match=f"{what} must be a positive int"):
            method(model, ts, xs, key=KEY, **{what: 0})


def test_bad_chords(model):
    x = jnp.zeros(2)
    with pytest.raises(ValueError, match="one shape"):
        chord(model, 1.0, x, jnp.zeros(3))
    with pytest.raises(ValueError, match="one time"):
        chord(model, jnp.ones(2), x, x)
    with pytest.raises(ValueError, match="own range"):
        chord(model, 9.0, x, x)
    with pytest.raises(ValueError, match="NaN"):
        chord(model, 1.0, x, x + jnp.inf)
    with pytest.raises(ValueError, match="nodes must be"):
        chord(model, 1.0, x, x, nodes=0)


def test_density_of_the_conditional_model(mixture2):
    """`cond` reaches every evaluation and the start."""

    def denoiser(y, w, cond):
        return mixture2.model(y - cond, w) + cond

    from dgjax.parametrization import DenoisedPrediction

    prior = fields.gaussian_prior(1.0)
    conditional = fields.field(
        denoiser, paths.edm(), DenoisedPrediction(), t_min=0.1, t_max=10.0, prior=prior
    )
    shift = jnp.array([0.4, -1.0])
    plain = fields.field(
        mixture2.model, paths.edm(), DenoisedPrediction(), t_min=0.1, t_max=10.0, prior=prior
    )
    ts, xs = curve(plain, (2,), 8)
    for method in (quadrature, node_quadrature):
        options = {"key": KEY, "log_density": 1.5, "divergence": EXACT}
        moved = method(conditional, ts, xs + shift[None], cond=shift, **options)
        np.testing.assert_allclose(
            moved.log_density, method(plain, ts, xs, **options).log_density, atol=1e-9
        )
    ends = (ts[4], xs[4], xs[5])
    moved = chord(conditional, ts[4], xs[4] + shift, xs[5] + shift, cond=shift)
    np.testing.assert_allclose(moved.difference, chord(plain, *ends).difference, atol=1e-9)
