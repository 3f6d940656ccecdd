"""Bad inputs of commands and Python functions are refused in one plain line, and at once."""

import pytest
from bad_inputs import CASES, Case, faults, link_inputs, run_case, write_models


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_models(folder)
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.group}: {case.name}")
def test_is_refused(case, inputs, tmp_path, float32):
    outcome = run_case(case, link_inputs(inputs, tmp_path))
    assert outcome.kind == "clean", outcome
    assert not faults(outcome), outcome


def test_there_are_many():
    assert len(CASES) > 600
    assert len({(case.group, case.name) for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (lambda folder: 1 / 0, "traceback"),
        (lambda folder: None, "accepted"),
        (lambda folder: [0 for _ in iter(int, 1)], "hang"),
    ],
)
def test_the_checks_can_fail(act, kind, tmp_path, monkeypatch):
    monkeypatch.setattr("bad_inputs.SECONDS", 0.2)
    assert run_case(Case("", "", act), tmp_path).kind == kind
