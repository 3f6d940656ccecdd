"""Fitted weights: exact for an isotropic Gaussian, and held to closed forms on mixtures."""

from functools import partial
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax
from dgjax.model import divergence
from dgjax.model.estimator_identity import identify_estimator
from dgjax.sampling.density_numbers import density_numbers

W_MIN, W_MAX = 0.05, 20.0
MEAN = jnp.array([1.0, -2.0, 3.0])
EXACT = {"key": jax.random.key(7), "divergence": dgjax.Exact()}


def measured(model, fit, xs, **options):
    """Log-densities of a batch, in one program that takes the model as an argument."""
    one = partial(dgjax.fitted_likelihood, **options)
    return jax.jit(jax.vmap(one, (None, None, 0)))(model, fit, xs)


def rms(a):
    return float(jnp.sqrt(jnp.mean(a**2)))


def isotropic(path):
    model = dgjax.closed_form(dgjax.gaussian(MEAN, 0.5), dgjax.edm(), t_min=W_MIN, t_max=W_MAX)
    return dgjax.repath(model, path)


def drawn(model, key, num):
    """Samples at t_min of a closed form, and their log-densities."""
    alpha = model.path.alpha(model.t_min)
    draw = lambda key: alpha * model.network.sample(key, W_MIN)
    xs = jax.vmap(draw)(jax.random.split(jax.random.key(key), num))
    return xs, jax.vmap(partial(dgjax.log_density, model, model.t_min))(xs)


@pytest.fixture(scope="module")
def model(mixture16):
    """The 16-D mixture on the cosine path, where alpha is neither 1 nor constant."""
    edm = dgjax.closed_form(mixture16.model, dgjax.edm(), t_min=W_MIN, t_max=W_MAX)
    return dgjax.repath(edm, dgjax.cosine())


@pytest.fixture(scope="module")
def data(model):
    return drawn(model, 1, 640)


@pytest.fixture(scope="module")
def fit(model, data):
    xs, known = data
    return dgjax.fit_likelihood(
        model, xs[:192], known[:192], dgjax.grid_logsnr(model, 3, noise=4.0), **EXACT
    )


def test_is_exact_for_an_isotropic_gaussian(span):
    model = isotropic(span.path)
    xs, known = drawn(model, 0, 60)
    grid = dgjax.grid_logsnr(model, 1, noise=2.0)
    fit = dgjax.fit_likelihood(model, xs[:40], known[:40], grid, **EXACT)
    found = measured(model, fit, xs[40:], **EXACT)
    np.testing.assert_allclose(found.log_density, known[40:], rtol=0, atol=1e-8)
    assert fit.deviation < 1e-8
    assert rms(found.standard_error) < 1e-7
    assert not found.fault.any()


def test_the_numbers_of_a_fit_are_those_of_least_squares(model, data, fit):
    """Against NumPy, with the numbers that vary."""
    xs, known = (np.asarray(a[:192]) for a in data)
    varying = np.flatnonzero(fit.left_out == 0)
    assert fit.rank == 1 + len(varying) > 10
    one = lambda x, key: density_numbers(model, fit.grid, x, key, EXACT["divergence"])
    keys = jax.random.split(EXACT["key"], 192)
    features = np.column_stack([jax.vmap(one)(xs, keys)[:, varying], np.ones(192)])
    weights, squares, *_ = np.linalg.lstsq(features, known, rcond=None)
    np.testing.assert_allclose(fit.deviation, np.sqrt(squares[0] / (192 - fit.rank)), rtol=1e-6)
    found = jax.vmap(partial(dgjax.fitted_likelihood, model, fit, divergence=dgjax.Exact()))(
        xs, key=keys
    )
    np.testing.assert_allclose(found.log_density, features @ weights, rtol=0, atol=1e-6)
    np.testing.assert_allclose(jnp.mean(found.leverage), 1, rtol=1e-6)
    np.testing.assert_allclose(fit.mean_sample, xs.mean(0), rtol=1e-12)


@pytest.mark.parametrize("noise", [1.5, 3.5])
@pytest.mark.parametrize("evaluations", [2, 4])
def test_what_hardly_varies_in_the_fit_is_looked_at_too(noise, evaluations):
    """Fitted to one component, where the curvature is constant, and asked for another one."""
    mean = jnp.full(10, 3.0)
    covariances = jnp.stack([jnp.eye(10), 0.1 * jnp.eye(10)])
    both = dgjax.gaussian_mixture([0.5, 0.5], jnp.stack([mean, -mean]), covariances)
    model = dgjax.closed_form(both, dgjax.edm(), t_min=0.05, t_max=20.0)
    noises = jax.random.normal(jax.random.key(0), (2, 128, 10))
    of = {"fitted": mean + noises[0], "other": -mean + jnp.sqrt(0.1) * noises[1]}
    log_density = jax.vmap(partial(dgjax.log_density, model, 0.05))
    grid = dgjax.grid_logsnr(model, evaluations - 1, noise=noise)
    fit = dgjax.fit_likelihood(model, of["fitted"], log_density(of["fitted"]), grid, **EXACT)
    assert fit.left_out.any()
    found = {name: measured(model, fit, xs, **EXACT) for name, xs in of.items()}
    errors = {name: found[name].log_density - log_density(xs) for name, xs in of.items()}
    assert rms(errors["other"]) > 100 * rms(errors["fitted"])
    assert jnp.median(found["other"].leverage) > 100
    assert jnp.median(found["fitted"].leverage) < 2
    assert jnp.mean(abs(errors["other"]) < 5 * found["other"].standard_error) > 0.9
    assert jnp.median(found["fitted"].standard_error) < 2 * fit.deviation


@pytest.mark.parametrize("evaluations", [4, 8])
def test_held_out_log_densities_of_a_mixture(model, data, evaluations):
    """Less than a third of the error of general weights, and the stated error holds."""
    xs, known = data
    grid = dgjax.grid_logsnr(model, evaluations - 1, noise=4.0)
    fit = dgjax.fit_likelihood(model, xs[:192], known[:192], grid, **EXACT)
    found = measured(model, fit, xs[192:], **EXACT)
    error = found.log_density - known[192:]
    plain = partial(dgjax.likelihood, grid=dgjax.grid_logsnr(model, evaluations - 1), **EXACT)
    general = jax.jit(jax.vmap(lambda x: plain(model, x).log_density))(xs[192:]) - known[192:]
    assert rms(error) < rms(general) / 3
    assert jnp.mean(abs(error) < found.standard_error) > 0.68
    assert jnp.mean(abs(error) < 2 * found.standard_error) > 0.95
    assert 0.8 < jnp.mean(found.leverage) < 1.6


def test_the_stated_error_has_the_noise_of_probes(model, data):
    xs, known = data
    grid = dgjax.grid_logsnr(model, 7, noise=4.0)
    options = {"divergence": dgjax.Hutchinson()}
    fit = dgjax.fit_likelihood(model, xs[:192], known[:192], grid, key=jax.random.key(0), **options)
    keys = jax.random.split(jax.random.key(1), len(xs) - 192)
    one = lambda x, key: dgjax.fitted_likelihood(model, fit, x, key=key, **options)
    found = jax.jit(jax.vmap(one))(xs[192:], keys)
    error = found.log_density - known[192:]
    without = dgjax.fit_likelihood(model, xs[:192], known[:192], grid, **EXACT)
    assert rms(error) > 1.5 * without.deviation
    assert 0.68 < jnp.mean(abs(error) < found.standard_error) < 0.95
    assert jnp.mean(abs(error) < 2 * found.standard_error) > 0.95


def test_a_sample_unlike_those_of_the_fit_is_told_by_its_leverage(model, data, fit):
    far = 3.0 * data[0][192:]
    exact = jax.vmap(partial(dgjax.log_density, model, model.t_min))(far)
    found = measured(model, fit, far, **EXACT)
    assert jnp.median(found.leverage) > 10
    error = abs(found.log_density - exact)
    assert jnp.median(error) > 5 * fit.deviation
    assert jnp.mean(error < 2 * found.standard_error) > 0.9


def test_is_the_same_on_another_path(data, fit, model):
    """Paths scale samples, and so move their log-densities by D log alpha."""
    other = dgjax.repath(model, dgjax.rectified_flow())
    alpha, others = (m.path.alpha(m.t_min) for m in (model, other))
    xs, known = data
    xs, shift = others / alpha * xs, -16 * jnp.log(others / alpha)
    grid = dgjax.grid_logsnr(other, 3, noise=4.0)
    moved = dgjax.fit_likelihood(other, xs[:192], known[:192] + shift, grid, **EXACT)
    found = measured(other, moved, xs[192:], **EXACT)
    first = measured(model, fit, data[0][192:], **EXACT)
    np.testing.assert_allclose(found.log_density, first.log_density + shift, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.standard_error, first.standard_error, rtol=1e-6)


def test_conditions_are_stacked():
    """N(c, 0.5 I) for a condition c: log-densities of all of them by one fit."""

    def network(y, w, cond):
        return (0.5 * y + w**2 * cond) / (0.5 + w**2)

    model = dgjax.field(network, dgjax.edm(), dgjax.DenoisedPrediction(), t_min=0.1, t_max=20.0)
    conds = jax.random.normal(jax.random.key(0), (60, 3)) + MEAN
    noise = jax.random.normal(jax.random.key(1), (60, 3))
    xs = conds + jnp.sqrt(0.51) * noise
    known = -0.5 * jnp.sum(noise**2, -1) - 1.5 * jnp.log(2 * jnp.pi * 0.51)
    grid = dgjax.grid_logsnr(model, 1, noise=2.0)
    fit = dgjax.fit_likelihood(model, xs[:40], known[:40], grid, cond=conds[:40], **EXACT)
    one = lambda x, cond: dgjax.fitted_likelihood(model, fit, x, cond=cond, **EXACT)
    found = jax.vmap(one)(xs[40:], conds[40:])
    np.testing.assert_allclose(found.log_density, known[40:], rtol=0, atol=1e-8)


def test_gradient_in_the_sample(model, data, fit):
    x, direction = data[0][200], jax.random.normal(jax.random.key(2), (2, 8))
    value = lambda x: dgjax.fitted_likelihood(model, fit, x, **EXACT).log_density
    slope = jnp.vdot(jax.grad(value)(x), direction)
    step = 1e-5
    difference = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-6)


def test_in_float32(float32, mixture16):
    edm = dgjax.closed_form(mixture16.model, dgjax.edm(), t_min=W_MIN, t_max=W_MAX)
    model = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), edm)
    xs, known = drawn(model, 1, 320)
    fit = dgjax.fit_likelihood(
        model, xs[:192], known[:192], dgjax.grid_logsnr(model, 3, noise=4.0), **EXACT
    )
    found = measured(model, fit, xs[192:], **EXACT)
    assert found.log_density.dtype == jnp.float32
    error = found.log_density - known[192:]
    assert rms(error) < 1.0
    assert jnp.mean(abs(error) < 2 * found.standard_error) > 0.93


def fitted_three_times(network):
    """Fit, and then measure three samples in 4 evaluations each."""
    model = dgjax.field(network, dgjax.edm(), dgjax.DenoisedPrediction(), t_min=0.1, t_max=20.0)
    xs = jax.random.normal(jax.random.key(0), (32, 3))
    grid = dgjax.grid_logsnr(model, 3, noise=2.0)
    options = {"key": jax.random.key(0), "divergence": dgjax.Hutchinson()}
    fit = dgjax.fit_likelihood(model, xs, -jnp.sum(xs**2, -1), grid, **options)
    yield
    for x in xs[:3]:
        dgjax.fitted_likelihood(model, fit, x, **options)


def test_rounding_of_large_numbers_leaves_no_small_one_out(float32):
    """|x0|^2/w^2 is a million here, and rounds to what |sigma s|^2 varies by."""
    size, mean, variance = 784, 0.4, 0.5
    data = dgjax.gaussian(jnp.full(size, mean), variance)
    model = dgjax.closed_form(data, dgjax.edm(), t_min=0.02, t_max=80.0)
    noises = jax.random.normal(jax.random.key(0), (60, size))
    xs = mean + jnp.sqrt(variance + 0.02**2) * noises
    known = -0.5 * jnp.sum(noises**2, -1)
    grid = dgjax.grid_logsnr(model, 3, noise=2.5)
    options = {"key": jax.random.key(7), "divergence": dgjax.Hutchinson()}
    fit = dgjax.fit_likelihood(model, xs, known, grid, **options)
    assert jnp.max(fit.centre) > 1e5
    assert not fit.left_out[4::3].any()  # the first hardly varies
    assert fit.deviation < 0.1


def test_the_network_is_traced_once():
    traced = Mock()

    def network(y, w, cond):
        del cond
        traced()
        return 0.5 * y / (0.5 + w**2)

    run = fitted_three_times(network)
    next(run)
    assert traced.call_count == 1
    assert next(run, None) is None
    assert traced.call_count == 2


def test_the_network_is_evaluated_once_at_each_time():
    called = Mock()

    def network(y, w, cond):
        del cond
        jax.debug.callback(lambda: called())
        return 0.5 * y / (0.5 + w**2)

    run = fitted_three_times(network)
    next(run)
    jax.effects_barrier()
    called.reset_mock()
    assert next(run, None) is None
    jax.effects_barrier()
    assert called.call_count == 3 * 4


def test_what_cannot_be_fitted_is_refused(model, data):
    xs, known = data
    grid = dgjax.grid_logsnr(model, 3, noise=4.0)
    fit = partial(dgjax.fit_likelihood, model, **EXACT)
    with pytest.raises(ValueError, match="give at least 28"):
        fit(xs[:27], known[:27], grid)
    with pytest.raises(ValueError, match=r"must be \(N, \*shape\) and \(N,\)"):
        fit(xs, known[:-1], grid)
    with pytest.raises(ValueError, match="decreases"):
        fit(xs, known, grid[::-1])
    with pytest.raises(ValueError, match="log_densities has NaN or infinite entries"):
        fit(xs, known.at[3].set(jnp.nan), grid)
    with pytest.raises(ValueError, match="xs has NaN or infinite entries"):
        fit(xs.at[3].set(jnp.inf), known, grid)
    with pytest.raises(ValueError, match="batch"):
        fit(xs, known, grid, batch=0)
    with pytest.raises(ValueError, match="outside the model's own range"):
        fit(xs, known, grid.at[0].set(0.999))
    with pytest.raises(ValueError, match=r"cond has a leaf of shape \(2,\), but there are 640"):
        fit(xs, known, grid, cond={"label": jnp.arange(2)})
    with pytest.raises(ValueError, match="the divergence or the score is NaN"):
        fit(xs, known, grid, divergence=dgjax.Untracked())


def test_a_fit_is_refused_where_it_does_not_belong(model, data, fit):
    x = data[0][200]
    use = partial(dgjax.fitted_likelihood, **EXACT)
    with pytest.raises(ValueError, match="what fit_likelihood returns, got Field"):
        use(fit, model, x)
    with pytest.raises(ValueError, match=r"fitted to samples of shape \(2, 8\): pass one"):
        use(model, fit, data[0][:2])
    for path in (dgjax.vp(), dgjax.rectified_flow()):
        with pytest.raises(ValueError, match="other noise levels at the times of their grid"):
            use(dgjax.repath(model, path), fit, x)
    traced = jax.jit(use)(dgjax.repath(model, dgjax.vp()), fit, x)
    assert traced.fault == dgjax.Fault.OTHER_MODEL
    assert jnp.isnan(traced.log_density)


def test_a_fit_is_refused_with_another_divergence(model, data):
    xs, known = data
    options, x = {"key": jax.random.key(7)}, xs[200]
    grid = dgjax.grid_logsnr(model, 3, noise=4.0)
    five = dgjax.Coloured(5)
    fit = dgjax.fit_likelihood(model, xs[:192], known[:192], grid, divergence=five, **options)
    use = partial(dgjax.fitted_likelihood, **options)
    assert jnp.isfinite(use(model, fit, x, divergence=dgjax.Coloured(5)).log_density)
    for other in (dgjax.Hutchinson(), dgjax.Exact(), dgjax.Coloured(4), dgjax.Untracked()):
        with pytest.raises(ValueError, match="fitted with another divergence"):
            use(model, fit, x, divergence=other)
        traced = jax.jit(partial(use, divergence=other))(model, fit, x)
        assert traced.fault == dgjax.Fault.OTHER_DIVERGENCE
        assert jnp.isnan(traced.log_density)


def test_a_divergence_is_known_by_its_settings():
    key = jax.random.key(0)
    same = ((dgjax.Exact(), dgjax.Exact(8)),)
    other = (
        (dgjax.Hutchinson(4), dgjax.Hutchinson(4, divergence.gaussian)),
        (
            dgjax.FixedProbe(dgjax.Hutchinson(), key),
            dgjax.FixedProbe(dgjax.Exact(), key),
        ),
    )
    known = [identify_estimator(a) == identify_estimator(b) for a, b in same + other]
    assert known == [True, False, False]


def test_a_fit_survives_a_file(tmp_path, model, data, fit):
    np.savez(tmp_path / "fit.npz", **fit._asdict())
    with np.load(tmp_path / "fit.npz") as file:
        loaded = dgjax.sampling.fitted_likelihood.LikelihoodFit(**file)
    found = dgjax.fitted_likelihood(model, loaded, data[0][200], **EXACT)
    again = dgjax.fitted_likelihood(model, fit, data[0][200], **EXACT)
    assert found.log_density == again.log_density


def test_log_densities_that_are_all_the_same(model, data):
    xs = data[0][:192]
    grid = dgjax.grid_logsnr(model, 3, noise=4.0)
    fit = dgjax.fit_likelihood(model, xs, jnp.full(192, -3.0), grid, batch=500, **EXACT)
    found = measured(model, fit, xs, **EXACT)
    np.testing.assert_allclose(found.log_density, -3, rtol=0, atol=1e-10)
    assert jnp.max(found.leverage) < 50


def test_under_tracing_what_is_wrong_is_nan_and_named(model, data, fit):
    xs, known = data
    wrong = measured(model, fit, xs[:2].at[1].set(jnp.nan), **EXACT)
    assert jnp.isfinite(wrong.log_density).tolist() == [True, False]
    assert wrong.fault.tolist() == [dgjax.Fault.NONE, dgjax.Fault.NOT_FINITE]
    assert jnp.isnan(wrong.standard_error[1])
    assert jnp.isnan(wrong.leverage[1])
    increasing = jax.jit(partial(dgjax.fit_likelihood, **EXACT))(
        model, xs[:192], known[:192], fit.grid[::-1]
    )
    assert increasing.fault == dgjax.Fault.NOT_DECREASING
    assert jnp.isnan(increasing.mean)
    found = jax.jit(partial(dgjax.fitted_likelihood, **EXACT))(model, increasing, xs[200])
    assert jnp.isnan(found.log_density)
    assert found.fault == dgjax.Fault.NOT_DECREASING
    with pytest.raises(ValueError, match="a fit that failed: the grid does not decrease"):
        dgjax.fitted_likelihood(model, increasing, xs[200], **EXACT)
