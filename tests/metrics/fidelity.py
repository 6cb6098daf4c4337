"""torch-fidelity, module by module: the package as a whole imports torchvision, which none of these needs."""

import contextlib
import importlib
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from unittest import mock

from tests.interop.peers import peer


@contextlib.contextmanager
def torch_fidelity(*names: str) -> Iterator[types.SimpleNamespace]:
    """The modules, or else a skip (see `peer`)."""
    spec = importlib.machinery.PathFinder.find_spec("torch_fidelity")
    if spec is None:
        peer("torch_fidelity")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations)
    # `utils` reads data sets of images, by torchvision.
    with mock.patch.dict(sys.modules, {"torch_fidelity": package, "torch_fidelity.utils": mock.MagicMock()}):
        yield types.SimpleNamespace(**{name: importlib.import_module(f"torch_fidelity.{name}") for name in names})
