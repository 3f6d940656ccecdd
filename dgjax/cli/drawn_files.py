"""Files of `dgjax sample`: the samples as one file or as shards, their summary and figure."""

from pathlib import Path
from typing import Any

from dgjax.cli.drawing import Drawing, Plan
from dgjax.cli.other_figures import is_drawn, write_other_figure
from dgjax.cli.report import measure, shown_levels, summarize, write_figure
from dgjax.cli.shards import Shards, measure_shards, read_shard, record_options, write_missing
from dgjax.cli.stated_errors import note_coarse
from dgjax.devices.progress import progress, say
from dgjax.files import output_folder, write_arrays, write_json

__all__ = ["write_in_shards", "write_whole"]


def write_whole(
    plan: Plan, drawing: Drawing, num: int, out: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    """Draw samples and write samples.npz, samples.png and summary.json.

    Args:
        plan: what is drawn.
        drawing: the samples.
        num: number of latents.
        out: folder for the files.
        settings: for the summary.

    Returns:
        The summary.

    Raises:
        ValueError: if the folder cannot be written to.
    """
    with output_folder(out), progress("sampling", num * len(plan.dials)) as show:
        arrays, levels = drawing.draw(0, num, show)
    write_arrays(out / "samples.npz", arrays)
    return _finish(plan, measure(arrays), levels, arrays["x"], out, settings, "samples.npz")


def write_in_shards(
    plan: Plan,
    drawing: Drawing,
    num: int,
    shard_size: int,
    out: Path,
    settings: dict[str, Any],
    options: dict[str, Any],
) -> dict[str, Any]:
    """Draw the shards that are missing, and write samples.png and summary.json.

    Args:
        plan: what is drawn.
        drawing: the samples.
        num: number of latents.
        shard_size: number of latents in one shard.
        out: folder for the files.
        settings: for the summary.
        options: everything on which the samples depend.

    Returns:
        The summary.

    Raises:
        ValueError: if the folder cannot be written to, or holds shards of other options.
    """
    shape = plan.chosen.meta.shape
    shards = Shards(out / "shards", num, shard_size, len(plan.dials), shape)
    record_options(shards, {**options, "shard_size": shard_size})
    write_missing(shards, lambda start, stop, show: drawing.draw(start, stop, show)[0])
    first = read_shard(shards, 0)
    levels = shown_levels(plan.chosen, first)
    made = f"{shards.files} shards in shards/"
    return _finish(plan, measure_shards(shards), levels, first["x"], out, settings, made)


def _finish(plan, measured, levels, x, out, settings, made) -> dict[str, Any]:
    chosen = plan.chosen
    rows = summarize(chosen, plan.dials, plan.by_target, measured)
    facts = chosen._replace(label=settings["class"]).facts()
    summary = {**facts, "rows": rows, **settings}
    write_json(out / "summary.json", summary)
    complete = f"{made} and summary.json are"
    if levels is not None:
        write_figure(out / "samples.png", chosen, summary, levels, complete)
    elif is_drawn(chosen):
        write_other_figure(out / "samples.png", chosen, summary, x, complete)
    note_coarse(rows, chosen.size, settings["steps"])
    made += ", samples.png" if chosen.has_pictures or is_drawn(chosen) else ""
    say(f"wrote {made} and summary.json to {out}/")
    return summary
