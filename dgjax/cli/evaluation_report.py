"""Results of `dgjax evaluate` as JSON, as Markdown and as tables on the terminal."""

import math
from collections.abc import Callable
from textwrap import fill
from typing import Any

from dgjax.checkpoints.opened import density_title
from dgjax.cli.options import table
from dgjax.cli.stated_errors import error_cell
from dgjax.evaluation.inconsistency import InconsistencyStatistics
from dgjax.evaluation.intervals import Estimate
from dgjax.evaluation.metrics import Metric
from dgjax.evaluation.normality import Normality
from dgjax.evaluation.route_gap import RouteGapStatistics

__all__ = ["level_entry", "markdown", "metric_entry", "route_entry", "show"]

# Name of each metric in the table, and format of its numbers.
WORDS: dict[str, tuple[str, Callable[[float], str]]] = {
    "bits_per_dim": ("bits/dim of data", "{:.3f}".format),
    "bits_per_dim_truncated": ("bits/dim, normal noise", "{:.3f}".format),
    "bits_per_dim_weighted": ("bits/dim, {draws} draws", "{:.3f}".format),
    "frechet_distance": ("Fréchet {features} distance", "{:.4g}".format),
    "precision": ("precision ({features}, k = 3)", "{:.1%}".format),
    "recall": ("recall ({features}, k = 3)", "{:.1%}".format),
    "png_bytes": ("PNG bytes", "{:,.0f}".format),
    "alignment": ("score alignment", "{:.1%}".format),
}
OF_SAMPLES = {"frechet_distance", "precision", "recall", "png_bytes"}
NAMES = {"vgg16": "VGG16", "pixels": "pixels"}
HEADER = ["figure", "value", "interval", "real", "number"]
NORMALITY_HEADER = ["noise", "mean of h", "deviation", "skewness", "excess kurtosis", "p"]
INCONSISTENCIES = ("transport", "residual", "curl", "asymmetry")
INCONSISTENCY_HEADER = ["noise", *INCONSISTENCIES]
LEGEND = (
    "real: the same figure with other real samples in place of the generated ones; number: how "
    "many samples, data or latents it was measured on; undenoised: at t_min, without a last "
    "denoising step"
)
LEGEND_NORMALITY = (
    "h: sigma^2 (Laplacian of log p + squared norm of its gradient)/sqrt(2 D); p: p-value of the "
    "Shapiro-Wilk test of normality"
)
LEGEND_INCONSISTENCY = (
    "change of log p between two routes that are one standard deviation of the noise apart: along "
    "the PF-ODE (transport), at a fixed point (residual), and while one of them moves by a draw of "
    "the noise (curl); asymmetry: of the denoiser's Jacobian, without unit"
)


def metric_entry(metric: Metric) -> dict[str, Any]:
    """Make the JSON entry of a metric."""
    return {
        **metric.estimate._asdict(),
        "number": metric.number,
        "real": metric.real,
        "probe_standard_error": metric.probe_error,
        "solver_error": metric.solver_error,
    }


def level_entry(level: float, found: Normality | InconsistencyStatistics) -> dict[str, Any]:
    """Make the JSON entry of what was measured at one noise level."""
    values = {k: v._asdict() if isinstance(v, Estimate) else v for k, v in found._asdict().items()}
    return {"noise_level": level, **values}


def route_entry(found: RouteGapStatistics, size: int, products: int) -> dict[str, Any]:
    """Make the JSON entry of the difference between two routes.

    Args:
        found: the difference.
        size: number of elements D of a sample.
        products: with the Jacobian at each point of a route.
    """
    values = {k: v._asdict() if isinstance(v, Estimate) else v for k, v in found._asdict().items()}
    return {**values, "dimensions": size, "products": products}


def markdown(summary: dict[str, Any]) -> str:
    """Write the summary as a section of a model card."""
    parts = [f"# Evaluation of {summary['model']}", _preamble(summary)]
    if summary["figures"]:
        parts.append(_markdown_table(_header(summary), _metric_rows(summary)))
        parts += _notes(summary)
    if summary["normality"]:
        parts.append(_about_h(summary))
        parts.append(_markdown_table(NORMALITY_HEADER, _normality_rows(summary, _interval)))
    if summary["inconsistency"]:
        parts.append(_about_inconsistency(summary))
        parts.append(_markdown_table(INCONSISTENCY_HEADER, _inconsistency_rows(summary, _interval)))
    if summary["routes"]:
        parts += [_trust(summary), _about_routes(summary["routes"])]
    if summary["one_evaluation"]:
        parts.append(_about_one_evaluation(summary["one_evaluation"]))
    return "\n\n".join(parts) + "\n"


def show(summary: dict[str, Any]) -> None:
    """Print the summary as tables on standard output."""
    title = f"{summary['model']}: {density_title(summary)}, undenoised"
    if summary["figures"]:
        table(title, _header(summary), _metric_rows(summary), LEGEND)
        if "bits_per_dim_truncated" in summary["figures"]:
            print(fill(_about_bounds(summary), 80) + "\n")
    if summary["normality"]:
        count = summary["normality"][0]["samples"]
        title = f"h at noise levels sigma/alpha, {count:,} data: N(0, 1) if q were exact"
        header = [*NORMALITY_HEADER[:4], "kurtosis", "p"]
        table(title, header, _normality_rows(summary, _value), LEGEND_NORMALITY)
    if summary["inconsistency"]:
        count = summary["inconsistency"][0]["samples"]
        title = (
            f"{summary['model']}, t_min = {summary['t_min']:g}: inconsistency at noise levels "
            f"sigma/alpha, {count:,} data (nats per dimension; 0 for a true score)"
        )
        rows = _inconsistency_rows(summary, _value)
        table(title, INCONSISTENCY_HEADER, rows, LEGEND_INCONSISTENCY)
    if summary["routes"]:
        print(fill(_trust(summary), 80))
    if summary["one_evaluation"]:
        print(fill(_about_one_evaluation(summary["one_evaluation"]), 80))


def _header(summary: dict[str, Any]) -> list[str]:
    return [h if h != "interval" else f"{summary['confidence']:.0%} interval" for h in HEADER]


def _metric_rows(summary: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, entry in summary["figures"].items():
        words, write = WORDS[name]
        features = NAMES.get(summary["features"], summary["features"])
        rows.append(
            [
                words.format(features=features, draws=summary["draws"]),
                write(entry["value"]),
                f"{write(entry['low'])} to {write(entry['high'])}",
                "" if entry["real"] is None else write(entry["real"]),
                f"{entry['number']:,}",
            ]
        )
    return rows


def _normality_rows(summary: dict[str, Any], write: Callable[[Any], str]) -> list[list[str]]:
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


def _inconsistency_rows(summary: dict[str, Any], write: Callable[[Any], str]) -> list[list[str]]:
    return [
        [
            f"{e['noise_level']:.3g}",
            _interval(e[INCONSISTENCIES[0]]),
            *(write(e[name]) for name in INCONSISTENCIES[1:]),
        ]
        for e in summary["inconsistency"]
    ]


def _interval(entry: dict[str, float]) -> str:
    if math.isnan(entry["low"]):  # too few samples or probes
        return f"{_value(entry)} [unknown]"
    return f"{_value(entry)} [{entry['low']:.2g}, {entry['high']:.2g}]"


def _value(entry: dict[str, float]) -> str:
    return f"{entry['value']:.2g}"


def _preamble(summary: dict[str, Any]) -> str:
    conditional = (
        " All measurements use the labels of the data." if summary["labels"] == "data" else ""
    )
    return (
        f"Density: the model's own {density_title(summary)} (sigma/alpha), "
        f"undenoised. Data: {summary['data']}, part {summary['part']} of {summary['data_size']:,} "
        f"samples, in an order by seed {summary['seed']}.{conditional} Solver: "
        f"{summary['solver']}, {summary['steps']} steps. dgjax {summary['version']}."
    )


def _notes(summary: dict[str, Any]) -> list[str]:
    figures, notes = summary["figures"], []
    if "bits_per_dim" in figures:
        entry = figures["bits_per_dim"]
        notes.append(
            f"bits/dim: mean over images with {summary['probes']} probes per step; the standard "
            f"error of the mean from the probes alone is {entry['probe_standard_error']:.2g}, and "
            f"that of the solver is {error_cell(entry['solver_error'])}."
        )
    if "bits_per_dim_truncated" in figures:
        notes.append(_about_bounds(summary))
    if OF_SAMPLES & figures.keys():
        on = summary["noise_on_real"]
        noise = "with the noise of t_min, which the samples have" if on else "without noise"
        notes.append(
            f"Samples: {summary['samples']}; compared with the same number of real ones, {noise}. "
            "The column real shows the same metric with other real samples in place of the "
            "generated ones (for PNG bytes: the mean of the real images)."
        )
    if "frechet_distance" in figures:
        notes.append(
            "The Fréchet distance is not an FID, whose features are others. It is biased upwards, "
            "more so for fewer samples: compare it with the column real. Its interval (by a "
            "jackknife) is for the expected distance at this number of samples."
        )
    return notes


def _about_bounds(summary: dict[str, Any]) -> str:
    """Say what the bits per dimension are, and which figure is the tightest."""
    bounds = {name: entry for name, entry in summary["figures"].items() if name.startswith("bits")}
    tightest = min(bounds, key=lambda name: bounds[name]["value"])
    words = {
        "bits_per_dim": "uniform noise",
        "bits_per_dim_truncated": "normal noise cut off at each level",
        "bits_per_dim_weighted": f"the weighted mean over {summary['draws']} draws of that noise",
    }
    several = " and ".join(words[name] for name in bounds if name != tightest)
    return (
        "Up to the error of the solver, bits/dim are upper bounds on the code length of the "
        "levels, one for each way to fill the levels with noise. The tightest here is "
        f"{words[tightest]}; the others are {several}."
    )


def _about_h(summary: dict[str, Any]) -> str:
    first = summary["normality"][0]
    return (
        "h = sigma^2 (Laplacian of log p + squared norm of its gradient)/sqrt(2 D) on noisy data, "
        f"{first['samples']:,} samples at each noise level sigma/alpha: N(0, 1) if q were an exact "
        f"quantile. The noise of the {first['probes']} probes is subtracted from the deviation and "
        "the higher moments, whose intervals are in brackets. p is the p-value of the Shapiro-Wilk "
        "test of normality, which includes this noise."
    )


def _about_inconsistency(summary: dict[str, Any]) -> str:
    return (
        "Inconsistency of the score, on "
        f"{summary['inconsistency'][0]['samples']:,} noisy data at each noise level sigma/alpha, "
        "with intervals in brackets. A learned score is not exactly the gradient of a log-density "
        "that obeys the heat equation; for a true score all numbers are 0. Take two routes that "
        "are one standard deviation of the noise apart in every dimension, in the worst direction. "
        "Their log-densities drift apart by so many nats per dimension: along the PF-ODE while the "
        "noise changes by a factor e (transport), at a fixed point while the noise changes by a "
        "factor e (residual), or while one of them moves by a draw of the noise (curl). Without "
        "unit: the asymmetry of the denoiser's Jacobian."
    )


def _trust(summary: dict[str, Any]) -> str:
    """Say in one sentence how far log-densities of the model can be trusted."""
    routes = summary["routes"]
    pair, lost = 2**0.5 * routes["spread"]["value"], routes["solver_error"]
    if math.isnan(pair):
        return (
            "How far the model's log-densities can be trusted is not known, because the noise of "
            "the probes is not."
        )
    if lost > pair:
        return (
            "How far the model's log-densities can be trusted is not known: with these steps the "
            f"stated error of the solver, {lost:,.3g} nats, hides what the network adds to it. "
            "Take more --steps."
        )
    if summary["one_evaluation"]:
        reason = "the energies that it learned at different noise levels are not of one density"
    else:
        reason = "a network's score is not exactly the gradient of a density"
    return (
        "How far to trust it: the difference between the log-densities of two images depends on "
        f"the route along which it is computed. It changes by about {pair:,.3g} nats, which is "
        f"{pair / routes['dimensions']:.2g} a dimension, because {reason}. Read no smaller "
        "difference as one of density."
    )


def _about_routes(routes: dict[str, Any]) -> str:
    mean, spread = routes["mean"], routes["spread"]
    return (
        f"Routes, on {routes['samples']:,} data with the noise of t_min: the log-density along a "
        "straight line from the noise to the image minus that along the PF-ODE is "
        f"{_interval(mean)} nats in the mean, with a standard deviation of {_interval(spread)} "
        "between images, from which the noise of the probes "
        f"({routes['probe_error']:.2g} nats) is subtracted; the stated errors of both integrals "
        f"are {routes['solver_error']:.2g} nats. For a true score all of it is 0."
    )


def _about_one_evaluation(found: dict[str, Any]) -> str:
    return (
        "Energy network: its log-density in one evaluation, with the constant measured first as "
        f"dgjax.normalize does, minus that along the PF-ODE is {_interval(found['mean'])} nats in "
        f"the mean, with a standard deviation of {_interval(found['spread'])} between images."
    )


def _markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
