"""Where the time of a test run goes, and that it does not grow unseen: a pytest plugin.

Each test reports its seconds, those of the CPU, of its subprocesses, and what JAX spent on tracing and compiling. After
the run the ten slowest tests are named. `--by-file` says the same of each file. With `--cpu-minutes=N` a run fails that
costs more than N minutes of CPU a worker, subprocesses included.
"""

import collections
import os

import jax
import pytest

_KINDS = ("wall", "cpu", "children", "trace", "compile")
_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "trace",
    "/jax/core/compile/backend_compile_duration": "compile",
}
_jax = collections.Counter()
_start = {}
_by_test = collections.defaultdict(collections.Counter)
_workers = []


@jax.monitoring.register_event_duration_secs_listener
def _heard(event, seconds, **_):
    if event in _EVENTS:
        _jax[_EVENTS[event]] += seconds


def _now():
    t = os.times()
    cpu, children = t.user + t.system, t.children_user + t.children_system
    return dict(zip(_KINDS, (t.elapsed, cpu, children, _jax["trace"], _jax["compile"]), strict=True))


def pytest_addoption(parser):
    parser.addoption("--by-file", action="store_true", help="where the time went, file by file")
    parser.addoption("--cpu-minutes", type=float, help="fail if a worker needs more minutes of CPU on average")


def pytest_runtest_logstart():
    _start.update(_now())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Setup, call and teardown each report what they cost, also from the workers of xdist."""
    report = yield
    now = _now()
    report.cost = {kind: now[kind] - _start.get(kind, now[kind]) for kind in _KINDS}
    _start.update(now)
    return report


def pytest_runtest_logreport(report):
    _by_test[report.nodeid].update(getattr(report, "cost", {}))  # one whose worker died has none


def pytest_sessionfinish(session):
    """A worker's whole process: what it imported, and the tests."""
    cost = sum(os.times()[:4])
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["cpu"] = cost
    elif not _workers:
        _workers.append(cost)
    budget = session.config.option.cpu_minutes
    if budget is not None and not hasattr(session.config, "workeroutput") and _minutes() > budget:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    if "cpu" in getattr(node, "workeroutput", {}):
        _workers.append(node.workeroutput["cpu"])


def _minutes():
    """Of CPU, of a worker on average."""
    return sum(_workers) / len(_workers) / 60


def pytest_terminal_summary(terminalreporter, config):
    write, budget = terminalreporter.write_line, config.option.cpu_minutes
    if config.option.by_file:
        files = collections.defaultdict(collections.Counter)
        for name, cost in _by_test.items():
            for row in (name.split("::")[0], "all"):
                files[row].update({**cost, "tests": 1})
        write("  wall   cpu  children  trace  compile  tests  (seconds)")
        row = "{wall:6.1f} {cpu:6.1f} {children:8.1f} {trace:6.1f} {compile:8.1f} {tests:6d}  "
        for name, cost in sorted(files.items(), key=lambda file: -file[1]["wall"]):
            write(row.format(**cost) + name)
    if len(_by_test) > 100:
        slowest = sorted(_by_test, key=lambda name: -_by_test[name]["wall"])[:10]
        named = (f"{name.removeprefix('tests/')} {_by_test[name]['wall']:.0f} s" for name in slowest)
        write(f"slowest: {', '.join(named)}")
        write(f"{_minutes():.1f} minutes of CPU a worker, {len(_workers)} workers")
    if budget is not None and _minutes() > budget:
        write(f"more than the {budget} minutes of CPU a worker may need: share what is compiled or trained", red=True)
