"""The sentence of `dgjax evaluate` on how far log-densities can be trusted."""

import math

from dgjax.cli.evaluation_report import markdown, route_entry
from dgjax.evaluation.intervals import Estimate
from dgjax.evaluation.route_gap import RouteGapStatistics

SUMMARY = {
    "model": "mine",
    "class": None,
    "latent": False,
    "t_min": 0.02,
    "data": "digits",
    "part": "held-out",
    "data_size": 9,
    "seed": 0,
    "labels": "none",
    "solver": "multistep",
    "steps": 32,
    "version": "1",
    "figures": {},
    "normality": [],
    "inconsistency": [],
    "one_evaluation": None,
}


def report(solver_error):
    spread = Estimate(10.0, 8.0, 13.0)
    found = RouteGapStatistics(Estimate(40.0, 30.0, 50.0), spread, 1.0, solver_error, 64)
    return markdown({**SUMMARY, "routes": route_entry(found, 100, 4)})


def test_two_images_are_uncertain_by_the_root_of_two_spreads():
    text = report(0.5)
    assert "changes by about 14.1 nats, which is 0.14 a dimension" in text
    assert "not known" not in text


def test_an_error_of_the_solver_that_hides_it_is_said():
    text = report(20.0)
    assert "is not known: with these steps the stated error of the solver, 20 nats" in text
    assert "changes by about" not in text


def test_an_energy_network_is_held_to_the_ode():
    found = RouteGapStatistics(
        Estimate(-30.0, -35.0, -25.0), Estimate(10.0, 8.0, 13.0), 1.0, 0.5, 64
    )
    entry = route_entry(found, 100, 4)
    text = markdown({**SUMMARY, "routes": None, "one_evaluation": entry})
    assert "minus that along the PF-ODE is -30 [-35, -25] nats in the mean" in text
    assert "a standard deviation of 10 [8, 13] between images" in text


def test_unknown_noise_of_the_probes_is_said():
    nan = Estimate(math.nan, math.nan, math.nan)
    found = RouteGapStatistics(Estimate(40.0, 30.0, 50.0), nan, math.inf, 0.5, 64)
    text = markdown({**SUMMARY, "routes": route_entry(found, 100, 4)})
    assert "is not known, because the noise of the probes is not" in text
