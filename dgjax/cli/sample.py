"""`dgjax sample`: the same latents at several log-densities, as pictures and numbers."""

from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

from dgjax.cli.options import (
    BATCH,
    JSON,
    MODEL,
    OUT,
    PROBES,
    SEED,
    SOLVER,
    Model,
    as_json,
    batches,
    check_label,
    console,
    make_solver,
    open_model,
    output_folder,
    table,
    write_json,
)
from dgjax.closed_loop import target_guidance
from dgjax.contrast import Contrast, classifier_free_guidance
from dgjax.divergence import Hutchinson
from dgjax.grids import grid_uniform
from dgjax.guidance import density_guidance
from dgjax.metrics import bits_per_dim, png_bytes
from dgjax.noise import level_set_noise
from dgjax.prior import prior_guidance, prior_sample
from dgjax.sampling import sample as solve
from dgjax.schedules import window
from dgjax.targets import pilot
from dgjax.viz import image_grid

QUANTILES = [0.2, 0.35, 0.5, 0.65, 0.8]


def sample(
    model: MODEL = "fashion-mnist",
    q: Annotated[
        list[float] | None,
        typer.Option(help="Dial in (0, 1), repeatable: above 0.5 smoother, below more detail."),
    ] = None,
    target_log_density: Annotated[
        list[float] | None,
        typer.Option(help="Ask for a log-density in nats instead of q, repeatable."),
    ] = None,
    prior_quantile: Annotated[
        float | None,
        typer.Option(help="Rescale the latents to this quantile of the prior log-density."),
    ] = None,
    label: Annotated[
        int | None, typer.Option("--class", help="Class to draw, for a model that takes labels.")
    ] = None,
    guidance: Annotated[
        float,
        typer.Option(help="Classifier-free weight on --class; 1 is none, above 1 stronger."),
    ] = 1.0,
    noise: Annotated[
        float, typer.Option(min=0.0, help="Noise along the level set, relative to g; 0 is none.")
    ] = 0.0,
    noise_window: Annotated[
        tuple[float, float],
        typer.Option(help="Log-SNRs between which the noise acts."),
    ] = (-float("inf"), float("inf")),
    num: Annotated[int, typer.Option(min=1, help="Number of latents.")] = 8,
    batch: BATCH = 8,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Solver steps, uniform in sigma^(1/7).",
            show_default="16, or 48 for targets, which are steered step by step",
        ),
    ] = None,
    solver: SOLVER = "tsit5",
    probes: PROBES = 1,
    seed: SEED = 0,
    out: OUT = Path("dgjax-out"),
    json: JSON = False,
) -> None:
    """Sample the same latents at several log-densities."""
    if q and target_log_density:
        raise ValueError("choose either --q or --target-log-density, not both")
    dials = jnp.asarray(sorted(target_log_density or q or QUANTILES), jnp.float32)
    if steps is None:
        steps = 48 if target_log_density else 16
    chosen, method = open_model(model), make_solver(solver)
    before = _class_guides(chosen, label, guidance)
    term = None
    if noise > 0:
        term = level_set_noise(window(noise, low=noise_window[0], high=noise_window[1]))
    keys = jax.random.split(jax.random.key(seed), 3)
    latents = _latents(chosen, keys[0], num, prior_quantile)
    grid = grid_uniform(chosen.field, steps)
    divergence = Hutchinson(probes)

    if target_log_density:
        profile = pilot(
            chosen.field,
            latents[:4],
            grid,
            key=keys[2],
            divergence=divergence,
            cond=label,
            solver=method,
        )

        def guide(dial):
            return target_guidance(dial, chosen.field, profile)

    else:
        guide = density_guidance

    for dial in dials:  # says early what is wrong with one
        guide(dial)

    @jax.jit
    def run(field, before, term, batch):
        def one(x, dial, key):
            return solve(
                field,
                x,
                grid,
                key=key,
                guides=(*before, guide(dial)),
                noise=term,
                divergence=divergence,
                cond=label,
                solver=method,
            )

        return jax.vmap(one)(*batch)

    with output_folder(out) as folder:
        # q-major: all latents at the first dial, then all at the next.
        items = (
            jnp.tile(latents, (len(dials), *([1] * (latents.ndim - 1)))),
            jnp.repeat(dials, num),
            jnp.tile(jax.random.split(keys[1], num), len(dials)),
        )
        flat = batches("sampling", run, items, batch, chosen.field, before, term)
        found = jax.tree.map(lambda a: a.reshape(len(dials), num, *a.shape[1:]), flat)
        summary = _summary(chosen, dials, found, bool(target_log_density))
        summary |= {"seed": seed, "steps": steps, "solver": solver, "noise": noise}
        summary |= {"class": label, "guidance": guidance}
        _write(folder, chosen, dials, found, summary, bool(target_log_density))
    if json:
        print(as_json(summary))
    else:
        _show(summary)
    console.print(f"wrote samples.png, samples.npz and summary.json to {out}/")


def _class_guides(chosen: Model, label: int | None, weight: float) -> tuple[Contrast, ...]:
    check_label(chosen, label)
    if weight == 1:
        return ()
    if label is None:
        raise ValueError("--guidance strengthens a class: add --class, or leave it out")
    return (classifier_free_guidance(weight, chosen.field),)


def _latents(chosen: Model, key: Any, num: int, prior_quantile: float | None) -> jax.Array:
    keys = jax.random.split(key, num)
    latents = jax.vmap(lambda k: prior_sample(chosen.field, k, chosen.meta.shape))(keys)
    if prior_quantile is None:
        return latents
    return jnp.stack([prior_guidance(chosen.field, x, prior_quantile) for x in latents])


def _summary(chosen: Model, dials: Any, found: Any, by_target: bool) -> dict[str, Any]:
    if not found.info.finite.all():
        console.print("[yellow]some samples are not finite: see info in samples.npz[/yellow]")
    rows = []
    for dial, x, log_density, info in zip(
        np.asarray(dials), found.x, found.log_density, _rows(found.info), strict=True
    ):
        row = {
            "target_log_density" if by_target else "q": round(float(dial), 6),
            "log_density_mean": float(log_density.mean()),
            "log_density_std": float(log_density.std(ddof=1)) if len(log_density) > 1 else None,
            "bits_per_dim": float(
                bits_per_dim(log_density.mean(), chosen.size, chosen.meta.data_range)
            ),
            "png_bytes": float(np.mean([png_bytes(i, chosen.meta.data_range) for i in x])),
            "bound_share": float(info.bound_share.mean()),
        }
        if by_target:
            row["target_met"] = float(info.target_met.mean())
        rows.append(row)
    return {**chosen.facts(), "rows": rows}


def _rows(info: Any) -> list[Any]:
    count = info.finite.shape[0]
    return [jax.tree.map(lambda a, i=i: a[i], info) for i in range(count)]


def _write(
    folder: Path, chosen: Model, dials: Any, found: Any, summary: dict[str, Any], by_target: bool
) -> None:
    blank = np.full(len(dials), np.nan, np.float32)
    np.savez_compressed(
        folder / "samples.npz",
        x=found.x,
        q=blank if by_target else np.asarray(dials),
        target_log_density=np.asarray(dials) if by_target else blank,
        log_density=found.log_density,
        standard_error=found.info.standard_error,
        bound_share=found.info.bound_share,
        target_met=found.info.target_met,
        t_min=summary["t_min"],
    )
    name = "target" if by_target else "q"
    labels = [
        f"{name} = {dial:g}\n{row['log_density_mean']:,.0f} nats\n{row['png_bytes']:.0f} B as PNG"
        for dial, row in zip(np.asarray(dials).tolist(), summary["rows"], strict=True)
    ]
    most = min(found.x.shape[1], 12)
    image_grid(
        found.x[:, :most],
        labels,
        data_range=chosen.meta.data_range,
        title="The same latents at rising log-density: detail above, smoothness below",
        caption=f"{chosen.name}; mean log p at t_min = {summary['t_min']:g}",
    ).savefig(folder / "samples.png")
    write_json(folder / "summary.json", summary)


def _show(summary: dict[str, Any]) -> None:
    by_target = "target_log_density" in summary["rows"][0]
    header = ["target" if by_target else "q", "log-density, nats", "spread", "bits/dim"]
    header += ["PNG bytes", "at the bound"] + (["met"] if by_target else [])
    rows = []
    for row in summary["rows"]:
        spread = row["log_density_std"]
        cells = [
            f"{row['target_log_density' if by_target else 'q']:g}",
            f"{row['log_density_mean']:,.1f}",
            "" if spread is None else f"{spread:,.1f}",
            f"{row['bits_per_dim']:.3f}",
            f"{row['png_bytes']:,.0f}",
            f"{row['bound_share']:.0%}",
        ]
        rows.append(cells + ([f"{row['target_met']:.0%}"] if by_target else []))
    title = f"{summary['model']}: log p at t_min = {summary['t_min']:g}, undenoised"
    table(title, header, rows)
