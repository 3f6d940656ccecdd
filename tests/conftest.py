"""float64 for every test, strict promotion for those of the mathematics, and shared models.

float64 is set before any test module is imported, since modules make arrays as they load.
Networks keep their float32 weights all the same; tests of float32 arithmetic take the fixture
`float32`.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dgjax
from dgjax.checkpoints.arrays import from_named, to_named
from dgjax.checkpoints.checkpoint import save
from dgjax.checkpoints.meta import Meta
from dgjax.checkpoints.spec import ModelSpec, build, build_network
from dgjax.cli import main
from dgjax.model import paths

jax.config.update("jax_enable_x64", True)

# What is compiled once serves all workers and the processes that tests start, which find the
# folder in their environment; whoever made it removes it.
CACHE = "JAX_COMPILATION_CACHE_DIR"
_made = None if CACHE in os.environ else tempfile.mkdtemp(prefix="dgjax-tests-")
jax.config.update("jax_compilation_cache_dir", os.environ.setdefault(CACHE, str(_made)))
# Most programs of the tests compile in less than the second from which JAX keeps them.
LEAST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
jax.config.update(LEAST.lower(), float(os.environ.setdefault(LEAST, "0.1")))

# Nearly all of a test's time is XLA's, and a quarter of that is spent on optimising what runs once.
# `JAX_DISABLE_MOST_OPTIMIZATIONS=0 pytest` tests the programs as users run them.
UNOPTIMISED = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") not in ("0", "false", "")
jax.config.update("jax_disable_most_optimizations", UNOPTIMISED)
# XLA's former emitters for CPUs compile in a third of the time, and programs in two parts instead
# of 32 are less work on few cores. A flag that a later XLA may drop would end the process, so they
# are set for the releases that are known to have them.
JAXLIB = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
if UNOPTIMISED and JAXLIB <= (0, 10):
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=2"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"


def devices(count: int) -> dict[str, str]:
    """Environment variables of a process that has `count` CPU devices."""
    flag = f"--xla_force_host_platform_device_count={count}"
    return {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}", "JAX_PLATFORMS": "cpu"}


# Tests whose arrays may not broadcast in rank unasked, a (D,) against a (n, D) being often a
# mistake, nor change their dtype. Networks do both on purpose.
STRICT = {
    "test_alignment",
    "test_checks",
    "test_classifier_free",
    "test_closed_form",
    "test_coloured_probes",
    "test_density",
    "test_discrete_time",
    "test_divergence",
    "test_field",
    "test_level_set",
    "test_likelihood",
    "test_multistep",
    "test_noise",
    "test_oracles",
    "test_parametrization",
    "test_paths",
    "test_pixels",
    "test_prior",
    "test_quadrature_error",
    "test_sample",
    "test_shooting",
    "test_solvers",
    "test_spacetime_quadrature",
    "test_time_grids",
}

ROOT = Path(__file__).parents[1]

# Every path covers this range of w = sigma/alpha: log-SNR from 7.8 to -6.
W_MIN, W_MAX = 0.02, 20.0


def pytest_unconfigure():
    if _made is not None:
        shutil.rmtree(_made, ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Executions of notebooks and of experiments are slow, all of them."""
    for item in items:
        if item.path.suffix == ".ipynb" or item.path.name == "test_experiments.py":
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def _strict_promotion(request):
    strict = request.module.__name__ in STRICT
    rank, dtype = ("raise", "strict") if strict else ("allow", "standard")
    with jax.numpy_rank_promotion(rank), jax.numpy_dtype_promotion(dtype):
        yield


@pytest.fixture(autouse=True)
def _fresh_trace_counts():
    """A parametrized test counts its own traces only."""
    chex.clear_trace_counter()


def slow_but(values, *quick):
    """Parameters of a test, all marked slow but those in `quick`. A tuple is several arguments."""
    slow = lambda v: pytest.param(*(v if isinstance(v, tuple) else [v]), marks=pytest.mark.slow)
    return [v if v in quick else slow(v) for v in values]


class Span(NamedTuple):
    """A path and the times on it at which w = sigma/alpha is W_MIN and W_MAX."""

    name: str
    path: paths.Path
    t_min: jax.Array
    t_max: jax.Array


def custom_path():
    """Like no other path here: alpha = exp(-t), sigma = t."""
    return dgjax.custom(lambda t: jnp.exp(-t), lambda t: t, 0.0, 4.0)


PATHS = {
    "vp": dgjax.vp,
    "sub_vp": dgjax.sub_vp,
    "cosine": dgjax.cosine,
    "ve": dgjax.ve,
    "edm": dgjax.edm,
    "edm7": lambda: dgjax.edm(7.0),
    "rectified_flow": dgjax.rectified_flow,
    "custom": custom_path,
}


def make_span(name):
    path = PATHS[name]()
    ends = [path.time(jnp.asarray(-2 * np.log(w))) for w in (W_MIN, W_MAX)]
    return Span(name, path, *ends)


@pytest.fixture(scope="session")
def spans():
    """All the paths, by name."""
    return {name: make_span(name) for name in PATHS}


@pytest.fixture(scope="session", params=list(PATHS))
def span(request, spans):
    """Each path in turn."""
    return spans[request.param]


class Mixture(NamedTuple):
    """The numbers of a Gaussian mixture, and the library's object made from them."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    model: dgjax.GaussianMixture


def make_mixture(seed, size, count, shape=None):
    """Full covariances in random directions, standard deviations from 0.05 to 2 in each."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(count, 5.0))
    means = rng.normal(size=(count, size))
    rotation = np.linalg.qr(rng.normal(size=(count, size, size)))[0]
    scales = rng.permuted(np.tile(np.geomspace(0.05, 2, size), (count, 1)), axis=1)
    covariances = np.einsum("kij,kj,klj->kil", rotation, scales**2, rotation)
    shaped = means if shape is None else means.reshape(count, *shape)
    return Mixture(
        weights, means, covariances, dgjax.gaussian_mixture(weights, shaped, covariances)
    )


@pytest.fixture(scope="session")
def mixture2():
    """Two dimensions, three components."""
    return make_mixture(2, 2, 3)


@pytest.fixture(scope="session")
def mixture16():
    """Sixteen dimensions in the shape (2, 8), five components."""
    return make_mixture(16, 16, 5, (2, 8))


@pytest.fixture(scope="session")
def mixture64():
    """Sixty-four dimensions, three components."""
    return make_mixture(64, 64, 3)


@pytest.fixture(scope="session", params=["mixture2", "mixture16", "mixture64"])
def mixture(request):
    """Each mixture in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def small_model():
    """Saves a small model to a folder, which it returns.

    The network has normal weights of deviation `weights`. With 0 it returns zero, as one that has
    not been trained: preconditioned, it is then the exact model of data from N(0, spread^2 I), and
    so is one of the parametrization "energy" with an energy network.
    """

    def call(folder, shape, *, spread, weights=0.0, parametrization="preconditioned", **network):
        spec = ModelSpec(
            shape=shape,
            network={"kind": "mlp", "width": 8, "depth": 1, **network},
            path={"kind": "edm"},
            parametrization={"kind": parametrization, "sigma_data": spread},
            t_min=0.02,
            t_max=80.0,
        )
        rng, like = np.random.default_rng(0), nnx.eval_shape(lambda: build_network(spec))
        named = {k: weights * rng.normal(size=v.shape) for k, v in to_named(like).items()}
        model = build(spec, from_named(like, named, "the test"))
        save(folder, model, Meta(spec, "none", (-1.0, 1.0), "none", 0))
        return folder

    return call


@pytest.fixture
def float32():
    """The default of JAX for one test: Python numbers become float32."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.fixture
def run(monkeypatch, capsys, float32):
    """Runs `dgjax ARGUMENTS`; returns its exit status, and what it printed and complained of."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["dgjax", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out = capsys.readouterr()
        return stop.value.code or 0, out.out, out.err

    return call


@pytest.fixture
def process():
    """Starts Python in a process of its own, `ARGUMENTS`; none outlives the test."""
    started = []

    def call(arguments, **environment):
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        child = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        return child

    yield call
    for child in started:
        child.kill()
        child.communicate()  # closes its pipes
