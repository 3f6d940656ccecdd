"""`dgjax sample`: draw samples from the same latents at several log-densities."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

from dgjax.checkpoints.checkpoint import digest
from dgjax.cli.auto_steps import (
    AUTO,
    STEPS_OPTION,
    TOLERANCE,
    TRIALS,
    find_steps,
    set_tolerance,
)
from dgjax.cli.class_guidance import (
    GUIDANCE,
    GUIDANCE_MODEL,
    NEGATIVE,
    check_negative,
    choose_weaker,
    class_guides,
)
from dgjax.cli.options import (
    BATCH,
    CLASS,
    DISTILLED_GUIDANCE,
    JSON,
    MODEL,
    MOST_BATCH,
    MOST_LATENTS,
    OUT,
    PROBES,
    PROMPT,
    SEED,
    SOLVER_HELP,
    choose_condition,
    choose_model,
    make_solver,
)
from dgjax.cli.other_figures import is_drawn, write_other_figure
from dgjax.cli.part_guidance import BAND, MASK, choose_part, hold_rest
from dgjax.cli.report import (
    measure,
    sample_arrays,
    show_table,
    shown_levels,
    summarize,
    write_figure,
)
from dgjax.cli.shards import (
    Shards,
    measure_shards,
    read_shard,
    record_options,
    write_missing,
)
from dgjax.cli.stated_errors import note_coarse
from dgjax.devices.batches import batch_runner
from dgjax.devices.progress import progress, say
from dgjax.files import as_json, output_folder, write_arrays, write_json
from dgjax.guidance.density import density_guidance
from dgjax.guidance.guide import Guide
from dgjax.guidance.noise import level_set_noise
from dgjax.guidance.schedules import window
from dgjax.guidance.target import target_guidance
from dgjax.model.prior import chi_quantile, prior_guidance, prior_sample
from dgjax.pictures.latents import to_levels
from dgjax.sampling.sample import sample
from dgjax.sampling.shooting import pilot
from dgjax.sampling.solvers import default_divergence, default_name
from dgjax.sampling.time_grids import grid_logsnr

__all__ = ["command"]

QUANTILES = [0.2, 0.35, 0.5, 0.65, 0.8]
# Always this many pilot latents, so that a sample does not depend on the number of samples drawn.
# `--steps auto` takes the same.
PILOTS = TRIALS
EVERYWHERE = (-float("inf"), float("inf"))
MOST_BYTES = 2**36  # of all samples, without shards


def command(
    model: MODEL = "fashion-mnist",
    q: Annotated[
        list[float] | None,
        typer.Option(
            help="Quantile in (0, 1), repeatable: above 0.5 smoother, below 0.5 more detail.",
            show_default="0.2, 0.35, 0.5, 0.65, 0.8",
        ),
    ] = None,
    target_log_density: Annotated[
        list[float] | None,
        typer.Option(help="Target log-density in nats, instead of --q; repeatable."),
    ] = None,
    mask: MASK = None,
    band: BAND = None,
    prior_quantile: Annotated[
        float | None,
        typer.Option(help="Rescale the latents to this quantile of the prior log-density."),
    ] = None,
    class_: CLASS = None,
    prompt: PROMPT = None,
    distilled_guidance: DISTILLED_GUIDANCE = None,
    negative: NEGATIVE = None,
    guidance: GUIDANCE = 1.0,
    guidance_model: GUIDANCE_MODEL = None,
    noise: Annotated[
        float,
        typer.Option(
            min=0.0, help="Noise along the level set of log-density, relative to g; 0 is none."
        ),
    ] = 0.0,
    noise_window: Annotated[
        tuple[float, float],
        typer.Option(help="Log-SNRs LOW,HIGH between which this noise is added, such as -inf,0."),
    ] = EVERYWHERE,
    num: Annotated[int, typer.Option(min=1, max=MOST_LATENTS, help="Number of latents.")] = 8,
    start: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**31 - 1,
            help="Number of the first latent: --start 40 --num 1 draws the sample with index 40 of "
            "a larger --num alone, equal up to rounding.",
        ),
    ] = 0,
    shard_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_BATCH,
            help="Write files OUT/shards/00000.npz, ... with this many latents each, as soon as "
            "they are computed. To continue a stopped run, run the same command again.",
        ),
    ] = None,
    batch: BATCH = 8,
    steps: Annotated[Any, typer.Option(show_default="32; 48 for targets", **STEPS_OPTION)] = None,
    tolerance: TOLERANCE = None,
    solver: Annotated[
        str | None,
        typer.Option(
            help=SOLVER_HELP,
            show_default="multistep; level_set_euler with --noise, multistep2 for targets",
        ),
    ] = None,
    probes: PROBES = 2,
    seed: SEED = 0,
    out: OUT = Path("dgjax-out"),
    json: JSON = False,
) -> None:
    """Draw samples from the same latents at several log-densities."""
    if q and target_log_density:
        raise ValueError("choose either --q or --target-log-density, not both")
    by_target = bool(target_log_density)
    dials = np.asarray(sorted(target_log_density or q or QUANTILES), np.float32)
    if by_target and not np.isfinite(dials).all():
        raise ValueError(f"targets must be finite (in nats), got {dials.tolist()}")
    if steps is None:
        steps = 48 if by_target else 32
    if not np.isfinite(noise):
        raise ValueError(f"--noise must be a finite number, got {noise:g}")
    if noise == 0 and noise_window != EVERYWHERE:
        raise ValueError("--noise-window needs --noise: add it, or leave --noise-window out")
    term = None
    if noise > 0:
        term = level_set_noise(window(noise, low=noise_window[0], high=noise_window[1]))
    if solver is None:
        solver = default_name(by_target, term)
    chosen, method = choose_model(model), make_solver(solver)
    tolerance = set_tolerance(steps, tolerance, chosen.size)
    if shard_size is None and 4 * num * len(dials) * chosen.size > MOST_BYTES:
        raise ValueError(
            f"{num:,} latents at {len(dials)} values are more samples than fit in memory: add "
            "--shard-size, such as 1000"
        )
    check_negative(negative, prompt, guidance, guidance_model)
    guided = guidance != 1 and guidance_model is None
    given = choose_condition(
        chosen,
        class_,
        prompt,
        negative=negative,
        guided=guided,
        distilled=distilled_guidance,
    )
    weaker = choose_weaker(guidance_model, chosen, given, guidance)
    other = None if weaker is None else weaker.field
    before = class_guides(chosen, other, given, guidance)
    part = choose_part(chosen, mask, band, noise=noise, by_target=by_target)
    if prior_quantile is not None:
        chi_quantile(prior_quantile, chosen.size)  # raises now, before anything is computed
    keys = jax.random.split(jax.random.key(seed), 3)

    def latent(field, keys, i):
        x = prior_sample(field, jax.random.fold_in(keys[0], i), chosen.meta.shape)
        return x if prior_quantile is None else prior_guidance(field, x, prior_quantile)

    divergence = default_divergence(probes, method, chosen.size)
    common: dict[str, Any] = {"divergence": divergence, "cond": given.cond, "solver": method}

    def pilots(field):
        return jax.vmap(lambda i: latent(field, keys, i))(jnp.arange(PILOTS))

    def make_guide(field, grid):
        if not by_target:
            return partial(density_guidance, part=part)
        profile = pilot(field, pilots(field), grid, key=keys[2], **common)
        return lambda dial: target_guidance(dial, field, profile)

    if not by_target:
        for dial in dials:  # raises now, before anything is computed
            density_guidance(dial)
    if steps == AUTO:

        def at_all_dials(other, field, x, grid, *, key):
            guide = make_guide(field, grid)
            before = class_guides(chosen._replace(field=field), other, given, guidance)
            options = {"key": key, "noise": term, **common}
            return jax.lax.map(
                lambda dial: sample(field, x, grid, guides=(*before, guide(dial)), **options),
                jnp.asarray(dials),
            )

        run_all = jax.tree_util.Partial(at_all_dials, other)
        steps = find_steps(chosen.field, pilots(chosen.field), tolerance, key=keys[1], run=run_all)
    grid = grid_logsnr(chosen.field, steps)
    guide = make_guide(chosen.field, grid)

    @jax.jit
    def run(field, before, term, keys, batch):
        def one(i, dial):
            x, key = latent(field, keys, i), jax.random.fold_in(keys[1], i)
            held: tuple[Guide, ...] = ()
            if part is not None:
                held = (hold_rest(part, field, x, grid, key=key, guides=before, **common),)
            guides = (*before, *held, guide(dial))
            return sample(field, x, grid, key=key, guides=guides, noise=term, **common)

        return jax.vmap(one)(*batch)

    per_call = min(batch, len(dials) * min(num, shard_size or num))
    run_batches = batch_runner(run, per_call, chosen.field, before, term, keys)

    def draw(first, stop, show):
        # All latents at the first dial, then all latents at the next dial, and so on.
        latents = np.arange(start + first, start + stop)
        items = np.tile(latents, len(dials)), np.repeat(dials, len(latents))
        found = jax.tree.map(
            lambda a: a.reshape(len(dials), -1, *a.shape[1:]), run_batches(items, show)
        )
        levels = to_levels(chosen, found.x) if chosen.has_pictures else None
        return sample_arrays(chosen, dials, by_target, found, levels), levels

    settings = {"num": num, "seed": seed, "steps": steps, "solver": solver, "noise": noise}
    if start:  # left out otherwise, so that shards of earlier versions are continued
        settings["start"] = start
    settings |= {"class": given.label, "guidance": guidance, "guidance_model": guidance_model}
    if part is not None:
        settings |= {"mask": None if mask is None else str(mask), "band": band}
    if prompt is not None:
        settings |= {"prompt": prompt, "negative": negative}
    if given.distilled is not None:
        settings |= {"distilled_guidance": given.distilled}

    def finish(measured, levels, x, arrays):
        rows = summarize(chosen, dials, by_target, measured)
        summary = {**chosen.facts(), "rows": rows, **settings}
        write_json(out / "summary.json", summary)
        complete = f"{arrays} and summary.json are"
        if levels is not None:
            write_figure(out / "samples.png", chosen, summary, levels, complete)
        elif is_drawn(chosen):
            write_other_figure(out / "samples.png", chosen, summary, x, complete)
        note_coarse(rows, chosen.size, steps)
        return summary

    if shard_size is None:
        with output_folder(out), progress("sampling", num * len(dials)) as show:
            arrays, levels = draw(0, num, show)
        write_arrays(out / "samples.npz", arrays)
        made = "samples.npz"
        summary = finish(measure(arrays), levels, arrays["x"], made)
    else:
        sha = digest(chosen.field, chosen.meta, chosen.autoencoder)
        options = {"model": chosen.name, "sha256": sha, **settings}
        options |= {"target_log_density" if by_target else "q": dials, "probes": probes}
        options |= {"prior_quantile": prior_quantile, "noise_window": noise_window}
        options |= {"guidance_sha256": None if weaker is None else weaker.sha256}
        if mask is not None:
            options["mask_sha256"] = hashlib.sha256(mask.read_bytes()).hexdigest()
        shards = Shards(out / "shards", num, shard_size, len(dials), chosen.meta.shape)
        record_options(shards, {**options, "shard_size": shard_size})
        write_missing(shards, lambda start, stop, show: draw(start, stop, show)[0])
        made = f"{shards.files} shards in shards/"
        first = read_shard(shards, 0)
        levels = shown_levels(chosen, first)
        summary = finish(measure_shards(shards), levels, first["x"], made)
    if json:
        print(as_json(summary))
    else:
        show_table(summary)
    made += ", samples.png" if chosen.has_pictures or is_drawn(chosen) else ""
    say(f"wrote {made} and summary.json to {out}/")
    if chosen.has_pictures:
        say(f"next: dgjax explore --model {model}, a page in which you turn q")
