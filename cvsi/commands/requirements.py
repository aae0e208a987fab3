"""params.yaml and the disk to what is missing: files, weights, packages and servers, each once, with where to get it.

Nothing is loaded or downloaded: hub models are looked up in the hub's cache, folders and files at their paths. The
terms of use of everything named are collected too.
"""

import json
import socket
from collections.abc import Iterator, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigError
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import polars as pl

from cvsi.core import paths
from cvsi.core.console import count
from cvsi.core.errors import CvsiError
from cvsi.core.params import Backbone, Dataset, Params
from cvsi.datasets.base import Listing
from cvsi.datasets.faults import absent_images, faults, links_outside, roots_advice
from cvsi.datasets.files import stat_files
from cvsi.datasets.index import read_listing
from cvsi.datasets.roots import roots_of
from cvsi.datasets.walk import skipped_lines
from cvsi.models import catalogue
from cvsi.models.captioner_family import CONFIG, FAMILIES, refusal_of_file
from cvsi.models.clip_checkpoint import FOLDER, PICKLE, hub_file
from cvsi.models.encoder import kind_of
from cvsi.models.engines import (
    Model,
    Requirements,
    captioner_engine,
    captioner_of,
    editor_engine,
    editor_of,
    judge_engine,
    judge_of,
    reader_engine,
    reader_of,
)
from cvsi.models.model_id import is_hub_name, recorded
from cvsi.store.rows import Store

WEIGHTS = (".safetensors", ".bin")
MODEL_FILES = (
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin"
)  # fmt: skip
CONNECT_SECONDS = 1.0


@dataclass
class Inventory:
    """What is missing and where to get it, notes, which terms of use apply to what, and the listings that were read.

    `present` are a listing's files on disk, by dataset, with their size and time. `downloads` are the missing models of
    the hub by repository.
    """

    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    terms: dict[str, list[str]] = field(default_factory=dict)
    listings: dict[str, Listing] = field(default_factory=dict)
    present: dict[str, pl.DataFrame] = field(default_factory=dict)
    downloads: dict[str, catalogue.Entry] = field(default_factory=dict)

    def without_queries(self, name: str) -> bool:
        """Whether a dataset's folder was read and has no queries."""
        return name in self.listings and not self.listings[name].queries.height

    def add_missing(self, what: str, where: str) -> None:
        """Add something missing, once."""
        self.missing.setdefault(what, where)

    def add_note(self, note: str) -> None:
        """Add a note, once."""
        if note not in self.notes:
            self.notes.append(note)

    def add_terms(self, what: str, entry: catalogue.Entry) -> None:
        """Add the terms of something that params.yaml names."""
        if terms := entry.terms:
            stated = terms.commercial is not False or "non-commercial" in terms.value
            self.terms.setdefault(terms.value + ("" if stated else " (non-commercial)"), []).append(what)


def engines(name: str, dataset: Dataset, without_queries: bool = False) -> Iterator[tuple[str, Requirements]]:
    """What a dataset's captioner, editor and reader need, each with its noun; raises CvsiError for a wrong block.

    A dataset without queries needs no editor and no reader.
    """
    captioner, editor = captioner_of(dataset, name), editor_of(dataset, name)
    yield "captioner", captioner_engine(captioner).requirements(captioner)
    if not without_queries:
        yield "editor", editor_engine(editor).requirements(editor)
        if (reader := reader_of(dataset, name)) is not None:
            yield "reader", reader_engine(reader).requirements(reader)


def judges(params: Params) -> Iterator[tuple[str, Requirements]]:
    """What the judge of each rerank needs, with the rerank's name; raises CvsiError for a wrong block."""
    for name, rerank in params.reranks.items():
        judge = judge_of(rerank, name)
        yield name, judge_engine(judge).requirements(judge)


def collect(params: Params) -> Inventory:
    """Look for everything that the active datasets and the runs need."""
    inventory, store = Inventory(), Store(Path(params.store))
    _repository(inventory)
    for name in params.used_datasets:
        dataset = params.dataset(name)
        _dataset(inventory, name, dataset)
        if inventory.without_queries(name):
            _editor_of_searches(inventory, name, dataset)
        for noun, requirements in engines(name, dataset, inventory.without_queries(name)):
            _engine(inventory, noun, requirements, store)
    for _, requirements in judges(params):
        _engine(inventory, "judge", requirements, store)
    for name in params.used_backbones:
        _backbone(inventory, params.backbone(name), store)
    return inventory


def _editor_of_searches(inventory: Inventory, name: str, dataset: Dataset) -> None:
    """A note on each editor's model that is missing, and that only `cvsi search` needs: the dataset has no queries."""
    settings = editor_of(dataset, name)
    for model in editor_engine(settings).requirements(settings).models:
        of_hub = is_hub_name(model.name) and not Path(model.name).is_dir()
        if of_hub and not in_hub_cache(model.name, model.revision, MODEL_FILES):
            fact = catalogue.of_model(model.name).download
            size = catalogue.gigabytes(fact.value) if fact else "a download of unknown size"
            inventory.add_note(
                f"{name}: without queries, the editor {model.name} is needed only to search with an image and a text "
                f"together; it is not here ({size}); cvsi check --download fetches it, too"
            )


def _repository(inventory: Inventory) -> None:
    """What `dvc repro` needs around the project: DVC's folder, and git's unless DVC is configured without it."""
    here = Path.cwd()
    if not (here / "dvc.yaml").is_file():  # outside the project, a test of params.yaml say
        return
    above = [here, *here.parents]
    dvc = next((folder / ".dvc" for folder in above if (folder / ".dvc").is_dir()), None)
    if dvc is None:
        inventory.add_missing("DVC's folder .dvc", "copy it from the project, or: git init, then dvc init")
    elif not any((folder / ".git").exists() for folder in above) and not _without_git(dvc):
        advice = "dvc repro needs one: git init, or, to do without: dvc config core.no_scm true"
        inventory.add_missing("git repository", advice)


def _without_git(dvc: Path) -> bool:
    """Whether DVC's settings of this repository, the later file first, say that there is no git."""
    for name in ("config.local", "config"):
        settings = ConfigParser(interpolation=None, strict=False)
        try:
            settings.read(dvc / name, encoding="utf-8")
            return settings.getboolean("core", "no_scm")
        except (ConfigError, ValueError):  # not set there, or not readable, which DVC itself reports
            continue
    return False


def _dataset(inventory: Inventory, name: str, dataset: Dataset) -> None:
    root, source = Path(dataset.root), catalogue.of_benchmark(dataset.benchmark)
    inventory.add_terms(f"dataset {dataset.benchmark or name}", source)
    if not root.is_dir():
        if root == paths.WORLD:
            inventory.add_note(f"{root} is drawn by the stage world")
        else:
            inventory.add_missing(f"folder {root}", source.get if dataset.benchmark else f"put {name}'s images there")
        return
    try:
        roots = roots_of(dataset, name)
        listing = read_listing(dataset, name, roots)
    except CvsiError as error:
        what, _, why = str(error).partition(": ")
        inventory.add_missing(what, source.get if "no such file" in why and dataset.benchmark else why)
        return
    for line in (*skipped_lines(listing.skipped), *listing.notes):
        inventory.add_note(f"{name}: {line}")
    images = listing.images.join(
        stat_files(roots, listing.images["path"]), on="path", how="left", maintain_order="left"
    )
    inventory.listings[name], inventory.present[name] = listing, images
    absent, links = absent_images(images), links_outside(images)
    if absent.height:
        what = f"{count(absent.height, 'image')} of {images.height:,} below {root} ({absent['path'][0]}, ...)"
        if dataset.missing_images == "drop":
            inventory.add_note(f"{what}: {name} drops missing images")
        else:
            inventory.add_missing(what, f"{source.get}; or set missing_images: drop for {name}")
    if links.height:
        what = f"{root}: {faults(links, 'unreadable')}"
        if dataset.bad_images == "drop":
            inventory.add_note(f"{what}: {name} drops them; to read them, {roots_advice(links, name)}")
        else:
            inventory.add_missing(what, f"{roots_advice(links, name)}, or set bad_images: drop")


def _engine(inventory: Inventory, noun: str, requirements: Requirements, store: Store) -> None:
    for model in requirements.models:
        _model(inventory, noun, model, store)
    for address in requirements.servers:
        _server(inventory, noun, address)
    for package in requirements.packages:
        if find_spec(package) is None:
            inventory.add_missing(f"package {package}", "make setup")


def _model(inventory: Inventory, noun: str, model: Model, store: Store) -> None:
    source = catalogue.of_model(model.name)
    inventory.add_terms(f"{noun} {model.name}", source)
    path = Path(model.name)
    if path.is_dir():
        if not any(file.suffix in WEIGHTS for file in path.iterdir()):
            inventory.add_missing(f"weights in {path}", f"put a model with {' or '.join(WEIGHTS)} files there")
        _family(inventory, model, path / CONFIG)
    elif is_hub_name(model.name):
        if not in_hub_cache(model.name, model.revision, MODEL_FILES):
            at = f" at revision {model.revision}" if model.revision else ""
            inventory.add_missing(f"{noun} {model.name}{at}", source.get)
            inventory.downloads.setdefault(model.name, source)
        elif config := _cached_config(model):
            _family(inventory, model, config)
    elif recorded(model.name, store):
        inventory.add_note(f"{noun} {path} is not here: rows of it that were unpacked are used, no new ones computed")
    else:
        inventory.add_missing(f"folder {path}", f"put the {noun}'s model there or change its name in params.yaml")


def _family(inventory: Inventory, model: Model, config: Path) -> None:
    """Whether a model's configuration is of the family that its engine loads."""
    if model.family and (wrong := refusal_of_file(config, model.family)):
        inventory.add_missing(f"{FAMILIES[model.family].name} in {model.name}", f"it {wrong}")


def _cached_config(model: Model) -> Path | None:
    """The `config.json` of a hub model in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(model.name, CONFIG, revision=model.revision)
    return Path(file) if isinstance(file, str) else None


def _server(inventory: Inventory, noun: str, address: str) -> None:
    url = urlsplit(address)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname or "", port), CONNECT_SECONDS).close()
    except OSError as error:
        advice = f"start it, or change the {noun}'s address ({error.strerror or error})"
        inventory.add_missing(f"server {address}", advice)


def _backbone(inventory: Inventory, backbone: Backbone, store: Store) -> None:
    kind = kind_of(backbone)
    if models := kind.models(backbone):
        before = len(inventory.missing)
        for model in models:
            _model(inventory, "backbone", model, store)
        if len(inventory.missing) == before:
            try:
                kind.width(backbone)
            except CvsiError as error:  # a model of another type, a configuration that is unreadable
                inventory.add_missing(f"backbone {backbone.model}", str(error))
        return
    source = catalogue.of_backbone(backbone)
    inventory.add_terms(f"backbone {backbone.model} {backbone.pretrained or ''}".strip(), source)
    if backbone.phi is not None:
        inventory.add_terms(f"phi {backbone.phi}", catalogue.of_phi(backbone.phi))
        if not Path(backbone.phi).is_file():
            inventory.add_missing(f"file {backbone.phi}", catalogue.of_phi(backbone.phi).get)
    if backbone.model.startswith(FOLDER):
        config = Path(backbone.model.removeprefix(FOLDER)) / "open_clip_config.json"
        if not config.is_file():
            inventory.add_missing(f"file {config}", "put the model's folder there, or name another")
    elif not Path(backbone.pretrained or "").is_file():
        at = f" at revision {backbone.revision}" if backbone.revision else ""
        what, advice = f"backbone {backbone.model} {backbone.pretrained}{at}", source.get
        try:
            place = hub_file(backbone)
        except CvsiError as error:
            place, advice = None, str(error)
        if place is None or not in_hub_cache(place[0], backbone.revision, (place[1], PICKLE, MODEL_FILES[-1])):
            inventory.add_missing(what, advice)
            if place is not None:
                inventory.downloads.setdefault(place[0], source)


def in_hub_cache(repository: str, revision: str | None, names: Sequence[str]) -> bool:
    """Whether the first of these files of weights that the local cache has, at a revision or the main one, is whole."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = (try_to_load_from_cache(repository, name, revision=revision) for name in names)
        file = next((file for file in found if isinstance(file, str)), None)
        config = try_to_load_from_cache(repository, "config.json", revision=revision) if names == MODEL_FILES else None
        if file is None and isinstance(config, str):  # vLLM reads a single file of any name
            file = next(map(str, Path(config).parent.glob("*.safetensors")), None)
    except (HFValidationError, OSError):  # no name that the hub could have, or a cache that cannot be read
        return False
    return file is not None and _complete(Path(file))


def _complete(file: Path) -> bool:
    """Whether an index's shards are all beside it; a single file is complete."""
    if file.suffix != ".json":
        return True
    try:
        shards = set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values())
        return all((file.parent / shard).is_file() for shard in shards)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False  # no index of weights: to be downloaded again
