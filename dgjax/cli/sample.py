"""`dgjax sample`: draw samples from the same latents at several log-densities."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import numpy as np
import typer

from dgjax.checkpoints.checkpoint import digest
from dgjax.checkpoints.conditions import Negative
from dgjax.cli.auto_steps import STEPS_OPTION, TOLERANCE, set_tolerance
from dgjax.cli.class_guidance import (
    GUIDANCE,
    GUIDANCE_MODEL,
    GUIDANCE_WINDOW,
    NEGATIVE,
    NO_WINDOW,
    check_guidance_window,
    check_negative,
    class_guides,
    open_weaker,
    weaker_conditions,
)
from dgjax.cli.drawing import Given, Plan, make_drawer
from dgjax.cli.drawn_files import write_in_shards, write_whole
from dgjax.cli.estimators import DIVERGENCE, choose_divergence
from dgjax.cli.options import (
    BATCH,
    CLASS,
    COND,
    DISTILLED_GUIDANCE,
    DTYPE,
    HEIGHT,
    JSON,
    MODEL,
    MOST_BATCH,
    MOST_LATENTS,
    OUT,
    PROBES,
    PROMPT,
    SEED,
    SOLVER_HELP,
    WIDTH,
    choose_condition,
    choose_model,
    make_solver,
)
from dgjax.cli.part_guidance import BAND, MASK, choose_part
from dgjax.cli.prompt_file import PROMPTS, encode_all, prompt_folders, read_prompts
from dgjax.cli.report import show_table
from dgjax.devices.progress import say
from dgjax.files import as_json, write_json
from dgjax.guidance.density import density_guidance
from dgjax.guidance.noise import LevelSetNoise, level_set_noise
from dgjax.guidance.schedules import window
from dgjax.model.prior import chi_quantile
from dgjax.sampling.solvers import LevelSetEuler, Multistep, default_name

__all__ = ["command"]

QUANTILES = [0.2, 0.35, 0.5, 0.65, 0.8]
EVERYWHERE = (-float("inf"), float("inf"))
MOST_BYTES = 2**36  # of all samples, without shards


def command(
    model: MODEL = "avatars",
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
    prompts: PROMPTS = None,
    distilled_guidance: DISTILLED_GUIDANCE = None,
    cond: COND = None,
    negative: NEGATIVE = None,
    guidance: GUIDANCE = 1.0,
    guidance_window: GUIDANCE_WINDOW = NO_WINDOW,
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
    height: HEIGHT = None,
    width: WIDTH = None,
    dtype: DTYPE = "float32",
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
    divergence: DIVERGENCE = "probes",
    seed: SEED = 0,
    out: OUT = Path("dgjax-out"),
    json: JSON = False,
) -> None:
    """Draw samples from the same latents at several log-densities."""
    dials, by_target = _dials(q, target_log_density)
    if steps is None:
        steps = 48 if by_target else 32
    term = _noise(noise, noise_window)
    if solver is None:
        solver = default_name(by_target, term)
    method = make_solver(solver)
    if term is None and isinstance(method, LevelSetEuler):
        raise ValueError(f"--solver {solver} adds noise: add --noise, or leave --solver out")
    if term is not None and isinstance(method, Multistep):
        raise ValueError(f"--solver {solver} takes no noise: leave --noise or --solver out")
    texts = None if prompts is None else _prompts(prompts, prompt, class_, cond)
    chosen = choose_model(model, height, width, dtype)
    tolerance = set_tolerance(steps, tolerance, chosen.size)
    if shard_size is None and 4 * num * len(dials) * chosen.size > MOST_BYTES:
        raise ValueError(
            f"{num:,} latents at {len(dials)} values are more samples than fit in memory: add "
            "--shard-size, such as 1000"
        )
    check_negative(negative, prompt if texts is None else texts[0], guidance, guidance_model)
    check_guidance_window(guidance_window, guidance)
    if prior_quantile is not None:
        chi_quantile(prior_quantile, chosen.size)  # raises now, before anything is computed
    estimator = choose_divergence(divergence, probes, method, chosen)
    part = choose_part(chosen, mask, band, noise=noise, by_target=by_target)
    weak = open_weaker(guidance_model, chosen, guidance, (height, width))
    free = guidance != 1 and weak is None
    encoding: dict[str, Any] = {
        "negative": Negative(negative) if free else None,
        "distilled": distilled_guidance,
    }
    if texts is None:
        found = [choose_condition(chosen, class_, prompt, file=cond, **encoding)]
    else:
        found = encode_all(chosen, texts, **encoding)
    others = len(found) * [None] if weak is None else weaker_conditions(weak.model, found)
    given = list(map(Given, found, others))

    def guides(chosen, weaker, given):
        return class_guides(chosen, weaker, given, guidance, guidance_window)

    plan = Plan(
        chosen,
        dials,
        by_target,
        solver=method,
        noise=term,
        part=part,
        prior_quantile=prior_quantile,
        divergence=estimator,
        seed=seed,
        steps=steps,
        tolerance=tolerance,
        start=start,
        per_call=min(batch, len(dials) * min(num, shard_size or num)),
    )
    drawer = make_drawer(plan, guides, None if weak is None else weak.model.field, given)
    in_shards = shard_size is not None or texts is not None
    sha = digest(chosen.field, chosen.meta, chosen.autoencoder) if in_shards else None

    def write(one: Given, out: Path) -> dict[str, Any]:
        drawing, given = drawer(one), one.condition
        settings = {"num": num, "seed": seed, "steps": drawing.steps, "solver": solver}
        settings |= {"noise": noise}
        if divergence != "probes":
            settings["divergence"] = divergence
        if start:  # left out otherwise, so that shards of earlier versions are continued
            settings["start"] = start
        settings |= {"class": given.label, "guidance": guidance, "guidance_model": guidance_model}
        if guidance_window != NO_WINDOW:
            settings["guidance_window"] = guidance_window
        if part is not None:
            settings |= {"mask": None if mask is None else str(mask), "band": band}
        if given.prompt is not None:
            settings |= {"prompt": given.prompt, "negative": negative}
        if given.distilled is not None:
            settings |= {"distilled_guidance": given.distilled}
        if given.file is not None:
            settings["cond"] = given.file
        if not in_shards:
            return write_whole(plan, drawing, num, out, settings)
        options = {"model": chosen.name, "sha256": sha, **settings}
        options |= {"target_log_density" if by_target else "q": dials, "probes": probes}
        options |= {"prior_quantile": prior_quantile, "noise_window": noise_window}
        options |= {"guidance_sha256": None if weak is None else weak.sha256}
        for name, file in (("mask", mask), ("cond", cond)):
            if file is not None:
                options[f"{name}_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        return write_in_shards(plan, drawing, num, shard_size or num, out, settings, options)

    if texts is None:
        summary = write(given[0], out)
        _show(summary, json)
    else:
        summary = _write_all(given, prompt_folders(texts), out, write, json)
    if json:
        print(as_json(summary))
    if chosen.has_pictures and texts is None and _has_log_densities(summary):
        same: dict[str, Any] = {
            "--model": model,
            "--class": class_,
            "--prompt": prompt,
            "--cond": cond,
        }
        same |= {"--distilled-guidance": distilled_guidance, "--height": height, "--width": width}
        same |= {"--dtype": None if dtype == "float32" else dtype}
        words = [f"{name} {quote(str(v))}" for name, v in same.items() if v is not None]
        say(f"next: dgjax explore {' '.join(words)}, a page in which you turn q")


def _write_all(
    given: list[Given],
    folders: list[str],
    out: Path,
    write: Callable[[Given, Path], dict[str, Any]],
    json: bool,
) -> dict[str, Any]:
    """Write a folder for each prompt, and a summary of all of them."""
    prompts = []
    for i, (one, name) in enumerate(zip(given, folders, strict=True)):
        prompt = one.condition.prompt
        say(f"prompt {i + 1} of {len(given)}: {prompt}")
        found = write(one, out / name)
        _show(found, json)
        prompts.append({"prompt": prompt, "folder": name, "rows": found["rows"]})
    common = {k: v for k, v in found.items() if k not in ("prompt", "rows")}
    summary = {**common, "prompts": prompts}
    write_json(out / "summary.json", summary)
    return summary


def _show(summary: dict[str, Any], json: bool) -> None:
    if not json:
        show_table(summary)


def _has_log_densities(summary: dict[str, Any]) -> bool:
    """Return whether the samples of some dial are finite, so that there is something to explore."""
    return any(np.isfinite(row["log_density_mean"]) for row in summary["rows"])


def _dials(q: list[float] | None, targets: list[float] | None) -> tuple[np.ndarray, bool]:
    """Return the options --q or --target-log-density, sorted, and whether they are targets."""
    if q and targets:
        raise ValueError("choose either --q or --target-log-density, not both")
    dials = np.asarray(sorted(targets or q or QUANTILES), np.float32)
    if targets and not np.isfinite(dials).all():
        raise ValueError(f"targets must be finite (in nats), got {dials.tolist()}")
    if not targets:
        for dial in dials:  # raises now, before anything is computed
            density_guidance(dial)
    return dials, bool(targets)


def _noise(height: float, limits: tuple[float, float]) -> LevelSetNoise | None:
    """Return the stochastic term of the options --noise and --noise-window."""
    if not np.isfinite(height):
        raise ValueError(f"--noise must be a finite number, got {height:g}")
    if height == 0:
        if limits != EVERYWHERE:
            raise ValueError("--noise-window needs --noise: add it, or leave --noise-window out")
        return None
    return level_set_noise(window(height, low=limits[0], high=limits[1]))


def _prompts(file: Path, *others: Any) -> list[str]:
    """Return the prompts of the option --prompts, which goes with no other condition."""
    if any(other is not None for other in others):
        raise ValueError("choose one of --prompts, --prompt, --class and --cond")
    return read_prompts(file)
