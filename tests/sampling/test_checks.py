"""Checks of numbers: a ValueError where they are known, else NaN, a code, and `checkify`.

Each function of the library is compiled once, with all its numbers as arguments; every case
changes one of them.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import dgjax
from dgjax.guidance.target import Profile
from dgjax.model.faults import Fault, as_code, check, first, refuse
from dgjax.sampling.solvers import RK4

MEAN, STEPS = np.array([3.0, -2.0, 0.5]), 8
KEY = {"key": jax.random.key(0), "divergence": dgjax.Exact()}


class Numbers(NamedTuple):
    """All that the functions below compute with."""

    t_min: Any = 0.1
    t_max: Any = 20.0
    variance: Any = 4.0
    grid: Any = np.geomspace(20.0, 0.1, STEPS + 1)
    x: Any = np.array([30.0, -20.0, 10.0])
    time: Any = 1.0
    q: Any = 0.6
    target: Any = -6.0
    low: Any = 0.05
    high: Any = 0.95
    temperature: Any = 1.0
    rho: Any = 1.0
    estimator: Any = 0


def model_of(n):
    ends = {"t_min": n.t_min, "t_max": n.t_max}
    return dgjax.closed_form(dgjax.gaussian(MEAN, n.variance), dgjax.edm(n.rho), **ends)


def guided(n):
    return {"guides": (dgjax.density_guidance(n.q),), **KEY}


def path_of(n):
    return jnp.linspace(0.0, 1.0, STEPS + 1)[:, None] * n.x[None] / 30 + n.x[None]


def sample(n):
    out = dgjax.sample(model_of(n), n.x, n.grid, **guided(n), save=dgjax.Trajectory)
    info = out.info
    return out.log_density, info, (info.standard_error, info.log_densities, out.trajectory[2])


def runge_kutta(n):
    options = {**guided(n), "solver": RK4(), "save": dgjax.Trajectory}
    out = dgjax.sample(model_of(n), n.x, n.grid, **options)
    info = out.info
    return out.log_density, info, (info.standard_error, info.log_densities, out.trajectory[2])


def likelihood(n):
    out = dgjax.likelihood(model_of(n), n.x, n.grid, **KEY)
    return out.log_density, out.info, (out.info.standard_error, out.info.log_densities)


def shoot(n):
    options = {"low": n.low, "high": n.high, "iterations": 3, **KEY}
    guides = (dgjax.temperature(n.temperature, scale=2.0),)
    out = dgjax.shoot(model_of(n), n.x, n.grid, n.target, guides=guides, **options).sampled
    return out.log_density, out.info, (out.info.standard_error, out.info.log_densities)


def align(n):
    out = dgjax.align(model_of(n), n.x, n.grid, **guided(n))
    return out.omega, out, (out.cosine, out.product, out.standard_error)


def quadrature(n):
    out = dgjax.quadrature(model_of(n), n.grid, path_of(n), nodes=1, **KEY)
    return out.log_density, out, (out.standard_error, out.solver_error, out.log_densities)


def node_quadrature(n):
    out = dgjax.node_quadrature(model_of(n), n.grid, path_of(n), **KEY)
    return out.log_density, out, (out.standard_error, out.solver_error, out.log_densities)


def chord(n):
    out = dgjax.chord(model_of(n), n.time, n.x, n.x / 2, nodes=3)
    return out.difference, out, out.error


def superpose(n):
    models = [model_of(n), model_of(n._replace(t_min=n.t_min / 2))]
    out = dgjax.superpose(models, n.x, n.grid, dgjax.mixture([0.3, 0.7]), **KEY)
    return out.log_density, out, (out.log_densities, out.solver_errors, out.course)


def sampler_law(n):
    trajectory = dgjax.Trajectory(n.grid, path_of(n), jnp.zeros(STEPS + 1))
    guide = dgjax.density_guidance(n.q)
    out = dgjax.sampler_law(model_of(n), trajectory, guide, **KEY)
    return out.log_density, out, (out.log_weight, out.standard_error, out.solver_error)


def around(x):
    """Samples about x, enough for the weights of 9 evaluations."""
    return x[None] * (1 + 0.1 * jnp.cos(jnp.arange(180.0)).reshape(60, 3))


def fit_likelihood(n):
    xs = around(n.x)
    out = dgjax.fit_likelihood(model_of(n), xs, -jnp.sum(xs**2, 1) / 900, n.grid, **KEY)
    found = dgjax.fitted_likelihood(model_of(n), out, n.x, **KEY)
    return out.mean, out, tuple(found[:3])


@functools.cache
def weights():
    with jax.ensure_compile_time_eval():
        return fit_likelihood(Numbers())[1]


def fitted_likelihood(n):
    estimator = weights().estimator + jnp.asarray(n.estimator, jnp.int32)
    of_another = weights()._replace(estimator=estimator)
    out = dgjax.fitted_likelihood(model_of(n), of_another, n.x, **KEY)
    return out.log_density, out, (out.standard_error, out.leverage)


FUNCTIONS = {
    "sample": sample,
    "likelihood": likelihood,
    "shoot": shoot,
    "align": align,
    "quadrature": quadrature,
    "node_quadrature": node_quadrature,
    "chord": chord,
    "superpose": superpose,
    "sampler_law": sampler_law,
    "fit_likelihood": fit_likelihood,
    "fitted_likelihood": fitted_likelihood,
}
EVERY = set(FUNCTIONS)
SOLVES = {"sample", "likelihood", "shoot", "align", "superpose"}
FITS = {"fit_likelihood", "fitted_likelihood"}

UNORDERED = np.array([20.0, 9, 4, 5, 2, 1, 0.5, 0.2, 0.1])

# For each fault the functions that state it, and numbers with that fault.
CASES = {
    Fault.MODEL_RANGE: (EVERY, {"t_min": 30.0}),
    Fault.MODEL_NUMBER: (EVERY, {"variance": -1.0}),
    Fault.NOT_DECREASING: (
        SOLVES | {"fit_likelihood"},
        {"grid": np.geomspace(0.1, 20.0, STEPS + 1)},
    ),
    Fault.NOT_MONOTONE: (
        {"node_quadrature", "sampler_law"},
        {"grid": UNORDERED},
    ),
    Fault.OUT_OF_RANGE: (
        EVERY - {"fitted_likelihood"},
        {"grid": np.geomspace(20.0, 0.01, STEPS + 1), "time": 21.0},
    ),
    Fault.NOT_FINITE: (EVERY, {"x": np.array([30.0, np.nan, 10.0])}),
    Fault.NOT_AT_T_MAX: (
        EVERY - {"align", "chord", "sampler_law"} - FITS,
        {"grid": np.geomspace(10.0, 0.1, STEPS + 1)},
    ),
    Fault.GUIDE_NUMBER: (
        {"sample", "shoot", "align", "sampler_law"},
        {"q": 1.5, "temperature": -1.0},
    ),
    Fault.BRACKET: ({"shoot"}, {"low": 0.97}),
    Fault.TARGET: ({"shoot"}, {"target": np.inf}),
    Fault.OTHER_MODEL: ({"fitted_likelihood"}, {"rho": 1.5}),
    Fault.OTHER_DIVERGENCE: ({"fitted_likelihood"}, {"estimator": 1}),
}
WITHOUT_SCATTER = {"quadrature", "node_quadrature", "sampler_law"}  # of one exact estimate
FEW = {"sample", "likelihood", "chord"}  # the others compile for longer


def case(*values, quick):
    return pytest.param(*values, marks=() if quick else pytest.mark.slow)


PAIRS = [
    case(name, fault, quick=name in FEW)
    for fault, (names, _) in CASES.items()
    for name in FUNCTIONS
    if name in names
]


def arrays(**changes):
    return jax.tree.map(lambda a: jnp.asarray(a, float), Numbers(**changes))


@functools.cache
def compiled(name):
    return jax.jit(FUNCTIONS.get(name, runge_kutta))


@functools.cache
def checked(name):
    return checkify.checkify(jax.jit(FUNCTIONS[name]), errors=checkify.user_checks)


@pytest.mark.parametrize("name", [case(n, quick=n in FEW) for n in [*FUNCTIONS, "runge_kutta"]])
def test_healthy_numbers_have_no_fault(name):
    value, info, others = compiled(name)(arrays())
    assert info.fault == Fault.NONE
    assert info.fault.dtype == np.int32
    assert np.isfinite(value).all()
    if name not in WITHOUT_SCATTER:
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(others))


@pytest.mark.parametrize(("name", "fault"), PAIRS, ids=lambda p: getattr(p, "name", p))
def test_each_check(name, fault):
    """Known numbers raise; traced ones give NaN and the code; `checkify` raises the same words."""
    numbers = arrays(**CASES[fault][1])
    with pytest.raises(ValueError, match=r"\w") as refused:
        FUNCTIONS[name](numbers)
    compiled(name)(arrays())
    cached = compiled(name)._cache_size()
    value, info, others = compiled(name)(numbers)
    assert compiled(name)._cache_size() == cached
    assert Fault(int(info.fault)) is fault
    assert all(np.isnan(a).all() for a in jax.tree.leaves((value, others)))
    if hasattr(info, "finite"):
        assert not info.finite
    error, _ = checked(name)(numbers)
    with pytest.raises(ValueError, match=r"\w") as thrown:
        error.throw()
    assert str(thrown.value).startswith(str(refused.value))
    checked(name)(arrays())[0].throw()  # raises nothing


def test_every_fault_has_a_case():
    assert set(CASES) == set(Fault) - {Fault.NONE}
    assert len({fault.meaning for fault in Fault}) == len(Fault)


def test_the_table_in_the_documentation():
    page = Path(__file__).parents[2] / "docs" / "how-to" / "checks.md"
    if not page.is_file():
        pytest.skip("docs/ is not in source distributions")
    rows = re.findall(r"^\| (?!check)(\w.*) \|$", page.read_text(), re.MULTILINE)
    written = [row.split(" | ") for row in rows]
    expected = [
        [
            fault.meaning,
            "`ValueError`",
            f"NaN, `{fault.name}`",
            str(fault.value),
            ", ".join(f"`{name}`" for name in FUNCTIONS if name in names),
        ]
        for fault, (names, _) in CASES.items()
    ]
    assert written == expected


@pytest.mark.slow
def test_saved_log_densities_of_steps_are_nan_too():
    value, info, others = compiled("runge_kutta")(arrays(**CASES[Fault.NOT_AT_T_MAX][1]))
    assert Fault(int(info.fault)) is Fault.NOT_AT_T_MAX
    assert all(np.isnan(a).all() for a in jax.tree.leaves((value, others)))


@pytest.mark.slow
def test_one_bad_sample_of_a_batch():
    """Under vmap each sample has its own code, and the others their values."""
    xs = jnp.stack([arrays().x, arrays().x.at[1].set(jnp.nan), 0.5 * arrays().x])
    run = jax.jit(jax.vmap(lambda x: likelihood(arrays()._replace(x=x))[:2]))
    value, info = run(xs)
    np.testing.assert_array_equal(info.fault, [0, Fault.NOT_FINITE, 0])
    alone = [likelihood(arrays()._replace(x=x))[0] for x in xs[::2]]
    np.testing.assert_allclose(value[::2], alone, rtol=1e-12)
    assert np.isnan(value[1])


@pytest.mark.slow
def test_gradients_pass_through_the_checks():
    """In all numbers they are finite, and in x those of differences; NaN where a check failed."""
    value = lambda n: compiled("runge_kutta")(n)[0]
    gradient = jax.jit(jax.grad(lambda n: runge_kutta(n)[0]))
    found = gradient(arrays())
    assert all(np.isfinite(a).all() for a in found)
    for i in range(3):
        up, down = (value(arrays()._replace(x=arrays().x.at[i].add(h))) for h in (1e-3, -1e-3))
        assert abs(found.x[i]) > 1e-4
        np.testing.assert_allclose(found.x[i], (up - down) / 2e-3, rtol=1e-5)
    assert np.isnan(gradient(arrays(**CASES[Fault.NOT_AT_T_MAX][1])).x).all()


def test_known_numbers_raise_under_grad():
    with pytest.raises(ValueError, match="NaN or infinite"):
        jax.grad(lambda x: likelihood(arrays()._replace(x=x))[0])(jnp.full(3, jnp.nan))


@pytest.mark.parametrize("of", ["grid of another model", "grid beyond t_min"])
def test_float32_with_the_model_as_argument(of, float32):
    """A grid that fits another model gave another model's log-density."""
    ends = {"t_min": 0.02, "t_max": 80.0, "prior": dgjax.gaussian_prior(1.0)}
    net = lambda x, t, c: x / (1 + t**2)
    model = dgjax.field(net, dgjax.edm(), dgjax.DenoisedPrediction(), **ends)
    good = dgjax.grid_logsnr(model, 32)
    bad = jnp.geomspace(80.0, 1e-3, 33) if "beyond" in of else jnp.geomspace(10.0, 0.5, 33)
    fault = Fault.OUT_OF_RANGE if "beyond" in of else Fault.NOT_AT_T_MAX
    options = {"key": jax.random.key(0), "divergence": dgjax.Exact()}
    latent = jnp.asarray([9.0, -30.0, 5.0, 60.0])
    for call, x in ((dgjax.sample, latent), (dgjax.likelihood, 0.03 * latent)):
        run = jax.jit(lambda model, x, grid, call=call: call(model, x, grid, **options))
        out = run(model, x, good)
        at = out.x if call is dgjax.sample else x
        variance = 1 + 0.02**2
        truth = -0.5 * np.sum(np.square(at)) / variance - 2 * np.log(2 * np.pi * variance)
        np.testing.assert_allclose(out.log_density, truth, atol=5e-3)
        assert out.log_density.dtype == jnp.float32
        out = run(model, x, bad)
        assert np.isnan(out.log_density)
        assert not out.info.finite
        assert Fault(int(out.info.fault)) is fault


def profile(ahead):
    return Profile(jnp.arange(3.0), ahead, jnp.ones(3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda bad: dgjax.density_guidance(bad),
        lambda bad: dgjax.temperature(bad - 2, scale=1.0),
        lambda bad: dgjax.density_guidance([0.4, 0.6], knots=[0.0, -bad]),
        lambda bad: dgjax.rate_guidance(lambda local: 0.0 * local.t, bound=jnp.log(-bad)),
        lambda bad: dgjax.target_guidance(bad / 0, model_of(arrays()), profile(jnp.arange(3.0))),
        lambda bad: dgjax.target_guidance(
            bad,
            model_of(arrays()),
            Profile(jnp.arange(3.0), jnp.log(-bad) * jnp.ones(3), jnp.ones(3)),
        ),
        lambda bad: dgjax.autoguidance(1.0, model_of(arrays()), low=bad, high=1.0),
        lambda bad: dgjax.autoguidance(bad / 0, model_of(arrays())),
    ],
)
def test_guides_made_under_tracing(make):
    @jax.jit
    def run(bad):
        n = arrays()
        return dgjax.sample(model_of(n), n.x, n.grid, guides=(make(bad),), **KEY)

    out = run(1.5)
    assert Fault(int(out.info.fault)) is Fault.GUIDE_NUMBER
    assert np.isnan(out.log_density)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda bad: dgjax.churn(-bad),
        lambda bad: dgjax.level_set_noise(dgjax.window(-bad)),
        lambda bad: dgjax.reverse_sde(dgjax.window(low=bad, high=1.0)),
    ],
)
def test_noise_made_under_tracing(make):
    @jax.jit
    def run(bad):
        n = arrays()
        return dgjax.sample(model_of(n), n.x, n.grid, noise=make(bad), solver=RK4(), **KEY)

    out = run(1.5)
    assert Fault(int(out.info.fault)) is Fault.GUIDE_NUMBER
    assert np.isnan(out.log_density)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda bad: dgjax.gaussian(MEAN, -bad * jnp.eye(3)),
        lambda bad: dgjax.gaussian(MEAN, jnp.eye(3).at[0, 1].set(bad)),
        lambda bad: dgjax.gaussian(MEAN / (bad - 1.5), 1.0),
        lambda bad: dgjax.gaussian_mixture(
            jnp.stack([bad, -bad]), jnp.ones((2, 3)), jnp.ones((2, 3, 3))
        ),
        lambda bad: dgjax.kernel_density(jnp.ones((2, 3)), -bad),
    ],
)
def test_closed_forms_made_under_tracing(make):
    @jax.jit
    def run(bad):
        model = dgjax.closed_form(make(bad), dgjax.edm(), t_min=0.1, t_max=20.0)
        return dgjax.likelihood(model, arrays().x, arrays().grid, **KEY)

    out = run(1.5)
    assert Fault(int(out.info.fault)) is Fault.MODEL_NUMBER
    assert np.isnan(out.log_density)


def test_models_moved_under_tracing():
    """To a path that does not reach their noise, or to times that are no range of noise."""

    @jax.jit
    def run(upper, t_max):
        path = dgjax.custom(lambda t: jnp.ones_like(t), lambda t: t, lower=0.01, upper=upper)
        model = dgjax.repath(model_of(arrays(t_max=20.0)._replace(t_max=t_max)), path)
        x, grid = arrays().x, dgjax.grid_logsnr(model, STEPS)
        return dgjax.sample(model, x, grid, **KEY)

    assert np.isfinite(run(30.0, 20.0).log_density)
    for upper, t_max in ((5.0, 20.0), (30.0, 0.05)):
        out = run(upper, t_max)
        assert np.isnan(out.log_density)
        assert Fault(int(out.info.fault)) is Fault.MODEL_RANGE


def test_numbers_of_other_kinds_may_be_nan():
    """A guide of a user whose array marks what is unknown by NaN."""

    @dgjax.register_dataclass
    @dataclass(frozen=True)
    class Known:
        values: jax.Array

        def __call__(self, drift, local):
            return jnp.where(jnp.isnan(self.values), drift, 0.5 * drift)

    run = jax.jit(
        lambda g: dgjax.sample(model_of(arrays()), arrays().x, arrays().grid, guides=(g,), **KEY)
    )
    assert np.isfinite(run(Known(jnp.array([1.0, jnp.nan, 2.0]))).log_density)


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_batch_is_not_a_sample(name, jit):
    """The network takes a batch; the model knows better."""
    n = arrays()
    net = lambda x, t, c: x / (1 + t**2)
    ends = {"t_min": 0.1, "t_max": 20.0}
    predicts = dgjax.DenoisedPrediction()
    any_shape = dgjax.field(net, dgjax.edm(), predicts, **ends)
    model = dgjax.field(net, dgjax.edm(), predicts, **ends, shape=[3])
    batch = jnp.stack([n.x, n.x])
    points = jnp.stack([batch] * (STEPS + 1))
    pair, guide = dgjax.mixture([0.3, 0.7]), dgjax.temperature(0.9, scale=1.0)
    trajectory = dgjax.Trajectory(n.grid, points, jnp.zeros(STEPS + 1))
    several, flat = jnp.stack([batch] * 60), jnp.zeros(60)
    calls = {
        "shoot": lambda m: dgjax.shoot(m, batch, n.grid, -9.0, iterations=1, **KEY).sampled[1],
        "quadrature": lambda m: dgjax.quadrature(m, n.grid, points, nodes=1, **KEY)[0],
        "node_quadrature": lambda m: dgjax.node_quadrature(m, n.grid, points, **KEY)[0],
        "chord": lambda m: dgjax.chord(m, n.time, batch, batch / 2, nodes=2)[0],
        "align": lambda m: dgjax.align(m, batch, n.grid, **KEY).omega,
        "superpose": lambda m: dgjax.superpose([m, m], batch, n.grid, pair, **KEY).log_density,
        "sampler_law": lambda m: dgjax.sampler_law(m, trajectory, guide, **KEY).log_density,
        "fit_likelihood": lambda m: dgjax.fit_likelihood(m, several, flat, n.grid, **KEY).mean,
        "fitted_likelihood": lambda m: dgjax.fitted_likelihood(m, weights(), batch, **KEY)[0],
    }
    function = getattr(dgjax, name)
    call = calls.get(name, lambda m: function(m, batch, n.grid, **KEY).log_density)
    call = jax.jit(call) if jit else call
    with pytest.raises(ValueError, match=r"has shape \(2, 3\).* shape \(3,\).*jax.vmap"):
        call(model)
    if jit and name == "likelihood":
        assert np.isfinite(call(any_shape))


def test_the_first_code_wins():
    traced = jax.jit(lambda a, b: as_code(first(Fault.NONE, a, Fault.NONE, b)))
    codes = {(a, b): int(traced(jnp.int32(a), jnp.int32(b))) for a in (0, 2) for b in (0, 3)}
    assert codes == {(0, 0): 0, (0, 3): 3, (2, 0): 2, (2, 3): 2}
    assert first(Fault.NONE, Fault.NONE) is Fault.NONE
    assert refuse(Fault.NONE, codes) is codes
    with pytest.raises(ValueError, match="x is 3"):
        check(np.bool_(False), Fault.TARGET, "x is {x:g}", x=np.array(3.0))


def test_traced_checks_are_exported():
    """They leave no effect behind in a program without `checkify`."""
    exported = jax.export.export(compiled("likelihood"))(arrays())
    value, info, _ = exported.call(arrays())
    assert np.isfinite(value)
    assert info.fault == 0


def test_healthy_numbers_make_no_nan():
    """`jax_debug_nans` finds none, in a jit and by single operations under vmap."""
    number, code = jnp.asarray(2.0), jnp.asarray(0, jnp.int32)
    with jax.debug_nans(True):
        assert jax.jit(refuse)(code, number) == 2
        np.testing.assert_array_equal(jax.vmap(refuse)(code[None], number[None]), [2])
        with pytest.raises(FloatingPointError):
            jax.jit(refuse)(jnp.asarray(3, jnp.int32), number)
