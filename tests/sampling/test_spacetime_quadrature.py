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
from conftest import slow_but

import dgjax
from dgjax.sampling.node_quadrature import node_quadrature
from dgjax.sampling.results import Trajectory
from dgjax.sampling.sample import sample
from dgjax.sampling.spacetime_quadrature import chord, quadrature

EXACT = dgjax.Exact()
KEY = jax.random.key(0)


def model_on(span, mixture):
    return dgjax.closed_form(mixture, span.path, t_min=span.t_min, t_max=span.t_max)


def truth(model, ts, xs):
    return jax.vmap(lambda t, x: dgjax.log_density(model, t, x))(ts, xs)


def curve(model, shape, steps):
    """A smooth curve from noise to data that follows no equation, w^(1/7) uniform."""
    ts = dgjax.grid_karras(model, steps)
    a, b, c = jax.random.normal(jax.random.key(1), (3, *shape))
    u = jnp.linspace(0, 1, steps + 1)

    def point(t, u):
        alpha, sigma = model.path.alpha(t), model.path.sigma(t)
        return alpha * (a + 0.2 * b * jnp.sin(3 * u)) + sigma * c * jnp.cos(2 * u)

    return ts, jax.vmap(point)(ts, u)


@functools.partial(jax.jit, static_argnames=("method", "nodes"))
def measure(method, model, ts, xs, log_density=None, divergence=EXACT, key=KEY, **nodes):
    """One compilation for each method, path and number of points."""
    options = {"divergence": divergence, "key": key, "log_density": log_density, **nodes}
    return method(model, ts, xs, **options)


def slope(steps, error):
    return -np.polyfit(np.log(steps), np.log(error), 1)[0]


# Rough trajectories.


def cloud(count, size=32):
    """Three components of scales 0.05 to 2 in random directions; all of them one if told."""
    keys = jax.random.split(jax.random.key(2), 3)[jnp.arange(3) % count]
    basis = jax.vmap(lambda k: jnp.linalg.qr(jax.random.normal(k, (size, size)))[0])(keys)
    scales = jnp.geomspace(0.05, 2, size) ** 2
    covariances = jnp.einsum("kij,j,klj->kil", basis, scales, basis)
    means = jax.random.normal(jax.random.key(3), (3, size)) * float(count > 1)
    return dgjax.gaussian_mixture(jnp.ones(3), means, covariances)


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0))
def reverse_sde_errors(mixture, key):
    """Of the tracked log-density and of quadrature, at the end of 64 steps."""
    path = dgjax.vp()
    t_min, t_max = path.time(jnp.array(10.0)), path.time(jnp.array(-10.0))
    model = dgjax.closed_form(mixture, path, t_min=t_min, t_max=t_max)
    start, walk = jax.random.split(key)
    x = path.alpha(t_max) * mixture.sample(start, jnp.exp(5.0))
    euler = {"noise": dgjax.reverse_sde_ito(), "solver": diffrax.Euler()}
    run = sample(model, x, dgjax.grid_logsnr(model, 64), key=walk, save=Trajectory, **euler)
    t, x, _ = run.trajectory
    measured = quadrature(model, t, x, key=walk, divergence=EXACT, batch=8).log_density[-1]
    exact = dgjax.log_density(model, t_min, x[-1])
    return run.log_density - exact, measured - exact


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_reverse_sde_where_its_own_tracking_fails(count):
    """64 steps, log-SNR -10 to 10, eight paths: nats per dimension."""
    keys = jax.random.split(jax.random.key(4), 8)
    tracked, measured = np.stack(reverse_sde_errors(cloud(count), keys)) / 32
    assert 0.3 < np.mean(tracked) < 0.9
    assert np.abs(measured).max() < 2e-3


CHUNK = 16


@pytest.mark.parametrize(("nodes", "steps"), slow_but([(1, 128), (2, 64), (3, 32)], (3, 32)))
def test_gauss_order_on_smooth_curves(spans, mixture2, nodes, steps):
    """In pieces of one length, so that one compilation serves both numbers of steps."""
    model = model_on(spans["edm7"], mixture2.model)
    options = {"key": KEY, "divergence": EXACT, "nodes": nodes, "batch": CHUNK * nodes}

    @jax.jit
    def miss(ts, xs):
        run = quadrature(model, ts, xs, log_density=0.0, **options)
        return run.log_density[-1] - jnp.diff(truth(model, ts, xs)[jnp.array([0, -1])])[0]

    def error(steps):
        ts, xs = curve(model, (2,), steps)
        return abs(
            sum(miss(ts[i : i + CHUNK + 1], xs[i : i + CHUNK + 1]) for i in range(0, steps, CHUNK))
        )

    errors = [error(steps), error(2 * steps)]
    assert 2 * nodes - 0.4 < slope([steps, 2 * steps], errors) < 2 * nodes + 0.6


@pytest.mark.slow
def test_route_and_direction_do_not_matter(spans, mixture2):
    """A random walk through spacetime, back and forth in time, against the straight way."""
    model = model_on(spans["cosine"], mixture2.model)
    rng = np.random.default_rng(0)
    levels = np.append(rng.uniform(-4, 4, 11), [-5.0])
    ts = jax.vmap(model.path.time)(jnp.asarray(levels))
    xs = jnp.asarray(rng.normal(size=(12, 2)))
    ends = jnp.array([0, -1])

    def change(ts, xs, nodes):
        run = measure(quadrature, model, ts, xs, 0.0, nodes=nodes)
        assert run.log_density[0] == 0
        return run.log_density[-1]

    around, straight = change(ts, xs, 40), change(ts[ends], xs[ends], 160)
    back = change(ts[ends[::-1]], xs[ends[::-1]], 160)
    exact = jnp.diff(truth(model, ts[ends], xs[ends]))[0]
    np.testing.assert_allclose([around, straight, -back], exact, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp", "rectified_flow", "custom"])
def test_same_on_every_path(spans, mixture2, name):
    """Only the volume term -D log alpha differs between paths, for both quadratures."""
    reference, model = (model_on(spans[n], mixture2.model) for n in ("edm", name))
    ws, ys = curve(reference, (2,), 12)
    ts = (
        jax.vmap(model.path.time)(-2 * jnp.log(ws))
        .at[jnp.array([0, -1])]
        .set([model.t_max, model.t_min])
    )
    alphas = jax.vmap(model.path.alpha)(ts)
    for method in (quadrature, node_quadrature):
        scaled = measure(method, reference, ws, ys).log_density
        here = measure(method, model, ts, ys * alphas[:, None]).log_density
        np.testing.assert_allclose(here + 2 * jnp.log(alphas), scaled, atol=1e-7)


def normal_probe(key, x):
    return jax.random.normal(key, x.shape, x.dtype)


@pytest.mark.slow
def test_probes_are_fresh_and_their_error_is_stated(spans, mixture16):
    model = model_on(spans["edm7"], mixture16.model)
    ts, xs = curve(model, (2, 8), 16)
    estimator = dgjax.Hutchinson(8, normal_probe)

    @functools.partial(jax.vmap, in_axes=(None, 0))
    def runs(method, key):
        return measure(method, model, ts, xs, divergence=estimator, key=key)

    @jax.vmap
    def held(key):
        return measure(quadrature, model, ts, xs, divergence=dgjax.FixedProbe(estimator, key))

    keys = jax.random.split(jax.random.key(5), 300)
    for method in (quadrature, node_quadrature):
        exact = measure(method, model, ts, xs)
        run = runs(method, keys)
        assert run.log_densities.shape == (300, 17, 8)
        spread = np.std(run.log_density, 0)[1:]
        miss = np.mean(run.log_density, 0)[1:] - exact.log_density[1:]
        stated = np.sqrt(np.mean(np.square(run.standard_error), 0))[1:]
        assert np.all(np.abs(miss) < 4.5 * spread / np.sqrt(300))  # unbiased
        np.testing.assert_allclose(stated, spread, rtol=0.2)
        assert np.all(exact.standard_error == 0)

    spread = [np.std(run.log_density[:, -1]) for run in (held(keys), runs(quadrature, keys))]
    assert spread[0] > 1.5 * spread[1]  # the errors of one probe held all the way add up
    single = measure(quadrature, model, ts, xs, divergence=dgjax.Hutchinson())
    assert np.all(np.isposinf(single.standard_error))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_trajectory():
    mixture = dgjax.kernel_density(jnp.zeros((1, 4096)), 0.1)
    model = dgjax.closed_form(mixture, dgjax.edm(), t_min=0.1, t_max=10.0)

    def scratch(method, steps, batch):
        ts = dgjax.grid_uniform(model, steps)
        run = jax.jit(lambda xs: method(model, ts, xs, key=KEY, batch=batch))
        like = jax.ShapeDtypeStruct((steps + 1, 4096), jnp.float64)
        compiled = run.lower(like).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (4096 * 8)

    for method in (quadrature, node_quadrature):
        more = scratch(method, 256, 2) - scratch(method, 128, 2)
        assert more < 1.5 * 128  # the scaled points, but no network's work


# Smooth trajectories.


STEPS = (64, 256)


@functools.cache
def smooth_errors():
    """|tracked - true| and |node quadrature - true|, each (steps, q), over latents and points.

    q falls to 1/2 at the data, so that eta stays off its bound, where the drift has a kink.
    """
    mixture = cloud(3, 16)
    model = dgjax.closed_form(mixture, dgjax.edm(7.0), t_min=0.05 ** (1 / 7), t_max=20.0 ** (1 / 7))
    knots = jnp.array(
        [dgjax.logsnr(model.path, model.t_max), dgjax.logsnr(model.path, model.t_min)]
    )

    @jax.jit
    @jax.vmap
    def piece(q, x, log_density, grid):
        run = sample(
            model,
            x,
            grid,
            key=KEY,
            log_density=log_density,
            guides=(dgjax.density_guidance(jnp.stack([q, 0.5]), knots=knots, bound=4.0),),
            divergence=EXACT,
            save=Trajectory,
            solver=diffrax.Heun(),
        )
        return run.trajectory, run.info.bound_share

    @jax.jit
    @jax.vmap
    def nodes(t, x):
        run = node_quadrature(model, t, x, key=KEY, divergence=EXACT, batch=8)
        return run.log_density - truth(model, t, x)

    q = jnp.repeat(jnp.array([0.5, 0.65]), 4)
    latents = jax.vmap(lambda key: mixture.sample(key, 20.0))(jax.random.split(KEY, 8))
    start = jax.vmap(lambda x: dgjax.log_prior(model, x))(latents)
    rows = []
    for steps in STEPS:
        grid = jnp.tile(dgjax.grid_uniform(model, steps), (8, 1))
        t, x, tracked = grid[:, :1], latents[:, None], start[:, None]
        for i in range(0, steps, 32):
            more, bounded = piece(q, x[:, -1], tracked[:, -1], grid[:, i : i + 33])
            assert np.all(bounded == 0), bounded
            t, x, tracked = (
                jnp.concatenate([a, b[:, 1:]], 1)
                for a, b in zip((t, x, tracked), more, strict=True)
            )
        miss = tracked - jax.vmap(lambda t, x: truth(model, t, x))(t, x)
        rows.append([np.abs(a).max(1).reshape(2, 4).mean(1) for a in (miss, nodes(t, x))])
    return np.array(rows).transpose(1, 0, 2)


@pytest.mark.slow
@pytest.mark.parametrize("guided", [0, 1])
def test_node_quadrature_converges_at_order_six(guided):
    tracked, nodes = smooth_errors()[..., guided]
    assert 1.8 < slope(STEPS, tracked) < 2.3  # Heun's own
    assert 5.3 < slope(STEPS, nodes) < 6.7


@pytest.mark.slow
@pytest.mark.parametrize("guided", [0, 1])
def test_the_solvers_error_drops_out(guided):
    tracked, nodes = smooth_errors()[..., guided]
    assert np.all(nodes < tracked / np.array([200, 20_000]))


def test_node_quadrature_is_exact_for_what_it_interpolates():
    """log p quadratic in y on a polynomial curve at one w: differences and weights are exact."""
    mixture = dgjax.gaussian(jnp.zeros(3), jnp.array(0.7))
    model = dgjax.closed_form(mixture, dgjax.edm(), t_min=0.1, t_max=10.0)
    ts = jnp.linspace(1.0, 1.0 + 1e-12, 9)
    u = jnp.linspace(-1, 1, 9)
    xs = jnp.stack([u**3, 1 - u**2, u], -1)
    run = measure(node_quadrature, model, ts, xs, 0.0)
    exact = truth(model, ts, xs)
    np.testing.assert_allclose(run.log_density, exact - exact[0], atol=1e-9)


# Chords.


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.vmap, in_axes=(None, None, None, 0, 0))
def chord_errors(nodes, model, t, x0, x1):
    """|error|, the error stated, and |difference|."""
    run = chord(model, t, x0, x1, nodes=nodes)
    exact = dgjax.log_density(model, t, x1) - dgjax.log_density(model, t, x0)
    return jnp.abs(run.difference - exact), run.error, jnp.abs(exact)


@pytest.mark.parametrize("nodes", slow_but([4, 8, 16, 32], 16))
def test_chord_states_its_error(spans, mixture16, nodes):
    """Chords of all lengths, half of them through the bends between modes."""
    model = model_on(spans["rectified_flow"], mixture16.model)
    keys = jax.random.split(jax.random.key(7), (2, 300))
    lengths = jnp.tile(jnp.geomspace(0.01, 1, 6), 50)[:, None, None]
    for w in (0.05, 0.2, 0.5):
        t = model.path.time(jnp.asarray(-2 * np.log(w)))
        draw = jax.vmap(jax.vmap(lambda key, w=w: mixture16.model.sample(key, w)))
        x0, x1 = model.path.alpha(t) * draw(keys)
        actual, stated, size = map(
            np.asarray, chord_errors(nodes, model, t, x0, x0 + lengths * (x1 - x0))
        )
        held = actual <= stated + 1e-12 * (100 + size)
        assert held.mean() > {4: 0.95, 8: 0.98}.get(nodes, 0.99)
        if nodes > 4:  # four may all lie where there is nothing to see
            assert np.all(actual[~held] < {8: 0.3}.get(nodes, 1e-3))
        rough = actual > 1e-3 * (1 + size)
        ratio = stated[rough] / actual[rough]
        assert np.median(ratio) < (300 if w == 0.5 else 50)


def test_chord_order(spans, mixture2):
    model = model_on(spans["vp"], mixture2.model)
    t, x0, way = model.path.time(jnp.array(0.0)), jnp.array([0.3, -0.2]), jnp.array([0.8, 0.6])
    exact = functools.partial(dgjax.log_density, model, t)
    lengths = np.array([0.2, 0.4])
    for nodes in (2, 3):
        runs = [chord(model, t, x0, x0 + length * way, nodes=nodes) for length in lengths]
        miss = [
            abs(run.difference - exact(x0 + length * way) + exact(x0))
            for run, length in zip(runs, lengths, strict=True)
        ]
        assert -slope(lengths, miss) > 2 * nodes + 0.4


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
    counts = [(quadrature, name) for name in ("nodes", "error_every", "batch")]
    for method, what in [*counts, (node_quadrature, "batch")]:
        with pytest.raises(ValueError, match=f"{what} must be a positive int"):
            method(model, ts, xs, key=KEY, **{what: 0})


def test_the_error_of_a_chord_is_its_last_coefficients_and_rounding():
    """On a Gaussian the slope is linear in the share of the way, so rounding alone is left."""
    data = dgjax.gaussian(jnp.array([1.0, -2.0, 0.5]), 0.5)
    model = dgjax.closed_form(data, dgjax.edm(), t_min=0.1, t_max=10.0)
    x0, x1 = jnp.array([3.0, -1.0, 2.0]), jnp.array([-1.0, 2.0, 0.5])
    points, masses = np.polynomial.legendre.leggauss(16)
    shares = (points + 1) / 2
    way = np.asarray(x1 - x0)
    scores = (np.array([1.0, -2.0, 0.5]) - (np.asarray(x0) + shares[:, None] * way)) / (
        0.5 + 2.0**2
    )
    sizes = np.sum(np.abs(scores * way), 1)
    rounding = np.finfo(np.float64).eps * (masses / 2) @ sizes
    assert rounding <= float(chord(model, 2.0, x0, x1).error) < 12 * rounding
    assert rounding <= float(chord(model, 2.0, x0, x1, nodes=4).error) < 12 * rounding
    # With two nodes the last coefficient is that of the linear part, and the first the mean.
    slopes = np.sum(scores * way, 1)
    whole = np.polynomial.legendre.legfit(points, slopes, 1)
    assert float(chord(model, 2.0, x0, x1, nodes=2).error) == pytest.approx(abs(whole[1]))


def test_rounding_of_a_chord():
    """Where nothing but rounding is left: the terms of every slope cancel."""
    network = lambda x, t, cond: jnp.array([-1.5, 1.5])  # minus sigma s
    model = dgjax.field(network, dgjax.edm(), dgjax.NoisePrediction(), t_min=0.1, t_max=9.0)
    found = chord(model, 2.0, jnp.zeros(2), jnp.array([6.0, 6.0]))
    assert found.difference == 0
    size = 2 * 6 * 1.5 / 2.0
    assert float(found.error) / np.finfo(np.float64).eps == pytest.approx(size)


def test_defaults_of_both(mixture2):
    """Numbers that a caller who gives none relies on."""
    model = dgjax.closed_form(mixture2.model, dgjax.edm(), t_min=0.05, t_max=40.0)
    x0, x1 = jnp.array([3.0, -1.0]), jnp.array([-1.0, 4.0])
    default, found = (chord(model, 0.2, x0, x1, **o).error for o in ({}, {"nodes": 16}))
    assert default == found
    assert default != chord(model, 0.2, x0, x1, nodes=24).error
    ts, xs = curve(model, (2,), 12)
    errors = [
        quadrature(model, ts, xs, key=KEY, divergence=EXACT, **options).solver_error[-1]
        for options in ({}, {"error_every": 4}, {"error_every": 6})
    ]
    assert errors[0] == errors[1] != errors[2]


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
    with pytest.raises(ValueError, match="nodes must be an int above 1"):
        chord(model, 1.0, x, x, nodes=1)


@pytest.mark.slow
def test_density_of_the_conditional_model(mixture2):
    """`cond` reaches every evaluation and the start."""

    def denoiser(y, w, cond):
        return mixture2.model(y - cond, w) + cond

    conditional, plain = (
        dgjax.field(network, dgjax.edm(), dgjax.DenoisedPrediction(), t_min=0.1, t_max=10.0)
        for network in (denoiser, mixture2.model)
    )
    shift = jnp.array([0.4, -1.0])
    ts, xs = curve(plain, (2,), 8)
    for method in (quadrature, node_quadrature):
        options = {"key": KEY, "log_density": 1.5, "divergence": EXACT}
        moved = method(conditional, ts, xs + shift[None], cond=shift, **options).log_density
        still = measure(method, plain, ts, xs, 1.5).log_density
        np.testing.assert_allclose(moved, still, atol=1e-9)
    ends = (ts[4], xs[4], xs[5])
    moved = chord(conditional, ts[4], xs[4] + shift, xs[5] + shift, cond=shift)
    np.testing.assert_allclose(moved.difference, chord(plain, *ends).difference, atol=1e-9)
