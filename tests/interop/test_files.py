"""Weight files: what they hold is read, what they would run is not, and a bad one is one sentence."""

import json
import pickle
import struct
import sys

import numpy as np
import pytest

from diffax.interop import tensors
from tests.interop.peers import peer

VALUES = np.float32([[1.5, -2.0, 0.15625], [3e-3, 0.0, 1e3]])


@pytest.fixture
def torch():
    return peer("torch")


@pytest.fixture
def safetensors():
    return peer("safetensors")


class Harmful:
    """Pickled, it makes a file where it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def safe_bytes(kind, shape, data):
    """A safetensors file of one tensor "layer.weight", as the format's description has it."""
    header = {"layer.weight": {"dtype": kind, "shape": shape, "data_offsets": [0, len(data)]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def said(source):
    """The sentence that refuses it."""
    with pytest.raises(ValueError) as error:
        tensors(source)
    text = str(error.value)
    assert str(source) in text and "\n" not in text
    return text


# ---- safetensors ----------------------------------------------------------------------------------------------------


def test_safetensors_of_every_width_are_read(tmp_path, safetensors):
    path = tmp_path / "weights.safetensors"
    halves = (VALUES.view(np.uint32) >> 16).astype(np.uint16)  # bfloat16: the first half of a float32's bits
    for kind, data, expected in [
        ("F32", VALUES, VALUES),
        ("F16", VALUES.astype(np.float16), VALUES.astype(np.float16)),
        ("BF16", halves, (halves.astype(np.uint32) << 16).view(np.float32)),
        ("F64", VALUES.astype(np.float64), VALUES),
    ]:
        path.write_bytes(safe_bytes(kind, [2, 3], data.tobytes()))
        found = tensors(path)
        assert list(found) == ["layer.weight"] and isinstance(found["layer.weight"], np.ndarray)
        np.testing.assert_array_equal(found["layer.weight"].astype(np.float32), expected.astype(np.float32))
        np.testing.assert_array_equal(tensors(str(path))["layer.weight"], found["layer.weight"])


def test_damaged_safetensors_are_refused(tmp_path, safetensors):
    path, whole = tmp_path / "weights.safetensors", safe_bytes("F32", [2, 3], VALUES.tobytes())
    noise = np.random.default_rng(0).bytes(500)
    for damaged in (b"", whole[:-1], whole[:20], whole + b"more", noise, pickle.dumps({"layer.weight": VALUES})):
        path.write_bytes(damaged)
        assert "damaged" in said(path)


def test_safetensors_of_an_unknown_kind_are_refused(tmp_path, safetensors):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safe_bytes("F8_E4M3", [6], bytes(6)))
    said(path)


# ---- pickles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_a_state_dict_of_torch_is_read(tmp_path, torch, suffix):
    path, values = tmp_path / f"weights{suffix}", torch.tensor(VALUES)
    state = {"a": values, "b": values.half(), "c": torch.nn.Parameter(values.bfloat16()), "steps": torch.tensor(3)}
    for whole in (state, {"epoch": 7, "state_dict": state, "name": "net"}):
        torch.save(whole, path)
        found = tensors(path)
        assert list(found) == list(state)
        np.testing.assert_array_equal(found["a"], VALUES)
        np.testing.assert_array_equal(found["b"], VALUES.astype(np.float16))
        np.testing.assert_array_equal(found["c"], (VALUES.view(np.uint32) + 0x7FFF >> 16 << 16).view(np.float32))
        assert found["steps"] == 3


def test_the_older_format_of_torch_is_read(tmp_path, torch):
    torch.save({"a": torch.tensor(VALUES)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(tensors(tmp_path / "old.pth")["a"], VALUES)


def test_reading_does_not_need_torch(tmp_path, torch, monkeypatch):
    torch.save({"a": torch.tensor(VALUES)}, tmp_path / "weights.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    np.testing.assert_array_equal(tensors(tmp_path / "weights.pt")["a"], VALUES)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path, torch, suffix):
    path, trace = tmp_path / f"weights{suffix}", tmp_path / "trace"
    plain = pickle.dumps({"b": Harmful(trace)}, protocol=2)  # torch's
    pickle.loads(plain)["b"].close()
    assert trace.exists()  # so it would
    trace.unlink()
    path.write_bytes(plain)
    assert "never run" in said(path)
    for zipped in (True, False):
        torch.save({"a": torch.tensor(VALUES), "b": Harmful(trace)}, path, _use_new_zipfile_serialization=zipped)
        assert "never run" in said(path)
    assert not trace.exists()


def test_whole_modules_are_refused(tmp_path, torch):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    assert "more than tensors" in said(tmp_path / "module.pt")


def test_damaged_pickles_are_refused(tmp_path, torch):
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.tensor(VALUES)}, path)
    whole, noise = path.read_bytes(), np.random.default_rng(0).bytes(500)
    for damaged in (b"", whole[: len(whole) // 2], whole[:20], noise, b"<html>not found</html>"):
        path.write_bytes(damaged)
        assert "damaged" in said(path)


@pytest.mark.parametrize("content", ["tensor", "list", "number"])
def test_what_is_no_state_dict_is_refused(tmp_path, torch, content):
    value = torch.ones(2)
    torch.save({"tensor": value, "list": [value], "number": 3}[content], tmp_path / "weights.pt")
    assert "must hold a state dict" in said(tmp_path / "weights.pt")


def test_tensors_without_a_name_are_refused(tmp_path, torch):
    torch.save({0: torch.ones(2)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError):
        tensors(tmp_path / "weights.pt")


# ---- others ---------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    for name in ("none.safetensors", "none.pt", "none.pkl"):
        assert "no such file" in said(tmp_path / name)
    (tmp_path / "folder.pt").mkdir()
    assert "no such file" in said(tmp_path / "folder.pt")


def test_other_files_are_refused_and_snapshots_are_told_what_to_do(tmp_path):
    trace = tmp_path / "trace"
    for name in ("snapshot.pkl", "weights.npz", "weights.h5", "weights"):
        (tmp_path / name).write_bytes(pickle.dumps(Harmful(trace)))
        text = said(tmp_path / name)
        assert ".safetensors" in text and ".bin" in text
        assert ("export its state dict" in text) == name.endswith(".pkl")
    assert not trace.exists()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)  # as if it were not installed
    (tmp_path / "weights.safetensors").write_bytes(b"")
    assert "pip install safetensors" in said(tmp_path / "weights.safetensors")


def test_a_mapping_of_arrays_is_taken_as_it_is():
    found = tensors({"a": VALUES, "b": [1.0, 2.0]})
    np.testing.assert_array_equal(found["a"], VALUES)
    np.testing.assert_array_equal(found["b"], [1, 2])


def test_tensors_of_torch_are_taken_with_their_gradients_and_as_bfloat16(torch):
    values = torch.tensor(VALUES, requires_grad=True)
    np.testing.assert_array_equal(tensors({"a": values})["a"], VALUES)
    half = tensors({"a": values.bfloat16()})["a"]
    np.testing.assert_allclose(half.astype(np.float32), VALUES, rtol=2**-8)


@pytest.mark.parametrize(
    "value",
    [np.array([1, "x", None], dtype=object), None, {}, {"inner": 1.0}, object(), "text", b"bytes", [1, [2, 3]]],
    ids=["objects", "None", "empty", "mapping", "object", "text", "bytes", "ragged"],
)
def test_what_is_no_array_of_numbers_is_refused_by_its_name(value):
    with pytest.raises(ValueError, match=r"layer\.weight"):
        tensors({"good": VALUES, "layer.weight": value})
