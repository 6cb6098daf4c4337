"""Schedules, preconditionings, weightings and solvers written as text, so that a config or a flag can compose them:

    truncate(shift(laplace(scale=0.5), by=-1.4), logsnr_min=-12, logsnr_max=12)

The text is a call of a public constructor of the module concerned, with numbers, strings and further such calls as
arguments. It is parsed, never executed as code. A bare name is a call without arguments: `heun` is `heun()`.
"""

import ast
import difflib
import inspect
from types import ModuleType
from typing import Any

__all__ = ["build"]


def build(field: str, text: str, module: ModuleType) -> Any:
    """The object that `text` describes with the constructors of `module`.

    Raises: ValueError naming the field, the text, and what is allowed (with the nearest valid name).
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(f"{field} = {text!r}: must be a call such as {_names(module)[0]}(...)") from None
    try:
        if not isinstance(node, (ast.Call, ast.Name)):
            raise ValueError(f"must be a call of one of {', '.join(_names(module))}")
        return _value(node, module)
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{field} = {text!r}: {error}") from error


def _call(node: ast.Call, module: ModuleType) -> Any:
    name = ast.unparse(node.func)
    if name not in _names(module):
        raise ValueError(f"unknown name {name!r}{_nearest(name, _names(module))}; known: {', '.join(_names(module))}")
    constructor = getattr(module, name)
    parameters = list(inspect.signature(constructor).parameters)
    arguments = [_value(a, module) for a in node.args]
    keywords = {}
    for keyword in node.keywords:
        if keyword.arg not in parameters:
            raise ValueError(
                f"{name} has no parameter {keyword.arg!r}{_nearest(str(keyword.arg), parameters)}; "
                f"it takes {', '.join(parameters) or 'none'}"
            )
        keywords[keyword.arg] = _value(keyword.value, module)
    try:
        inspect.signature(constructor).bind(*arguments, **keywords)
    except TypeError as error:
        raise ValueError(f"{name}: {error}; it takes {', '.join(parameters) or 'none'}") from None
    return constructor(*arguments, **keywords)


def _value(node: ast.expr, module: ModuleType) -> Any:
    if isinstance(node, ast.Name):
        node = ast.Call(node, [], [])
    if isinstance(node, ast.Call):
        return _call(node, module)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{ast.unparse(node)!r} is neither a number nor a call such as name(...)") from None


def _names(module: ModuleType) -> list[str]:
    """The module's constructors: its public functions that return one of its public classes."""
    public = {name: getattr(module, name) for name in module.__all__}
    classes = [v for v in public.values() if inspect.isclass(v)]
    functions = {n: v for n, v in public.items() if inspect.isfunction(v)}
    return sorted(n for n, v in functions.items() if inspect.signature(v).return_annotation in classes)


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f", did you mean {close[0]!r}?" if close else ""
