"""Draw the samples of `dgjax sample`, with one compilation for any number of conditions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dgjax.checkpoints.conditions import Condition
from dgjax.checkpoints.opened import Model
from dgjax.cli.auto_steps import AUTO, TRIALS, Steps, find_steps
from dgjax.cli.part_guidance import hold_rest
from dgjax.cli.report import sample_arrays
from dgjax.devices.batches import batch_runner
from dgjax.devices.progress import Show
from dgjax.guidance.density import density_guidance
from dgjax.guidance.guide import Guide
from dgjax.guidance.noise import StratonovichNoise
from dgjax.guidance.parts import Part
from dgjax.guidance.target import target_guidance
from dgjax.model.conditioned import condition
from dgjax.model.divergence import Divergence
from dgjax.model.field import Field
from dgjax.model.prior import prior_guidance, prior_sample
from dgjax.pictures.latents import to_levels
from dgjax.sampling.sample import sample
from dgjax.sampling.shooting import pilot
from dgjax.sampling.solvers import Solver
from dgjax.sampling.time_grids import grid_logsnr
from dgjax.typing import Cond

__all__ = ["Drawing", "Given", "Plan", "make_drawer"]

# Always this many pilot latents, so that a sample does not depend on the number of samples drawn.
# `--steps auto` takes the same.
PILOTS = TRIALS


class Plan(NamedTuple):
    """The settings of a drawing that do not depend on the condition.

    Attributes:
        chosen: the model.
        dials: (dials,) values of q, or target log-densities in nats.
        by_target: whether `dials` are targets.
        solver: the solver.
        noise: the stochastic term, or None.
        part: what is guided, or None for all of a sample.
        prior_quantile: of the option --prior-quantile, or None.
        divergence: trace estimator.
        seed: of everything random.
        steps: number of steps, or "auto".
        tolerance: of the option --tolerance.
        start: number of the first latent.
        per_call: samples in one compiled call.
    """

    chosen: Model
    dials: np.ndarray
    by_target: bool
    solver: Solver
    noise: StratonovichNoise | None
    part: Part | None
    prior_quantile: float | None
    divergence: Divergence
    seed: int
    steps: Steps
    tolerance: float
    start: int
    per_call: int


class Drawing(NamedTuple):
    """The samples of one condition, none of which is drawn yet.

    Attributes:
        steps: number of steps.
        draw: `draw(first, stop, show)` returns the arrays of these latents and the levels of their
            pictures, or None.
    """

    steps: int
    draw: Callable[[int, int, Show], tuple[dict[str, Any], np.ndarray | None]]


class Given(NamedTuple):
    """The condition of the samples.

    Attributes:
        condition: of the model.
        weaker: of the weaker model of autoguidance; None without one, or for no condition.
    """

    condition: Condition
    weaker: Cond = None


MakeGuides = Callable[[Model, Field | None, Condition], tuple[Guide, ...]]


def make_drawer(
    plan: Plan, guides: MakeGuides, weaker: Field | None, given: Sequence[Given]
) -> Callable[[Given], Drawing]:
    """Make a function from a condition to its samples.

    Everything is compiled once for all conditions. Latent i is the same for every condition, and
    whatever other latents are drawn. `--steps auto` finds one number of steps for all conditions:
    for a few latents, each with another of the conditions, so that it costs as much as for one.

    Args:
        plan: what is drawn.
        guides: makes the guides before the dial, of a model, the weaker model with its condition,
            and a condition.
        weaker: the weaker model of autoguidance, or None.
        given: all conditions, of the same shapes.

    Raises:
        ValueError: as of `find_steps`.
    """
    chosen, seed = plan.chosen, jax.random.key(plan.seed)
    keys = jax.random.split(seed, 3)
    common: Mapping[str, Any] = {"divergence": plan.divergence, "solver": plan.solver}

    def latent(field, keys, i):
        x = prior_sample(field, jax.random.fold_in(keys[0], i), chosen.meta.shape)
        return x if plan.prior_quantile is None else prior_guidance(field, x, plan.prior_quantile)

    def pilots(field):
        return jax.vmap(lambda i: latent(field, keys, i))(jnp.arange(PILOTS))

    def guides_before(field, weaker, cond, null, weak_cond):
        weak = None if weaker is None else condition(weaker, weak_cond)
        return guides(chosen._replace(field=field), weak, Condition(cond, null))

    def measure_profile(field, cond, grid):
        if not plan.by_target:
            return None
        return pilot(field, pilots(field), grid, key=keys[2], cond=cond, **common)

    def solve(field, x, grid, dial, *, key, cond, before, profile, term):
        options = {"key": key, "cond": cond, **common}
        held: tuple[Guide, ...] = ()
        if plan.part is not None:
            held = (hold_rest(plan.part, field, x, grid, guides=before, **options),)
        if profile is None:
            last: Guide = density_guidance(dial, part=plan.part)
        else:
            last = target_guidance(dial, field, profile)
        return sample(field, x, grid, guides=(*before, *held, last), noise=term, **options)

    @jax.jit
    def run(field, cond, before, profile, grid, term, keys, batch):
        def one(i, dial):
            x, key = latent(field, keys, i), jax.random.fold_in(keys[1], i)
            options = {"cond": cond, "before": before, "profile": profile, "term": term}
            return solve(field, x, grid, dial, key=key, **options)

        return jax.vmap(one)(*batch)

    def at_all_dials(weaker, field, x, cond, null, weak_cond, grid, *, key):
        options = {"key": key, "cond": cond, "term": plan.noise}
        options["profile"] = measure_profile(field, cond, grid)
        options["before"] = guides_before(field, weaker, cond, null, weak_cond)
        one = lambda dial: solve(field, x, grid, dial, **options)
        return jax.lax.map(one, jnp.asarray(plan.dials))

    def count_steps() -> int:
        if plan.steps != AUTO:
            return plan.steps
        some = [given[i] for i in np.linspace(0, len(given) - 1, PILOTS).round().astype(int)]
        conditions = [(one.condition.cond, one.condition.null, one.weaker) for one in some]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *conditions)
        starts = (pilots(chosen.field), *stacked)
        run_all = jax.tree_util.Partial(at_all_dials, weaker)
        return find_steps(chosen.field, starts, plan.tolerance, key=keys[1], run=run_all)

    steps = count_steps()
    grid = grid_logsnr(chosen.field, steps)

    def drawing(given: Given) -> Drawing:
        cond, null = given.condition.cond, given.condition.null
        cond, null, weak_cond = jax.tree.map(jnp.asarray, (cond, null, given.weaker))
        before = guides_before(chosen.field, weaker, cond, null, weak_cond)
        profile = measure_profile(chosen.field, cond, grid)
        shared = (chosen.field, cond, before, profile, grid, plan.noise, keys)
        run_batches = batch_runner(run, plan.per_call, *shared)

        def draw(first, stop, show):
            # All latents at the first dial, then all latents at the next dial, and so on.
            dials = plan.dials
            latents = np.arange(plan.start + first, plan.start + stop)
            items = np.tile(latents, len(dials)), np.repeat(dials, len(latents))
            found = jax.tree.map(
                lambda a: a.reshape(len(dials), -1, *a.shape[1:]), run_batches(items, show)
            )
            levels = to_levels(chosen, found.x) if chosen.has_pictures else None
            return sample_arrays(chosen, dials, plan.by_target, found, levels), levels

        return Drawing(steps, draw)

    return drawing
