"""Classifier-free guidance, autoguidance and temperature on a labelled Gaussian mixture.

Each label has its own mixture, and the unconditional model is the mixture of all of them. So the
conditional log-density, which is the tracked one, is known at every point.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import dgjax
from dgjax.guidance.guide import apply_guides
from dgjax.sampling.sample import sample
from dgjax.sampling.solvers import RK4
from dgjax.typing import register_dataclass

SHAPE, W_MIN, W_MAX = (2, 3), 0.1, 10.0
SHARES = np.array([0.3, 0.7])


@register_dataclass
@dataclass(frozen=True)
class Labelled:
    """Denoiser of `parts[label]`, or without a label of the mixture of all parts."""

    parts: dgjax.GaussianMixture
    shares: jax.Array

    def of(self, label):
        if label is not None:
            return jax.tree.map(lambda a: a[label], self.parts)
        weighted = self.parts.log_weights + jnp.log(self.shares)[:, None]
        together = replace(self.parts, log_weights=weighted)
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), together)

    def __call__(self, y, w, cond):
        return self.of(cond)(y, w)


def labelled(seed, widest=1.5):
    """Make a model of two labels, three components each, deviations from 0.3 to `widest`."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(SHAPE))

    def part():
        rotation = np.linalg.qr(rng.normal(size=(3, size, size)))[0]
        variances = rng.permuted(np.tile(np.geomspace(0.3, widest, size) ** 2, (3, 1)), axis=1)
        covariances = np.einsum("kij,kj,klj->kil", rotation, variances, rotation)
        return dgjax.gaussian_mixture(
            rng.dirichlet(np.full(3, 5.0)), rng.normal(size=(3, *SHAPE)), covariances
        )

    parts = jax.tree.map(lambda *leaves: jnp.stack(leaves), part(), part())
    network = Labelled(parts, jnp.asarray(SHARES))
    model = dgjax.field(network, dgjax.edm(), dgjax.DenoisedPrediction(), t_min=W_MIN, t_max=W_MAX)
    return dgjax.repath(model, dgjax.edm(7.0))


@pytest.fixture(scope="module")
def model():
    return labelled(0)


@pytest.fixture(scope="module")
def weak():
    """A model with other means and directions and wider components, to guide away from."""
    return labelled(1, widest=2.5)


LABELS = jnp.array([0, 1, 1])
LATENTS = W_MAX * jax.random.normal(jax.random.key(0), (3, *SHAPE))


def density(model, label, w, x):
    """Return log p(x | label) with noise w, in nats, on a path where alpha is 1."""
    return model.network.of(label).log_density(x, w)


def solve(model, guides, x, label, steps, log_density=None):
    """Sample from one latent; the tracking starts from the exact density by default."""
    if log_density is None:
        log_density = density(model, label, W_MAX, x)
    return sample(
        model,
        x,
        dgjax.grid_uniform(model, steps),
        key=jax.random.key(1),
        log_density=log_density,
        guides=guides,
        divergence=dgjax.Exact(),
        cond=label,
        solver=RK4(),
    )


# ---------------------------------------------------------------------------- at one point


@pytest.fixture(scope="module")
def local(model):
    """The model at one point of the VP path, with label 1; fields of guides are on EDM paths."""
    on_vp = dgjax.repath(model, dgjax.vp())
    x = jax.random.normal(jax.random.key(2), SHAPE)
    options = {"divergence": dgjax.Exact(), "key": jax.random.key(0), "cond": 1}
    return jax.jit(lambda x: dgjax.evaluate(on_vp, 0.4, x, **options)._replace(hvp=None))(x)


@jax.jit
def guided(guides, local):
    return apply_guides(guides, local)


@jax.jit
def score(model, label, local):
    """Return the score of `model` at the point of `local`, from the mixture itself."""
    y, w = local.x / local.alpha, local.sigma / local.alpha
    return model.network.of(label).score(y, w) / local.alpha


def drift_of(local, s):
    """Return f x - g^2/2 s."""
    return local.f * local.x - 0.5 * local.g2 * s


def test_the_guided_score_is_the_published_combination(model, weak, local):
    """The guided score is weight s + (1 - weight) s', with each score from its mixture."""
    own = score(model, 1, local)
    for weight in (0.3, 1.0, 2.5):
        for guide, other in [
            (dgjax.classifier_free_guidance(weight, model), score(model, None, local)),
            (dgjax.classifier_free_guidance(weight, model, null=0), score(model, 0, local)),
            (dgjax.autoguidance(weight, weak), score(weak, None, local)),
            (dgjax.autoguidance(weight, weak, cond=1), score(weak, 1, local)),
        ]:
            assert jnp.abs(other - own).max() > 0.01
            expected = drift_of(local, weight * own + (1 - weight) * other)
            np.testing.assert_allclose(guided((guide,), local), expected, rtol=1e-9, atol=1e-9)


def test_contrasts_add_to_the_drift_they_receive(model, weak, local):
    free = dgjax.classifier_free_guidance(2.0, model)
    auto = dgjax.autoguidance(1.7, weak, cond=1)
    u = local.velocity
    changes = (guided((free,), local) - u) + (guided((auto,), local) - u)
    np.testing.assert_allclose(guided((free, auto), local) - u, changes, atol=1e-12)
    np.testing.assert_allclose(guided((auto, free), local) - u, changes, atol=1e-12)


def test_the_weight_may_vary_with_the_noise_level(model, local):
    varying = dgjax.schedule([1.0, 3.0], [local.logsnr - 1, local.logsnr + 3])
    given = dgjax.classifier_free_guidance(varying, model)
    constant = dgjax.classifier_free_guidance(1.5, model)
    np.testing.assert_allclose(guided((given,), local), guided((constant,), local), rtol=1e-12)


@pytest.mark.slow
def test_the_other_field_may_be_on_any_path(weak, local, span):
    """The two fields are compared at equal log-SNR, where only the scale of x differs."""
    there = dgjax.autoguidance(1.7, dgjax.repath(weak, span.path), cond=0)
    here = dgjax.autoguidance(1.7, weak, cond=0)
    np.testing.assert_allclose(guided((there,), local), guided((here,), local), rtol=1e-9)


@pytest.mark.parametrize("kind", ["free", "auto", "temperature"])
def test_the_interval_is_closed_below_and_open_above(kind, model, local):
    make = {
        "free": lambda **edges: dgjax.classifier_free_guidance(2.0, model, **edges),
        "auto": lambda **edges: dgjax.autoguidance(2.0, model, **edges),
        "temperature": lambda **edges: dgjax.temperature(0.5, scale=1.0, **edges),
    }[kind]
    here = float(local.logsnr)
    acts = guided((make(),), local)
    assert jnp.abs(acts - local.velocity).max() > 1e-2
    for edges, inside in [
        ({"low": here}, True),
        ({"low": here + 1e-9}, False),
        ({"high": here}, False),
        ({"high": here + 1e-9}, True),
        ({"low": here - 1, "high": here + 1}, True),
        ({"low": here + 1, "high": here + 2}, False),
        ({"low": here - 2, "high": here - 1}, False),
    ]:
        expected = acts if inside else local.velocity
        np.testing.assert_array_equal(guided((make(**edges),), local), expected)


def test_temperature_multiplies_all_the_guidance_that_it_receives(model, local):
    a, b, scale, T = local.alpha, local.sigma, 0.8, 0.6
    factor = (a**2 * scale**2 + b**2) / (a**2 * scale**2 * T + b**2)
    own, whole = score(model, 1, local), score(model, None, local)
    cool = dgjax.temperature(T, scale=scale)
    free = dgjax.classifier_free_guidance(2.5, model)
    extrapolated = 2.5 * own - 1.5 * whole
    for guides, s in [
        ((cool,), factor * own),
        ((free, cool), factor * extrapolated),
        ((cool, free), extrapolated + (factor - 1) * own),
    ]:
        expected = drift_of(local, s)
        np.testing.assert_allclose(guided(guides, local), expected, rtol=1e-9, atol=1e-9)
    none = dgjax.temperature(1.0, scale=0.3)
    np.testing.assert_array_equal(guided((none,), local), local.velocity)
    # The high-density sampler halves the temperature of all of the data at once.
    half = dgjax.temperature(0.5, scale=jnp.inf, low=local.logsnr)
    double = dgjax.high_density(local.logsnr - 1e-9)
    np.testing.assert_allclose(guided((half,), local), guided((double,), local), rtol=1e-12)


@register_dataclass
@dataclass(frozen=True)
class Once:
    """A denoiser that counts its passes in `calls` and cannot be differentiated."""

    network: Labelled

    def __call__(self, y, w, cond):
        calls.append(cond)

        @jax.custom_jvp
        def undifferentiable(y):
            return self.network(y, w, cond)

        @undifferentiable.defjvp
        def refuse(primals, tangents):
            raise AssertionError("this network was differentiated")

        return undifferentiable(y)


calls = []


def test_the_second_field_costs_one_pass_and_no_divergence(model, local):
    counting = replace(model, network=Once(model.network))

    def traced(model, guides):
        calls.clear()
        start = jnp.zeros(())
        return jax.eval_shape(lambda x: solve(model, guides, x, 0, 2, start), local.x)

    guide = dgjax.autoguidance(2.0, counting, cond=0)
    traced(model, (guide,))
    with_one = len(calls)
    traced(model, (guide, guide))
    assert len(calls) == 2 * with_one
    with pytest.raises(AssertionError, match="was differentiated"):
        dgjax.evaluate(
            counting, W_MIN, local.x, divergence=dgjax.Exact(), key=jax.random.key(0), cond=0
        )
    calls.clear()
    jax.eval_shape(guide, local.velocity, local)
    assert len(calls) == 1


def test_one_trace_serves_every_number_and_label(model, weak):
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(guides, label, x):
        return solve(model, guides, x, label, 2)

    given = [(0.5, 0, 1), (np.float32(2.0), -jnp.inf, jnp.inf), (3, -1.0, jnp.zeros(()))]
    for i, (number, low, high) in enumerate(given):
        edges = {"low": low, "high": high}
        guides = (
            dgjax.classifier_free_guidance(number, model, **edges),
            dgjax.autoguidance(jnp.asarray(number), weak, cond=i % 2, **edges),
            dgjax.temperature(number, scale=number, **edges),
        )
        run.trace(guides, jnp.asarray(i % 2), LATENTS[0])


def test_wrong_use_is_refused(model):
    makers = [
        lambda weight=2.0, **edges: dgjax.classifier_free_guidance(weight, model, **edges),
        lambda weight=2.0, **edges: dgjax.autoguidance(weight, model, **edges),
    ]
    for make in makers:
        for bad in (jnp.nan, jnp.inf, dgjax.schedule([1.0, jnp.nan], [0.0, 1.0])):
            with pytest.raises(ValueError, match="weight must be finite"):
                make(bad)
    for make in (*makers, lambda **edges: dgjax.temperature(2.0, scale=1.0, **edges)):
        with pytest.raises(ValueError, match="low < high"):
            make(low=1.0, high=1.0)
    for T in (0.0, -1.0, jnp.inf, jnp.nan):
        with pytest.raises(ValueError, match="T must be positive and finite"):
            dgjax.temperature(T, scale=1.0)
    for scale in (0.0, -1.0, jnp.nan):
        with pytest.raises(ValueError, match="scale must be positive"):
            dgjax.temperature(0.5, scale=scale)
    conditioned = dgjax.condition(model, 1)
    with pytest.raises(ValueError, match="has a condition already"):
        dgjax.classifier_free_guidance(2.0, conditioned)
    dgjax.classifier_free_guidance(2.0, conditioned, null=0)


# ---------------------------------------------------------------------------- whole solves


class Dials(NamedTuple):
    """Numbers of the three guides; 1 is off. `low` and `high` belong to the first."""

    free: Array = 1.0
    auto: Array = 1.0
    T: Array = 1.0
    low: Array = -jnp.inf
    high: Array = jnp.inf


def stack(model, weak, label, dials, last=()):
    return (
        dgjax.classifier_free_guidance(dials.free, model, low=dials.low, high=dials.high),
        dgjax.autoguidance(dials.auto, weak, cond=label),
        dgjax.temperature(dials.T, scale=1.0),
        *last,
    )


def run(model, weak, rows, steps, last=lambda model, label: ()):
    """Sample every latent with its label for every row of dials; rows are the first axis."""
    dials = Dials(*map(jnp.asarray, zip(*rows, strict=True)))

    @jax.jit
    def all_of(model, weak, dials):
        def one(dials, x, label):
            guides = stack(model, weak, label, dials, last(model, label))
            return solve(model, guides, x, label, steps)

        return jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, None))(dials, LATENTS, LABELS)

    return all_of(model, weak, dials)


@jax.jit
def truth(model, x):
    one = lambda x, label: density(model, label, W_MIN, x)
    return jax.vmap(jax.vmap(one), (0, None))(x, LABELS)


ROWS = [
    Dials(),
    Dials(free=2.0),
    Dials(auto=1.5),
    Dials(T=0.8),
    Dials(free=0.5, auto=1.2, T=1.3),
    Dials(free=2.0, low=-2.0, high=1.0),
]


def errors(model, out):
    return np.abs(out.log_density - truth(model, out.x)).max(axis=1)


def moved(out):
    """Return the distance of each other row from the first, for each latent."""
    return np.abs(out.x[1:] - out.x[:1]).max(axis=(2, 3))


@pytest.mark.slow
def test_tracked_is_the_true_conditional_log_density(model, weak):
    out = run(model, weak, ROWS, 96)
    error = errors(model, out)
    assert (error[:-1] < 2e-6).all()
    assert error[-1] < 1e-5
    # Every row ends at another point than the PF-ODE, with another log-density.
    assert (moved(out) > 0.03).all()
    assert (np.abs(out.log_density[1:] - out.log_density[:1]).max(axis=1) > 0.05).all()
    # The order is 4, that of the solver, except where steps meet the jumps at the edges.
    coarse = errors(model, run(model, weak, ROWS, 48))
    order = np.log2(coarse / error)
    assert (order[:-1] > 3.8).all()
    assert order[-1] > 1.5

    # Weight 1 and temperature 1 change nothing.
    plain = jax.jit(jax.vmap(lambda x, label: solve(model, (), x, label, 96)))(LATENTS, LABELS)
    np.testing.assert_allclose(out.x[0], plain.x, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(out.log_density[0], plain.log_density, rtol=1e-11)


def check_under(last, model, weak):
    """Check a guide that fixes the rate, put last.

    It removes a change of the score's length and keeps a change of its direction.
    """
    out = run(model, weak, ROWS[:-1], 96, last)
    assert (errors(model, out) < 5e-6).all()
    turned = [True, True, False, True]
    assert (moved(out)[turned] > 0.05).all()
    assert (moved(out)[2] < 1e-12).all()
    return out


@pytest.mark.slow
def test_density_guidance_composes_with_them(model, weak):
    dial = lambda model, label: (dgjax.density_guidance(0.45, bound=jnp.inf),)
    check_under(dial, model, weak)


@pytest.mark.slow
def test_targets_compose_with_them(model, weak):
    """The true conditional log-density is the target."""
    grid = dgjax.grid_uniform(model, 96)
    options = {"divergence": dgjax.Exact(), "key": jax.random.key(3), "solver": RK4()}
    pilot = lambda label: dgjax.pilot(model, LATENTS[:2], grid, cond=label, **options)
    profiles = jax.jit(jax.vmap(pilot))(jnp.arange(2))

    def steer(model, label):
        profile = jax.tree.map(lambda a: a[label], profiles)
        return (dgjax.target_guidance(-7.0, model, profile),)

    out = check_under(steer, model, weak)
    assert (np.abs(truth(model, out.x) + 7) < 0.02).all()
    assert out.info.target_met.all()


@pytest.mark.slow
def test_gradients_in_weights_temperature_and_model(model, weak):
    """Reverse mode agrees with central differences; the model is sampled and guides as well."""

    def value(free, auto, T, spread):
        parts = replace(model.network.parts, variances=spread * model.network.parts.variances)
        wider = replace(model, network=replace(model.network, parts=parts))
        guides = stack(wider, weak, 1, Dials(free, auto, T))
        return solve(wider, guides, LATENTS[1], 1, 5, jnp.zeros(())).log_density

    at, h = jnp.array([1.0, 1.4, 0.8, 1.1]), 1e-4
    gradient = jax.jit(lambda at: jax.grad(lambda v: value(*v))(at))(at)
    offsets = h * jnp.stack([k * jnp.eye(4) for k in (-2, -1, 1, 2)])
    values = jax.jit(jax.vmap(jax.vmap(lambda d: value(*(at + d)))))(offsets)
    slopes = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
    assert (jnp.abs(slopes) > 1e-3).all()
    np.testing.assert_allclose(gradient, slopes, rtol=1e-7)


@pytest.mark.slow
def test_temperature_on_a_gaussian_is_known():
    """The offset of a sample of N(m, C) from m shrinks by known factors.

    Along an eigenvector of C with eigenvalue c the factor is
    ((T c + w^2) / (T c + w_max^2))^(1/2) if c is scale^2, and
    ((c + w^2) / (c + w_max^2))^(1/(2T)) if the score is divided by T at every noise level.
    """
    mean, eigenvalues = np.array([0.5, -1.0, 0.2]), np.array([0.09, 0.64, 2.0])
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    mixture = dgjax.gaussian(mean, rotation @ np.diag(eigenvalues) @ rotation.T)
    model = dgjax.closed_form(
        mixture, dgjax.edm(7.0), t_min=W_MIN ** (1 / 7), t_max=W_MAX ** (1 / 7)
    )
    x = W_MAX * jax.random.normal(jax.random.key(4), (3,))
    T = jnp.array([0.5, 0.8, 1.5])
    scale = jnp.append(jnp.sqrt(eigenvalues), jnp.inf)

    def one(T, scale):
        start = dgjax.log_density(model, model.t_max, x)
        return solve(model, (dgjax.temperature(T, scale=scale),), x, None, 96, start)

    out = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(T, scale)
    # (T, scale, eigenvector)
    along = (out.x - mean[None, None]) @ rotation / ((x - mean) @ rotation)[None, None]
    T = np.asarray(T)[:, None]
    matched = (T * eigenvalues + W_MIN**2) / (T * eigenvalues + W_MAX**2)
    np.testing.assert_allclose(np.einsum("tkk->tk", along[:, :3]), np.sqrt(matched), rtol=1e-5)
    plain = ((eigenvalues + W_MIN**2) / (eigenvalues + W_MAX**2)) ** (0.5 / T)
    np.testing.assert_allclose(along[:, 3], plain, rtol=1e-5)
    exact = jax.vmap(jax.vmap(lambda x: dgjax.log_density(model, model.t_min, x)))(out.x)
    np.testing.assert_allclose(out.log_density, exact, atol=1e-5)
