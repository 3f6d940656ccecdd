"""Commands with `--model FILE.py:FUNCTION`, on a network that no importer knows."""

import json
import textwrap

import numpy as np
import pytest

CODE = """
    import jax.numpy as jnp

    import dgjax

    def field(**known):
        network = lambda x, t, cond: 3 + (x - 3) * 4 / (4 + t**2)
        path, predicts = dgjax.edm(), dgjax.DenoisedPrediction()
        if "shape" in known:
            known["prior"] = dgjax.gaussian(jnp.full(known["shape"], 3.0), 4.0)
        return dgjax.field(network, path, predicts, t_min=0.1, t_max=20.0, **known)

    def pictures():
        return field(shape=(4, 4, 1)), {"data_range": (0, 6)}

    def vectors():
        return field(shape=(5,))

    def volumes():
        return field(shape=(2, 2, 2, 4))

    def rounded():
        network = lambda x, t, cond: 3 + (x - 3) * 4 / (4 + jnp.round(t) ** 2)
        known = {"t_min": 0.1, "t_max": 20.0, "shape": (5,)}
        return dgjax.field(network, dgjax.edm(), dgjax.DenoisedPrediction(), **known)

    def no_shape():
        return field()

    def number():
        return 3

    def unknown():
        return pictures()[0], {"data_rnage": (0, 1)}

    def stated(**facts):
        return pictures()[0], facts

    falling = lambda: stated(data_range=(1, -1))
    triple = lambda: stated(data_range=(0, 1, 2))
    half = lambda: stated(data_range=1)
    many = lambda: stated(num_classes="many")
    no_class = lambda: stated(num_classes=0)
    numbered = lambda: stated(num_classes=2, labels=[1, 2])
    letters = lambda: stated(num_classes=3, labels="abc")
    one_name = lambda: stated(num_classes=3, labels=["a"])
    no_text = lambda: stated(licence=None)
    MODEL = pictures()[0]

    def fails():
        return float("abc")

    def wrong_shape():
        network = lambda x, t, cond: jnp.stack([x, x[:2]])
        known = {"t_min": 0.1, "t_max": 20.0, "shape": (5,)}
        return dgjax.field(network, dgjax.edm(), dgjax.DenoisedPrediction(), **known)

    def not_finite():
        network = lambda x, t, cond: jnp.nan * x
        known = {"t_min": 0.1, "t_max": 20.0, "shape": (4, 4, 1)}
        return dgjax.field(network, dgjax.edm(), dgjax.DenoisedPrediction(), **known)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(textwrap.dedent(CODE))
    return path


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("pictures", "volumes")]


@pytest.mark.parametrize("name", ["vectors", *SLOW])
def test_sample_and_likelihood(run, file, tmp_path, name):
    """N(3, 4 I) has the log-density of a Gaussian; pictures are made where there are any."""
    out, model = tmp_path / "out", f"{file}:{name}"
    arguments = ["--q", "0.5", "--num", "2", "--steps", "8", "--out", out, "--probes", "4"]
    status, _, err = run("sample", "--model", model, *arguments)
    assert status == 0, err
    files = {"samples.npz", "summary.json"} | ({"samples.png"} if name == "pictures" else set())
    assert {path.name for path in out.iterdir()} == files
    assert all(path in err for path in files)
    (row,) = json.loads((out / "summary.json").read_text())["rows"]
    assert ("bits_per_dim" in row) == ("png_bytes" in row) == (name == "pictures")
    with np.load(out / "samples.npz") as found:
        x, log_density = found["x"][0], found["log_density"][0]
    variance = 4 + 0.1**2
    flat = x.reshape(2, -1) - 3
    exact = -0.5 * (flat**2).sum(1) / variance - flat.shape[1] / 2 * np.log(2 * np.pi * variance)
    np.testing.assert_allclose(log_density, exact, atol=0.05 * flat.shape[1])
    asked = ["likelihood", "--model", model, out / "samples.npz", "--steps", "8", "--json"]
    status, printed, err = run(*asked)
    assert status == 0, err
    rows = json.loads(printed)["rows"]
    assert ("bits_per_dim" in rows[0]) == (name == "pictures")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "explored"), [("pictures", True), ("not_finite", False)])
def test_the_explorer_is_named_if_a_sample_is_finite(run, file, tmp_path, name, explored):
    asked = ["--num", "1", "--steps", "4", "--out", tmp_path / "out"]
    status, _, err = run("sample", "--model", f"{file}:{name}", *asked)
    assert status == 0, err
    assert ("next: dgjax explore" in err) == explored
    assert ("some samples are not finite" in err) == (not explored)


def test_a_solver_with_derivatives_names_what_a_network_lacks(run, file, tmp_path):
    asked = ["sample", "--model", f"{file}:rounded", "--solver", "multistep_hermite"]
    status, _, err = run(*asked, "--num", "1", "--steps", "4", "--out", tmp_path / "out")
    assert status != 0
    assert "time is rounded" in err
    assert "Multistep()" in err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_shape", "pass shape= to dgjax.field"),
        ("number", "returned int: return dgjax.field"),
        ("unknown", "did you mean 'data_range'"),
        ("missing", "has no function 'missing'"),
        ("MODEL", "is a Field: name a function that returns it"),
        ("falling", "data_range must be two rising numbers, such as (-1, 1), got (1, -1)"),
        ("triple", "data_range must be two rising numbers"),
        ("half", "data_range must be two rising numbers"),
        ("many", "num_classes must be a positive int, or left out, got 'many'"),
        ("no_class", "num_classes must be a positive int"),
        ("numbered", "labels must be a list of texts"),
        ("letters", "labels must be a list of texts"),
        ("one_name", "labels must be as many names as num_classes, 3"),
        ("no_text", "licence must be a text, got None"),
        ("fails", "own.py, line 51: could not convert string to float: 'abc'"),
    ],
)
def test_trouble_is_one_clear_line(run, file, tmp_path, name, message):
    status, _, err = run("sample", "--model", f"{file}:{name}", "--out", tmp_path / "out")
    assert status == 1
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_an_error_of_a_network_says_where(run, file, tmp_path):
    status, _, err = run("sample", "--model", f"{file}:wrong_shape", "--out", tmp_path / "out")
    assert status == 1
    assert "own.py, line 54: " in err


def test_dataclasses_find_their_module(run, tmp_path):
    file = tmp_path / "json.py"  # and hides no other
    file.write_text(
        textwrap.dedent("""
            from __future__ import annotations
            import json as other
            from dataclasses import dataclass
            import jax
            import jax.numpy as jnp
            import dgjax

            @dgjax.register_dataclass
            @dataclass(frozen=True)
            class Network:
                scale: jax.Array

                def __call__(self, x, t, cond):
                    return self.scale * x / (1 + t**2)

            def make():
                known = {"t_min": 0.1, "t_max": 20.0, "shape": (5,)}
                network = Network(jnp.ones(()))
                return dgjax.field(network, dgjax.edm(), dgjax.DenoisedPrediction(), **known)
        """)
    )
    asked = ["--q", "0.5", "--num", "1", "--steps", "4", "--out", tmp_path / "out"]
    status, _, err = run("sample", "--model", f"{file}:make", *asked)
    assert status == 0, err


def test_a_file_without_its_function(run, file):
    status, _, err = run("sample", "--model", file)
    assert status == 1
    assert f"{file.name}:FUNCTION" in "".join(err.split())


def test_no_such_file(run, tmp_path):
    status, _, err = run("sample", "--model", f"{tmp_path}/none.py:make")
    assert status == 1
    assert "there is no file" in err


def test_more_classes_than_a_label(run, file, tmp_path):
    status, _, err = run("sample", "--model", f"{file}:vectors", "--class", "3")
    assert status == 1
    assert "takes no class labels" in err
