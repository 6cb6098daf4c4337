"""What dir() and tab completion show of a module: the names in its `__all__`, without its imports."""

import sys

__all__ = ["list_names"]


def list_names(*modules: str) -> None:
    """Let dir() of these modules, which are imported already, list their `__all__`."""
    for name in modules:
        module = sys.modules[name]
        module.__dir__ = lambda module=module: list(module.__all__)  # type: ignore[method-assign, misc]
