"""Files of torch.save are read as torch reads them, and whatever else they ask for is refused and never done."""

import pickle
import struct
import zipfile
from typing import Any, NamedTuple

import numpy as np
import pytest

from diffax.interop import pickles
from tests.interop.peers import peer

# ---- files made by hand, so that anything can stand in them ---------------------------------------------------------


class Name(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    function: Any
    arguments: tuple[Any, ...]


class Stored(NamedTuple):
    pid: Any


class Raw(NamedTuple):
    code: bytes


def code(value):
    """The instructions that leave a value on the machine's stack."""
    match value:
        case Raw():
            return value.code
        case Name():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            return code(value.function) + code(value.arguments) + b"R"
        case Stored():
            return code(value.pid) + b"Q"
        case dict():
            return b"}(" + b"".join(code(part) for item in value.items() for part in item) + b"u"
        case tuple():
            return b"(" + b"".join(map(code, value)) + b"t"
    return pickle.dumps(value, 2)[2:-1]


def program(value):
    return b"\x80\x02" + code(value) + b"."


def storage(count, kind="FloatStorage", key="0"):
    return Stored(("storage", Name("torch", kind), key, "cpu", count))


def tensor(sizes, strides, *, offset=0, held=None, count=6):
    """A call to rebuild a tensor from a storage that says to have `count` elements."""
    arguments = (held or storage(count), offset, sizes, strides, False, Call(Name("collections", "OrderedDict"), ()))
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), arguments)


def zipped(path, value, data, prefix="archive", compression=zipfile.ZIP_STORED, **others):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{prefix}/data.pkl", program(value))
        archive.writestr(f"{prefix}/data/0", data)
        for name, content in others.items():
            archive.writestr(f"{prefix}/{name}", content)


def legacy(path, value, data, count=None, little_endian=True, magic=0x1950A86A20F9469CFC6C, version=1001):
    head = (magic, version, {"little_endian": little_endian}, value, Raw(b"](" + code("0") + b"e"))
    length = struct.pack("<q", len(data) // 4 if count is None else count)
    path.write_bytes(b"".join(map(program, head)) + length + data)


WRITERS = [pytest.param(zipped, id="zip"), pytest.param(legacy, id="legacy")]
SIX = np.arange(6, dtype=np.float32)


def said(path):
    with pytest.raises(ValueError) as error:
        pickles.read(path)
    text = str(error.value)
    assert str(path) in text and "\n" not in text
    return text


@pytest.mark.parametrize("write", WRITERS)
def test_windows_into_a_storage(tmp_path, write):
    path = tmp_path / "weights.pt"
    windows = {
        "rows": (tensor((2, 3), (3, 1)), SIX.reshape(2, 3)),
        "columns": (tensor((3, 2), (1, 3)), SIX.reshape(2, 3).T),
        "every second": (tensor((2,), (2,), offset=1), SIX[1::2][:2]),
        "the last": (tensor((), (), offset=5), SIX[5]),
        "one again and again": (tensor((4, 2), (0, 1), offset=4), np.tile(SIX[4:], (4, 1))),
        "none": (tensor((0, 7), (7, 1), offset=6), np.zeros((0, 7), np.float32)),
    }
    write(path, {name: made for name, (made, _) in windows.items()}, SIX.tobytes())
    found = pickles.read(path)
    assert list(found) == list(windows)
    for name, (_, expected) in windows.items():
        assert found[name].dtype == np.float32 and not (found[name].size and found[name].flags.writeable)
        np.testing.assert_array_equal(found[name], expected)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("made", "words"),
    [
        (tensor((7,), (1,)), "reaches out"),
        (tensor((6,), (1,), offset=1), "reaches out"),
        (tensor((2, 2), (1, 5)), "reaches out"),
        (tensor((2,), (2**61,)), "reaches out"),
        (tensor((1,), (1,), offset=2**70), "reaches out"),
        (tensor((2**62, 2**62), (0, 0)), "damaged"),
        (tensor((6,), (1,), offset=-1), "without a storage"),
        (tensor((-6,), (1,)), "sizes"),
        (tensor((6,), (-1,)), "sizes"),
        (tensor((6,), (1, 1)), "damaged"),
        (tensor((6.0,), (1,)), "sizes"),
        (tensor(6, 1), "sizes"),
        (tensor((True,), (1,)), "sizes"),
        (tensor((7,), (1,), count=7), "24 bytes"),
        (tensor((1,), (1,), count=2**62), "24 bytes"),
        (tensor((6,), (1,), count=-6), "no storage"),
        (tensor((6,), (1,), held=storage(6, "DoubleStorage")), "bytes"),
        (tensor((6,), (1,), held=Raw(b"N")), "without a storage"),
        (tensor((6,), (1,), held=storage(6, key="1")), "damaged"),
        (tensor((6,), (1,), held=Stored(("module", Name("torch", "FloatStorage"), "0", "cpu", 6))), "no storage"),
        (tensor((6,), (1,), held=Stored(7)), "damaged"),
    ],
)
def test_windows_that_reach_out_are_refused(tmp_path, write, made, words):
    path = tmp_path / "weights.pt"
    write(path, {"a": made}, SIX.tobytes(), **({"count": 6} if write is legacy else {}))
    text = said(path)
    assert words in text or (write is legacy and ("longer than the file" in text or "KeyError" in text))


def test_lengths_that_the_older_format_lies_about_are_refused(tmp_path):
    for count in (7, -1, 2**62):
        legacy(tmp_path / "weights.pt", {"a": tensor((6,), (1,))}, SIX.tobytes(), count=count)
        assert "longer than the file" in said(tmp_path / "weights.pt")


HARMFUL = {
    "system": Call(Name("posix", "system"), ("echo harm > {trace}",)),
    "eval": Call(Name("builtins", "eval"), ("open({trace!r}, 'w')",)),
    "getattr": Call(Name("builtins", "getattr"), (Name("collections", "OrderedDict"), "__init__")),
    "inner names": Name("collections", "OrderedDict.__init__.__globals__"),
    "load": Call(Name("torch.storage", "_load_from_bytes"), (b"",)),
    "own": Name("diffax.interop.pickles", "read"),
    "line": Name("a", "b\tc"),
}


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", HARMFUL)
def test_other_names_are_refused_and_never_run(tmp_path, write, name):
    path, trace = tmp_path / "weights.pt", tmp_path / "trace"
    harm = HARMFUL[name]
    if isinstance(harm, Call) and isinstance(harm.arguments[0], str):
        harm = Call(harm.function, (harm.arguments[0].format(trace=str(trace)),))
    write(path, {"a": tensor((6,), (1,)), "b": harm}, SIX.tobytes())
    asked = harm.function if isinstance(harm, Call) else harm
    assert "never run" in (text := said(path)) and repr(f"{asked.module}.{asked.name}") in text
    path.write_bytes(program(harm))  # the pickle alone
    assert "never run" in said(path)
    assert not trace.exists()


ORDERED = Name("collections", "OrderedDict")
REBUILD = Name("torch._utils", "_rebuild_tensor_v2")


@pytest.mark.parametrize(
    "trick",
    [
        code(Call(Name("torch", "FloatStorage"), ("0",))),  # a kind of storage is no function
        code(ORDERED) + b")\x81",  # a new object of a function
        code(ORDERED) + code({"__call__": 1}) + b"b" + b")R" + code(("a",)) + b"R",
        code(Call(ORDERED, ())) + code(1) + b"a",  # to append to a dictionary
        code(storage(6)) + code({"length": 9}) + b"b",  # to change a storage
        code(tensor((6,), (1,))) + code({"offset": 9}) + b"b",
        code(storage(6)) + code((None, {"length": 9})) + b"b",
        code(tensor((6,), (1,))) + code(0) + code(9) + b"s",
        code(Call(REBUILD, (1, 2))),
        code(Call(REBUILD, ())),
        b"h\x63",  # a value that was never put by
        b"\x82\x01",  # an extension
        b"(" * 10 + b"." * 10,
    ],
)
def test_tricks_of_the_machine_lead_nowhere(tmp_path, trick):
    path = tmp_path / "weights.pt"
    zipped(path, {"a": Raw(trick)}, SIX.tobytes())
    assert "damaged" in said(path)
    zipped(path, {"a": tensor((6,), (1,))}, SIX.tobytes())
    np.testing.assert_array_equal(pickles.read(path)["a"], SIX)  # and it left nothing behind


def test_what_a_file_does_to_the_functions_is_gone_with_it(tmp_path):
    path = tmp_path / "weights.pt"
    spoil = code(REBUILD) + code((None, {"__defaults__": (1,)})) + b"b"
    zipped(path, {"a": Raw(spoil + b"0" + code(tensor((6,), (1,))))}, SIX.tobytes())
    np.testing.assert_array_equal(pickles.read(path)["a"], SIX)
    zipped(path, {"a": tensor((6,), (1,))}, SIX.tobytes())
    np.testing.assert_array_equal(pickles.read(path)["a"], SIX)


def test_attributes_of_a_state_dict_are_forgotten(tmp_path):
    state = code(Call(ORDERED, ())) + code({"_metadata": 1, "items": Name("torch._utils", "_rebuild_parameter")}) + b"b"
    state += code("a") + code(tensor((6,), (1,))) + b"s"
    zipped(tmp_path / "weights.pt", Raw(state), SIX.tobytes())
    found = pickles.read(tmp_path / "weights.pt")
    np.testing.assert_array_equal(found["a"], SIX)
    assert not hasattr(found, "_metadata")


def test_a_dictionary_in_itself_and_a_very_deep_one_come_to_an_end(tmp_path):
    path = tmp_path / "weights.pt"
    zipped(path, Raw(b"}q\x07" + code("a") + b"h\x07s"), b"")
    found = pickles.read(path)
    assert found["a"] is found
    zipped(path, Raw((b"}" + code("a")) * 100_000 + b"N" + b"s" * 100_000), b"")
    assert "damaged" in said(path)
    doubled = b"}q\x07" + b"".join(b"}" + b"".join(code(k) + b"h\x07s" for k in "ab") + b"q\x07" for _ in range(60))
    zipped(path, Raw(doubled), b"")
    assert set(pickles.read(path)) == {"a", "b"}


def test_other_archives_are_refused(tmp_path):
    path, made = tmp_path / "weights.pt", {"a": tensor((6,), (1,))}
    zipped(path, made, SIX.tobytes(), byteorder="big")
    assert "big-endian" in said(path)
    zipped(path, made, SIX.tobytes(), compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in said(path)
    zipped(path, made, SIX.tobytes(), prefix="archive/inner")
    assert "0 files data.pkl" in said(path)
    legacy(path, made, SIX.tobytes(), little_endian=False)
    assert "big-endian" in said(path)
    legacy(path, made, SIX.tobytes(), magic=7)
    assert "torch's number" in said(path)
    legacy(path, made, SIX.tobytes(), version=1002)
    assert "1002" in said(path)


# ---- torch's own ----------------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return peer("torch")


@pytest.mark.parametrize("zipformat", [True, False], ids=["zip", "legacy"])
def test_what_torch_saves_is_read_as_torch_reads_it(tmp_path, torch, zipformat):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, 5, generator=generator)
    views = {
        "whole": base,
        "permuted": base.permute(2, 0, 1),
        "slice": base[1:3, ::2, 1:],
        "expanded": base[:1].expand(3, -1, -1),
        "channels last": torch.randn(2, 3, 4, 4, generator=generator).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(base[0].t()),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
    }
    kinds = ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    views |= {kind: (10 * base).to(getattr(torch, kind)) for kind in kinds}
    saved = {"state_dict": views, "step": 7, "name": "net", "rate": 1e-3, "none": None, "flags": [True, (1, 2)]}
    torch.save(saved, tmp_path / "weights.pt", _use_new_zipfile_serialization=zipformat)
    found = pickles.read(tmp_path / "weights.pt")
    assert {name: value for name, value in found.items() if name != "state_dict"} == {
        name: value for name, value in saved.items() if name != "state_dict"
    }
    assert list(found["state_dict"]) == list(views)
    for name, value in views.items():
        array = found["state_dict"][name]
        assert str(array.dtype) == str(value.dtype).removeprefix("torch.") and array.shape == tuple(value.shape)
        np.testing.assert_array_equal(array.astype(np.float64), value.detach().double().numpy())


@pytest.mark.parametrize("zipformat", [True, False], ids=["zip", "legacy"])
def test_a_module_with_buffers(tmp_path, torch, zipformat):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(module.state_dict(), tmp_path / "weights.pt", _use_new_zipfile_serialization=zipformat)
    found = pickles.read(tmp_path / "weights.pt")
    assert list(found) == list(module.state_dict())
    for name, value in module.state_dict().items():
        np.testing.assert_array_equal(found[name], value.numpy())
