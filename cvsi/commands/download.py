"""The command `cvsi check --download`: the models that the active datasets and runs need, from a hub to its cache.

What is asked for, what the hub answers, and where it lies are printed; a model that cannot be had is one line, and the
others are still downloaded.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cvsi.commands import requirements
from cvsi.core.console import Meter, count, info, warn
from cvsi.core.errors import CvsiError
from cvsi.core.params import PATH, Params
from cvsi.core.yaml_edit import Document
from cvsi.models import catalogue
from cvsi.models.clip_checkpoint import hub_file
from cvsi.models.encoder import kind_of
from cvsi.models.hub import HubError, HubFile, Listing, address, listing
from cvsi.models.hub_cache import Snapshot, one_line
from cvsi.models.hub_files import INDEX, INDEX_BYTES, one_file, small_files, weights
from cvsi.models.model_id import is_hub_name

MEGABYTE = 1_000_000
UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


@dataclass(frozen=True)
class Wanted:
    """A repository to download: for what, at which revision, the one file of it, and the keys with its revision."""

    noun: str
    repository: str
    revision: str | None
    file: str | None = None
    keys: tuple[str, ...] = ()

    @property
    def cached(self) -> bool:
        """Whether its weights are in the hub's cache."""
        names = (self.file,) if self.file else requirements.MODEL_FILES
        return requirements.in_hub_cache(self.repository, self.revision, names)


@dataclass(frozen=True)
class Plan:
    """What to download of one repository; the files are in the order of downloading, weights last."""

    wanted: Wanted
    snapshot: Snapshot
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def download(params: Params) -> int:
    """Download what the active datasets and runs need; how many models could not be had, each named in a line.

    Raises CvsiError where none can be had: no network, no space, a cache that cannot be written.
    """
    from huggingface_hub import constants

    failures: list[str] = []
    models = list(wanted(params, failures))
    for line in _elsewhere(params):
        info(line)
    if constants.HF_HUB_OFFLINE:
        _offline(models)
        return len(failures)
    cache = Path(constants.HF_HUB_CACHE)
    with one_line(cache):
        return _from_hub(models, cache, failures)


def _from_hub(models: list[Wanted], cache: Path, failures: list[str]) -> int:
    """Ask for all models, say how much there is to download, download it, and report each; how many failed."""
    plans = list[Plan]()
    for model in models:
        with _kept(failures):
            plans.append(_plan(model, cache))
    if not plans:
        if not failures:
            info("nothing to download: no model of these datasets and runs comes from a hub")
        return len(failures)
    done, meter = list[Plan](), _Bytes()
    with meter.of(_announce(plans, cache)):
        for plan in plans:
            with _kept(failures):
                _fetch(plan, meter)
                done.append(plan)
    for plan in done:
        _report(plan)
    return len(failures)


def wanted(params: Params, failures: list[str]) -> Iterator[Wanted]:
    """The hub repositories that datasets and runs need, each once; lines about wrong ones are in `failures`."""
    document = Document(PATH.read_text(encoding="utf-8"), str(PATH))
    found = dict[tuple[str, str | None, str | None], Wanted]()

    def add(model: Wanted, block: str) -> None:
        key = (model.repository, model.revision, model.file)
        named = document.has(f"{block}.model")  # else the model is its engine's default
        home = document.home(f"{block}.model").rpartition(".")[0] if named else block
        known = found.setdefault(key, model)
        found[key] = replace(known, keys=tuple(dict.fromkeys((*known.keys, f"{home}.revision"))))

    for name in params.used_datasets:
        # The editor also of a dataset without queries: a search with an image and a text needs it.
        for noun, needs in requirements.engines(name, params.dataset(name)):
            for model in needs.models:
                if not Path(model.name).exists() and is_hub_name(model.name):
                    add(Wanted(noun, model.name, model.revision), f"datasets.{name}.{noun}")
    for name in params.used_backbones:
        backbone = params.backbone(name)
        if models := kind_of(backbone, f"backbones.{name}").models(backbone):
            for model in models:
                if not Path(model.name).exists() and is_hub_name(model.name):
                    add(Wanted("backbone", model.name, model.revision), f"backbones.{name}")
            continue
        try:
            place = hub_file(backbone)
        except CvsiError as error:
            failures.append(str(error))
            warn(failures[-1])
            continue
        if place:
            add(Wanted("backbone", place[0], backbone.revision, place[1]), f"backbones.{name}")
    yield from found.values()


def _elsewhere(params: Params) -> Iterator[str]:
    """A line for each thing that is missing and that no hub has."""
    for name in params.used_backbones:
        phi = params.backbone(name).phi
        if phi is not None and not Path(phi).is_file():
            yield f"phi {phi} is not downloaded, no address of it is known: {catalogue.of_phi(phi).get}"


def _offline(models: list[Wanted]) -> None:
    """Raise CvsiError where something would have to be downloaded; else say that nothing was compared."""
    missing = [model.repository for model in models if not model.cached]
    if missing:
        raise CvsiError(
            f"HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, and {', '.join(missing)} must be downloaded; unset it, or "
            "copy the hub's cache from another machine"
        )
    info(f"HF_HUB_OFFLINE is set: {count(len(models), 'model')} found in the hub's cache, not compared with the hub")


@contextmanager
def _kept(failures: list[str]) -> Iterator[None]:
    """Say at once why this one model cannot be had, and go on with the next."""
    try:
        yield
    except HubError as error:
        failures.append(str(error))
        warn(failures[-1])


def _plan(model: Wanted, cache: Path) -> Plan:
    """Ask the hub for a repository's files and choose from them, for which an index of weights is downloaded."""
    found = listing(model.repository, model.revision)
    snapshot = Snapshot(found, cache)
    if model.file:
        return Plan(model, snapshot, tuple(one_file(found, model.file)))
    index = _index(found, snapshot)
    large = weights(found, index)
    small = [file for file in small_files(found) if file not in large]
    return Plan(model, snapshot, (*small, *large))


def _index(found: Listing, snapshot: Snapshot) -> bytes | None:
    """The content of a repository's index of sharded weights; None without one."""
    if INDEX not in found:
        return None
    file = found.file(INDEX)
    if file.size > INDEX_BYTES:
        raise HubError(f"{found.repository}: {INDEX} has {words(file.size)}, too much for an index; not downloaded")
    if not snapshot.verified(file):
        snapshot.fetch(file, lambda number: None)
    return snapshot.pointer(file).read_bytes()


def _announce(plans: list[Plan], cache: Path) -> int:
    """Say how much is to be downloaded, and how many bytes; raises CvsiError where the disk has too little space."""
    size = sum(plan.size for plan in plans)
    todo = size - sum(plan.snapshot.arrived(file) for plan in plans for file in plan.files)
    there = f"; {words(size - todo)} are there and are verified" if size > todo else ""
    info(f"to download: {words(todo)} of {words(size)} from {address()} into {cache}{there}")
    place = cache
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if todo > free:
        raise CvsiError(
            f"{cache}: {words(todo)} are to be downloaded, but {words(free)} are free; free space, or set "
            "HF_HUB_CACHE to a folder on a larger disk"
        )
    return todo


def _fetch(plan: Plan, meter: "_Bytes") -> None:
    """Download a repository's missing files; all are verified, also those that were there."""
    for file in plan.files:
        known = plan.snapshot.here(file) is not None
        if plan.snapshot.verified(file):
            continue
        if known:
            warn(f"{plan.wanted.repository}: {file.name} in the cache is damaged (another digest); downloaded again")
        plan.snapshot.fetch(file, meter.add)
    plan.snapshot.finish()


def _report(plan: Plan) -> None:
    """What came of a repository, and how to pin it where it is not."""
    model, found = plan.wanted, plan.snapshot.listing
    wanted = f"revision {found.revision} asked" if found.revision else "no revision asked"
    got = f"{wanted} and got" if found.revision == found.commit else f"{wanted}, {found.commit} got"
    info(f"{model.noun} {model.repository}: {got}")
    info(f"  {count(len(plan.files), 'file')}, {words(plan.size)}, verified, in {plan.snapshot.path}")
    if found.revision != found.commit:
        for key in model.keys:
            info(f"  to pin it: cvsi set {key} {found.commit}")


def words(size: int) -> str:
    """A number of bytes for people: `15.2 GB`, `512 bytes`."""
    for unit, name in UNITS:
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return count(size, "byte")


class _Bytes:
    """Counts bytes into a meter of megabytes."""

    def __init__(self) -> None:
        self.bytes, self.meter = 0, Meter(0, "MB")

    def of(self, total: int) -> Meter:
        """The meter of so many bytes, to be entered."""
        self.meter = Meter(-(-total // MEGABYTE), "MB")
        return self.meter

    def add(self, number: int) -> None:
        """Count bytes that arrived, or that were discarded."""
        before, self.bytes = self.bytes // MEGABYTE, self.bytes + number
        self.meter.advance(self.bytes // MEGABYTE - before)
