"""Files of conditions that are damaged or contradict themselves."""

import numpy as np
import pytest

import dgjax
from dgjax.checkpoints.condition_file import check_condition, read_condition
from dgjax.networks.inputs import check_label


@pytest.mark.parametrize("names", [("a.b", "a"), ("a", "a.b")])
def test_no_array_is_dropped(tmp_path, names):
    file = tmp_path / "cond.npz"
    np.savez(file, **{name: np.ones(2) for name in names})
    with pytest.raises(ValueError, match="an array a and arrays inside a"):
        read_condition(file)


def test_an_empty_file_is_refused(tmp_path):
    file = tmp_path / "cond.npz"
    file.touch()
    with pytest.raises(ValueError, match="cannot be read as an npz file"):
        read_condition(file)


def test_damaged_compression_is_refused(tmp_path):
    file = tmp_path / "cond.npz"
    np.savez_compressed(file, a=np.random.default_rng(0).random(1000).round(1))
    content = bytearray(file.read_bytes())
    content[60:120] = b"\xff" * 60
    file.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as an npz file"):
        read_condition(file)


def test_an_array_without_a_name_is_refused(tmp_path):
    file = tmp_path / "cond.npy"
    np.save(file, np.ones((2, 3)))
    with pytest.raises(ValueError, match="one array without a name: write an npz file"):
        read_condition(file)
    with pytest.raises(ValueError, match=r"of a condition: No such file or directory$"):
        read_condition(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("values", "message"),
    [([1, np.nan], "NaN or infinite values"), (["a"], "must hold numbers, got <U1")],
)
def test_numbers_are_checked(tmp_path, values, message):
    np.savez(tmp_path / "cond.npz", a=np.array(values))
    with pytest.raises(ValueError, match=message):
        read_condition(tmp_path / "cond.npz")


def test_another_kind_of_file_is_no_npz_file(tmp_path):
    (tmp_path / "cond.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(ValueError, match=r"npz file of a condition: it is none$"):
        read_condition(tmp_path / "cond.png")


@pytest.mark.parametrize("error", [AttributeError("no keys"), IndexError(), KeyError("a")])
def test_whatever_a_network_raises_is_one_line(error):
    def network(x, t, cond):
        raise error

    path, noise = dgjax.edm(), dgjax.NoisePrediction()
    field = dgjax.field(network, path, noise, t_min=0.1, t_max=9.0, shape=(2,))
    with pytest.raises(ValueError, match=r"^the model does not take it: .+$"):
        check_condition(field, {}, "it")


def test_a_label_out_of_range_is_refused():
    def network(x, t, cond):
        check_label(cond, 4)
        return x

    field = dgjax.field(
        network, dgjax.edm(), dgjax.NoisePrediction(), t_min=0.1, t_max=9.0, shape=(2,)
    )
    check_condition(field, np.array(4), "it")
    with pytest.raises(ValueError, match="does not take it: label 5 is out of range"):
        check_condition(field, np.array(5), "it")
    with pytest.raises(ValueError, match=r"the number of a class, and cond has \['a'\]"):
        check_condition(field, {"a": np.zeros(2)}, "it")
