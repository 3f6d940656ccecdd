"""Un-jitted calls compile once per structure of their arguments, and never give stale results."""

import re
import time
from functools import partial
from itertools import pairwise

import chex
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dgjax
from dgjax.sampling.compiled import _program, compile_once

KEY = jax.random.key(0)
STEPS = 8


class Counted:
    """A network that counts its traces, exact for data from N(1, 4 I)."""

    def __init__(self):
        self.traces = [0]

    def field(self):
        def network(x, t, cond):
            self.traces[0] += 1
            return x + t**2 * (1 - x) / (4 + t**2)

        predicts = dgjax.DenoisedPrediction()
        return dgjax.field(network, dgjax.edm(), predicts, t_min=0.02, t_max=80.0)


@pytest.fixture(scope="module")
def counted():
    return Counted()


@pytest.fixture(scope="module")
def model(counted):
    return counted.field()


def calls(model):
    """Each function with numbers that change from call to call."""
    grid = dgjax.grid_logsnr(model, STEPS)
    x = 80.0 * jax.random.normal(KEY, (3,))
    points = jnp.linspace(1.0, 0.02, STEPS + 1)[:, None] * x
    adaptive = {"controller": diffrax.PIDController(rtol=1e-2, atol=1e-2)}

    def sample(i, **options):
        guides = (dgjax.density_guidance(0.5 + 0.05 * i),)
        key = jax.random.key(i)
        return dgjax.sample(model, x + i, grid, key=key, guides=guides, **options)

    return {
        "sample": sample,
        "save": partial(sample, save=dgjax.Trajectory),
        "adaptive": partial(sample, **adaptive),
        "likelihood": lambda i: dgjax.likelihood(model, x / 80 + i, grid, key=KEY),
        "quadrature": lambda i: dgjax.quadrature(model, grid, points + i, key=KEY),
        "node_quadrature": lambda i: dgjax.node_quadrature(model, grid, points + i, key=KEY),
        "chord": lambda i: dgjax.chord(model, 1.0 + i, x / 80, x / 40),
        "pilot": lambda i: dgjax.pilot(model, (x + i)[None], grid, key=KEY),
        "align": lambda i: dgjax.align(model, x + i, grid, key=KEY),
        "shoot": lambda i: dgjax.shoot(model, x, grid, -6.0 - i, key=KEY, iterations=3),
        "vmap": lambda i: jax.vmap(
            lambda x: dgjax.sample(model, x, grid, key=jax.random.key(i)), axis_size=2
        )(jnp.stack([x, x + i])),
        "grad": lambda i: jax.grad(lambda x: dgjax.sample(model, x, grid, key=KEY).log_density)(
            x + i
        ),
    }


NAMES = list(calls(Counted().field()))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_equal_structures_are_traced_once(counted, model, name):
    call = calls(model)[name]
    jax.block_until_ready(call(0))
    before = counted.traces[0]
    for i in (1, 2):
        start = time.perf_counter()
        jax.block_until_ready(call(i))
        took = time.perf_counter() - start
    assert counted.traces[0] == before
    assert took < 1.0  # compiling takes several seconds, a run some milliseconds


@pytest.mark.slow
def test_results_are_those_of_an_outer_jit(model):
    for name in ("sample", "save", "likelihood", "quadrature"):
        call = calls(model)[name]
        chex.assert_trees_all_close(call(1), jax.jit(lambda call=call: call(1))(), rtol=1e-5)


def test_an_outer_jit_has_no_inner_call(model):
    """The operations are part of the outer program, as if nothing had been compiled before."""
    for name in ("sample", "likelihood", "quadrature", "align"):
        program = jax.jit(lambda call=calls(model)[name]: call(1)).lower().as_text()
        called = set(re.findall(r"call @([a-z_]+)", program))
        assert not called & {"run", "_solve", "_quadrature", "_align"}


def test_concrete_checks_still_raise(model):
    """Inside the compiled program all is traced: checks come before."""
    grid, x = dgjax.grid_logsnr(model, STEPS), jnp.ones(3)
    wrong = {"decreases": grid[::-1], "outside the model": 2 * grid, "starts at": grid[1:]}
    for message, times in wrong.items():
        for run in (dgjax.sample, dgjax.likelihood, partial(dgjax.shoot, target=0.0)):
            with pytest.raises(ValueError, match=message):
                run(model, x, times, key=KEY)
        with pytest.raises(ValueError, match=message):
            dgjax.pilot(model, x[None], times, key=KEY)
    for run in (dgjax.sample, dgjax.align, partial(dgjax.shoot, target=0.0)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            run(model, x * jnp.nan, grid, key=KEY)


shift = 1.0


@pytest.mark.slow
def test_a_rebound_name_is_seen():
    """A network that reads a global, a closure or an attribute that is bound anew."""

    class Shift:
        value = 0.0

        def __call__(self, drift, local):
            return drift + self.value

    def network(x, t, cond):
        return x + t**2 * (shift + inner - x) / (4 + t**2)

    global shift
    inner, guide = 0.0, Shift()
    predicts = dgjax.DenoisedPrediction()
    model = dgjax.field(network, dgjax.edm(), predicts, t_min=0.02, t_max=80.0)
    grid = dgjax.grid_logsnr(model, 4)

    def ends():
        run = dgjax.sample(model, jnp.ones(2), grid, key=KEY, guides=guide)
        return np.asarray(run.x)

    found = [ends()]
    shift = 2.0
    found.append(ends())
    inner = 3.0
    found.append(ends())
    guide.value = 0.1
    found.append(ends())
    shift = 1.0
    for first, second in pairwise(found):
        assert np.abs(first - second).min() > 0.05


def test_parameters_that_a_function_reads_and_training_changes():
    """A Flax NNX module and a dict, changed in place, read by a function that another one calls."""
    net, numbers = nnx.Linear(2, 2, rngs=nnx.Rngs(0)), {"scale": jnp.ones(())}

    def apply(x):
        return numbers["scale"] * net(x)

    model = dgjax.field(
        lambda x, t, cond: apply(x).astype(x.dtype),
        dgjax.edm(),
        dgjax.NoisePrediction(),
        t_min=0.02,
        t_max=80.0,
    )

    def end():
        return np.asarray(dgjax.chord(model, 1.0, jnp.ones(2), 2 * jnp.ones(2)).difference)

    found = [end()]
    net.bias[...] = jnp.ones(2, jnp.float32)
    found.append(end())
    numbers["scale"] = jnp.full((), 2.0)
    found.append(end())
    assert np.abs(np.diff(found)).min() > 0.05


def test_programs_do_not_keep_large_constants():
    kept = _program.cache_info().currsize
    weights = jnp.ones(2**20 + 1)
    function = compile_once(lambda x, f: f(x))
    assert function(jnp.ones(()), lambda x: x * weights[0]) == 1
    assert _program.cache_info().currsize == kept


def test_constants_of_one_value_and_different_types():
    """1, 1.0 and True are equal and of one hash; programs made of them are not the same."""
    double = compile_once(lambda x, n: x * n)
    kinds = [double(jnp.int32(3), n).dtype for n in (2, 2.0, np.float32(2))]
    assert kinds[0] == jnp.int32
    assert kinds[1] != jnp.int32


def test_what_has_no_hash_runs_as_it_is():
    calls = []

    class Unhashable:
        __hash__ = None

    def function(x, unhashable):
        calls.append(unhashable)
        return 2 * x

    for _ in range(2):
        assert compile_once(function)(jnp.ones(()), Unhashable()) == 2
    assert len(calls) == 2


@pytest.mark.slow
def test_a_network_that_closes_over_traced_parameters():
    def loss(scale):
        def network(x, t, cond):
            return scale * x / (1 + t**2)

        predicts = dgjax.DenoisedPrediction()
        model = dgjax.field(network, dgjax.edm(), predicts, t_min=0.02, t_max=80.0)
        grid = dgjax.grid_logsnr(model, 4)
        return dgjax.sample(model, jnp.ones(2), grid, key=KEY).log_density

    slope, step = jax.grad(loss)(0.9), 1e-4
    expected = (loss(0.9 + step) - loss(0.9 - step)) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=1e-5)
