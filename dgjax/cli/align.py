"""`dgjax align`: measure for which share of latents the scores at both ends are aligned."""

from typing import Annotated

import typer

from dgjax.cli.options import (
    BATCH,
    CLASS,
    COND,
    DISTILLED_GUIDANCE,
    DTYPE,
    HEIGHT,
    JSON,
    MODEL,
    MOST_LATENTS,
    PROBES,
    PROMPT,
    SEED,
    SOLVER,
    STEPS,
    WIDTH,
    choose_conditioned,
    make_solver,
    table,
)
from dgjax.evaluation.alignment import alignment_statistics
from dgjax.evaluation.batched import SolverSettings, measure_alignments
from dgjax.evaluation.intervals import check_confidence
from dgjax.files import as_json

__all__ = ["command"]

LEGEND = (
    "aligned: share of latents whose sample gains log-density when they move along the score of "
    "the prior; angle: between the score of the sample and that of the prior, pushed to it; agree: "
    "share of latents at which the gain computed without the score of the sample has the same sign"
)


def command(
    model: MODEL = "avatars",
    class_: CLASS = None,
    prompt: PROMPT = None,
    distilled_guidance: DISTILLED_GUIDANCE = None,
    cond: COND = None,
    height: HEIGHT = None,
    width: WIDTH = None,
    dtype: DTYPE = "float32",
    num: Annotated[int, typer.Option(min=1, max=MOST_LATENTS, help="Number of latents.")] = 64,
    confidence: Annotated[
        float, typer.Option(help="Confidence of the interval, in (0, 1).")
    ] = 0.95,
    batch: BATCH = 16,
    steps: STEPS = 32,
    solver: SOLVER = "multistep",
    probes: PROBES = 1,
    seed: SEED = 0,
    json: JSON = False,
) -> None:
    """Measure score alignment: the share of latents with <score, pushed prior score> > 0."""
    check_confidence(confidence)
    size = height, width
    chosen = choose_conditioned(
        model, class_, prompt, distilled_guidance, file=cond, size=size, dtype=dtype
    )
    settings = SolverSettings(steps, make_solver(solver), probes, batch, seed)
    found = measure_alignments(chosen, num, None, settings)
    statistics = alignment_statistics(found, confidence=confidence)
    summary = {**chosen.facts(), "steps": steps, "solver": solver, "confidence": confidence}
    summary |= statistics._asdict()
    if json:
        print(as_json(summary))
        return
    of = "" if chosen.label is None else f" of class {chosen.class_name}"
    of = of if chosen.prompt is None else f" with the prompt {chosen.prompt!r}"
    table(
        f"{chosen.name}: score alignment{of} from t_max = {summary['t_max']:g} "
        f"to t_min = {summary['t_min']:g}",
        ["latents", "aligned", f"{confidence:.0%} interval", "mean angle", "largest", "agree"],
        [
            [
                str(statistics.latents),
                f"{statistics.share:.1%}",
                f"{statistics.low:.1%} to {statistics.high:.1%}",
                f"{statistics.mean_angle:.1f}°",
                f"{statistics.largest_angle:.1f}°",
                f"{statistics.agreement:.0%}",
            ]
        ],
        LEGEND,
    )
