"""What users pass by mistake: taken where it is clear, and else one line that says what to pass."""

import dataclasses

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dgjax

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def model():
    mixture = dgjax.gaussian(jnp.array([1.0, -0.5]), 1.5)
    return dgjax.closed_form(mixture, dgjax.edm(), t_min=0.02, t_max=80.0)


def make(network, path=None, parametrization=None):
    parametrization = dgjax.NoisePrediction() if parametrization is None else parametrization
    path = dgjax.edm() if path is None else path
    return dgjax.field(network, path, parametrization, t_min=0.1, t_max=1.0)


WRONG = {
    "guides=dgjax.Hutchinson": ({"guides": (dgjax.Hutchinson,)}, r"call it, Hutchinson\(...\)"),
    "a guide not called": ({"guides": dgjax.density_guidance}, r"call it, density_guidance\(...\)"),
    "guides=0.7": ({"guides": 0.7}, "guides must be guides"),
    "guides=(0.7,)": ({"guides": (0.7,)}, "a guide must be a function"),
    "divergence": ({"divergence": dgjax.Exact}, r"divergence is the class.* Exact\(...\)"),
    "divergence=3": ({"divergence": 3}, "divergence must be a trace estimator"),
    "solver": ({"solver": dgjax.Multistep}, r"solver is the class.* Multistep\(...\)"),
    "diffrax": ({"solver": diffrax.Heun}, r"call it, Heun\(...\)"),
    "solver='rk4'": ({"solver": "rk4"}, "str is not supported: use Multistep"),
    "noise": ({"noise": dgjax.level_set_noise}, r"call it, level_set_noise\(...\)"),
    "noise=0.5": ({"noise": 0.5}, "noise must be a stochastic term"),
    "progress": ({"progress": True}, r"pass diffrax.TextProgressMeter\(\)"),
    "adjoint": ({"adjoint": diffrax.ForwardMode}, r"call it, ForwardMode\(...\)"),
    "controller": ({"controller": diffrax.PIDController}, r"call it, PIDController\(...\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_options_of_a_solve(model, name):
    options, message = WRONG[name]
    with pytest.raises(ValueError, match=message) as error:
        dgjax.sample(model, jnp.ones(2), dgjax.grid_logsnr(model, 4), key=KEY, **options)
    assert "\n" not in str(error.value)


def test_divergence_of_a_quadrature(model):
    grid = dgjax.grid_logsnr(model, 4)
    with pytest.raises(ValueError, match="divergence is the class"):
        dgjax.quadrature(model, grid, jnp.ones((5, 2)), key=KEY, divergence=dgjax.Exact)


def test_one_guide_is_taken_as_a_tuple_of_one(model):
    grid, guide = dgjax.grid_logsnr(model, 4), dgjax.density_guidance(0.7)
    runs = [
        dgjax.sample(model, 80 * jnp.ones(2), grid, key=KEY, guides=guides)
        for guides in (guide, (guide,), [guide], iter([guide]))
    ]
    for run in runs[1:]:
        np.testing.assert_array_equal(run.x, runs[0].x)


def constructors():
    mixture = dgjax.gaussian(jnp.zeros(2), 1.0)
    identity = lambda x, t, cond: x
    return {
        "path is the function edm": lambda: make(identity, dgjax.edm),
        "path is the function vp": lambda: dgjax.closed_form(
            mixture, dgjax.vp, t_min=0.1, t_max=1.0
        ),
        "parametrization is the class NoisePrediction": lambda: make(
            identity, parametrization=dgjax.NoisePrediction
        ),
        "parametrization is the function preconditioned": lambda: make(
            identity, parametrization=dgjax.preconditioned
        ),
        r"network must be a function \(x, t, cond\)": lambda: make(lambda x, t: x),
        "network is the class Layers": lambda: make(Layers),
    }


class Layers(nnx.Module):
    """BatchNorm and Dropout, with random numbers of its own and of its caller."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.drop_on_request = nnx.Dropout(0.5)

    def __call__(self, x, t, cond):
        return self.drop(self.norm(x[None])[0])


def test_constructors_that_were_not_called():
    for message, call in constructors().items():
        with pytest.raises(ValueError, match=message):
            call()


def test_networks_in_training_mode():
    network = Layers(nnx.Rngs(0))
    wrapped = lambda x, t, cond: network(x, t, cond)
    bound = jax.tree_util.Partial(lambda net, x, t, cond: net(x, t, cond), network)
    for given in (network, wrapped, bound):
        with pytest.raises(ValueError, match=r"drop \(Dropout\) is in training mode"):
            make(given)
    network.drop.deterministic = True
    with pytest.raises(ValueError, match=r"norm \(BatchNorm\) is in training mode"):
        make(network)
    network.train()
    network.eval()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for given in (network, wrapped, bound):
            assert np.isfinite(dgjax.score(make(given), 0.5, jnp.ones(2))).all()


def test_networks_that_return_no_array():
    for out, kind in ((lambda x: (x, x), "tuple"), (lambda x: {"sample": x}, "dict")):
        model = make(lambda x, t, cond, out=out: out(x))
        with pytest.raises(ValueError, match=f"returned a {kind}, not one array"):
            dgjax.score(model, 0.5, jnp.ones(2))


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.usefixtures("float32")
def test_lists_numpy_and_python_numbers():
    """In float32: NumPy's float64 and Python's numbers become float32 without a warning."""
    mixture = dgjax.gaussian(jnp.array([1.0, -0.5]), 1.5)
    model = dgjax.closed_form(mixture, dgjax.edm(), t_min=0.02, t_max=80.0)
    moved = dataclasses.replace(model, t_min=0.05, t_max=np.float64(40))
    assert moved.t_min.dtype == moved.t_max.dtype == jnp.float32
    grid = dgjax.grid_logsnr(moved, 4)
    assert float(grid[-1]) == np.float32(0.05)
    values = [0.3, -0.2]
    kinds = jnp.array(values), np.array(values), values
    found = [dgjax.likelihood(moved, x, list(map(float, grid)), key=KEY) for x in kinds]
    for run in found:
        assert run.log_density.dtype == jnp.float32
        np.testing.assert_array_equal(run.log_density, found[0].log_density)
    times = 1, 1.0, np.float64(1)
    for function in (dgjax.score, dgjax.velocity, dgjax.denoise):
        results = [function(moved, t, x) for t, x in zip(times, kinds, strict=True)]
        for result in results:
            np.testing.assert_array_equal(result, results[0])
    for function in (dgjax.log_prior, lambda m, x: dgjax.prior_guidance(m, x, 0.5)):
        results = [function(moved, x) for x in kinds]
        for result in results:
            np.testing.assert_array_equal(result, results[0])


@pytest.mark.slow
def test_a_latent_of_another_scale_is_noted(model):
    """`latent_norm` is 1 for the prior's typical norm, whichever way the solve goes."""
    grid = dgjax.grid_logsnr(model, 8)
    wide = dgjax.with_norm(model, jnp.array([0.3, -1.0]), jnp.sqrt(2.0))
    run = dgjax.sample(model, wide, grid, key=KEY)
    np.testing.assert_allclose(run.info.latent_norm, 1, rtol=1e-12)
    back = dgjax.likelihood(model, run.x, dgjax.grid_logsnr(model, 64), key=KEY)
    np.testing.assert_allclose(back.info.latent_norm, 1, rtol=0.05)
    narrow = dgjax.sample(model, wide / 80, grid, key=KEY)
    np.testing.assert_allclose(narrow.info.latent_norm, 1 / 80, rtol=1e-12)
