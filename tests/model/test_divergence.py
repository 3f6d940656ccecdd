"""Trace estimators on matrices whose trace and variance are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax
from dgjax.model.divergence import (
    Exact,
    FixedProbe,
    Hutchinson,
    HutchPP,
    gaussian,
    rademacher,
    sphere,
)
from dgjax.model.parametrization import NoisePrediction

SHAPE, SIZE = (3, 4), 12
MATRIX = np.random.default_rng(0).normal(size=(SIZE, SIZE)) + np.diag(np.arange(SIZE) / 4)
SYMMETRIC = (MATRIX + MATRIX.T) / 2
NORM2, DIAGONAL2 = np.sum(SYMMETRIC**2), np.sum(np.diag(SYMMETRIC) ** 2)
TRACE = np.trace(MATRIX)
X = jnp.ones(SHAPE)


def product(matrix):
    return lambda z: (jnp.asarray(matrix) @ z.reshape(-1)).reshape(z.shape)


def low_rank(rank):
    """Make a matrix of the given rank that is not symmetric."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(SIZE, rank)) @ rng.normal(size=(rank, SIZE))


@partial(jax.jit, static_argnums=1)
def estimates_of(matrix, estimator, keys):
    return jax.vmap(lambda key: estimator(product(matrix), X, key))(keys)


def many(estimator, matrix=MATRIX):
    """Return the estimates for 2,500 keys, (2500, n)."""
    return np.asarray(estimates_of(matrix, estimator, jax.random.split(jax.random.key(0), 2500)))


@pytest.mark.parametrize("chunk", [1, 5, 12, 64])
def test_exact_is_the_trace_for_any_chunk(chunk):
    estimates = Exact(chunk)(product(MATRIX), X, jax.random.key(0))
    assert estimates.shape == (1,)
    np.testing.assert_allclose(estimates[0], TRACE, rtol=1e-13)
    assert Exact(chunk).standard_error(estimates) == 0


def test_the_chunk_bounds_memory():
    """All products at once take D times the memory of one; chunks bound it."""
    size, width = 128, 4096
    inside = jax.ShapeDtypeStruct((size, width), jnp.float64)

    def memory(chunk):
        def trace(a):
            return Exact(chunk)(lambda z: a @ jnp.sin(z @ a), jnp.ones(size), jax.random.key(0))

        compiled = jax.jit(trace).lower(inside).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    everything = memory(size)
    assert everything > size * width * 8
    assert memory(4) < everything / 8


@pytest.mark.parametrize(
    ("sample", "variance"),
    [
        (rademacher, 2 * (NORM2 - DIAGONAL2)),
        (gaussian, 2 * NORM2),
        (sphere, 2 * SIZE / (SIZE + 2) * (NORM2 - TRACE**2 / SIZE)),
    ],
    ids=["rademacher", "gaussian", "sphere"],
)
def test_hutchinson_has_the_mean_and_variance_of_theory(sample, variance):
    """The variance is 2 (|S|^2 - |diag S|^2), 2 |S|^2, and on the sphere that of S - tr(S)/D I."""
    estimates = many(Hutchinson(4, sample))
    assert estimates.shape == (2500, 4)
    assert abs(estimates.mean() - TRACE) < 4 * np.sqrt(variance / 10_000)
    np.testing.assert_allclose(estimates.var(), variance, rtol=0.08)
    # Probes of one key are independent of each other.
    np.testing.assert_allclose(estimates.mean(axis=1).var(), variance / 4, rtol=0.12)


def test_a_single_probe_has_the_same_law():
    estimates = many(Hutchinson())
    variance = 2 * (NORM2 - DIAGONAL2)
    assert estimates.shape == (2500, 1)
    assert abs(estimates.mean() - TRACE) < 4 * np.sqrt(variance / 2500)
    np.testing.assert_allclose(estimates.var(), variance, rtol=0.13)


@pytest.mark.parametrize("sample", [rademacher, gaussian, sphere])
def test_probes_have_unit_covariance(sample):
    keys = jax.random.split(jax.random.key(3), 10_000)
    z = np.asarray(jax.jit(jax.vmap(lambda k: sample(k, jnp.ones(3))))(keys))
    np.testing.assert_allclose(z.T @ z / len(z), np.eye(3), atol=0.06)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=0.04)


def test_one_rademacher_probe_is_exact_on_a_diagonal_and_one_on_the_sphere_on_the_identity():
    diagonal = np.diag(np.arange(12.0))
    np.testing.assert_allclose(many(Hutchinson(), diagonal), 66, rtol=1e-13)
    sphered = many(Hutchinson(4, sphere), 3 * np.eye(SIZE))
    np.testing.assert_allclose(sphered, 36, rtol=1e-13)


@pytest.mark.parametrize(
    "estimator",
    [Hutchinson(8), Hutchinson(8, gaussian), HutchPP(3, 8)],
    ids=["rademacher", "gaussian", "hutchpp"],
)
def test_the_standard_error_is_the_spread_of_the_mean(estimator):
    estimates = many(estimator)
    errors = np.asarray(jax.vmap(estimator.standard_error)(estimates))
    means = estimates.mean(axis=1)
    assert abs(means.mean() - TRACE) < 4 * means.std() / np.sqrt(2500)
    np.testing.assert_allclose(np.mean(errors**2), means.var(), rtol=0.13)
    # Student's t with 7 degrees of freedom: 95 % lie within 2.365.
    inside = np.abs(means - TRACE) < 2.365 * errors
    assert abs(inside.mean() - 0.95) < 0.02


def test_one_probe_has_no_standard_error():
    assert np.isposinf(Hutchinson(1).standard_error(jnp.ones(1)))


@pytest.mark.parametrize("rank", [3, 2])
def test_hutchpp_is_exact_when_the_sketch_holds_the_range(rank):
    matrix = low_rank(rank)
    estimates = many(HutchPP(3, 2), matrix)
    assert estimates.shape == (2500, 2)
    # Two of three vectors of random signs coincide in 3 of 2,048 sketches, which then hold less.
    error = np.abs(estimates / np.trace(matrix) - 1)
    assert np.mean(error > 1e-9) < 5 / 1000


def test_hutchpp_beats_hutchinson_at_equal_cost():
    """The spectrum falls. Both take 8 products, of which Hutch++ takes 2 x 3 for its subspace."""
    basis = np.linalg.qr(np.random.default_rng(2).normal(size=(SIZE, SIZE)))[0]
    matrix = basis @ np.diag(10.0 * 0.4 ** np.arange(SIZE)) @ basis.T
    means = many(HutchPP(3, 2), matrix).mean(axis=1)
    assert abs(means.mean() - np.trace(matrix)) < 4 * means.std() / np.sqrt(2500)
    hutchinson = 2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)) / 8
    assert means.var() < 0.1 * hutchinson


@pytest.mark.parametrize(
    "estimator", [Hutchinson(), Hutchinson(3), HutchPP(2, 2)], ids=["one", "three", "hutchpp"]
)
def test_keys_are_reproducible_and_a_fixed_probe_ignores_the_steps(estimator):
    keys = jax.random.split(jax.random.key(5), 3)

    def estimate(estimator, key):
        return np.asarray(estimator(product(MATRIX), X, key))

    first = estimate(estimator, keys[0])
    np.testing.assert_array_equal(first, estimate(estimator, keys[0]))
    assert (first != estimate(estimator, keys[1])).all()
    fixed = FixedProbe(estimator, keys[0])
    for key in keys:
        np.testing.assert_array_equal(estimate(fixed, key), first)
    other = FixedProbe(estimator, keys[1])
    np.testing.assert_array_equal(estimate(other, keys[0]), estimate(estimator, keys[1]))
    np.testing.assert_array_equal(fixed.standard_error(first), estimator.standard_error(first))


@pytest.mark.parametrize(
    "make", [lambda: Exact(0), lambda: Hutchinson(0), lambda: Hutchinson(2.0), lambda: HutchPP(0)]
)
def test_counts_must_be_positive_integers(make):
    with pytest.raises(ValueError, match="must be a positive int"):
        make()


def test_estimators_differ_in_structure_when_class_or_count_does():
    forms = [Exact(4), Exact(5), Hutchinson(4), Hutchinson(5), HutchPP(4, 4), HutchPP(4, 5)]
    forms += [Hutchinson(4, gaussian), FixedProbe(Exact(4), jax.random.key(0))]
    structures = [jax.tree.structure(form) for form in forms]
    assert all(structures.count(structure) == 1 for structure in structures)
    assert jax.tree.structure(Hutchinson(4, rademacher)) == structures[2]


def test_a_sketch_larger_than_the_sample_is_refused():
    with pytest.raises(ValueError, match="exceeds the dimension 12"):
        HutchPP(13)(product(MATRIX), X, jax.random.key(0))


# One pass of the network

each = pytest.mark.parametrize(
    "estimator", [Exact(8), Hutchinson(5), HutchPP(3, 2)], ids=["exact", "hutchinson", "hutchpp"]
)
WEIGHTS = jnp.asarray(np.random.default_rng(4).normal(size=(64, 64)))
MODEL = dgjax.field(
    lambda x, t, cond: jnp.sin(WEIGHTS @ x), dgjax.vp(), NoisePrediction(), t_min=0.01, t_max=1.0
)


def evaluate(x, estimator):
    return dgjax.evaluate(MODEL, 0.3, x, divergence=estimator, key=jax.random.key(0))


def count(jaxpr, name):
    """Count a primitive in a jaxpr and in all jaxprs inside it."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name == name
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            total += count(inner, name) if hasattr(inner, "eqns") else 0
    return total


@each
def test_value_and_divergence_come_from_one_pass(estimator):
    def both(x):
        local = evaluate(x, estimator)
        return local.velocity, local.score, local.divergence

    jaxpr = jax.make_jaxpr(both)(jnp.ones(64)).jaxpr
    assert count(jaxpr, "sin") == 1
    assert count(jaxpr, "cos") == 1


@each
def test_a_divergence_that_is_not_read_costs_nothing(estimator):
    def flops(fn):
        return jax.jit(fn).lower(jnp.ones(64)).compile().cost_analysis()["flops"]

    network = flops(lambda x: MODEL.pair(0.3, x).eps)
    velocity = flops(lambda x: evaluate(x, estimator).velocity)
    everything = flops(
        lambda x: (evaluate(x, estimator).velocity, evaluate(x, estimator).divergence)
    )
    assert network > 2 * 64**2 * 0.9
    assert velocity < 1.2 * network
    assert everything > 1.8 * network


def test_defaults_and_what_is_not_tracked():
    default = dgjax.HutchPP()
    assert (default.rank, default.probes) == (4, 4)  # 2 * 4 + 4 products
    untracked = dgjax.Untracked()(lambda z: z, jnp.ones(3), jax.random.key(0))
    assert untracked.shape == (1,)
    assert np.isnan(untracked).all()
