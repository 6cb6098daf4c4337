"""From "vary these fields over these values" to the runs of a sweep: their names and their configs, all checked."""

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from diffax import data
from experiments import cli
from experiments import recipe as recipes
from experiments import workdir as workdirs

__all__ = ["Variation", "arguments", "expand", "load", "place", "split"]


class Variation(NamedTuple):
    """A run of a sweep: the varied fields as they were written, all overrides (these and those of all runs), and what
    they make."""

    name: str
    varied: Mapping[str, str]
    overrides: Mapping[str, str]
    config: ml_collections.ConfigDict


def split(text: str) -> list[str]:
    """The values in a text: parted by ";" if it has one, else by commas outside of brackets and quotes."""
    separator, parts, depth = ";" if ";" in text else ",", [""], 0
    for token in re.findall(r"'[^']*'|\"[^\"]*\"|.", text, re.DOTALL):  # what is quoted is one token
        depth += (token in "([{") - (token in ")]}")
        if token == separator and (depth <= 0 or separator == ";"):
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts]


def expand(path: str, fixed: Mapping[str, str], vary: Iterable[str], seeds: int) -> list[Variation]:
    """The product of all values, the last field fastest.

    Args:
      path: the config's file.
      fixed: overrides of all runs.
      vary: texts such as "train.learning_rate=1e-3,3e-4".
      seeds: of every combination, counted from the config's seed.

    Raises: ValueError naming the flag and the value that is no field, of the wrong type, refused by what is built of
    it, or the same as another.
    """
    base = load(path, fixed)
    values: dict[str, list[str]] = {}
    for given in vary:
        field, equals, text = given.partition("=")
        field = field.strip().removeprefix("config.")
        flag = f"--vary = {given}"
        if not equals or not field:
            raise ValueError(f"{flag}: must be a field and its values, as in --vary train.learning_rate=1e-3,3e-4")
        if field in values or field in fixed:
            raise ValueError(f"{flag}: {field} is given twice; give all its values in one --vary")
        values[field] = split(text)
        if "" in values[field]:
            raise ValueError(f"{flag}: has an empty value; give values parted by commas, or by semicolons")
        seen: dict[str, str] = {}
        for value in values[field]:
            try:
                config = load(path, {**fixed, field: value})
            except cli.PARSE_ERRORS as error:
                raise ValueError(f"{flag}: {cli.explain(error)}") from error
            if (other := seen.setdefault(config.to_json(), value)) != value or values[field].count(value) > 1:
                raise ValueError(f"{flag}: {other} and {value} are the same")
    if seeds < 1:
        raise ValueError(f"--seeds = {seeds}: must be at least 1")
    if seeds > 1:
        if "seed" in values:
            raise ValueError(f"--seeds = {seeds}: seed is varied already; give one of the two")
        values["seed"] = [str(base.seed + i) for i in range(seeds)]
    if not values:
        raise ValueError("nothing varies: give --vary field=value,value or --seeds=3")

    combinations = [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]
    found = []
    datasets: dict[tuple[str, str], data.Dataset] = {}
    for name, varied in zip(_names(combinations), combinations, strict=True):
        overrides = {**fixed, **varied}
        config = load(path, overrides)
        try:
            recipes.check_counts(config)
            source = (config.data.name, config.data.dir)
            if source not in datasets:
                datasets[source] = workdirs.load_dataset(config, "train")
            rec = recipes.recipe(config, datasets[source])
            recipes.optimizer(config)
            with cli.field("config.sample."):
                recipes.sampler(rec, **config.sample)
        except (ValueError, TypeError) as error:
            raise ValueError(f"--vary = {', '.join(f'{k}={v}' for k, v in varied.items())}: {error}") from error
        found.append(Variation(name, varied, overrides, config))
    return found


def load(path: str, overrides: Mapping[str, str]) -> ml_collections.ConfigDict:
    """The config of a file with fields overridden by texts, as the train command reads it. Raises cli.PARSE_ERRORS."""
    values = flags.FlagValues()
    argv = ["sweep", *arguments(path, overrides)]
    flag = config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True, sys_argv=argv)
    values(argv)
    return flag.value


def arguments(path: str, overrides: Mapping[str, str]) -> list[str]:
    """The same as flags of the train command."""
    return [f"--config={path}", *(f"--config.{field}={value}" for field, value in overrides.items())]


def place(out: Path, variations: Sequence[Variation]) -> list[Path]:
    """The directory of each run: out/NAME, or where a run of the same config already is, under the name that it had
    before the grid was changed.

    Raises: ValueError if a run of another config is there.
    """
    configs = {}
    for path in sorted(out.glob("*/config.json")):
        if path.parent.name not in {variation.name for variation in variations}:
            configs[workdirs.read_config(path.parent).to_json(sort_keys=True)] = path.parent
    places = []
    for variation in variations:
        folder = out / variation.name
        if not folder.exists():
            plain = ml_collections.ConfigDict(workdirs.plain(variation.config))  # as JSON gives it back
            folder = configs.get(plain.to_json(sort_keys=True), folder)
        try:
            workdirs.check(folder, variation.config)
        except ValueError as error:
            raise ValueError(
                f"--out = {out}: {error}".replace("--workdir = ", "").replace("workdir", "--out")
            ) from None
        places.append(folder)
    return places


def _names(combinations: Sequence[Mapping[str, str]]) -> list[str]:
    """Readable, safe as file names, each once: "learning_rate=1e-3,schedule=laplace-scale-0.5"."""
    fields = list(combinations[0])
    last = [field.rpartition(".")[2] for field in fields]
    short = {field: end if last.count(end) == 1 else field for field, end in zip(fields, last, strict=True)}
    names = []
    for varied in combinations:
        safe = {short[f]: re.sub(r"[^\w.+-]+", "-", value, flags=re.ASCII).strip("-") for f, value in varied.items()}
        names.append(",".join(f"{field}={value}" for field, value in safe.items()))
    digests = [hashlib.sha256(repr(sorted(varied.items())).encode()).hexdigest()[:8] for varied in combinations]
    return [
        name if names.count(name) == 1 and len(name) <= 150 else f"{name[:140]},{digest}"
        for name, digest in zip(names, digests, strict=True)
    ]
