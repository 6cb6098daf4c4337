"""Solvers against each other and against other libraries, at equal numbers of evaluations (NFE) of exact denoisers.

    python -m experiments.bench_solvers --out bench/                            # diffax alone
    python -m experiments.bench_solvers --out bench/ --peers bench/peers.json   # beside others, after make bench-peers

writes solvers.json with the best choices of each cell, solvers.png and solvers.html; cells/ keeps all that is measured,
so a run that was stopped goes on where it was (remove it to measure anew). With --auto and --fit grids and coefficients
are found for each target. With --guided solvers are compared under classifier-free guidance instead, and guided.json
and guided.png are written.
Targets, references and errors are described in `experiments/bench/targets.py`, diffax's solvers and grids are listed in
`experiments/bench/ours.py`, those of k-diffusion, diffusers and azula, which run in an environment of their own, in
`experiments/bench/libraries.py`. The references take about ten minutes to compute, once. In a notebook:

    from experiments.bench_solvers import measure
    errors = measure("digits", [10, 20])     # {nfe: {"solver/grid": {"mean": ..., "median": ...}}}
"""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from absl import flags
from tqdm import tqdm

from diffax.training.summary import environment, read_json, write_json
from experiments import cli
from experiments.bench import guided, ours, report, targets
from experiments.bench.targets import Target

__all__ = ["measure"]

OUT = flags.DEFINE_string("out", "bench", "The folder to write to.")
TARGETS = flags.DEFINE_list("targets", list(targets.NAMES), "Which distributions to sample.")
NFE = flags.DEFINE_list("nfe", "5,6,8,10,12,15,20,25,35,50", "Numbers of evaluations.")
SEEDS = flags.DEFINE_integer("seeds", None, "At most so many starts a target; all by default.")
SAMPLES = flags.DEFINE_integer("samples", 2048, "Samples by which stochastic solvers are judged; 0 to leave them out.")
WORKDIR = flags.DEFINE_string("workdir", None, "Also sample the network of this training run.")
PEERS = flags.DEFINE_string("peers", None, "What experiments.bench.peers wrote.")
PROBLEMS = flags.DEFINE_string(
    "problems", None, "Write the targets to this folder, for experiments.bench.peers; no more."
)
AUTO = flags.DEFINE_bool("auto", False, "Also find an automatic grid for each target and NFE.")
GUIDED = flags.DEFINE_bool("guided", False, "Compare solvers under classifier-free guidance, and no more.")
FIT = flags.DEFINE_list("fit", [], "NFE for which to fit grids and solvers to each target, such as --fit=6,10,20.")
SPEED = flags.DEFINE_integer("speed", 0, "Rounds of timing the loop; 0 for none. Wants an idle machine.")


def measure(name: str, nfe: Iterable[int], progress: Callable = iter) -> dict[str, dict[str, dict[str, float]]]:
    """Errors of all of diffax's solvers on all grids, on a target of `experiments.bench.targets`."""
    target = targets.load(name)
    end = target.end()
    return {str(n): ours.errors(target, end, n) for n in progress(list(nfe))}


def main() -> None:
    if GUIDED.value:
        _guided(Path(OUT.value))
        return
    budgets = _budgets("nfe", NFE.value)
    fit = _budgets("fit", FIT.value) if FIT.value else []
    fits = {name: (budgets if AUTO.value else []) if name == "default/auto" else fit for name in ours.FITTED}
    for name, value, least in (("seeds", SEEDS.value, 1), ("samples", SAMPLES.value, 0), ("speed", SPEED.value, 0)):
        if value is not None and value < least:
            raise ValueError(f"--{name} = {value}: must be at least {least}")
    chosen = [_fewer(target, SEEDS.value) for target in _targets(TARGETS.value, WORKDIR.value)]
    peers = read_json(PEERS.value) if PEERS.value else None
    if peers is not None:
        _same_seeds(peers, chosen)
    out = Path(PROBLEMS.value or OUT.value)
    out.mkdir(parents=True, exist_ok=True)

    ends = {target.name: target.end(_bar(f"{target.name}: reference")) for target in chosen}
    if PROBLEMS.value:
        for target in chosen:
            if target.mixture is not None:
                targets.save(out / f"{target.name}.npz", target, ends[target.name])
        print(f"problems: {out}")
        return

    result: dict[str, Any] = {"targets": {target.name: target.title for target in chosen}}
    result["seeds"] = {target.name: target.seeds for target in chosen}
    kept = functools.partial(_kept, out / "cells")
    errors: dict[str, Any] = {"diffax": {}, "fitted": {}}
    for t in chosen:
        count, end = t.seeds, ends[t.name]
        errors["diffax"][t.name] = {
            str(n): kept(f"{t.name}-{count}-{n}-{ours.LISTED}", ours.errors, t, end, n) for n in _bar(t.name)(budgets)
        }
        found: dict[str, Any] = {}
        for name, nfe in _bar(f"{t.name}: fit")([(name, n) for name, budget in fits.items() for n in budget]):
            cell = kept(f"{t.name}-{count}-{nfe}-{name}", ours.fitted, t, end, nfe, name)
            found.setdefault(str(nfe), {}).update(cell)
        errors["fitted"][t.name] = found
    if peers is not None:
        errors["peers"] = {name: table for name, table in peers["errors"].items() if name in result["targets"]}
        result["peers_versions"], result["peers_failures"] = peers.get("versions", {}), peers.get("failures", {})
    result["errors"] = errors
    if SAMPLES.value:
        result["wasserstein"] = {
            t.name: {
                str(n): kept(f"{t.name}-{SAMPLES.value}-samples-{n}", ours.wasserstein, t, SAMPLES.value, n)
                for n in _bar(f"{t.name}: samples")(budgets)
            }
            for t in chosen
            if t.mixture is not None
        }
    if SPEED.value:
        result["speed"] = {"diffax": ours.timings(SPEED.value)} | (
            {"peers": peers["speed"]} if peers and "speed" in peers else {}
        )
    result["environment"] = environment()
    picture = report.plot(result)
    (out / "solvers.png").write_bytes(picture)
    (out / "solvers.html").write_text(report.page(result, picture))
    said: dict[str, Any] = {"summary": report.summary(errors)}
    said |= {f"single_choices_{side}": dict(report.fixed_choices(errors, side)[:15]) for side in ("diffax", "peers")}
    write_json(out / "solvers.json", said | result | {"errors": report.digest(errors)})
    print("\n".join(said["summary"]))
    print(f"{out / 'solvers.json'}, {out / 'solvers.png'}, {out / 'solvers.html'}")


def _guided(out: Path) -> None:
    cells: guided.Cells = {}
    for name, scale in _bar("guided")([(name, scale) for name in guided.NAMES for scale in guided.SCALES]):
        target = guided.load(name, scale)
        end = target.end(_bar(f"{target.name}: reference"))
        cells.setdefault(name, {})[str(scale)] = {
            str(n): _kept(
                out / "cells", f"guided-{target.name}-{target.made_of[:8]}-{n}", guided.errors, target, end, n
            )
            for n in guided.NFE
        }
    titles = {name: guided.load(name, 1.0).title for name in cells}
    result = {"summary": guided.summary(cells), "median": guided.summary(cells, "median"), "targets": titles}
    write_json(out / "guided.json", result | {"errors": report.rounded(cells), "environment": environment()})
    (out / "guided.png").write_bytes(guided.plot(cells))
    for solver, row in result["summary"].items():
        each = "  ".join(f"{scale}: {ratio:.2f}" for scale, ratio in row["mean"].items())
        print(f"{solver:20s} {each}  greatest {row['greatest']:.2f}  within 1.2: {row['within']} of {row['of']}")
    print(f"{out / 'guided.json'}, {out / 'guided.png'}")


def _kept(folder: Path, name: str, compute: Callable, *arguments: Any) -> Any:
    """What compute(*arguments) gives, from the file of that name if an earlier run left it."""
    path = folder / f"{name.replace('/', '-').replace(' ', '-')}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, compute(*arguments))
        jax.clear_caches()  # hundreds of small programs a cell: thousands in one process are more than XLA survives
    return read_json(path)


def _budgets(flag: str, values: list[str]) -> list[int]:
    if not values or not all(v.isdecimal() and 1 <= int(v) <= 1000 for v in values):
        raise ValueError(f"--{flag} = {','.join(values)}: must be integers from 1 to 1000, such as --{flag}=5,10,20")
    return sorted({int(v) for v in values})


def _targets(names: list[str], workdir: str | None) -> list[Target]:
    if unknown := [name for name in names if name not in targets.NAMES]:
        raise ValueError(f"--targets = {','.join(unknown)}: must be some of {', '.join(targets.NAMES)}")
    found = [targets.load(name) for name in dict.fromkeys(names)]
    if workdir is not None:
        from experiments.bench import networks

        found.append(networks.from_workdir(Path(workdir)))
    if not found:
        raise ValueError(f"--targets is empty: give some of {', '.join(targets.NAMES)}, or a --workdir")
    return found


def _fewer(target: Target, seeds: int | None) -> Target:
    return target if seeds is None else target._replace(seeds=min(seeds, target.seeds))


def _same_seeds(peers: dict[str, Any], chosen: list[Target]) -> None:
    """Errors may only be compared where both sides started from the same noise."""
    if "errors" not in peers or "seeds" not in peers:
        raise ValueError(f"--peers = {PEERS.value}: was not written by experiments.bench.peers")
    for target in chosen:
        theirs = peers["seeds"].get(target.name, target.seeds)
        if theirs != target.seeds:
            raise ValueError(
                f"--peers = {PEERS.value}: holds {theirs} starts of {target.name}, not {target.seeds}; "
                "give the same --seeds to both"
            )


def _bar(title: str) -> Callable:
    return lambda items: tqdm(items, desc=title, unit="", leave=False)


if __name__ == "__main__":
    cli.run(main)
