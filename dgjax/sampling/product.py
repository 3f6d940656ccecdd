r"""Sample products and powers of densities with weighted particles (sequential Monte Carlo).

Let models i have densities p_i and scores s_i on one path. The targets are, at every time,

    pi_t(x) = prod_i p_i,t(x)^(b_i),        S = grad log pi_t = sum_i b_i s_i,

such as p^beta, p_1 p_2, or p(x | c)^w p(x)^(1 - w). They do not obey the equation of a noised
density, so no velocity of a model transports one to the next. Particles follow the weighted mean
of the velocities, and a weight makes up for the rest. With B = sum_i b_i

    v = sum_i (b_i/B) u_i = f x - g^2/(2 B) S.

The weight comes from tracked densities. By identity (A) d log p_i/dt = -div u_i + <v - u_i, s_i>,
and the law q of the particles has d log q/dt = -div v. With D numbers in x, the weight
log w = sum_i b_i log p_i - log q changes at

    (1 - B) D f + g^2/2 [(1 - 1/B) sum_i b_i Lap log p_i + sum_i b_i |s_i|^2 - |S|^2/B].

Feynman-Kac correctors (Skreta et al. 2025, arXiv 2503.02819) are the same number along another
drift, f x - g^2/2 S. All Laplacians cancel there, so that a step needs no Jacobian product. But in
noise, where pi is N(0, sigma^2/B), that drift shrinks x as sigma^B: the particles leave the target
at once and the weights degenerate before any data are seen (`experiments/products.py`). The mean of
the velocities shrinks x as sigma does, keeps pi where all p_i are one Gaussian, and its weights do
not change there. It is used here. For B = 1, as in classifier-free guidance, the two are one drift,
and no Laplacian is computed. Otherwise a step costs one Jacobian product for each probe, and the
noise of probes enters the weights, times 1 - 1/B: take `Exact()` in few dimensions.

Copies that resampling makes have to part again. After each step a Langevin move that leaves pi_t
as it is does that. A Metropolis test removes its bias. It needs log pi_t(x') - log pi_t(x), the
integral of S along the chord, by Simpson's rule: exact if all p_i are Gaussian, and with an error
of order 5 in the length otherwise. A move does not change a weight. Log-densities that were tracked
before a copy are copied with the particle.

The mean weight estimates the normalizing constant, the integral of pi at t_min.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from dgjax.model.conditioned import condition
from dgjax.model.divergence import Divergence, Hutchinson, check_count
from dgjax.model.faults import as_code, finite, first, refuse, require
from dgjax.model.field import Field, log_prior_at, score
from dgjax.model.local import evaluate
from dgjax.model.paths import coefficients
from dgjax.model.repath import repath
from dgjax.sampling.checks import check_latent
from dgjax.sampling.compiled import compile_once
from dgjax.sampling.integrate import integrate
from dgjax.sampling.resampling import effective_size, log_mean_weight, resample
from dgjax.sampling.solvers import RK4, Solver
from dgjax.typing import Cond, Key, Sample, Scalar, as_float, inner

__all__ = ["Particles", "sample_product"]


class Particles(NamedTuple):
    """Weighted samples of a product of densities.

    Attributes:
        x: (num, *shape) samples at the end of the grid.
        log_weights: (num,) in nats. A mean under the product weighs by them, as `weighted_mean`
            does. Where the powers do not add up to 1 and the divergence is an estimator, they
            contain the noise of its probes. No attribute measures that noise. It biases means and
            `log_normalizer`, because a weight is the exponential of a noisy number.
        log_normalizer: estimate of the logarithm of the integral of prod_i p_i^(b_i), in nats.
        effective_sizes: (n+1,) effective sample size at every grid point, before resampling.
        resampled: (n+1,) whether particles were resampled there.
        accepted: (n,) share of the Langevin moves that were accepted after each step; NaN without
            moves.
        ancestors: (num,) index of the latent that each particle comes from. Particles of one
            ancestor are not independent, so few different ones mean more error than
            `effective_sizes` says.
        ts: (n+1,) times.
        fault: 0, or the code of the first check that failed while JAX was tracing, a value of
            `Fault`; the weights are then NaN.
    """

    x: Float[Array, "num ..."]
    log_weights: Float[Array, " num"]
    log_normalizer: Scalar
    effective_sizes: Float[Array, " n+1"]
    resampled: Array
    accepted: Float[Array, " n"]
    ancestors: Int[Array, " num"]
    ts: Float[Array, " n+1"]
    fault: Int[Array, ""]


def sample_product(
    models: Sequence[Field],
    powers: ArrayLike,
    grid: Float[Array, " n+1"],
    *,
    key: Key,
    num: int,
    shape: Sequence[int] | None = None,
    conds: Sequence[Cond] | None = None,
    resample_below: ArrayLike = 0.5,
    moves: int = 1,
    divergence: Divergence = Hutchinson(),
    solver: Solver | None = None,
    batch: int = 256,
) -> Particles:
    """Sample prod_i p_i^(b_i), a product of powers of models, by sequential Monte Carlo.

    A step costs the evaluations of the solver and 3 for each move, of every model and particle.
    Weights degenerate where the product lies far from what the drift alone reaches, mostly in many
    dimensions: look at `effective_sizes` before using the samples.

    Args:
        models: k fields of samples of one shape. They are taken on the path of the first, whose
            noise range must be within that of the others.
        powers: (k,) finite numbers b_i with a positive sum. (beta,) of one model is p^beta, (1, 1)
            of two is p_1 p_2, and (w, 1 - w) of a model with and without condition is what
            classifier-free guidance of weight w is often thought to sample.
        grid: (n+1,) decreasing times on the path of the first model, from its t_max, as from
            `grid_logsnr`.
        key: for latents, moves and resampling.
        num: number of particles.
        shape: of one sample, by default that of the first model.
        conds: a condition for each model.
        resample_below: particles are resampled (systematically) where the effective sample size is
            below this share of them, except at the end of the grid; 0 never does.
        moves: Langevin moves after each step; 0 for none. Copies of one particle stay equal without
            them.
        divergence: trace estimator. Powers that add up to 1 need none. Otherwise the noise of
            probes biases the weights, and only `Exact()` has none.
        solver: an explicit Runge-Kutta method; `RK4()` by default.
        batch: particles evaluated together, which bounds memory.

    Returns:
        `Particles` at time `grid[-1]`.

    Raises:
        ValueError: if there is no model, numbers of models, powers and conditions differ, the
            powers do not have a positive sum, `resample_below` is outside [0, 1], the noise ranges
            do not fit, or the grid does not suit a model.
    """
    grid, powers = as_float(grid), as_float(powers)
    if not models:
        raise ValueError("sample_product needs at least one model")
    if powers.shape != (len(models),):
        raise ValueError(f"{len(models)} models need as many powers, got {powers.shape}")
    good = lambda b: finite(b) & (b.sum() > 0)
    powers = require("powers", powers, "be finite and have a positive sum", good)
    within = lambda share: (share >= 0) & (share <= 1)
    below = require("resample_below", as_float(resample_below), "lie in [0, 1]", within)
    conds = [None] * len(models) if conds is None else list(conds)
    if len(conds) != len(models):
        raise ValueError(f"{len(models)} models need as many conditions, got {len(conds)}")
    check_count("num", num)
    check_count("batch", batch)
    if moves != 0:
        check_count("moves", moves)
    shape = models[0].shape if shape is None else tuple(shape)
    if shape is None:
        raise ValueError("the first model does not know its shape: pass shape=(...) of one sample")
    path = models[0].path
    on_path = [models[0], *(repath(model, path) for model in models[1:])]
    fields = tuple(condition(model, cond) for model, cond in zip(on_path, conds, strict=True))
    start, moving = jax.random.split(key)
    noise = jax.random.normal(start, (num, *shape))
    # At t_max of the first model, where the priors of all are known: the others may go further.
    fault = first(
        check_latent(fields[0], noise[0], grid, log_density=None),
        *(check_latent(field, noise[0], grid, log_density=0.0) for field in fields[1:]),
    )
    solver = RK4() if solver is None else solver
    if not isinstance(solver, diffrax.AbstractERK):
        raise ValueError(
            f"sample_product takes explicit Runge-Kutta methods, such as RK4(), got {solver!r}"
        )
    return _sample(
        fields, powers, grid, noise, moving, below, moves, divergence, solver, batch, fault
    )


class _State(NamedTuple):
    x: Sample
    log_weight: Scalar


def _scores(fields, powers, t, x):
    """Return S and the k scores."""
    scores = jnp.stack([score(field, t, x) for field in fields])
    return jnp.tensordot(powers.astype(x.dtype), scores, 1, precision="highest"), scores


class _Weighted(diffrax.AbstractTerm):
    """The rate of `_State` in time."""

    divergence: Divergence

    def vf(self, t, y, args):
        fields, powers, key = args
        powers = powers.astype(y.x.dtype)
        c, whole = coefficients(fields[0].path, t), jnp.sum(powers)

        def alone(x):
            return _scores(fields, powers, t, x)[1], jnp.zeros((), x.dtype)

        def with_laplacians(x):
            # One key: the probes of all models are the same.
            found = [evaluate(f, t, x, divergence=self.divergence, key=key) for f in fields]
            laplacians = jnp.stack([local.laplacian for local in found])
            return jnp.stack([local.score for local in found]), powers @ laplacians

        # Powers are not mapped over, so that `cond` computes one branch.
        scores, laplacian = jax.lax.cond(whole == 1, alone, with_laplacians, y.x)
        total = jnp.tensordot(powers, scores, 1, precision="highest")
        squares = powers @ jnp.sum(scores.reshape(len(fields), -1) ** 2, -1)
        gained = (1 - 1 / whole) * laplacian + squares - inner(total, total) / whole
        rate = (1 - whole) * y.x.size * c.f + 0.5 * c.g2 * gained
        drift = c.f * y.x - 0.5 * c.g2 * total / whole
        return _State(drift.astype(y.x.dtype), rate.astype(y.log_weight.dtype))

    def contr(self, t0, t1, **kwargs):
        del kwargs
        return t1 - t0

    def prod(self, vf, control):
        return jax.tree.map(lambda a: (a * control).astype(a.dtype), vf)


def _move(fields, powers, t, x, key):
    """Make one Metropolis-adjusted Langevin move under pi_t; return whether it was accepted."""
    proposal, test = jax.random.split(key)
    total = lambda x: _scores(fields, powers, t, x)[0]
    # log pi_t curves by at most sum b_i/sigma^2 where all b_i > 0. The factor is the best one of a
    # Gaussian in many dimensions (Roberts and Rosenthal 1998).
    variance = fields[0].path.sigma(t) ** 2 / jnp.sum(powers)
    size = (2.7 * variance / x.size ** (1 / 3)).astype(x.dtype)
    z = jax.random.normal(proposal, x.shape, x.dtype)
    here = total(x)
    new = x + 0.5 * size * here + jnp.sqrt(size) * z
    there, middle = total(new), total(0.5 * (x + new))
    gained = inner(here + 4 * middle + there, new - x) / 6
    back = (x - new - 0.5 * size * there) / jnp.sqrt(size)
    log_ratio = gained + 0.5 * (inner(z, z) - inner(back, back))
    accepted = jnp.log(jax.random.uniform(test, dtype=x.dtype)) < log_ratio
    return jnp.where(accepted, new, x), accepted


@compile_once
def _sample(
    fields, powers, grid, noise, key, below, moves, divergence, solver, batch, fault
) -> Particles:
    num, each = noise.shape[0], min(batch, noise.shape[0])
    spread = fields[0].path.sigma(grid[0]) / jnp.sqrt(jnp.sum(powers))  # of pi at t_max
    spread = spread.astype(noise.dtype)

    def begin(z):
        x = spread * z
        # The density of the latents, N(0, spread^2 I).
        own = -0.5 * inner(z, z) - z.size * (0.5 * jnp.log(2 * jnp.pi) + jnp.log(spread))
        target = sum(
            b * log_prior_at(field, grid[0], x) for b, field in zip(powers, fields, strict=True)
        )
        return _State(x, (target - own).astype(x.dtype))

    save: Any = lambda t, y, args: None

    def advance(item):
        t0, t1, state, key = item
        probe, key = jax.random.split(key)
        args = fields, powers, probe
        found = integrate(_Weighted(divergence), solver, state, jnp.stack([t0, t1]), args, save)
        x, log_weight = found.end
        shares = []
        for i in range(moves):
            x, accepted = _move(fields, powers, t1, x, jax.random.fold_in(key, i))
            shares.append(accepted)
        share = jnp.mean(jnp.stack(shares).astype(x.dtype)) if moves else jnp.nan * log_weight
        return _State(x, log_weight), share

    def step(carry, item):
        state, ancestors = carry
        t0, t1, key = item
        again, moving = jax.random.split(key)
        size = effective_size(state.log_weight)
        kept = resample(again, state.log_weight, below)
        state = _State(state.x[kept.indices], kept.log_weights)
        times = (jnp.broadcast_to(t, num) for t in (t0, t1))
        items = (*times, state, jax.random.split(moving, num))
        state, shares = jax.lax.map(advance, items, batch_size=each)
        noted = size, size < below * num, jnp.mean(shares)
        return (state, ancestors[kept.indices]), noted

    steps = grid[:-1], grid[1:], jax.random.split(key, grid.shape[0] - 1)
    carry = jax.vmap(begin)(noise), jnp.arange(num)
    (state, ancestors), (sizes, resampled, accepted) = jax.lax.scan(step, carry, steps)
    log_weights = refuse(fault, state.log_weight)
    return Particles(
        x=state.x,
        log_weights=log_weights,
        log_normalizer=log_mean_weight(log_weights),
        effective_sizes=refuse(fault, jnp.append(sizes, effective_size(state.log_weight))),
        resampled=jnp.append(resampled, False),
        accepted=accepted,
        ancestors=ancestors,
        ts=grid,
        fault=as_code(fault),
    )
