"""Paths and derived quantities against formulas written independently."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import W_MAX, W_MIN

import dgjax
from dgjax.model.faults import Fault
from dgjax.model.paths import coefficients


def vp_integral(t, low=0.1, high=20.0):
    return low * t + (high - low) * t**2 / 2


def vp_alpha(t, *betas):
    return np.exp(-vp_integral(t, *betas) / 2)


FORMULAS = {
    "vp": (vp_alpha, lambda t: np.sqrt(1 - vp_alpha(t) ** 2)),
    "sub_vp": (vp_alpha, lambda t: 1 - vp_alpha(t) ** 2),
    "cosine": (lambda t: np.sqrt((1 + np.cos(np.pi * t)) / 2), lambda t: np.sin(np.pi * t / 2)),
    "ve": (lambda t: 1 + 0 * t, lambda t: 0.01 * 5000**t),
    "edm": (lambda t: 1 + 0 * t, lambda t: t),
    "edm7": (lambda t: 1 + 0 * t, lambda t: t**7),
    "rectified_flow": (lambda t: 1 - t, lambda t: t),
    "custom": (lambda t: np.exp(-t), lambda t: t),
}


# All have one length, for one compilation per path.
LEVELS = np.linspace(-2 * np.log(W_MIN), -2 * np.log(W_MAX), 9)
WIDE = np.linspace(14.0, -6.3, 9)


@jax.jit
def times(path, levels):
    return jax.vmap(path.time)(levels)


@jax.jit
def values(path, t):
    return jax.vmap(lambda t: coefficients(path, t))(t)


@jax.jit
def logsnrs(path, t):
    return jax.vmap(lambda t: dgjax.logsnr(path, t))(t)


def test_alpha_and_sigma_are_the_published_ones(span):
    t = times(span.path, LEVELS)
    alpha, sigma = FORMULAS[span.name]
    c = values(span.path, t)
    np.testing.assert_allclose(c.alpha, alpha(np.asarray(t)), rtol=1e-10)
    np.testing.assert_allclose(c.sigma, sigma(np.asarray(t)), rtol=1e-10)


@pytest.mark.parametrize(
    ("path", "alpha", "sigma"),
    [
        (dgjax.vp(0.3, 8), vp_alpha(0.4, 0.3, 8), np.sqrt(1 - vp_alpha(0.4, 0.3, 8) ** 2)),
        (dgjax.sub_vp(0.3, 8), vp_alpha(0.4, 0.3, 8), 1 - vp_alpha(0.4, 0.3, 8) ** 2),
        (dgjax.ve(0.002, 80), 1.0, 0.002**0.6 * 80**0.4),
        (dgjax.edm(3), 1.0, 0.064),
    ],
    ids=["vp", "sub_vp", "ve", "edm"],
)
def test_the_numbers_of_a_path_are_used(path, alpha, sigma):
    t = jnp.array(0.4)
    np.testing.assert_allclose([path.alpha(t), path.sigma(t)], [alpha, sigma], rtol=1e-12)
    np.testing.assert_allclose(path.time(dgjax.logsnr(path, t)), 0.4, rtol=1e-12)


def test_derivatives_f_and_g2_are_those_of_the_formulas(span):
    """Return central differences of the formulas, accurate to about nine digits."""
    t = np.asarray(times(span.path, LEVELS))
    h = 1e-5 * np.minimum(t, 1 - t) if span.t_max < 1 else 1e-5 * t
    alpha, sigma = FORMULAS[span.name]

    def slope(fn):
        return (fn(t + h) - fn(t - h)) / (2 * h)

    c = values(span.path, jnp.asarray(t))
    f = slope(lambda t: np.log(alpha(t)))
    g2 = slope(lambda t: sigma(t) ** 2) - 2 * f * sigma(t) ** 2
    dlogsnr = slope(lambda t: 2 * np.log(alpha(t) / sigma(t)))
    np.testing.assert_allclose(c.dalpha, slope(alpha), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(c.dsigma, slope(sigma), rtol=1e-6)
    np.testing.assert_allclose(c.f, f, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(c.g2, g2, rtol=1e-6)
    np.testing.assert_allclose(c.dlogsnr, dlogsnr, rtol=1e-6)
    np.testing.assert_allclose(c.logsnr, LEVELS, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "f", "g2"),
    [
        ("vp", lambda t: -(0.1 + 19.9 * t) / 2, lambda t: 0.1 + 19.9 * t),
        (
            "sub_vp",
            lambda t: -(0.1 + 19.9 * t) / 2,
            lambda t: (0.1 + 19.9 * t) * (1 - np.exp(-2 * vp_integral(t))),
        ),
        ("ve", lambda t: 0 * t, lambda t: 2 * np.log(5000) * (0.01 * 5000**t) ** 2),
        ("edm", lambda t: 0 * t, lambda t: 2 * t),
        ("rectified_flow", lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
    ],
)
def test_f_and_g2_are_the_published_ones(spans, name, f, g2):
    """Song et al. 2021, appendix B; Karras et al. 2022, table 1."""
    t = np.asarray(times(spans[name].path, LEVELS))
    c = values(spans[name].path, jnp.asarray(t))
    np.testing.assert_allclose(c.f, f(t), rtol=1e-10)
    np.testing.assert_allclose(c.g2, g2(t), rtol=1e-10)


def test_round_trips_between_time_and_logsnr(span):
    t = times(span.path, WIDE)
    assert (np.diff(t) > 0).all()
    back = logsnrs(span.path, t)
    np.testing.assert_allclose(back, WIDE, atol=1e-9)
    np.testing.assert_allclose(times(span.path, back), t, rtol=1e-9)


def test_nan_has_no_time(span):
    assert jnp.isnan(span.path.time(jnp.asarray(jnp.nan)))


def test_time_has_the_gradient_of_an_inverse(span):
    slope = jax.jit(jax.vmap(jax.grad(span.path.time)))(LEVELS)
    t = times(span.path, LEVELS)
    np.testing.assert_allclose(slope * values(span.path, t).dlogsnr, 1, rtol=1e-8)


def test_float32_loses_nothing_near_the_ends(span, float32):
    """Errors in sigma and alpha are a few units in the last place of t or of the value itself."""
    path = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), span.path)
    levels = np.concatenate([np.linspace(14, 7, 5), np.linspace(-5, -6.3, 4)])
    t = times(path, levels.astype(np.float32))
    assert t.dtype == jnp.float32
    c = values(path, t)
    alpha, sigma = FORMULAS[span.name]
    exact = np.asarray(t, np.float64)
    eps = np.finfo(np.float32).eps
    # 1 - alpha^2 loses digits in the formulas, except in float64.
    np.testing.assert_allclose(c.sigma, sigma(exact), rtol=20 * eps)
    np.testing.assert_allclose(c.alpha, alpha(exact), rtol=8 * eps, atol=2 * eps)
    # The time is accurate up to the rounding of t and of the log-SNR.
    found = 2 * np.log(alpha(exact) / sigma(exact))
    allowed = eps * (np.abs(levels) + np.abs(c.dlogsnr) * exact + 1 / alpha(exact))
    assert (np.abs(found - levels) < 10 * allowed).all()
    # g2 is positive and accurate where sigma is small.
    slow = (sigma(exact * 1.0001) ** 2 - sigma(exact * 0.9999) ** 2) / (2e-4 * exact)
    f = (np.log(alpha(exact * 1.0001)) - np.log(alpha(exact * 0.9999))) / (2e-4 * exact)
    near = levels > 0
    g2 = slow - 2 * f * sigma(exact) ** 2
    np.testing.assert_allclose(c.g2[near], g2[near], rtol=1e-4)


@pytest.mark.parametrize(
    "make",
    [dgjax.vp, dgjax.sub_vp, dgjax.ve, lambda a, b: dgjax.edm(b)],
    ids=["vp", "sub_vp", "ve", "edm"],
)
def test_changed_numbers_do_not_retrace(make):
    @jax.jit
    @chex.assert_max_traces(1)
    def both(path, t):
        return coefficients(path, t), path.time(dgjax.logsnr(path, t))

    first, _ = both(make(0.1, 20.0), 0.3)
    second, _ = both(make(1, 12), 0.7)
    both(make(np.float32(0.2), jnp.array(9)), 0.5)
    assert first.sigma != second.sigma


def test_changed_bounds_of_a_custom_path_do_not_retrace():
    def alpha(t):
        return jnp.exp(-t)

    def sigma(t):
        return t

    @jax.jit
    @chex.assert_max_traces(1)
    def middle(path):
        return path.time(0.0)

    results = [middle(dgjax.custom(alpha, sigma, 0.0, upper)) for upper in (1.0, 2, 3.5)]
    # t e^t = 1 at the omega constant.
    np.testing.assert_allclose(results, 0.5671432904097838, rtol=1e-12)


@pytest.mark.parametrize(
    ("alpha", "sigma"),
    [
        (lambda t: t, lambda t: 1 - t),  # backwards
        (lambda t: 1 - 0.5 * t, lambda t: jnp.sin(2 * jnp.pi * t)),  # up and down
        (lambda t: jnp.ones_like(t), lambda t: jnp.full_like(t, 0.3)),  # constant
        (lambda t: jnp.ones_like(t), lambda t: jnp.log(t - 0.5)),  # not a number
    ],
)
def test_a_custom_path_that_does_not_grow_is_refused(alpha, sigma):
    with pytest.raises(ValueError, match="must grow"):
        dgjax.custom(alpha, sigma)


@pytest.mark.parametrize(("wave", "fault"), [(0.1, Fault.NONE), (0.5, Fault.MODEL_NUMBER)])
def test_a_custom_path_of_traced_numbers_that_does_not_grow_has_a_fault(wave, fault):
    """One that shrinks between its ends gave a finite log-density without a word."""

    @jax.jit
    def run(wave):
        sigma = lambda t: 0.5 + t + wave * jnp.sin(6 * t)
        path = dgjax.custom(lambda t: jnp.ones_like(t), sigma, 0.0, 1.5)
        model = dgjax.closed_form(dgjax.gaussian(jnp.ones(2), 4.0), path, t_min=0.1, t_max=1.5)
        grid = jnp.linspace(1.5, 0.1, 9)
        options = {"key": jax.random.key(0), "divergence": dgjax.Exact()}
        return dgjax.sample(model, jnp.array([3.0, -4.0]), grid, **options)

    out = run(wave)
    assert Fault(int(out.info.fault)) is fault
    assert np.isnan(out.log_density) == (fault != Fault.NONE)


def test_a_custom_path_equals_the_named_one():
    """Bisection agrees with the closed form of `vp`, at both ends and in between."""
    named = dgjax.vp()
    path = dgjax.custom(lambda t: named.alpha(t), lambda t: named.sigma(t))
    np.testing.assert_allclose(times(path, WIDE), times(named, WIDE), rtol=1e-12)


def test_a_custom_path_is_inverted_at_the_far_noise_end_in_float32(float32):
    """sigma/alpha goes from 3e3 to 2e5, where their angle differs from pi/2 by few bits."""
    path = dgjax.custom(lambda t: jnp.exp(-t), lambda t: t, 0.0, 12.0)
    levels = np.array([-16.0, -20.0, -24.0])
    t = np.asarray([path.time(level) for level in levels], np.float64)
    # log-SNR is -2 t - 2 log t.
    np.testing.assert_allclose(-2 * (t + np.log(t)), levels, atol=1e-5)
    np.testing.assert_allclose(path.time(dgjax.logsnr(path, 12.0)), 12.0, rtol=1e-6)
    assert path.time(-40.0) == 12.0


def test_paths_of_different_classes_differ_in_structure(spans):
    """Paths of equal structure would share a trace, which would give wrong results."""
    structures = [jax.tree.structure(span.path) for span in spans.values()]
    named = dict(zip(spans, structures, strict=True))
    assert named.pop("edm7") == named["edm"]
    for name, structure in named.items():
        assert [other for other in named if named[other] == structure] == [name]
    assert len(set(named.values())) == len(named)


def test_a_custom_path_lies_in_0_to_1_unless_told():
    path = dgjax.custom(lambda t: 1 - 0.5 * t, lambda t: t)
    assert path.time(-40.0) == 1.0  # beyond its noisiest end
    assert path.time(40.0) < 1e-8
