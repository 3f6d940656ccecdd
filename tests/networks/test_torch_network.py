"""PyTorch networks against the same networks in JAX, and against PyTorch alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_torch_networks_of_others import by_torch_alone

import dgjax
from dgjax.networks import torch_network
from dgjax.networks.torch_primitive import Function, evaluate_program
from dgjax.sampling.solvers import RK4

torch = pytest.importorskip("torch")

KEY = jax.random.key(0)
MEAN = np.array([3.0, -2.0, 0.5, 1.0])


class Net(torch.nn.Module):
    """A denoiser near that of N(MEAN, 4), with a condition that moves it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = torch.nn.Linear(5, 16), torch.nn.Linear(16, 4)

    def forward(self, x, t, shift=None):
        t = t[:, None]
        mean = torch.as_tensor(MEAN, dtype=x.dtype)
        h = self.inner(torch.cat([x / (1 + t**2).sqrt(), t.log() / 4], 1))
        h = h if shift is None else h + shift[:, :1]
        return mean + (x - mean) * 4 / (4 + t**2) + 0.3 * self.outer(torch.tanh(h))


@pytest.fixture(scope="module")
def module():
    return Net().double().eval()


def in_jax(module):
    a, b, c, d = (p.detach().numpy() for p in module.parameters())

    def network(x, t, cond):
        h = a @ jnp.append(x / jnp.sqrt(1 + t**2), jnp.log(t) / 4) + b
        h = h if cond is None else h + cond[:1]
        return MEAN + (x - MEAN) * 4 / (4 + t**2) + 0.3 * (c @ jnp.tanh(h) + d)

    return network


def model_of(network):
    path, predicts = dgjax.edm(), dgjax.DenoisedPrediction()
    return dgjax.field(network, path, predicts, t_min=0.1, t_max=10.0, shape=(4,))


def sample(model, x, q, cond, divergence):
    grid, guides = dgjax.grid_logsnr(model, 6), dgjax.density_guidance(q)
    options = {"key": KEY, "guides": guides, "cond": cond, "divergence": divergence}
    return dgjax.sample(model, x, grid, **options).log_density


def likelihood(model, x, q, cond, divergence):
    del q
    grid = dgjax.grid_logsnr(model, 6)
    options = {"key": KEY, "cond": cond, "divergence": divergence}
    return dgjax.likelihood(model, x, grid, **options).log_density


def looped(network, x, q, cond, divergence):
    """A scan, whose linear part is transposed."""
    del q, divergence
    step = lambda x, t: (network.network(x, t, cond), jnp.sum(x))
    return jnp.sum(jax.lax.scan(step, x, jnp.array([1.0, 0.5]))[0] ** 2)


CASES = {
    "sample": (sample, dgjax.Exact()),
    "sample by Hutchinson": (sample, dgjax.Hutchinson(2)),
    "likelihood in reverse mode": (likelihood, dgjax.ReverseMode(dgjax.Exact())),
    "scan": (looped, None),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in CASES if name != "sample"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sample", *SLOW])
def test_values_and_gradients_are_those_of_the_network_in_jax(module, name):
    function, divergence = CASES[name]
    x = jnp.array([[9.0, -30.0, 5.0, 20.0], [-3.0, 8.0, 1.0, 2.0]])
    cond = jnp.array([0.3, 0.1])
    found = []
    for network in (torch_network(module), in_jax(module)):
        model = model_of(network)
        value = lambda x, q, c, model=model: function(model, x, q, c, divergence)
        run = jax.jit(jax.vmap(jax.value_and_grad(value, (0, 1, 2)), in_axes=(0, None, None)))
        found.append(run(x, 0.6, cond))
    assert np.abs(found[1][1][0]).min() > 1e-6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), *found)


@pytest.mark.slow
def test_derivatives_of_every_order(module):
    mine, theirs = torch_network(module), in_jax(module)
    x, v = jnp.asarray([1.0, -2.0, 0.5, 3.0]), jnp.arange(4.0)
    total = lambda network: lambda x: jnp.sum(network(x, 2.0, None) ** 2)
    for transform in (
        jax.grad,
        jax.hessian,
        lambda f: jax.jacrev(jax.jacrev(f)),
        lambda f: lambda x: jax.linearize(jax.grad(f), x)[1](v),
        lambda f: lambda x: jax.vjp(jax.grad(f), x)[1](v)[0],
        lambda f: lambda x: jax.jvp(jax.hessian(f), (x,), (v,))[1],
    ):
        found, right = (transform(total(network))(x) for network in (mine, theirs))
        np.testing.assert_allclose(found, right, rtol=1e-10, atol=1e-12)


def test_log_density_is_that_of_pytorch_alone(module):
    """Its own Runge-Kutta steps and its own trace of the Jacobian."""
    model = model_of(torch_network(module))
    grid = dgjax.grid_logsnr(model, 64)
    x = np.array([1.0, -2.0, 0.5, 3.0])

    def velocity(x, t):
        t = torch.as_tensor(t, dtype=x.dtype)
        return (x - module(x[None], t[None])[0]) / t

    with torch.no_grad():
        log_density, latent = by_torch_alone(velocity, torch.tensor(x), np.geomspace(0.1, 10, 65))
    options = {"key": KEY, "divergence": dgjax.Exact(), "solver": RK4()}
    found = dgjax.likelihood(model, jnp.asarray(x), grid, **options)
    np.testing.assert_allclose(found.log_density, log_density, atol=1e-4)
    np.testing.assert_allclose(found.latent, latent, atol=1e-4)


class Picture(torch.nn.Module):
    """Channels first, normalization over them, attention, and a dict, labels and a mask."""

    def __init__(self):
        super().__init__()
        self.into, self.out = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 6, 1)
        self.norm, self.labels = torch.nn.GroupNorm(2, 8), torch.nn.Embedding(5, 8)

    def forward(self, x, t, label, mask):
        h = self.norm(self.into(x) + self.labels(label)[..., None, None]) * t[:, None, None, None]
        tokens = h.flatten(2).transpose(1, 2)
        h = h + torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).transpose(
            1, 2
        ).reshape(h.shape)
        return {"image": self.out(h) * mask[:, None, None, None], "other": label}


def test_layout_output_time_and_conditions(float32):
    """A mapping of labels and masks, half of the channels, and 1000 t."""
    torch.manual_seed(0)
    module = Picture().eval()
    network = torch_network(module, output=lambda out: out["image"][:, :3], time_scale=1000.0)
    xs = jax.random.normal(KEY, (2, 6, 4, 3))
    cond = {"label": jnp.array([1, 3]), "mask": jnp.array([True, False])}
    out = jax.jit(jax.vmap(network, in_axes=(0, None, 0)))(xs, 0.002, cond)
    right = module(
        torch.tensor(np.array(xs)).permute(0, 3, 1, 2),
        torch.full((2,), 2.0),
        torch.tensor([1, 3]),
        torch.tensor([1.0, 0.0]),
    )["image"][:, :3].permute(0, 2, 3, 1)
    np.testing.assert_allclose(out, right.detach().numpy(), rtol=1e-5, atol=1e-5)
    assert out.dtype == jnp.float32
    x = xs[0]
    alone = {k: v[0] for k, v in cond.items()}
    push = jax.linearize(lambda x: network(x, 0.002, alone), x)[1]
    pull = jax.vjp(lambda x: network(x, 0.002, alone), x)[1]
    np.testing.assert_allclose(jnp.vdot(push(x), xs[1]), jnp.vdot(pull(xs[1])[0], x), rtol=1e-4)


def half(x, t):
    return x[:, :2]


def a_dict(x, t):
    return {"a": x}


class NormAfterAttention(torch.nn.Module):
    """As in diffusers' U-Nets: the normalization gets what is not contiguous in a batch."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.GroupNorm(2, 4)

    def forward(self, x, t):
        tokens = x.flatten(2).transpose(1, 2)
        out = torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.norm(out.transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("batch", [1, 3])
def test_forward_and_reverse_products_agree_after_attention(batch):
    torch.manual_seed(0)
    network = torch_network(NormAfterAttention().double().eval())
    x, v, w = jax.random.normal(KEY, (3, batch, 4, 2, 4))

    def both(x, v, w):
        function = lambda x: network(x, 1.0)
        push, pull = jax.jvp(function, (x,), (v,))[1], jax.vjp(function, x)[1](w)[0]
        return jnp.vdot(w, push), jnp.vdot(pull, v)

    forward, reverse = jax.jit(jax.vmap(both))(x, v, w)
    np.testing.assert_allclose(forward, reverse, rtol=1e-10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch_network(Net()), r"training mode.*module.eval\(\)"),
        (lambda: torch_network(half, channels="none"), '"first" or "last"'),
        (lambda: torch_network(half)(jnp.ones(4), 1.0), r"returned \(2,\).*output="),
        (lambda: torch_network(a_dict)(jnp.ones(4), 1.0), "returned dict: pass output="),
        (lambda: torch_network(Net().eval())(jnp.ones(3), 1.0), "shapes cannot be multiplied"),
    ],
)
def test_trouble_arises_before_anything_runs(make, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        jax.eval_shape(make)


def test_equal_networks_share_a_program(module):
    """Numbers change nothing, and neither does making the network again."""
    traces = []

    def function(x, t):
        traces.append(x.shape)
        return module(x, t)

    run = jax.jit(lambda network, x: network(x, 1.0))
    for scale in (1.0, 2.0):
        run(torch_network(function, time_scale=scale), jnp.ones(4))
    assert run._cache_size() == 1
    assert len(traces) == 3  # one of them checks the shapes


def test_a_program_is_linear_in_its_tangents_only(module):
    program = Function(lambda x: module(x, x[:, 0].abs() + 1))
    with pytest.raises(NotImplementedError, match="linear in its tangents"):
        jax.linear_transpose(lambda x: evaluate_program(program, x)[0], jnp.ones((1, 4)))(
            jnp.ones((1, 4))
        )
