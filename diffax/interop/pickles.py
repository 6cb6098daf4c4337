"""Tensors from the files of torch.save, without torch and without running what the file says.

A pickle is a program for a small machine of which one instruction calls whatever the file names. Here nothing can be
named but an ordered dictionary, a tensor, a parameter and the kinds of storage; each stands for a few lines below, and
any other name ends the reading. Two formats hold the same pickle:

    zip      PREFIX/data.pkl, and the bytes of each storage in PREFIX/data/KEY (torch 1.6 and later)
    legacy   pickles of a magic number, a version, the system's sizes, the object and the keys of its storages; then of
             each storage its length, int64, and its bytes

A tensor is a window into a storage: an offset, sizes and strides, counted in elements. They are the file's own claim,
so each is held against the length of the storage before anything is read.
"""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

__all__ = ["read"]

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def read(path: Path) -> Any:
    """What torch.save wrote: dictionaries, numbers, texts, and tensors as read-only arrays of their own type.

    Tensors are found at the top and in dictionaries within dictionaries, not in lists. Raises ValueError for a file
    that is damaged, holds more than that, or whose tensors reach out of their storages.
    """
    try:
        whole = path.read_bytes()
        found, storage = _zipped(whole) if whole.startswith(b"PK") else _legacy(whole)
        return _arrays(found, storage, {})
    except _Refused as refused:
        raise ValueError(f"weights {path}: {refused}") from refused
    except Exception as error:  # the machine raises whatever the damage leads to
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"weights {path}: damaged, or not a file of torch.save ({said})") from error


class _Refused(ValueError):
    """What is whole, and not to be had."""


class _Storage(NamedTuple):
    """Elements of one type, not yet read: what they are called in the file, and how many it says they are."""

    key: str
    dtype: Any
    length: int


class _Tensor(NamedTuple):
    """A window into a storage, not yet checked."""

    storage: _Storage
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


class _Dict(dict[Any, Any]):
    """An ordered dictionary that forgets the attributes which PyTorch hangs on a state dict."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Reader(pickle.Unpickler):
    """The machine, with the few names that it may know. It is given functions of its own, so that nothing which a file
    does to them outlives it, and no types.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.dtypes: dict[str, Any] = {}
        self.allowed: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): lambda *items: _Dict(*items),
            ("torch._utils", "_rebuild_tensor_v2"): lambda *tensor: _Tensor(*tensor[:4]),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        self.allowed |= {("torch", name): name for name in _DTYPES}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise _Refused(f"a pickle of more than tensors: it asks for {f'{module}.{name}'!r}, which is never run")
        return self.allowed[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, name, key, _, count, *view = pid
        if kind != "storage" or name not in _DTYPES or not isinstance(key, str) or not _is_size(count) or any(view):
            raise ValueError(f"no storage: {str(pid)[:100]}")
        dtype = np.dtype(_DTYPES[name])
        if self.dtypes.setdefault(key, dtype) != dtype:
            raise ValueError(f"storage {key} has two types, {self.dtypes[key]} and {dtype}")
        return _Storage(key, dtype, count)


def _zipped(whole: bytes) -> tuple[Any, Callable[[_Storage], bytes]]:
    """The object, and what reads the bytes of a storage."""
    archive = zipfile.ZipFile(io.BytesIO(whole))
    names = set(archive.namelist())
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"{len(pickles)} files data.pkl in it, must be one")
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise ValueError("parts of it are compressed")  # torch never does, and a small file could fill the memory
    prefix = pickles[0].removesuffix("data.pkl")
    order = prefix + "byteorder"
    if order in names and archive.read(order) != b"little":
        raise _Refused("damaged, or written on a big-endian machine")
    found = _Reader(io.BytesIO(archive.read(pickles[0]))).load()
    return found, lambda storage: archive.read(f"{prefix}data/{storage.key}")


def _legacy(whole: bytes) -> tuple[Any, Callable[[_Storage], bytes]]:
    """The object, and what reads the bytes of a storage."""
    file = io.BytesIO(whole)
    if (magic := _Reader(file).load()) != _MAGIC:
        raise ValueError(f"begins with a {type(magic).__name__}, not with torch's number")
    if (version := _Reader(file).load()) != _VERSION:
        raise ValueError(f"of version {str(version)[:20]}, known is {_VERSION}")
    if not _Reader(file).load()["little_endian"]:
        raise _Refused("damaged, or written on a big-endian machine")
    reader = _Reader(file)
    found = reader.load()
    held: dict[str, tuple[int, int]] = {}
    for key in _Reader(file).load():
        size = struct.unpack("<q", file.read(8))[0] * reader.dtypes[key].itemsize
        start = file.tell()
        if not 0 <= size <= len(whole) - start:
            raise ValueError(f"storage {key} of {size} bytes is longer than the file")
        held[key] = start, start + size
        file.seek(size, io.SEEK_CUR)
    return found, lambda storage: whole[slice(*held[storage.key])]


def _arrays(found: Any, storage: Callable[[_Storage], bytes], known: dict[Any, Any]) -> Any:
    """The object with arrays for tensors; each storage is read once."""
    if isinstance(found, _Tensor):
        return _array(found, storage, known)
    if not isinstance(found, dict):
        return found
    if id(found) not in known:  # a dictionary may lie in several, or in itself
        made: dict[Any, Any] = {}
        known[id(found)] = made
        made.update((name, _arrays(value, storage, known)) for name, value in found.items())
    return known[id(found)]


def _array(tensor: _Tensor, storage: Callable[[_Storage], bytes], known: dict[Any, Any]) -> np.ndarray:
    source, offset, sizes, strides = tensor
    if not isinstance(source, _Storage) or not _is_size(offset):
        raise ValueError("a tensor without a storage")
    if not all(isinstance(numbers, tuple) and all(map(_is_size, numbers)) for numbers in (sizes, strides)):
        raise ValueError(f"a tensor of sizes {str(sizes)[:100]} and strides {str(strides)[:100]}")
    if 0 in sizes:
        return np.zeros(sizes, source.dtype)
    if source not in known:
        held = storage(source)
        if len(held) < source.length * source.dtype.itemsize:
            raise ValueError(f"storage {source.key} of {source.length} {source.dtype} has {len(held)} bytes")
        known[source] = np.frombuffer(held, np.uint8)[: source.length * source.dtype.itemsize]
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if last >= source.length:
        raise ValueError(f"a tensor of sizes {sizes} and strides {strides} reaches out of its {source.length} elements")
    width = source.dtype.itemsize
    return np.ndarray(sizes, source.dtype, known[source].data, offset * width, tuple(width * s for s in strides))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
