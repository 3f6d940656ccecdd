"""Draw the samples of `dgjax sample`, with one compilation for any number of conditions."""

from collections.abc import Callable, Mapping
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
from dgjax.model.divergence import Divergence
from dgjax.model.field import Field
from dgjax.model.prior import prior_guidance, prior_sample
from dgjax.pictures.latents import to_levels
from dgjax.sampling.sample import sample
from dgjax.sampling.shooting import pilot
from dgjax.sampling.solvers import Solver
from dgjax.sampling.time_grids import grid_logsnr

__all__ = ["Drawing", "Plan", "make_drawer"]

# Always this many pilot latents, so that a sample does not depend on the number of samples drawn.
# `--steps auto` takes the same.
PILOTS = TRIALS


class Plan(NamedTuple):
    """What is drawn, whatever the condition.

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


MakeGuides = Callable[[Model, Field | None, Condition], tuple[Guide, ...]]


def make_drawer(plan: Plan, guides: MakeGuides) -> Callable[[Condition, Field | None], Drawing]:
    """Make a function from a condition, and the weaker model of autoguidance, to its samples.

    Latent i is the same for every condition, and whatever other latents are drawn.

    Args:
        plan: what is drawn.
        guides: makes the guides before the dial.
    """
    chosen, seed = plan.chosen, jax.random.key(plan.seed)
    keys = jax.random.split(seed, 3)
    common: Mapping[str, Any] = {"divergence": plan.divergence, "solver": plan.solver}

    def latent(field, keys, i):
        x = prior_sample(field, jax.random.fold_in(keys[0], i), chosen.meta.shape)
        return x if plan.prior_quantile is None else prior_guidance(field, x, plan.prior_quantile)

    def pilots(field):
        return jax.vmap(lambda i: latent(field, keys, i))(jnp.arange(PILOTS))

    def measure_profile(field, cond, grid):
        if not plan.by_target:
            return None
        return pilot(field, pilots(field), grid, key=keys[2], cond=cond, **common)

    def dial_guide(field, profile, dial):
        if profile is None:
            return density_guidance(dial, part=plan.part)
        return target_guidance(dial, field, profile)

    @jax.jit
    def run(field, cond, before, profile, grid, term, keys, batch):
        options = {"cond": cond, **common}

        def one(i, dial):
            x, key = latent(field, keys, i), jax.random.fold_in(keys[1], i)
            held: tuple[Guide, ...] = ()
            if plan.part is not None:
                held = (hold_rest(plan.part, field, x, grid, key=key, guides=before, **options),)
            all_guides = (*before, *held, dial_guide(field, profile, dial))
            return sample(field, x, grid, key=key, guides=all_guides, noise=term, **options)

        return jax.vmap(one)(*batch)

    def count_steps(given, weaker) -> int:
        if plan.steps != AUTO:
            return plan.steps

        def at_all_dials(weaker, field, x, grid, *, key):
            profile = measure_profile(field, given.cond, grid)
            before = guides(chosen._replace(field=field), weaker, given)
            options = {"key": key, "noise": plan.noise, "cond": given.cond, **common}
            return jax.lax.map(
                lambda dial: sample(
                    field,
                    x,
                    grid,
                    guides=(*before, dial_guide(field, profile, dial)),
                    **options,
                ),
                jnp.asarray(plan.dials),
            )

        run_all = jax.tree_util.Partial(at_all_dials, weaker)
        xs = pilots(chosen.field)
        return find_steps(chosen.field, xs, plan.tolerance, key=keys[1], run=run_all)

    def drawing(given: Condition, weaker: Field | None) -> Drawing:
        before = guides(chosen, weaker, given)
        cond = jax.tree.map(jnp.asarray, given.cond)
        steps = count_steps(given, weaker)
        grid = grid_logsnr(chosen.field, steps)
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
