"""`dgjax explore`: write a page in which q can be changed, with all samples computed before."""

from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import typer

from dgjax import __version__
from dgjax.checkpoints.conditions import Condition
from dgjax.checkpoints.opened import Model
from dgjax.cli.estimators import DIVERGENCE, choose_divergence
from dgjax.cli.options import (
    BATCH,
    CLASS,
    COND,
    DISTILLED_GUIDANCE,
    DTYPE,
    HEIGHT,
    MODEL,
    PROBES,
    PROMPT,
    SEED,
    STEPS,
    WIDTH,
    choose_condition,
    choose_model,
)
from dgjax.devices.batches import batch_runner
from dgjax.devices.progress import progress, say
from dgjax.explorer import Exploration, Setting, check_images, render_page
from dgjax.files import check_output_file, output_folder, rescue
from dgjax.guidance.density import density_guidance
from dgjax.guidance.noise import level_set_noise
from dgjax.guidance.schedules import window
from dgjax.model.paths import logsnr
from dgjax.model.prior import prior_sample
from dgjax.pictures.latents import to_levels
from dgjax.sampling.sample import sample
from dgjax.sampling.solvers import default_solver
from dgjax.sampling.time_grids import grid_logsnr

__all__ = ["command"]

NO_NOISE = Setting("None", "No randomness: latent and q determine the image.")
QUANTILES = [round(0.1 + 0.05 * i, 2) for i in range(17)]


def command(
    model: MODEL = "avatars",
    q: Annotated[
        list[float] | None,
        typer.Option(
            help="Quantile in (0, 1), repeatable: above 0.5 smoother, below 0.5 more detail.",
            show_default="0.1, 0.15, ..., 0.9",
        ),
    ] = None,
    class_: CLASS = None,
    prompt: PROMPT = None,
    distilled_guidance: DISTILLED_GUIDANCE = None,
    cond: COND = None,
    height: HEIGHT = None,
    width: WIDTH = None,
    dtype: DTYPE = "float32",
    noise: Annotated[
        float,
        typer.Option(
            min=0.0, help="Noise along the level set of log-density, relative to g; 0 is none."
        ),
    ] = 1.0,
    split: Annotated[
        float, typer.Option(help="Log-SNR at which early noise ends and late noise begins.")
    ] = 0.0,
    num: Annotated[int, typer.Option(min=1, max=1000, help="Number of latents.")] = 8,
    batch: BATCH = 16,
    steps: STEPS = 32,
    probes: PROBES = 2,
    divergence: DIVERGENCE = "probes",
    seed: SEED = 0,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("dgjax-explorer.html"),
) -> None:
    """Write an HTML page in which q can be changed and samples compared."""
    chosen = choose_model(model, height, width, dtype)
    check_images(chosen.image_shape)
    given = choose_condition(chosen, class_, prompt, file=cond, distilled=distilled_guidance)
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name a file in it, such as {out / 'explorer.html'}")
    if not np.isfinite(noise):
        raise ValueError(f"--noise must be a finite number, got {noise:g}")
    dials = np.asarray(sorted(set(q or QUANTILES)), np.float32)
    for dial in dials:  # raises now, before anything is computed
        density_guidance(dial)
    grid = grid_logsnr(chosen.field, steps)
    logsnrs = np.asarray(jax.vmap(lambda t: logsnr(chosen.field.path, t))(grid))
    settings = [NO_NOISE, *(_noisy(split, logsnrs) if noise > 0 else ())]
    keys = jax.random.split(
        jax.random.key(seed), 3
    )  # as in `dgjax sample`, so that both draw the same samples

    @jax.jit
    def run(field, term, keys, batch):
        method = default_solver((), term, None)
        estimator = choose_divergence(divergence, probes, method, chosen)

        def one(i, dial):
            found = sample(
                field,
                prior_sample(field, jax.random.fold_in(keys[0], i), chosen.meta.shape),
                grid,
                key=jax.random.fold_in(keys[1], i),
                guides=(density_guidance(dial),),
                noise=term,
                divergence=estimator,
                cond=given.cond,
                solver=method,
                save=lambda t, x, log_density: log_density,
            )
            return {
                "x": found.x,
                "log_density": found.log_density,
                "standard_error": found.info.standard_error,
                "solver_error": found.info.solver_error,
                "bound_share": found.info.bound_share,
                "course": found.trajectory,
            }

        return jax.vmap(one)(*batch)

    items = np.repeat(np.arange(num), len(dials)), np.tile(dials, num)
    parts = []
    check_output_file(out)
    with output_folder(out.parent):
        with progress("sampling", len(settings) * num * len(dials)) as show:
            for setting in settings:
                term = None
                if setting.noise is not None:
                    low, high = setting.noise
                    term = level_set_noise(window(noise, low=low, high=high))
                run_batches = batch_runner(
                    run, min(batch, num * len(dials)), chosen.field, term, keys
                )
                parts.append(run_batches(items, show))

        def stack(*leaves):
            return np.stack(leaves).reshape(-1, num, len(dials), *leaves[0].shape[1:])

        arrays = jax.tree.map(stack, *parts)
        x = arrays.pop("x")
        found = Exploration(
            levels=to_levels(chosen, x),
            **arrays,
            logsnr=logsnrs,
            q=dials,
            settings=settings,
            data_range=chosen.meta.data_range,
            latent=chosen.meta.latent,
        )
        if not (np.isfinite(x).all() and np.isfinite(found.log_density).all()):
            say("some samples are not finite; the page says which", warning=True)
        how = f"{steps} steps, uniform in log-SNR from {logsnrs[0]:.2f} to {logsnrs[-1]:.2f}"
        how += f", by Multistep; seed {seed}; {_estimator(divergence, probes)}"
        if noise > 0:
            how += (
                f"; noise {noise:g} g, by LevelSetEuler, early below log-SNR {split:g}, late above"
            )
        text = render_page(found, chosen.name, _about(chosen, given, how))
    rescue(out, lambda stream: stream.write(text.encode()))
    size = f"{len(text) / 1e6:.1f} MB" if len(text) >= 1e5 else f"{len(text) / 1e3:.0f} kB"
    say(f"wrote {out} ({size}): open it in a browser")


def _noisy(split: float, logsnrs: np.ndarray) -> list[Setting]:
    """Make the settings with noise before and after the log-SNR `split`."""
    if not logsnrs[0] < split < logsnrs[-1]:
        raise ValueError(
            f"--split is {split:g}, outside the model's range of log-SNR, "
            f"{logsnrs[0]:.4g} to {logsnrs[-1]:.4g}"
        )
    early = (
        f"Random moves along the level set of the log-density, up to log-SNR {split:g}: they may "
        "change what the image shows."
    )
    late = (
        f"Random moves along the level set of the log-density, from log-SNR {split:g} on: they "
        "change mostly details."
    )
    return [
        Setting("Early", early, (-np.inf, split)),
        Setting("Late", late, (split, np.inf)),
    ]


def _about(chosen: Model, given: Condition, how: str) -> dict[str, str]:
    """Describe how the samples were made."""
    height, width, channels = chosen.image_shape
    t_min = chosen.facts()["t_min"]
    what, condition = "no class", ""
    if given.label is not None:
        name = chosen._replace(label=given.label).class_name
        what = f"class {name}"
        condition = f" for {what}, log p(x | {name})"
    if given.file is not None:
        what = f"condition of {given.file}"
        condition = f" for the {what}, log p(x | condition)"
    if given.prompt is not None:
        what = f"prompt {given.prompt!r}"
        condition = f" for the {what}, log p(x | prompt)"
    return {
        "Model": f"{chosen.name}; images {height} \u00d7 {width}, "
        f"{'grey' if channels == 1 else 'RGB'}, D = {chosen.size:,} elements"
        + (" of the latent; " if chosen.meta.latent else "; ")
        + what,
        "Which density": f"The model's own{condition}, at its smallest noise level "
        f"t_min = {t_min:g}, of the {'latent' if chosen.meta.latent else 'sample'} as it is "
        "there, not denoised. It is not the density of the data, and it can be compared only with "
        "log-densities at the same t_min.",
        "How it was made": f"dgjax {__version__}; {how}",
    }


def _estimator(divergence: str, probes: int) -> str:
    return f"probes {probes}" if divergence == "probes" else f"divergence {divergence}"
