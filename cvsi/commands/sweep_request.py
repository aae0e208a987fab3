"""A method's data with lists of numbers, from its name or a YAML file, to the points of a grid.

A number is named by its path in the method's data (`score.scale`), or by the end of that path where only one number
has it (`scale`).
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cvsi.core.console import count, info
from cvsi.core.errors import CvsiError
from cvsi.core.params import PATH, Params
from cvsi.evaluation import methods
from cvsi.evaluation.fusion import Fusion, dotted, lists_in, read_fusion
from cvsi.evaluation.fusion import Path as Keys

MOST = 20_000  # points of a grid
SUFFIXES = (".yaml", ".yml")
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")  # YAML 1.1 reads 1e-5 as a text
SIDES = ("query", "gallery", "unit", "mean", "from", "along", "toward", "to")  # keys of weights


@dataclass(frozen=True)
class Request:
    """The points of a method's grid: `table` [points, numbers] has what each of `keys` is there.

    `names` has the method's name at the point with its own numbers, where it has any, else it is empty. `fusions` are
    the points as fusions. `block` is the method's data; what stands at `keys` there is not used. `lists` are the values
    on the grid, by key.
    """

    method: str
    block: Mapping[str, Any]
    keys: tuple[Keys, ...]
    lists: tuple[tuple[float, ...], ...]
    table: np.ndarray
    names: tuple[str, ...]
    fusions: tuple[Fusion, ...]

    @property
    def own(self) -> int | None:
        """The point with the method's own numbers."""
        return self.names.index(self.method) if self.method in self.names else None


@dataclass(frozen=True)
class Numbers:
    """The numbers of a grid as `Sweep` takes them: their names, and a row of them in words and as a block `fusion`."""

    block: Mapping[str, Any]
    keys: tuple[Keys, ...]

    @property
    def names(self) -> list[str]:
        """Their paths, as columns of a table."""
        return [dotted(keys) for keys in self.keys]

    @property
    def short(self) -> list[str]:
        """The shortest end of each path that no other one has."""
        ends = []
        for name, keys in zip(self.names, self.keys, strict=True):
            candidates = [dotted(keys[-size:]) for size in range(1, len(keys) + 1)]
            alone = (end for end in candidates if [name] == [one for one in self.names if ends_with(one, end)])
            ends.append(next(alone, name))
        return ends

    def form_of(self, row: Mapping[str, float]) -> dict[str, Any]:
        """A row as a block `fusion` of params.yaml."""
        return with_numbers(self.block, self.keys, [row[name] for name in self.names])

    def words(self, row: Mapping[str, float]) -> str:
        """A row in words: `scale 2, margin 0.1`."""
        return ", ".join(f"{end} {row[name]:g}" for name, end in zip(self.names, self.short, strict=True))


def request(params: Params, dataset: str, method: str, settings: Sequence[str]) -> Request:
    """The grid of a method, a name or a file, with the numbers of `settings` (`KEY=VALUES`) in place of its own.

    Raises CvsiError with one line for an unknown method or number, for what is no list of numbers, for a grid that is
    too large and for numbers that the method does not take.
    """
    try:
        return _request(*read_block(params, dataset, method), method, settings)
    except RecursionError:
        raise CvsiError(f"{method}: nested too deeply for a method") from None


def _request(name: str, block: dict[str, Any], method: str, settings: Sequence[str]) -> Request:
    before = deepcopy(block)
    for setting in settings:
        keys, values = parsed(block, name, setting)
        _put(block, keys, values)
    found = lists_in(block)
    if not found:
        numbers = ", ".join(dotted(keys) for keys in numbers_in(block))
        raise CvsiError(
            f"--method {method}: no number is a list, so there is nothing to search; vary one with "
            f"--set KEY=VALUE,VALUE, with KEY one of: {numbers}"
        )
    lists = tuple(_numbers(f"{name}.{dotted(keys)}", values) for keys, values in found.items())
    size = math.prod(len(values) for values in lists)
    if size > MOST:
        raise CvsiError(f"{name}: {size:,} points of {len(lists)} lists, more than {MOST:,}; shorten a list")
    paths = tuple(found)
    rows: dict[tuple[float, ...], str] = dict.fromkeys(product(*lists), "")
    _fusion(name, block, paths, next(iter(rows)))  # the paths exist
    if not lists_in(before):
        rows[tuple(_get(before, path) for path in paths)] = name
    return _resolved(name, block, paths, lists, rows)


def read_block(params: Params, dataset: str, method: str) -> tuple[str, dict[str, Any]]:
    """The name of a method and its data, numbers or lists, with the constants of the dataset's format.

    `method` is a name of the dataset's table (empty: its own) or a YAML file, which has a method's data, or one entry
    `NAME: {data}`, also below `methods`. Raises CvsiError for a file or a name that does not exist or is no method.
    """
    method = method or methods.own_name(params, dataset)
    if not method.endswith(SUFFIXES):
        try:
            return method, deepcopy(methods.block_of(params, dataset, method))
        except CvsiError as error:
            raise CvsiError(f"--method: {_plain(error)}") from None
    name, block = _read_file(Path(method))
    try:
        return name, methods.for_format(block, params.dataset(dataset).format, name)
    except CvsiError as error:
        raise CvsiError(f"{method}: {_plain(error)}") from None


def parsed(block: Mapping[str, Any], name: str, setting: str) -> tuple[Keys, Any]:
    """The path and the value of a setting `KEY=VALUES`; raises CvsiError for an unknown key and for no values."""
    key, sign, text = (part.strip() for part in setting.partition("="))
    if not sign or not key:
        raise CvsiError(f"--set {setting[:80]}: write KEY=VALUE,VALUE, as score.scale=1,2,4")
    try:
        values = yaml.safe_load(text if text.startswith("[") else f"[{text}]")
    except (yaml.YAMLError, RecursionError):
        values = None
    if not isinstance(values, list):
        raise CvsiError(f"--set {setting[:80]}: the values must be numbers with commas between them, as 1,2,4")
    known = {dotted(keys): keys for keys in numbers_in(block)}
    matching = [one for one in known if one == key] or [one for one in known if ends_with(one, key)]
    if len(matching) == 1:
        return known[matching[0]], values
    if matching:
        raise CvsiError(f"--set {key}: {name} has {', '.join(matching)}; write one of them in full")
    parent, _, column = key.rpartition(".")
    weights = [path for path in dict.fromkeys(keys[:-1] for keys in known.values()) if path and path[-1] in SIDES]
    without = [path for path in weights if parent and dotted(path) == parent]
    without = without or [path for path in weights if parent and ends_with(dotted(path), parent)]
    if len(without) == 1 and column:
        return (*without[0], column), values  # a column that has no weight yet
    if without:
        names = ", ".join(f"{dotted(path)}.{column}" for path in without)
        raise CvsiError(f"--set {key}: {name} has several such places: {names}; write one of them in full")
    raise CvsiError(f"--set {key[:80]}: {name} has no such number; there are: {', '.join(known) or 'none'}")


def numbers_in(block: Mapping[str, Any]) -> Iterator[Keys]:
    """The paths of all numbers of a block and of all lists, and of pairs as a whole."""
    lists = lists_in(block)

    def walk(value: Any, path: Keys) -> Iterator[Keys]:
        if path in lists or _is_number(value):
            yield path
        elif isinstance(value, Mapping | list):
            if isinstance(value, list):
                yield path
            for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
                yield from walk(inner, (*path, key))

    yield from walk(block, ())


def with_numbers(block: Mapping[str, Any], keys: Sequence[Keys], numbers: Sequence[float]) -> dict[str, Any]:
    """A copy of a block with these numbers at these paths."""
    changed: dict[str, Any] = deepcopy(dict(block))
    for path, number in zip(keys, numbers, strict=True):
        _put(changed, path, number)
    return changed


def ends_with(name: str, end: str) -> bool:
    """Whether a dotted path ends with another one."""
    return f".{name}".endswith(f".{end}")


def _resolved(
    name: str, block: Mapping[str, Any], keys: tuple[Keys, ...], lists: tuple[tuple[float, ...], ...],
    rows: Mapping[tuple[float, ...], str],
) -> Request:  # fmt: skip
    """The request of these rows; those without any weight in a form are left out with a message."""
    fusions: dict[tuple[float, ...], Fusion] = {}
    for row in rows:
        fusion = _fusion(name, block, keys, row)
        if all(form.query and form.gallery for form in fusion.forms.values()):
            fusions[row] = fusion
    grid = set(product(*lists))
    if not grid & set(fusions):
        raise CvsiError(f"{name}: all weights of a form are zero at every point; give it a weight")
    if len(fusions) < len(rows):
        info(f"{count(len(rows) - len(fusions), 'point')} left out, at which all weights of a form are zero")
    names = tuple(rows[row] for row in fusions)
    return Request(name, block, keys, lists, np.array(list(fusions)), names, tuple(fusions.values()))


def _fusion(name: str, block: Mapping[str, Any], keys: Sequence[Keys], row: Sequence[float]) -> Fusion:
    try:
        return read_fusion(with_numbers(block, keys, row), name)
    except CvsiError as error:
        raise CvsiError(_plain(error)) from None


def _numbers(where: str, values: Sequence[Any]) -> tuple[float, ...]:
    """A list of different finite numbers."""
    if not values:
        raise CvsiError(f"{where}: the list is empty; give it at least one number")
    numbers = []
    for value in values:
        if isinstance(value, str) and NUMBER.fullmatch(value):
            value = float(value)
        if not _is_number(value) or not math.isfinite(value):
            raise CvsiError(f"{where}: {repr(value)[:80]} is not a finite number")
        numbers.append(float(value))
    twice = [number for number in numbers if numbers.count(number) > 1] if len(set(numbers)) < len(numbers) else []
    if twice:
        raise CvsiError(f"{where}: {twice[0]:g} is in the list twice; remove one")
    return tuple(numbers)


def _read_file(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        block = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CvsiError(f"{path}: no such file; --method takes a method's name or a YAML file") from None
    except OSError as error:
        raise CvsiError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CvsiError(f"{path}: not YAML ({' '.join(str(error).split())[:120]})") from None
    name = path.stem
    for _ in range(2):  # `methods: {NAME: {...}}` or `NAME: {...}`
        if isinstance(block, dict) and len(block) == 1 and not {"query", "forms", "parts"} & set(block):
            ((key, inner),) = block.items()
            name, block = (str(key) if key != "methods" else name), inner
    if not isinstance(block, dict) or not block or not all(isinstance(key, str) for key in block):
        raise CvsiError(f"{path}: must have the data of one method: query and gallery, or forms and score")
    return name, block


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _get(block: Any, path: Keys) -> float:
    """The number at a path; 0 for a weight that is not there."""
    for key in path[:-1]:
        block = block[key]
    missing = isinstance(block, Mapping) and path[-1] not in block
    return 0.0 if missing else float(block[path[-1]])


def _put(block: Any, path: Keys, value: Any) -> None:
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value


def _plain(error: CvsiError) -> str:
    """The line of an error about data that params.yaml does not have."""
    return str(error).removeprefix(f"{PATH}: ").removeprefix("methods.")
