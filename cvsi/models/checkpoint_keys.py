"""A checkpoint's keys against those of the model: what is missing, unused or of another shape, in one line.

A library may fill a missing tensor with random numbers, and its warning is not seen. Rows computed from such a model
are random and would be stored permanently. Every loader of this package therefore compares keys and shapes itself. If
removing one prefix that all keys share (`module.`, `_orig_mod.`, ...) makes every key match, it is removed.
"""

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from cvsi.core.errors import CvsiError

Shape = tuple[int, ...]
NAMED = 3  # keys of each kind that an error names
LONGEST = 100  # characters of a key that an error prints


@dataclass(frozen=True)
class Difference:
    """Keys that the checkpoint lacks, keys that the model lacks, and shapes `(checkpoint's, model's)` that differ."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    shapes: tuple[tuple[str, Shape, Shape], ...] = ()

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.missing or self.unexpected or self.shapes)

    @property
    def size(self) -> int:
        """How many keys differ."""
        return len(self.missing) + len(self.unexpected) + len(self.shapes)

    def __str__(self) -> str:
        """The difference as the middle of an error's line."""
        parts = []
        if self.missing:
            parts.append(f"{_count(self.missing)} missing ({some(self.missing)})")
        if self.unexpected:
            parts.append(f"{_count(self.unexpected)} unknown to the model ({some(self.unexpected)})")
        if self.shapes:
            name, has, needs = self.shapes[0]
            more = "" if len(self.shapes) == 1 else f", and {len(self.shapes) - 1} more"
            parts.append(f"{name[:LONGEST]} has shape {_shape(has)}, the model needs {_shape(needs)}{more}")
        return "; ".join(parts)


def difference(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> Difference:
    """Compare the shapes that a model needs with those of a checkpoint, by key."""
    both = sorted(expected.keys() & found.keys())
    return Difference(
        tuple(sorted(expected.keys() - found.keys())),
        tuple(sorted(found.keys() - expected.keys())),
        tuple((name, found[name], expected[name]) for name in both if found[name] != expected[name]),
    )


def shared_prefixes(names: Collection[str], own: Collection[str] = ()) -> list[str]:
    """Prefixes that all names share, the shortest first: those that end in a dot, or leave one of the model's `own`."""
    if not names:
        return []
    shared, name = os.path.commonprefix(list(names)), min(names)
    ends = range(1, min(len(shared), len(name) - 1) + 1)
    return [name[:end] for end in ends if name[end - 1] == "." or name[end:] in own]


def removable_prefix(prefixes: Sequence[str], compare: Callable[[str], Difference]) -> tuple[str, Difference]:
    """The first of these prefixes whose removal makes every key match; empty: none is needed.

    `compare` gets a prefix and returns the difference without it. If none fits, the one that leaves the fewest
    differences and what it leaves.
    """
    whole = compare("")
    best = ("", whole)
    for prefix in prefixes if whole else ():
        left = compare(prefix)
        best = min(best, (prefix, left), key=lambda found: found[1].size)
        if not left:
            break
    return best


def without_prefix(source: str, expected: Mapping[str, Shape], found: Mapping[str, Shape], advice: str) -> str:
    """The prefix to remove from the checkpoint's keys, empty where none; raises CvsiError where keys differ.

    `source` names the file and `advice` says what to do about a checkpoint that does not fit.
    """

    def compare(prefix: str) -> Difference:
        return difference(expected, {name.removeprefix(prefix): shape for name, shape in found.items()})

    prefix, left = removable_prefix(shared_prefixes(found.keys(), expected.keys()), compare)
    if left:
        raise misfit(source, prefix, left, advice)
    return prefix


def misfit(source: str, prefix: str, left: Difference, advice: str) -> CvsiError:
    """The error for a checkpoint whose keys differ from the model's, without a prefix that all of them share."""
    also = f" (every key begins with '{prefix}'; without it)" if prefix else ""
    return CvsiError(f"{source}: the checkpoint does not fit its model{also}: {left}; {advice}")


def removal(source: str, prefix: str) -> str:
    """The message about a prefix that was removed."""
    return f"{source}: every key begins with '{prefix}'; loaded without it"


def pattern(prefix: str) -> dict[str, str]:
    """The removal of a prefix as transformers' `key_mapping`."""
    return {f"^{re.escape(prefix)}": ""} if prefix else {}


def some(names: Sequence[str]) -> str:
    """The first keys, for an error."""
    return ", ".join([name[:LONGEST] for name in names[:NAMED]] + ["..."] * (len(names) > NAMED))


def _count(names: Collection[str]) -> str:
    return "1 key is" if len(names) == 1 else f"{len(names):,} keys are"


def _shape(shape: Shape) -> str:
    return f"({', '.join(map(str, shape))})"
