"""Named implementations of one extension point: built-in ones by module, further ones by entry point or by a call.

Every extension point (formats, engines, components, score forms, executors) is one `Registry`. A name of `params.yaml`
is looked up here and nowhere else, so no other code compares such names. Built-in implementations are imported when
they are first needed. Another package adds one in its own metadata, under the registry's group of entry points:

    [project.entry-points."cvsi.formats"]
    toy = "toy_format:FORMAT"
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Generic, TypeVar

from cvsi.core.errors import CvsiError, cause

T = TypeVar("T")


class Registry(Generic[T]):
    """The implementations of one extension point by name."""

    def __init__(self, noun: str, group: str, builtin: Mapping[str, str]) -> None:
        """`noun` is used in messages; `builtin` maps names to `module:attribute`; `group` is that of entry points."""
        self.noun, self.group = noun, group
        self._builtin, self._registered = dict(builtin), dict[str, T]()

    def register(self, name: str, value: T) -> None:
        """Add an implementation in this process; raises CvsiError for a name that is taken."""
        if name in self.names():
            raise CvsiError(f"{self.noun} '{name}' is defined twice; rename one of them")
        self._registered[name] = value

    @contextmanager
    def using(self, name: str, value: T) -> Iterator[None]:
        """Use this implementation of a name, new or not, within the block; for tests and benchmarks."""
        before = dict(self._registered)
        self._registered[name] = value
        try:
            yield
        finally:
            self._registered = before

    def names(self) -> list[str]:
        """All names: built-in ones first, in their order."""
        return list(dict.fromkeys([*self._builtin, *self._registered, *self._entry_points()]))

    def get(self, name: str, where: str) -> T:
        """The implementation of a name; raises CvsiError that begins with `where` and lists the names there are."""
        if not isinstance(name, str):  # params.yaml may have anything there
            raise self._unknown(name, where)
        if name in self._registered:
            return self._registered[name]
        points = self._entry_points()
        if name in self._builtin:
            point = metadata.EntryPoint(name, self._builtin[name], self.group)
        elif name in points:
            point = points[name]
        else:
            raise self._unknown(name, where)
        try:
            value: T = point.load()
        except (ImportError, AttributeError) as error:
            if name in self._builtin:
                raise
            raise CvsiError(f"{where}: {self.noun} '{name}' ({point.value}) does not load: {cause(error)}") from None
        self._registered[name] = value
        return value

    def __iter__(self) -> Iterator[tuple[str, T]]:
        """Every name with its implementation, loaded."""
        return ((name, self.get(name, self.group)) for name in self.names())

    def _unknown(self, name: object, where: str) -> CvsiError:
        return CvsiError(f"{where}: unknown {self.noun} '{str(name)[:80]}'; there are: {', '.join(self.names())}")

    def _entry_points(self) -> dict[str, metadata.EntryPoint]:
        """The entry points of installed packages; raises CvsiError for a name that is defined twice."""
        points: dict[str, metadata.EntryPoint] = {}
        for point in metadata.entry_points(group=self.group):
            if point.name in self._builtin or points.setdefault(point.name, point).value != point.value:
                raise CvsiError(f"{self.noun} '{point.name}' is defined twice; rename one of them ({point.value})")
        return points
