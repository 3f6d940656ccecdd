"""The table of the docs that says under which transformations of JAX each function is tested.

`python tests/test_transforms.py` prints the table. Tracing tells what works, so little is compiled.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

import dgjax
from dgjax.devices.sharding import device_mesh

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "transforms.md"
KEY = jax.random.key(0)
STEPS = 7
GUIDE = dgjax.temperature(0.9, scale=1.0)


def make_model():
    means = jnp.array([[1.0, -0.5, 0.3], [-1.2, 0.4, 2.0]])
    mixture = dgjax.gaussian_mixture(jnp.array([0.3, 0.7]), means, jnp.stack([jnp.eye(3)] * 2))
    return dgjax.closed_form(mixture, dgjax.edm(), t_min=0.1, t_max=20.0)


def grid(model):
    return dgjax.grid_logsnr(model, STEPS)


def points(model, x):
    times = grid(model)
    return times, jax.vmap(lambda t: t / model.t_max * x)(times)


def fitted(model, x):
    """Weights of 2 evaluations, fitted to 16 samples about x."""
    xs = x + jnp.cos(jnp.arange(48.0)).reshape(16, 3)
    known = -0.5 * jnp.sum(xs**2, -1)
    return dgjax.fit_likelihood(model, xs, known, dgjax.grid_logsnr(model, 1), key=KEY)


FUNCTIONS = {
    "sample": lambda m, x: dgjax.sample(m, x, grid(m), key=KEY, guides=GUIDE),
    "likelihood": lambda m, x: dgjax.likelihood(m, x, grid(m), key=KEY),
    "fit_likelihood": lambda m, x: fitted(m, x),
    "fitted_likelihood": lambda m, x: dgjax.fitted_likelihood(m, fitted(m, 2 * x), x, key=KEY),
    "quadrature": lambda m, x: dgjax.quadrature(m, *points(m, x), key=KEY),
    "node_quadrature": lambda m, x: dgjax.node_quadrature(m, *points(m, x), key=KEY),
    "superpose": lambda m, x: dgjax.superpose(
        [m, m], x, grid(m), dgjax.mixture([0.3, 0.7]), key=KEY
    ),
    "sampler_law": lambda m, x: dgjax.sampler_law(
        m, dgjax.Trajectory(*points(m, x), jnp.zeros(STEPS + 1)), GUIDE, key=KEY
    ),
    "route_gap": lambda m, x: dgjax.route_gap(
        m, x, x[::-1], grid(m), key=KEY, divergence=dgjax.Hutchinson()
    ),
    "chord": lambda m, x: dgjax.chord(m, 0.5, x, 2 * x),
    "align": lambda m, x: dgjax.align(m, x, grid(m), key=KEY),
    "pilot": lambda m, x: dgjax.pilot(m, x[None], grid(m), key=KEY),
    "shoot": lambda m, x: dgjax.shoot(m, x, grid(m), -5.0, key=KEY, iterations=2),
    "score": lambda m, x: dgjax.score(m, 0.5, x),
    "velocity": lambda m, x: dgjax.velocity(m, 0.5, x),
    "denoise": lambda m, x: dgjax.denoise(m, 0.5, x),
    "evaluate": lambda m, x: dgjax.evaluate(
        m, 0.5, x, divergence=dgjax.Hutchinson(), key=KEY
    )._replace(hvp=None),
    "log_density": lambda m, x: dgjax.log_density(m, 0.5, x),
    "log_prior": dgjax.log_prior,
    "prior_guidance": lambda m, x: dgjax.prior_guidance(m, x, 0.3),
    "with_norm": lambda m, x: dgjax.with_norm(m, x, 2.0),
    "chi_quantile": lambda m, x: dgjax.chi_quantile(jax.nn.sigmoid(x[0]), 3),
    "grid_logsnr": lambda m, x: grid(_from(m, x)),
    "grid_karras": lambda m, x: dgjax.grid_karras(_from(m, x), STEPS),
    "grid_from_data": lambda m, x: dgjax.grid_from_data(_from(m, x), 16),
    "grid_uniform": lambda m, x: dgjax.grid_uniform(_from(m, x), STEPS),
    "repath": lambda m, x: dgjax.repath(_from(m, x), dgjax.vp()).t_min,
    "heat_residual": lambda m, x: dgjax.heat_residual(m, 0.5, x, key=KEY),
    "inconsistency": lambda m, x: dgjax.inconsistency(m, 0.5, x, key=KEY),
    "h_statistic": lambda m, x: dgjax.h_statistic(m, 0.5, x, divergence=dgjax.Exact(), key=KEY),
    "posterior": lambda m, x: dgjax.posterior(m, 0.5, x, key=KEY),
    "jeffreys": lambda m, x: dgjax.jeffreys(m, *points(m, x), key=KEY),
    "posterior_kl": lambda m, x: dgjax.posterior_kl(m, *points(m, x), key=KEY),
    "geodesic": lambda m, x: dgjax.geodesic(
        m, 0.5, x, 0.6, 2 * x, key=KEY, segments=4, knots=2, steps=2
    ),
}


def _from(model, x):
    """Return the model from another t_min, so that what has no sample depends on x."""
    return dataclasses.replace(model, t_min=0.1 + 0.01 * jax.nn.sigmoid(x[0]))


def numbers(function):
    """All floating numbers of `function(model, x)` in one list."""

    def call(model, x):
        leaves = jax.tree.leaves(function(model, x))
        return [a for a in leaves if jnp.issubdtype(a.dtype, jnp.floating)]

    return call


def total(function):
    return lambda model, x: sum(jnp.sum(a) for a in numbers(function)(model, x))


def by_jit(f, model, x):
    jax.jit(f).trace(model, x)


def by_vmap(f, model, x):
    jax.jit(jax.vmap(f, (None, 0))).trace(model, jnp.stack([x, 2 * x]))


def by_grad(f, model, x):
    jax.jit(jax.grad(total(f), 1)).trace(model, x)


def by_jacfwd(f, model, x):
    jax.jit(jax.jacfwd(f, 1)).trace(model, x)


def by_scan(f, model, x):
    xs = jnp.stack([x, 2 * x])
    jax.jit(lambda m, xs: jax.lax.scan(lambda c, x: (c, f(m, x)), 0, xs)).trace(model, xs)


def by_shard_map(f, model, x, check_vma=False):
    each = PartitionSpec("data")
    run = jax.shard_map(
        jax.vmap(lambda x: f(model, x)),
        mesh=device_mesh(),
        in_specs=each,
        out_specs=each,
        check_vma=check_vma,
    )
    jax.jit(run).trace(jnp.stack([x, 2 * x]))


def by_export(f, model, x):
    jax.export.export(jax.jit(lambda x: f(model, x)))(x)


TRANSFORMS = {
    "jit": by_jit,
    "vmap": by_vmap,
    "grad": by_grad,
    "jacfwd": by_jacfwd,
    "scan": by_scan,
    "shard_map": by_shard_map,
    "export": by_export,
}


def row(name):
    """One line of the table."""
    model, x, f = make_model(), jnp.array([0.9, -1.2, 0.4]), numbers(FUNCTIONS[name])
    marks = []
    for transform in TRANSFORMS.values():
        try:
            transform(f, model, x)
            marks.append("yes")
        except Exception:
            marks.append("no")
    return f"| `{name}` | {' | '.join(marks)} |"


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_docs_say_what_works(name):
    assert row(name) in PAGE.read_text().splitlines()


def test_the_table_names_all_and_only_these():
    names = [line.split("`")[1] for line in PAGE.read_text().splitlines() if line[:3] == "| `"]
    assert names == list(FUNCTIONS)
    assert set(names) <= set(dgjax.__all__)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_mesh_that_checks_what_varies_works_or_names_the_fix(name):
    model, x, f = make_model(), jnp.array([0.9, -1.2, 0.4]), numbers(FUNCTIONS[name])
    said = "pass check_vma=False"
    try:
        by_shard_map(f, model, x, check_vma=True)
    except ValueError as error:
        said = str(error)
    assert said.count("pass check_vma=False") == 1
    assert "\n" not in said


if __name__ == "__main__":
    print(f"| | {' | '.join(TRANSFORMS)} |")
    print("|---" * (1 + len(TRANSFORMS)) + "|")
    for function in FUNCTIONS:
        print(row(function), flush=True)
