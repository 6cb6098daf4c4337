"""The core imports fast, quietly and without Flax; the arrows of the layout run one way."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import diffax as dx

ROOT = Path(__file__).parent.parent


def run(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_import_needs_jax_and_numpy_only_and_prints_nothing():
    heavy = "{'flax', 'optax', 'orbax', 'clu', 'tensorflow', 'torch', 'grain', 'sklearn', 'PIL', 'matplotlib'}"
    done = run(f"import sys, diffax; print({heavy} & set(sys.modules))")
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_import_adds_less_than_a_second_to_jax():
    done = run("import time, jax; t = time.time(); import diffax; print(time.time() - t)")
    assert float(done.stdout) < 1


def test_version_and_public_names():
    assert re.fullmatch(r"\d+\.\d+\.\d+", dx.__version__)
    assert all(hasattr(dx, name) for name in dx.__all__)
    assert (ROOT / "diffax" / "py.typed").exists()


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{a.name}" for a in node.names)


def test_arrows_run_one_way():
    core = set(dx.__all__) & {p.stem for p in (ROOT / "diffax").iterdir()}
    assert {"schedules", "preconditioning", "losses", "denoiser", "solvers", "sample", "guidance"} <= core
    allowed = {"diffax", "jax", "numpy"} | set(sys.stdlib_module_names)
    for file in (ROOT / "diffax").rglob("*.py"):
        part = file.relative_to(ROOT / "diffax").parts[0].removesuffix(".py")
        names = set(imports(file))
        assert not any(n.split(".")[0] in {"experiments", "tensorflow", "torch"} for n in names), file
        if part in core:
            assert {n.split(".")[0] for n in names} <= allowed | ({"matplotlib"} if part == "plot" else set()), file
            outside = {n.split(".")[1] for n in names if n.count(".") and n.startswith("diffax")}
            assert not outside & {"models", "training", "data", "metrics", "interop"}, file


def test_the_lock_pins_versions_and_names_no_host():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert all(re.match(r"[\w.-]+==[\w.]+( ;.*)?$", line) for line in lines)


def test_modules_list_their_public_names():
    modules = [dx, *(getattr(dx, name) for name in dx.__all__ if hasattr(getattr(dx, name), "__all__"))]
    modules += [importlib.import_module(f"diffax.{name}") for name in ("models", "data", "metrics", "interop")]
    assert len(modules) > 20
    for module in modules:
        assert dir(module) == sorted(module.__all__), module
        assert all(hasattr(module, name) for name in module.__all__), module
