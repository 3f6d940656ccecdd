"""`dgjax likelihood`: compute log-density and bits per dimension of images and arrays."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

from dgjax.checkpoints.opened import density_title
from dgjax.cli.auto_steps import (
    AUTO,
    STEPS_OR_AUTO,
    TOLERANCE,
    TRIALS,
    find_steps,
    set_tolerance,
)
from dgjax.cli.estimators import DIVERGENCE, choose_divergence
from dgjax.cli.fitted_rows import FIT_SAMPLES, FITTED, choose_measured, fit_rows, take
from dgjax.cli.options import (
    BATCH,
    CLASS,
    COND,
    DISTILLED_GUIDANCE,
    DTYPE,
    HEIGHT,
    JSON,
    LEVELS,
    MODEL,
    MOST_PROBES,
    PROBES_HELP,
    PROMPT,
    SEED,
    SOLVER,
    WIDTH,
    choose_conditioned,
    make_solver,
    table,
)
from dgjax.cli.stated_errors import (
    error_cell,
    error_columns,
    error_entries,
    known,
    note_coarse,
)
from dgjax.devices.batches import map_batches
from dgjax.devices.progress import say
from dgjax.files import as_json
from dgjax.pictures.image_files import FULL, check_levels
from dgjax.pictures.quantization import bits_per_dim, dequantize
from dgjax.pictures.sample_files import LazySamples, encode_levels, find_samples, read_samples
from dgjax.sampling.likelihood import likelihood
from dgjax.sampling.time_grids import grid_from_data

__all__ = ["command"]

STATED = "+-: stated errors of the figure before them"
OF_LEVELS = "; bits/dim: of 256 levels"
DEQUANTIZED = (
    "; dequantized: uniform noise of one level was added to the levels of a picture, as bits/dim "
    "need it"
)
WEIGHED = (
    "; leverage: of samples measured by weights, about 1 if they are like those that the weights "
    "were fitted to; their +- probes has the error of the weights in it"
)


def command(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Images of the model's size, npy files, npz files with an array x or arr_0, and "
            "folders of these."
        ),
    ],
    model: MODEL = "avatars",
    class_: CLASS = None,
    prompt: PROMPT = None,
    distilled_guidance: DISTILLED_GUIDANCE = None,
    cond: COND = None,
    height: HEIGHT = None,
    width: WIDTH = None,
    dtype: DTYPE = "float32",
    data_range: LEVELS = None,
    batch: BATCH = 8,
    steps: STEPS_OR_AUTO = 32,
    tolerance: TOLERANCE = None,
    solver: SOLVER = "multistep",
    probes: Annotated[int, typer.Option(min=2, max=MOST_PROBES, help=PROBES_HELP)] = 5,
    divergence: DIVERGENCE = "probes",
    fitted: FITTED = None,
    fit_samples: FIT_SAMPLES = None,
    seed: SEED = 0,
    json: JSON = False,
) -> None:
    """Compute log-density (nats) and bits per dimension of data, by the probability-flow ODE.

    A latent model encodes pictures to the mean of their latent first; the log-density is that of
    the latent, without bits per dimension. With --class or --prompt it is the conditional
    log p(x | class) or log p(x | prompt). Of 15 steps or more, the one at the data is cut in three.
    With --fitted, most of many samples take a few network evaluations each.
    """
    method = make_solver(solver)
    size = height, width
    chosen = choose_conditioned(
        model, class_, prompt, distilled_guidance, file=cond, size=size, dtype=dtype
    )
    tolerance = set_tolerance(steps, tolerance, chosen.size)
    if data_range is not None:
        check_levels(data_range)
    read = read_samples(find_samples(files, say), chosen, data_range or FULL, say)
    latent = chosen.meta.latent
    if latent:
        read = [encode_levels(file, chosen) for file in read]
    keys = jax.random.split(jax.random.key(seed), 2)
    estimator = choose_divergence(divergence, probes, method, chosen)
    options = {"divergence": estimator, "solver": method}

    def prepare(keys, x, quantized, i):
        if latent:
            return x
        noise_key = jax.random.fold_in(keys[0], i)
        dequantized = dequantize(noise_key, x.astype(jnp.uint8), chosen.meta.data_range)
        return jnp.where(quantized, dequantized, x)

    names = [name for file in read for name in file.names]
    quantized = np.concatenate([np.full(len(file.names), file.quantized) for file in read])
    items = (LazySamples(read, chosen.meta.shape), quantized, np.arange(len(names)))
    measured = choose_measured(fitted, fit_samples, len(names))
    if fitted is not None and divergence != "probes":
        raise ValueError(
            f"--fitted with --divergence {divergence} would not know the error of the head, which "
            "the fit learns, too: leave one of them out"
        )
    if steps == AUTO:
        some = np.linspace(0, len(names) - 1, min(TRIALS, len(names))).astype(int)
        xs = jax.vmap(partial(prepare, keys))(*(part[some] for part in items))
        run_one = partial(likelihood, **options)
        steps = find_steps(
            chosen.field, xs, tolerance, key=keys[1], run=run_one, make_grid=grid_from_data
        )
    grid = grid_from_data(chosen.field, steps)

    @jax.jit
    def run(field, keys, batch):
        def one(x, quantized, i):
            key = jax.random.fold_in(keys[1], i)
            return likelihood(field, prepare(keys, x, quantized, i), grid, key=key, **options)

        found = jax.vmap(one)(*batch)
        return found.log_density, found.info.standard_error, found.info.solver_error

    solved = map_batches("likelihood", run, take(items, measured), batch, chosen.field, keys)
    log_density, error, solver_error, leverage = np.full((4, len(names)), np.nan)
    log_density[measured], error[measured], solver_error[measured] = solved
    if fitted is not None:
        others, found = fit_rows(
            chosen.field,
            items,
            measured,
            solved[0],
            evaluations=fitted,
            prepare=prepare,
            keys=keys,
            divergence=estimator,
            batch=batch,
        )
        log_density[others], error[others], leverage[others] = found
    rows: list[dict[str, Any]] = [
        {
            "file": name,
            "data": ("encoded" if latent else "dequantized") if levels else "as given",
            "log_density": float(value),
            **error_entries(*errors),
        }
        for name, levels, value, *errors in zip(
            names, quantized, log_density, error, solver_error, strict=True
        )
    ]
    columns: list[tuple[str, str, Callable[[Any], str]]] = [
        ("log_density", "log p, nats", "{:,.1f}".format),
        *((*column, error_cell) for column in error_columns(divergence)),
    ]
    if chosen.has_levels:
        for row, value, spread in zip(rows, log_density, error, strict=True):
            bits = bits_per_dim(value, chosen.size, chosen.meta.data_range)
            row["bits_per_dim"] = float(bits)
            row["bits_per_dim_standard_error"] = known(spread / (chosen.size * np.log(2)))
        columns += [
            ("bits_per_dim", "bits/dim", "{:.3f}".format),
            ("bits_per_dim_standard_error", error_columns(divergence)[0][1], error_cell),
        ]
    if fitted is not None:
        for row, level in zip(rows, leverage, strict=True):
            row["leverage"] = known(level)
        columns.append(
            ("leverage", "leverage", lambda level: "" if level is None else f"{level:.1f}")
        )
    summary = {**chosen.facts(), "steps": steps, "solver": solver, "probes": probes, "rows": rows}
    summary |= {"divergence": divergence, "fitted": fitted}
    note_coarse(rows, chosen.size, steps)
    if json:
        print(as_json(summary))
        return
    table(
        f"{chosen.name}: {density_title(summary)}, of x as it is there",
        ["file", "data", *(header for _, header, _ in columns)],
        [
            [row["file"], row["data"], *(form(row[name]) for name, _, form in columns)]
            for row in rows
        ],
        "".join(
            [
                STATED,
                OF_LEVELS if chosen.has_levels else "",
                DEQUANTIZED if any(row["data"] == "dequantized" for row in rows) else "",
                "" if fitted is None else WEIGHED,
            ]
        ),
    )
