"""`dgjax evaluate`: measure the quality of a model, with confidence intervals."""

from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
import typer

import dgjax
from dgjax.checkpoints.conditions import condition_model
from dgjax.checkpoints.configuration import unknown_name
from dgjax.cli.evaluation_report import (
    level_entry,
    markdown,
    metric_entry,
    route_entry,
    show,
)
from dgjax.cli.exports import check_export_options, export_samples
from dgjax.cli.options import (
    BATCH,
    COND,
    DISTILLED_GUIDANCE,
    DTYPE,
    HEIGHT,
    JSON,
    LEVELS,
    MODEL,
    MOST_LATENTS,
    MOST_PROBES,
    OUT,
    PROBES_HELP,
    PROMPT,
    SEED,
    SOLVER,
    STEPS,
    WIDTH,
    choose_condition,
    choose_model,
    make_solver,
    note_shadowed,
)
from dgjax.cli.stated_errors import error_entries, note_coarse
from dgjax.data.named_datasets import DATASETS
from dgjax.devices.progress import say
from dgjax.evaluation.batched import SolverSettings, sample_model
from dgjax.evaluation.data_bits import measure_bits_per_dim
from dgjax.evaluation.features import make_features, pixels
from dgjax.evaluation.inconsistency import InconsistencyStatistics
from dgjax.evaluation.intervals import check_confidence
from dgjax.evaluation.metrics import (
    Metric,
    measure_aligned_share,
    measure_distances,
    measure_inconsistency,
    measure_normality,
    measure_png_bytes,
)
from dgjax.evaluation.normality import Normality
from dgjax.evaluation.reference_data import (
    load_samples,
    makes_images,
    open_reference_data,
    prepare_sets,
)
from dgjax.evaluation.route_metrics import (
    measure_one_evaluation_gap,
    measure_route_gap,
    route_probes,
)
from dgjax.files import as_json, output_folder, rescue
from dgjax.model.energy import EnergyPrediction
from dgjax.pictures.image_files import FULL, check_levels

__all__ = ["command"]

SECTIONS = (
    "bits",
    "frechet",
    "precision-recall",
    "png",
    "alignment",
    "normality",
    "inconsistency",
    "routes",
)


def command(
    model: MODEL = "fashion-mnist",
    prompt: PROMPT = None,
    distilled_guidance: DISTILLED_GUIDANCE = None,
    cond: COND = None,
    height: HEIGHT = None,
    width: WIDTH = None,
    dtype: DTYPE = "float32",
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {', '.join(SECTIONS)}; repeatable.", show_default="all"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Name of a data set, npz file or folder of images.",
            show_default="what the model was trained on",
        ),
    ] = None,
    part: Annotated[str, typer.Option(help="Part of the data: held-out or train.")] = "held-out",
    held_out: Annotated[
        float | None,
        typer.Option(
            help="Fraction of a folder that is held out.",
            show_default="that of the model's training",
        ),
    ] = None,
    samples: Annotated[
        list[Path] | None,
        typer.Option(
            help="Files or folders of samples, repeatable.", show_default="drawn from the model"
        ),
    ] = None,
    data_range: LEVELS = None,
    export: Annotated[
        Path | None,
        typer.Option(
            help="Also write the compared samples for other programs: an empty folder for PNG "
            "files, or a file.npz for the uint8 array arr_0 (n, H, W, 3).",
            show_default="none",
        ),
    ] = None,
    export_denoised: Annotated[
        bool,
        typer.Option(
            "--export-denoised", help="Export after a last denoising step; figures stay undenoised."
        ),
    ] = False,
    labels: Annotated[
        str,
        typer.Option(
            help="Labels for a class-conditional model: data (those of the data) or none."
        ),
    ] = "data",
    features: Annotated[
        str | None,
        typer.Option(
            help="Feature space in which samples are compared: vgg16 or pixels.",
            show_default="vgg16 for images, else pixels",
        ),
    ] = None,
    num: Annotated[
        int | None,
        typer.Option(
            min=4,
            max=MOST_LATENTS,
            help="Number of samples compared.",
            show_default="256, or all of --samples",
        ),
    ] = None,
    num_density: Annotated[
        int | None,
        typer.Option(
            min=3,
            max=MOST_LATENTS,
            help="Number of images and latents for log-densities.",
            show_default="--num, at most 64",
        ),
    ] = None,
    draws: Annotated[
        int,
        typer.Option(
            min=1, max=1000, help="Draws of noise for each image, for the tightest bits/dim."
        ),
    ] = 2,
    levels: Annotated[
        int,
        typer.Option(
            min=1, max=1000, help="Number of noise levels for normality and inconsistency."
        ),
    ] = 5,
    confidence: Annotated[
        float, typer.Option(help="Confidence of the intervals, in (0, 1).")
    ] = 0.95,
    batch: BATCH = 16,
    steps: STEPS = 32,
    solver: SOLVER = "multistep",
    probes: Annotated[int, typer.Option(min=4, max=MOST_PROBES, help=PROBES_HELP)] = 5,
    seed: SEED = 0,
    out: OUT = Path("dgjax-out"),
    json: JSON = False,
) -> None:
    """Measure a model: bits/dim, distance of samples from data, alignment, consistency."""
    names = _sections(only)
    check_confidence(confidence)
    chosen = choose_model(model, height, width, dtype)
    if chosen.meta.text or any(o is not None for o in (prompt, cond, distilled_guidance)):
        given_cond = choose_condition(chosen, None, prompt, file=cond, distilled=distilled_guidance)
        chosen, labels = condition_model(chosen, given_cond), "none"
    settings = SolverSettings(steps, make_solver(solver), probes, batch, seed)
    if not makes_images(chosen) and "png" in names:
        if only:
            raise ValueError(f"samples of shape {chosen.image_shape} are no images: leave png out")
        names.remove("png")
    if chosen.meta.latent and "bits" in names:
        if only:
            raise ValueError("the log-density of latents has no bits per dimension: leave bits out")
        names.remove("bits")
    check_export_options(chosen, export, export_denoised, samples)
    # All arguments are checked before the first solve.
    space = features or ("vgg16" if makes_images(chosen) else "pixels")
    vectors = make_features(space) if {"frechet", "precision-recall"} & names else pixels
    range_ = data_range or FULL
    check_levels(range_)
    given = load_samples(samples, chosen, num, seed, range_) if samples else None
    num = num or (256 if given is None else len(given))
    few = num_density or min(num, 64)
    if data is not None:
        note_shadowed("data set", data, DATASETS)
    size = max(num, few)
    reference = open_reference_data(chosen, data, part, held_out, labels, size, seed, data_range)
    say(f"data: {reference.dataset.summary}", *reference.dataset.notes)
    if "bits" in names and not reference.has_levels(chosen):
        say("no bits per dimension, since these data are floats without levels")
        names.remove("bits")

    found: dict[str, Metric] = {}
    h: list[tuple[float, Normality]] = []
    gaps: list[tuple[float, InconsistencyStatistics]] = []
    common = (settings, confidence)
    with output_folder(out):
        if "bits" in names:
            found |= measure_bits_per_dim(chosen, reference, few, draws, *common)
            _note_coarse_bits(found["bits_per_dim"], chosen.size, steps)
        compared = {"frechet", "precision-recall", "png"} & names
        if given is None and (compared or export):
            given = sample_model(chosen, num, reference.conditions(num), settings)
        if given is not None and compared:
            sets = prepare_sets(chosen, given, reference, seed)
            found |= measure_distances(sets, vectors, names, *common)
            if "png" in names:
                found["png_bytes"] = measure_png_bytes(sets, confidence)
        if "alignment" in names:
            found["alignment"] = measure_aligned_share(chosen, reference, few, *common)
        if "normality" in names:
            h = measure_normality(chosen, reference, few, levels, *common)
        if "inconsistency" in names:
            gaps = measure_inconsistency(chosen, reference, few, levels, *common)
        routes, direct = None, None
        if "routes" in names:
            used = route_probes(probes, chosen.size)
            about = chosen.size, used.colours * used.repeats
            routes = route_entry(measure_route_gap(chosen, reference, few, *common), *about)
            if isinstance(chosen.field.parametrization, EnergyPrediction):
                gap = measure_one_evaluation_gap(chosen, reference, few, *common)
                direct = route_entry(gap, *about)
        summary = {
            **chosen.facts(),
            "version": dgjax.__version__,
            "data": data or chosen.meta.dataset,
            "part": part,
            "data_size": len(reference.dataset),
            "labels": "none" if reference.labels is None else "data",
            "samples": ", ".join(map(str, samples)) if samples else "drawn from the model",
            "noise_on_real": given is None or given.dtype != np.uint8,
            "features": space,
            "confidence": confidence,
            "steps": steps,
            "solver": solver,
            "probes": probes,
            "draws": draws,
            "seed": seed,
            "figures": {name: metric_entry(metric) for name, metric in found.items()},
            "normality": [level_entry(*entry) for entry in h],
            "inconsistency": [level_entry(*entry) for entry in gaps],
            "routes": routes,
            "one_evaluation": direct,
        }
    # Figures are shown before they are written, and written before pictures: each step may fail.
    if json:
        print(as_json(summary))
    else:
        show(summary)
    for name, text in (("json", as_json(summary) + "\n"), ("md", markdown(summary))):
        rescue(out / f"evaluation.{name}", partial(_write_text, text))
    say(f"wrote evaluation.json and evaluation.md to {out}/")
    if given is not None and export:
        conditions = reference.conditions(num)
        export_samples(chosen, given, conditions, settings, export, export_denoised)


def _note_coarse_bits(bits: Metric, size: int, steps: int) -> None:
    if bits.solver_error is not None:
        nats = bits.solver_error * size * np.log(2)
        note_coarse([error_entries(bits.probe_error, nats)], size, steps)


def _write_text(text: str, stream: BinaryIO) -> None:
    stream.write(text.encode())


def _sections(only: list[str] | None) -> set[str]:
    for name in only or ():
        if name not in SECTIONS:
            raise unknown_name("section", name, SECTIONS)
    return {*(only or SECTIONS)}
