"""What `dgjax evaluate` says: the same figures as JSON, as Markdown and on the terminal."""

import math
from collections.abc import Callable
from typing import Any

from dgjax.cli.options import table
from dgjax.evaluation import Estimate, InconsistencyStatistics, Normality
from dgjax.evaluation.metrics import Figure

__all__ = ["figure_entry", "level_entry", "markdown", "show"]

# What a figure is called in the table, and how its numbers are written.
WORDS: dict[str, tuple[str, Callable[[float], str]]] = {
    "bits_per_dim": ("bits/dim of data", "{:.3f}".format),
    "frechet_distance": ("Fréchet {features} distance", "{:.4g}".format),
    "precision": ("precision ({features}, k = 3)", "{:.1%}".format),
    "recall": ("recall ({features}, k = 3)", "{:.1%}".format),
    "png_bytes": ("PNG bytes", "{:,.0f}".format),
    "alignment": ("score alignment", "{:.1%}".format),
}
OF_SAMPLES = {"frechet_distance", "precision", "recall", "png_bytes"}
NAMES = {"vgg16": "VGG16", "pixels": "pixels"}
HEADER = ["figure", "value", "interval", "real", "number"]
LEVEL_HEADER = ["noise", "mean of h", "deviation", "skewness", "excess kurtosis", "p"]
TRUST = ("transport", "residual", "curl", "asymmetry")
TRUST_HEADER = ["noise", *TRUST]


def figure_entry(figure: Figure) -> dict[str, Any]:
    """A figure for JSON."""
    return {
        **figure.estimate._asdict(),
        "number": figure.number,
        "real": figure.real,
        "probe_standard_error": figure.probe_error,
    }


def level_entry(level: float, found: Normality | InconsistencyStatistics) -> dict[str, Any]:
    """What was found at a noise level for JSON."""
    values = {k: v._asdict() if isinstance(v, Estimate) else v for k, v in found._asdict().items()}
    return {"noise_level": level, **values}


def markdown(summary: dict[str, Any]) -> str:
    """The summary as a section of a model card."""
    parts = [f"# Evaluation of {summary['model']}", _preamble(summary)]
    if summary["figures"]:
        parts.append(_markdown_table(_header(summary), _rows(summary)))
        parts += _notes(summary)
    if summary["normality"]:
        parts.append(_about_h(summary))
        parts.append(_markdown_table(LEVEL_HEADER, _level_rows(summary, _interval)))
    if summary["inconsistency"]:
        parts.append(_about_inconsistency(summary))
        parts.append(_markdown_table(TRUST_HEADER, _trust_rows(summary, _interval)))
    return "\n\n".join(parts) + "\n"


def show(summary: dict[str, Any]) -> None:
    """The summary as tables on standard output."""
    title = f"{summary['model']}: log p at t_min = {summary['t_min']:g}, undenoised"
    if summary["figures"]:
        table(title, _header(summary), _rows(summary))
    if summary["normality"]:
        count = summary["normality"][0]["samples"]
        title = f"h at noise levels sigma/alpha, {count:,} data: N(0, 1) if q were exact"
        table(title, [*LEVEL_HEADER[:4], "kurtosis", "p"], _level_rows(summary, _value))
    if summary["inconsistency"]:
        count = summary["inconsistency"][0]["samples"]
        title = (
            f"{summary['model']}, t_min = {summary['t_min']:g}: inconsistency at noise levels "
            f"sigma/alpha, {count:,} data (0 for a true score; nats/dim but for asymmetry)"
        )
        table(title, TRUST_HEADER, _trust_rows(summary, _value))


def _header(summary: dict[str, Any]) -> list[str]:
    return [h if h != "interval" else f"{summary['confidence']:.0%} interval" for h in HEADER]


def _rows(summary: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, entry in summary["figures"].items():
        words, write = WORDS[name]
        rows.append(
            [
                words.format(features=NAMES.get(summary["features"], summary["features"])),
                write(entry["value"]),
                f"{write(entry['low'])} to {write(entry['high'])}",
                "" if entry["real"] is None else write(entry["real"]),
                f"{entry['number']:,}",
            ]
        )
    return rows


def _level_rows(summary: dict[str, Any], write: Callable[[Any], str]) -> list[list[str]]:
    return [
        [
            f"{e['noise_level']:.3g}",
            f"{e['mean']['value']:.2g} ± {e['mean']['high'] - e['mean']['value']:.2g}",
            _interval(e["standard_deviation"]),
            write(e["skewness"]),
            write(e["excess_kurtosis"]),
            f"{e['p_value']:.2g}",
        ]
        for e in summary["normality"]
    ]


def _trust_rows(summary: dict[str, Any], write: Callable[[Any], str]) -> list[list[str]]:
    return [
        [f"{e['noise_level']:.3g}", _interval(e[TRUST[0]]), *(write(e[name]) for name in TRUST[1:])]
        for e in summary["inconsistency"]
    ]


def _interval(entry: dict[str, float]) -> str:
    if math.isnan(entry["low"]):  # too few samples or probes to tell
        return f"{_value(entry)} [unknown]"
    return f"{_value(entry)} [{entry['low']:.2g}, {entry['high']:.2g}]"


def _value(entry: dict[str, float]) -> str:
    return f"{entry['value']:.2g}"


def _preamble(summary: dict[str, Any]) -> str:
    conditional = " Everything is given the data's labels." if summary["labels"] == "data" else ""
    return (
        f"Density: of the model's own marginal at t_min = {summary['t_min']:g} (sigma/alpha), "
        f"undenoised. Data: {summary['data']}, part {summary['part']} of {summary['data_size']:,} "
        f"samples, drawn from with seed {summary['seed']}.{conditional} Solver: "
        f"{summary['solver']}, {summary['steps']} steps. dgjax {summary['version']}."
    )


def _notes(summary: dict[str, Any]) -> list[str]:
    figures, notes = summary["figures"], []
    if "bits_per_dim" in figures:
        entry = figures["bits_per_dim"]
        notes.append(
            f"bits/dim: mean over images; {summary['probes']} probes a step, whose own standard "
            f"error of the mean is {entry['probe_standard_error']:.2g}."
        )
    if OF_SAMPLES & figures.keys():
        on = summary["noise_on_real"]
        noise = "with the noise of t_min, as the samples have" if on else "as they are"
        notes.append(
            f"Samples: {summary['samples']}; compared with as many real ones, {noise}. The column "
            "real has what as many other real ones have in the samples' place (PNG bytes: what "
            "the real ones have)."
        )
    if "frechet_distance" in figures:
        notes.append(
            "The Fréchet distance is no FID (other features), and is biased upwards at every "
            "number of samples: the value is to be read against the column real, and its interval "
            "(a jackknife's) is for the expectation at this number."
        )
    return notes


def _about_h(summary: dict[str, Any]) -> str:
    first = summary["normality"][0]
    return (
        "h = sigma^2 (Laplacian of log p + squared norm of its gradient)/sqrt(2 D) on noisy data, "
        f"{first['samples']:,} samples at each noise level sigma/alpha: N(0, 1) if the dial q were "
        f"an exact quantile. What the {first['probes']} probes add is taken off the deviation and "
        "the moments above it, with their intervals in brackets; p is of Shapiro and Wilk's test "
        "of normality, with it."
    )


def _about_inconsistency(summary: dict[str, Any]) -> str:
    return (
        "Inconsistency of the score, which is no exact gradient of a log-density that obeys the "
        f"heat equation, on {summary['inconsistency'][0]['samples']:,} noisy data at each noise "
        "level sigma/alpha, with intervals in brackets; all are 0 for a true score. In nats per "
        "dimension: what log-densities by two routes, one standard deviation of the noise apart "
        "in every dimension and at worst, come to differ by along the PF-ODE while the noise "
        "changes by a factor e (transport), at rest (residual), or as one moves by a draw of the "
        "noise (curl). Without unit: the asymmetry of the denoiser's Jacobian."
    )


def _markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
