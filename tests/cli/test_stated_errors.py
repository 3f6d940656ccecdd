"""What commands say of the errors of log-densities, and how `--steps auto` uses them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax
from dgjax.cli.auto_steps import find_steps, set_tolerance
from dgjax.cli.report import measure, summarize
from dgjax.cli.shards import Shards, measure_shards, write_missing
from dgjax.cli.stated_errors import error_cell, error_entries, note_coarse

SHAPE = (2, 2, 1)


@pytest.mark.parametrize(
    ("error", "text"),
    [(None, "unknown"), (0.0123, "0.012"), (3.14, "3.1"), (99.4, "99"), (1234.5, "1,234")],
)
def test_an_error_is_written_with_two_digits(error, text):
    assert error_cell(error) == text


@pytest.mark.parametrize("unknown", [np.inf, np.nan])
def test_an_unknown_error_is_none(unknown):
    entries = error_entries(np.float32(0.5), np.float32(unknown))
    assert entries == {"log_density_standard_error": 0.5, "log_density_solver_error": None}


def row(error, spread=None, **more):
    return {"log_density_solver_error": error, "log_density_std": spread, **more}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(0.5), row(None)], ""),
        ([row(0.5, 3.0)], ""),
        ([row(0.5), row(2.0, 100.0)], "about 2 nats, 0.02 nats per dimension: take more steps"),
        ([row(0.5, 0.25)], "about 0.5 nats, more than the 0.25 nats between samples"),
        ([row(0.5, 0.25, target_log_density=3.0)], ""),  # the target makes samples equal
    ],
)
def test_a_coarse_grid_is_noted_in_one_line(rows, said, capsys):
    note_coarse(rows, size=100, steps=24)
    found = capsys.readouterr().err
    assert said in found
    assert len(found.splitlines()) == bool(said)
    assert ("--steps 48" in found) == bool(said)


def stored(**more):
    names = ("log_density", "png_bytes", "bound_share", "target_met", "finite")
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(2, 3)) for name in names} | more


def test_summaries_have_the_mean_errors_of_a_sample():
    probes, solver = np.float32([[1, 2, 3], [4, 5, 6]]), np.float32([[1, 1, 4], [1, np.inf, 1]])
    arrays = stored(standard_error=probes, solver_error=solver, finite=np.ones((2, 3)))
    chosen = SimpleNamespace(size=4, has_pictures=True, has_levels=False)
    rows = summarize(chosen, np.array([0.3, 0.7]), False, measure(arrays))
    assert [row["log_density_standard_error"] for row in rows] == [2, 5]
    assert [row["log_density_solver_error"] for row in rows] == [2, None]
    assert rows[0]["log_density_std"] == pytest.approx(arrays["log_density"][0].std(ddof=1))


def test_shards_without_errors_are_whole_and_their_errors_unknown(tmp_path):
    place = Shards(tmp_path, 6, 3, 2, SHAPE)
    x = np.zeros((2, 3, *SHAPE))
    np.savez(place.file(0), x=x, **stored())  # as the first versions wrote them
    errors = {"standard_error": np.ones((2, 3)), "solver_error": np.ones((2, 3))}
    drawn = []

    def draw(start, stop, show):
        drawn.append(start)
        return {"x": x, **stored(**errors)}

    write_missing(place, draw)
    assert drawn == [3]
    found = measure_shards(place)
    assert found.number == 6
    assert np.isfinite(found.mean[:-2]).all()
    assert np.isnan(found.mean[-2:]).all()
    np.savez(place.file(0), x=x, **stored(**errors))
    np.testing.assert_array_equal(measure_shards(place).mean[-2:], 1)


@pytest.fixture
def search(capsys):
    """Finds steps for a solver whose error is a function of the number of steps."""
    model = dgjax.closed_form(dgjax.gaussian(jnp.zeros(2), 1.0), dgjax.edm(), t_min=0.02, t_max=80)

    def call(error, tolerance):
        def run(model, x, grid, *, key):
            return SimpleNamespace(info=SimpleNamespace(solver_error=jnp.asarray(error(len(grid)))))

        steps = find_steps(model, jnp.ones((3, 2)), tolerance, key=jax.random.key(0), run=run)
        return steps, capsys.readouterr().err

    return call


def test_the_steps_found_are_printed_with_their_error(search):
    steps, said = search(lambda points: 8.0 / (points - 1), 0.3)
    assert steps == 32
    assert said == "32 steps: error from the solver 0.25 nats, tolerance 0.3\n"


@pytest.mark.parametrize("error", [np.inf, 5.0])
def test_steps_that_cannot_be_found_are_one_line(error, search):
    with pytest.raises(ValueError, match=r"^--steps auto: .*; give a number of steps.*--solver$"):
        search(lambda points: error, 0.3)


def test_a_tolerance_is_in_nats_and_for_auto_only():
    assert set_tolerance("auto", None, 784) == pytest.approx(0.784)
    assert set_tolerance("auto", 2.5, 784) == 2.5
    assert set_tolerance(32, None, 784) == pytest.approx(0.784)
    with pytest.raises(ValueError, match="--tolerance needs --steps auto"):
        set_tolerance(32, 2.5, 784)
    for wrong in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="positive number of nats"):
            set_tolerance("auto", wrong, 784)
