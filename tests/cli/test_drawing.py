"""Samples of several conditions share compiled programs and the number of steps."""

from functools import partial

import jax
import numpy as np
import pytest

from dgjax.checkpoints.conditions import Condition
from dgjax.checkpoints.opened import open_model
from dgjax.cli import drawing
from dgjax.cli.class_guidance import class_guides
from dgjax.model.divergence import Hutchinson
from dgjax.sampling.solvers import SOLVERS

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def chosen(tmp_path, small_model):
    return open_model(
        str(small_model(tmp_path / "m", (3,), spread=0.7, weights=0.2, num_classes=3))
    )


@pytest.fixture
def compiled():
    """Collects the programs that XLA compiles."""
    found = []

    def listen(event, seconds, **facts):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(facts)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
def test_another_condition_compiles_nothing(chosen, compiled, monkeypatch):
    seen = []

    def find_steps(model, starts, *args, **options):
        seen.append(starts)
        return drawing_find_steps(model, starts, *args, **options)

    drawing_find_steps = drawing.find_steps
    monkeypatch.setattr(drawing, "find_steps", find_steps)
    guides = partial(class_guides, weight=2.0)
    plan = drawing.Plan(
        chosen,
        np.float32([0.4, 0.6]),
        by_target=False,
        solver=SOLVERS["multistep"](),
        noise=None,
        divergence=Hutchinson(),
        part=None,
        prior_quantile=None,
        seed=0,
        steps="auto",
        tolerance=1e3,
        start=0,
        per_call=4,
    )

    def draw(labels):
        compiled.clear()
        given = [drawing.Given(Condition(label, None, label)) for label in labels]
        drawer = drawing.make_drawer(plan, guides, None, given)
        drawn = [drawer(one).draw(0, 2, lambda number: None)[0]["x"] for one in given]
        return drawn, len(compiled)

    (first,), _ = draw([0])
    _, once = draw([1])
    many, often = draw([0, 1, 2])
    assert 0 < often == once
    # Three conditions take turns among as many latents as one condition has.
    latents, conditions = seen[2][:2]
    jax.tree.map(np.testing.assert_array_equal, latents, seen[0][0])
    assert conditions.tolist() == [0, 1, 1, 2]
    np.testing.assert_array_equal(first, many[0])
    assert np.abs(many[1] - many[0]).max() > 0.01
