"""Closed-form oracles on the device at hand, in the precision JAX is configured to use.

Each function in `CHECKS` measures one claim and says within which bounds float32 must keep it.
Expected values come from NumPy and SciPy in float64, given the very numbers the library gets.
Comments say what float32 leaves on a CPU, so how much room a bound gives, and what would fail.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from dgjax.analytic import closed_form, gaussian_mixture, log_density
from dgjax.divergence import Divergence, Exact, Hutchinson
from dgjax.fields import Field, Local, evaluate, log_prior
from dgjax.grids import grid_uniform
from dgjax.guidance import Guide, Profile, density_guidance, target_guidance
from dgjax.likelihood import Likelihood, likelihood
from dgjax.noise import StratonovichNoise, level_set_noise, reverse_sde
from dgjax.paths import edm, vp
from dgjax.pretrained import load_pretrained, pretrained_models
from dgjax.quadrature import quadrature
from dgjax.sampling import Sampled, Trajectory, sample
from dgjax.solvers import SOLVERS
from dgjax.targets import pilot
from dgjax.typing import Key, Sample, as_float, register_dataclass

__all__ = ["CHECKS", "Finding", "run_checks"]


class Finding(NamedTuple):
    """What one check found; it passed if `low` <= `measured` <= `high`."""

    claim: str
    expected: str
    measured: float
    low: float
    high: float
    passed: bool


def _finding(claim: str, measured: float, high: float, low: float = 0.0, mend: str = "") -> Finding:
    passed = bool(low <= measured <= high)  # never of a NaN
    expected = f"{low:g} to {high:g}" if low else f"at most {high:g}"
    if mend and not passed:
        expected = f"{expected}; {mend}"
    return Finding(claim, expected, float(measured), low, high, passed)


MEND = "set JAX_DEFAULT_MATMUL_PRECISION=highest"
SHIPPED = "fashion-mnist"

# The problem: a mixture with full covariances in 64 dimensions, small to compile and to solve.

SIZE, COUNT, BATCH = 64, 3, 8
RHO, W_MIN, W_MAX = 7.0, 0.05, 20.0
STEPS = 32  # in one compiled solve; longer ones are several of these


class _Mixture(NamedTuple):
    """A Gaussian mixture in float64, of numbers that float32 holds exactly."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def noisy(self, alpha: float, sigma: float) -> "_Mixture":
        """That of alpha x + sigma eps."""
        noise = sigma**2 * np.eye(SIZE)
        return _Mixture(self.weights, alpha * self.means, alpha**2 * self.covariances + noise)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """(count, SIZE) samples, each a float32 number."""
        k = rng.choice(COUNT, size=count, p=self.weights)
        root = np.linalg.cholesky(self.covariances)[k]
        x = self.means[k] + np.einsum("nij,nj->ni", root, rng.normal(size=(count, SIZE)))
        return _rounded(x)

    def log_terms(self, x: np.ndarray) -> np.ndarray:
        parts = zip(self.means, self.covariances, strict=True)
        terms = [multivariate_normal(m, c).logpdf(x) for m, c in parts]
        return np.stack(terms, -1) + np.log(self.weights)

    def log_density(self, x: np.ndarray) -> np.ndarray:
        return logsumexp(self.log_terms(x), axis=-1)

    def derivatives(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores (n, SIZE) and Hessians (n, SIZE, SIZE) of the log-density at x (n, SIZE)."""
        terms = self.log_terms(x)
        weights = np.exp(terms - logsumexp(terms, axis=-1, keepdims=True))
        precisions = np.linalg.inv(self.covariances)
        scores = np.einsum("kij,nkj->nki", precisions, self.means - x[:, None])
        score = np.einsum("nk,nki->ni", weights, scores)
        apart = scores - score[:, None]
        spread = np.einsum("nki,nkj->nij", weights[..., None] * apart, apart)
        return score, spread - np.einsum("nk,kij->nij", weights, precisions)


def _rounded(a: np.ndarray) -> np.ndarray:
    return np.asarray(a, np.float32).astype(np.float64)


def _mixture(same: bool = False) -> _Mixture:
    """Standard deviations from 0.3 to 1.5; `same`: equal parts, which make one Gaussian."""
    rng = np.random.default_rng(1)
    means = rng.normal(size=(COUNT, SIZE))
    rotations = np.linalg.qr(rng.normal(size=(COUNT, SIZE, SIZE)))[0]
    scales = rng.permuted(np.tile(np.geomspace(0.3, 1.5, SIZE), (COUNT, 1)), axis=1)
    covariances = np.einsum("kij,kj,klj->kil", rotations, scales**2, rotations)
    covariances = 0.5 * (covariances + covariances.transpose(0, 2, 1))
    if same:
        means, covariances = (np.repeat(a[:1], COUNT, 0) for a in (means, covariances))
    return _Mixture(np.array([0.5, 0.25, 0.25]), _rounded(means), _rounded(covariances))


def _model(mixture: _Mixture) -> Field:
    ends = {"t_min": W_MIN ** (1 / RHO), "t_max": W_MAX ** (1 / RHO)}
    return closed_form(gaussian_mixture(*mixture), edm(RHO), **ends)


def _truth(mixture: _Mixture, model: Field, x: Array) -> np.ndarray:
    """Log-densities of x at the model's t_min in nats, by SciPy."""
    sigma = float(model.t_min) ** RHO
    return mixture.noisy(1.0, sigma).log_density(np.asarray(x, np.float64))


def _latents(mixture: _Mixture) -> Array:
    return as_float(mixture.noisy(1.0, W_MAX).draw(np.random.default_rng(2), BATCH))


def _largest(error: np.ndarray) -> float:
    return float(np.max(np.abs(error)))


def _rms(error: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(error))))


def _relative(value: Array, truth: Array | np.ndarray) -> float:
    """|value - truth| / |truth|."""
    exact = np.asarray(truth, np.float64)
    return float(np.linalg.norm(np.asarray(value, np.float64) - exact) / np.linalg.norm(exact))


# The compiled functions, shared by the checks: one noise that contains the others, numbers that
# turn parts of it off, and pieces of one length are why there are so few.


@register_dataclass
@dataclass(frozen=True)
class _Noises:
    """The sum of Stratonovich terms."""

    terms: tuple[StratonovichNoise, ...]

    def increment(self, local: Local, dt: Array, dW: Sample) -> Sample:
        return sum((n.increment(local, dt, dW) for n in self.terms), jnp.zeros_like(dW))


class _Heights(NamedTuple):
    """Of the noise along the level set, and of the reverse SDE's."""

    level_set: float = 0.0
    reverse: float = 0.0


_traces: Counter[str] = Counter()


@partial(jax.jit, static_argnames="solver")
def _piece(
    model: Field,
    x: Array,
    grid: Array,
    log_density: Array,
    guide: Guide,
    noise: _Noises | None,
    key: Key,
    solver: str,
) -> Sampled:
    _traces[solver] += 1  # runs while tracing only

    def one(x: Sample, log_density: Array, key: Key) -> Sampled:
        return sample(
            model,
            x,
            grid,
            key=key,
            log_density=log_density,
            guides=(guide,),
            noise=noise,
            divergence=Exact(),
            solver=SOLVERS[solver](),
            save=Trajectory,
        )

    return jax.vmap(one)(x, log_density, jax.random.split(key, x.shape[0]))


@jax.jit
def _priors(model: Field, x: Array) -> Array:
    return jax.vmap(lambda x: log_prior(model, x))(x)


class _Walk(NamedTuple):
    """The end of a solve, (BATCH,) log-densities in nats, and its pieces' trajectories."""

    x: Array
    log_density: np.ndarray
    bound_share: float
    trajectories: list[Trajectory]


def _walk(
    model: Field,
    x: Array,
    guide: Guide,
    *,
    steps: int = 2 * STEPS,
    heights: _Heights | None = _Heights(),
    solver: str = "rk4",
) -> _Walk:
    """From x at t_max to t_min; heights of 0 share one program, None is a smaller one."""
    noise = heights and _Noises((level_set_noise(heights[0]), reverse_sde(heights[1])))
    grid, log_density = grid_uniform(model, steps), _priors(model, x)
    shares, trajectories = [], []
    for i, start in enumerate(range(0, steps, STEPS)):
        piece, key = grid[start : start + STEPS + 1], jax.random.key(i)
        out = _piece(model, x, piece, log_density, guide, noise, key, solver)
        x, log_density = out.x, out.log_density
        shares.append(np.mean(out.info.bound_share))
        trajectories.append(out.trajectory)
    return _Walk(x, np.asarray(log_density), float(np.mean(shares)), trajectories)


@jax.jit
def _likelihoods(model: Field, x: Array, grid: Array) -> Likelihood:
    key, solver = jax.random.key(0), SOLVERS["rk4"]()
    return jax.vmap(
        lambda x: likelihood(model, x, grid, key=key, divergence=Exact(), solver=solver)
    )(x)


class _Pass(NamedTuple):
    """The model at BATCH points: log-density in closed form, the rest from one evaluation."""

    log_density: Array
    score: Array
    laplacian: Array
    divergences: Array


@jax.jit
def _passes(model: Field, t: Array, x: Array, divergence: Divergence) -> _Pass:
    def one(x: Sample) -> _Pass:
        local = evaluate(model, t, x, divergence=divergence, key=jax.random.key(0))
        exact = log_density(model, t, x)
        return _Pass(exact, local.score, local.laplacian, local.divergences)

    return jax.vmap(one)(x)


# Arithmetic.


def matrix_products() -> Finding:
    """Matrix products carry float32."""
    rng = np.random.default_rng(0)
    a, b = (_rounded(rng.normal(size=size)) for size in ((256, 512), (512, 256)))
    error = _relative(jax.jit(jnp.matmul)(as_float(a), as_float(b)), a @ b)
    # 4e-7. Three bfloat16 products ('high' on a TPU) leave 4.5e-6, TF32 3e-4, bfloat16 3e-3.
    return _finding("matrix products: relative error", error, 2e-6, mend=MEND)


def sums() -> Finding:
    """Sums are accumulated in float32."""
    values = _rounded(np.random.default_rng(0).uniform(size=10_000))
    error = _relative(jax.jit(jnp.sum)(as_float(values)), values.sum())
    # 1e-8 to 6e-8 by the draw; added one after the other in float32, up to 1e-6.
    return _finding("a sum of 10,000 numbers: relative error", error, 3e-6)


# Closed forms, at three times of the VP path: sigma is 0.2, 0.7 and 0.998, and alpha not 1.

TIMES = (1 / 16, 1 / 4, 3 / 4)


class _Point(NamedTuple):
    """One time of the path: BATCH points there, the library on them, and the true mixture."""

    x: np.ndarray
    found: _Pass
    truth: _Mixture
    beta: float


def _point(t: float, divergence: Divergence) -> _Point:
    mixture = _mixture()
    integral = t * (0.1 + 0.5 * 19.9 * t)
    truth = mixture.noisy(np.exp(-0.5 * integral), np.sqrt(-np.expm1(-integral)))
    x = truth.draw(np.random.default_rng(3), BATCH)
    model = closed_form(gaussian_mixture(*mixture), vp(0.1, 20.0), t_min=1e-3, t_max=1.0)
    found = _passes(model, as_float(t), as_float(x), divergence)
    return _Point(x, found, truth, 0.1 + 19.9 * t)


def mixture_log_density() -> Finding:
    """The closed-form log-density is SciPy's."""
    points = [_point(t, Exact()) for t in TIMES]
    error = max(
        _largest(np.asarray(p.found.log_density) - p.truth.log_density(p.x)) for p in points
    )
    # 4e-5 of a log-density near 100, whose last bit is 8e-6. With TF32 products it is 8e-3.
    return _finding("log-density of a mixture, against SciPy: nats", error, 2e-4)


def mixture_score() -> Finding:
    """The score of one model pass is that of float64."""
    points = [_point(t, Exact()) for t in TIMES]
    error = max(_relative(p.found.score, p.truth.derivatives(p.x)[0]) for p in points)
    # 9e-6: s = (alpha x0 - x)/sigma^2 cancels where sigma is small. TF32: 4e-3.
    return _finding("its score: relative error", error, 5e-5)


def mixture_laplacian() -> Finding:
    """The Laplacian by products with the Hessian is that of float64."""
    points = [_point(t, Exact()) for t in TIMES]
    error = max(
        _relative(p.found.laplacian, np.linalg.trace(p.truth.derivatives(p.x)[1])) for p in points
    )
    # 1.3e-6. TF32: 2e-3.
    return _finding("its Laplacian by exact trace: relative error", error, 1e-5)


PROBES = 4096


def _laplacian_estimates() -> tuple[np.ndarray, np.ndarray]:
    """Estimates of the Laplacian at one point, from as many probes, and the true Hessian."""
    point = _point(1 / 4, Hutchinson(PROBES))
    # div u = D f - g^2/2 Lap log p, with f = -beta/2 and g^2 = beta on this path.
    divergences = np.asarray(point.found.divergences[0], np.float64)
    laplacians = -SIZE - 2 * divergences / point.beta
    return laplacians, point.truth.derivatives(point.x)[1][0]


def hutchinson_bias() -> Finding:
    """The mean over probes is the Laplacian."""
    estimates, hessian = _laplacian_estimates()
    error = np.std(estimates) / np.sqrt(PROBES)
    z = abs(np.mean(estimates) - np.trace(hessian)) / error
    # Random numbers of another JAX exceed 4 standard errors once in 16,000.
    return _finding("Hutchinson's estimate: bias in standard errors", z, 4.0)


def hutchinson_variance() -> Finding:
    """The variance over probes is 2 (|H|^2 - |diag H|^2)."""
    estimates, hessian = _laplacian_estimates()
    theory = 2 * (np.sum(hessian**2) - np.sum(np.diag(hessian) ** 2))
    squares = (estimates - np.mean(estimates)) ** 2
    error = np.std(squares) / np.sqrt(PROBES)
    z = abs(np.mean(squares) - theory) / error
    return _finding("its variance: distance from theory in standard errors", z, 4.0)


# The PF-ODE: a Gaussian, written as a mixture of equal parts so that it compiles nothing new.


def _encoded() -> tuple[_Mixture, Field, Array, Likelihood]:
    mixture = _mixture(same=True)
    model = _model(mixture)
    x = as_float(mixture.noisy(1.0, W_MIN).draw(np.random.default_rng(4), BATCH))
    return mixture, model, x, _likelihoods(model, x, grid_uniform(model, 2 * STEPS))


def gaussian_likelihood() -> Finding:
    """The likelihood by PF-ODE is SciPy's."""
    mixture, model, x, out = _encoded()
    error = _largest(np.asarray(out.log_density) - _truth(mixture, model, x))
    # 5e-5, as in float64: the solver's own. By Heun it is 0.2, with TF32 0.015.
    return _finding("likelihood of a Gaussian, against SciPy: nats", error, 5e-4)


def round_trip() -> Finding:
    """Data -> noise -> data is the identity."""
    _, model, x, out = _encoded()
    back = np.asarray(_walk(model, out.latent, density_guidance(0.5)).x)
    # 1.3e-6, and 1e-7 in float64.
    return _finding("data to noise to data: largest error", _largest(back - np.asarray(x)), 1e-5)


def _tracked(guide: Guide, **options: Any) -> tuple[np.ndarray, _Walk]:
    """Tracked minus true log-densities in nats, and the solve they come from."""
    mixture = _mixture()
    model = _model(mixture)
    walk = _walk(model, _latents(mixture), guide, **options)
    return walk.log_density - _truth(mixture, model, walk.x), walk


def heun_order() -> Finding:
    """The tracked log-density converges at Heun's order."""
    guide = density_guidance(0.5)
    coarse, fine = (
        _rms(_tracked(guide, steps=n, solver="heun", heights=None)[0])
        for n in (2 * STEPS, 4 * STEPS)
    )
    # 2.03, from 0.17 and 0.042 nats: far above what float32 leaves, 1e-4.
    return _finding("Heun: order of convergence", np.log2(coarse / fine), 2.2, low=1.8)


# Guidance. Log-densities are tracked along the guided drift, and true of the point it reached.


def low_density() -> Finding:
    """Tracked and true log-density agree where guidance lowers it."""
    error = _largest(_tracked(density_guidance(0.3))[0])
    # 1.7e-4 to 2.4e-4 by the latents, of which the solver's own is 1e-4. TF32: 0.04.
    return _finding("density guidance at q = 0.3, tracked - true: nats", error, 1e-3)


def high_density() -> Finding:
    """Tracked and true log-density agree at a q at which the published rule diverges."""
    error = _largest(_tracked(density_guidance(0.7))[0])
    # 4e-5 to 9e-5 by the latents. Without the bound on eta it is 13.
    return _finding("density guidance at q = 0.7, tracked - true: nats", error, 5e-4)


def bound_reported() -> Finding:
    """The share of the log-SNR range on which eta is stopped by its bound is reported."""
    share = _tracked(density_guidance(0.7))[1].bound_share
    # 0.306 to 0.327 by the latents.
    return _finding("the share of log-SNR on which its bound acts", share, 0.42, low=0.25)


def one_compilation() -> Finding:
    """Another q is another number, not another program."""
    _tracked(density_guidance(0.5))
    before = _traces["rk4"]
    for q in (0.2, 0.4, 0.6, 0.8):
        _tracked(density_guidance(q), steps=STEPS)
    return _finding("compilations while q goes over 4 more values", _traces["rk4"] - before, 0)


def level_set() -> Finding:
    """Noise along the level set leaves the tracked log-density true, by Stratonovich RK4."""
    heights = _Heights(level_set=1.0)
    error = _rms(_tracked(density_guidance(0.5), steps=8 * STEPS, heights=heights)[0])
    # 0.013 to 0.015 by the latents, the solver's own. Heun, of order 1, leaves over 1.
    return _finding("noise along the level set, tracked - true: RMS nats", error, 0.05)


@jax.jit
def _pilot(model: Field, latents: Array, grid: Array) -> Profile:
    return pilot(model, latents, grid, key=jax.random.key(0), divergence=Exact())


def closed_loop() -> Finding:
    """Closed-loop guidance ends at the log-density asked for, by SciPy."""
    mixture = _mixture()
    model = _model(mixture)
    typical = mixture.noisy(1.0, W_MIN)
    target = np.mean(typical.log_density(typical.draw(np.random.default_rng(5), 256))) + 10
    profile = _pilot(model, _latents(mixture), grid_uniform(model, STEPS))
    behind, walk = _tracked(target_guidance(target, model, profile), heights=None)
    error = _largest(walk.log_density - behind - target)
    # 0.0102, as in float64: what the last step no longer catches up with.
    return _finding("closed-loop target, true - asked for: nats", error, 0.03)


@jax.jit
def _quadratures(model: Field, t: Array, x: Array) -> Array:
    key = jax.random.key(0)
    along = jax.vmap(lambda t, x: quadrature(model, t, x, key=key, divergence=Exact(), batch=64))
    return along(t, x).log_density[:, -1]


def reverse_sde_quadrature() -> Finding:
    """Quadrature along the reverse SDE gives the log-density of its end, by SciPy."""
    mixture = _mixture()
    model = _model(mixture)
    walk = _walk(model, _latents(mixture), density_guidance(0.5), heights=_Heights(reverse=1.0))
    # Pieces share the points where they meet.
    first, *rest = walk.trajectories
    t = jnp.concatenate([first.t, *(r.t[:, 1:] for r in rest)], 1)
    x = jnp.concatenate([first.x, *(r.x[:, 1:] for r in rest)], 1)
    error = np.asarray(_quadratures(model, t, x)) - _truth(mixture, model, walk.x)
    claim = "quadrature along the reverse SDE: nats per dimension"
    # 5e-5 to 2.7e-4 by the latents, of which the method's own is 1e-4. A rule with nodes at the
    # points leaves 0.23.
    return _finding(claim, _largest(error) / SIZE, 1e-3)


# The shipped model. It has no closed form: it is compared with itself.


@jax.jit
def _denoise(model: Field, t: Array, x: Sample) -> Sample:
    return model.pair(t, x).x0


@jax.jit
def _denoise_batch(model: Field, t: Array, x: Array) -> Array:
    return jax.vmap(lambda x: model.pair(t, x).x0)(x)


@cache
def _shipped() -> tuple[Field, Array, Array]:
    """The model, a time, and two noisy pictures."""
    model, meta = load_pretrained(SHIPPED)
    x = np.random.default_rng(6).normal(size=(2, *meta.shape))
    return model, jnp.float32(0.5), jnp.asarray(x, jnp.float32)


def network_precision() -> Finding:
    """The network is what it is at the highest precision."""
    model, t, x = _shipped()
    default = _denoise(model, t, x[0])
    with jax.default_matmul_precision("highest"):
        error = _relative(default, _denoise(model, t, x[0]))
    claim = f"{SHIPPED}, default against highest precision: relative"
    # 0 on a CPU, where both are float32. Rounding x alone to TF32 moves the output by 2e-4.
    return _finding(claim, error, 5e-5, mend=MEND)


def network_batched() -> Finding:
    """The network does not depend on the batch it is in."""
    model, t, x = _shipped()
    error = _relative(_denoise_batch(model, t, x)[0], _denoise(model, t, x[0]))
    # 1e-7. A batch may be convolved by another algorithm, with other rounding.
    return _finding(f"{SHIPPED}, in a batch against alone: relative", error, 5e-5)


CHECKS: tuple[Callable[[], Finding], ...] = (
    matrix_products,
    sums,
    mixture_log_density,
    mixture_score,
    mixture_laplacian,
    hutchinson_bias,
    hutchinson_variance,
    gaussian_likelihood,
    round_trip,
    heun_order,
    low_density,
    high_density,
    bound_reported,
    one_compilation,
    level_set,
    closed_loop,
    reverse_sde_quadrature,
    *((network_precision, network_batched) if SHIPPED in pretrained_models() else ()),
)


def run_checks(on_finding: Callable[[Finding], None] | None = None) -> list[Finding]:
    """All findings, each handed to `on_finding` as soon as it is there."""
    findings = []
    for check in CHECKS:
        finding = check()
        if on_finding is not None:
            on_finding(finding)
        findings.append(finding)
    return findings
