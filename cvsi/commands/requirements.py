"""params.yaml and the disk to what is missing: files, weights and packages, each once, with where to get it.

Nothing is loaded and nothing is downloaded: hub models are looked for in the hub's cache, folders and files where
params.yaml says they are. Terms of use are collected on the way.
"""

import json
import socket
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from cvsi.core import paths
from cvsi.core.console import count
from cvsi.core.errors import CvsiError
from cvsi.core.model_settings import Backbone, Editor
from cvsi.core.params import Dataset, Params, used_backbones, used_datasets
from cvsi.datasets.base import Listing
from cvsi.datasets.files import stat_files
from cvsi.datasets.formats import READERS
from cvsi.models import catalogue
from cvsi.models.clip_checkpoint import FOLDER
from cvsi.models.model_id import is_hub_name, recorded

WEIGHTS = (".safetensors", ".bin")
REACH_SECONDS = 1.0


@dataclass
class Needs:
    """What is missing and where to get it, notes, whom which terms of use bind, and the listings that were read."""

    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    terms: dict[str, list[str]] = field(default_factory=dict)
    listings: dict[str, Listing] = field(default_factory=dict)

    def lack(self, what: str, where: str) -> None:
        """Remember something missing, once."""
        self.missing.setdefault(what, where)

    def use(self, what: str, source: catalogue.Source) -> None:
        """Remember the terms of something that params.yaml names."""
        if source.terms:
            plain = source.commercial or "non-commercial" in source.terms
            self.terms.setdefault(source.terms + ("" if plain else " (non-commercial)"), []).append(what)


def look(params: Params) -> Needs:
    """Look for everything that the active datasets and the runs need."""
    needs = Needs()
    for name in used_datasets(params):
        dataset = params.dataset(name)
        _dataset(needs, name, dataset)
        _model(needs, "captioner", dataset.captioner.model, dataset.captioner.revision, params.store)
        _editor(needs, dataset.editor, params.store)
        if "vllm" in (dataset.captioner.engine, dataset.editor.engine) and find_spec("vllm") is None:
            needs.lack("package vllm", "make setup")
    for name in used_backbones(params):
        _backbone(needs, params.backbone(name))
    return needs


def _dataset(needs: Needs, name: str, dataset: Dataset) -> None:
    root, source = Path(dataset.root), catalogue.of_benchmark(dataset.benchmark)
    needs.use(f"dataset {dataset.benchmark or name}", source)
    if not root.is_dir():
        if root == paths.WORLD:
            needs.notes.append(f"{root} is drawn by the stage world")
        else:
            needs.lack(f"folder {root}", source.get if dataset.benchmark else f"put {name}'s images there")
        return
    try:
        listing = READERS[dataset.format](dataset)
    except CvsiError as error:
        what, _, why = str(error).partition(": ")
        needs.lack(what, source.get if "no such file" in why and dataset.benchmark else why)
        return
    needs.listings[name] = listing
    there = stat_files(root, listing.images["path"])
    lost = listing.images.filter(~listing.images["path"].is_in(there["path"].implode()))["path"]
    if lost.len():
        what = f"{count(lost.len(), 'image')} of {listing.images.height:,} below {root} ({lost[0]}, ...)"
        if dataset.missing_images == "drop":
            needs.notes.append(f"{what}: {name} drops what is missing")
        else:
            needs.lack(what, f"{source.get}; or set missing_images: drop for {name}")


def _model(needs: Needs, noun: str, model: str, revision: str | None, store: str) -> None:
    source = catalogue.of_model(model)
    needs.use(f"{noun} {model}", source)
    path = Path(model)
    if path.is_dir():
        if not any(file.suffix in WEIGHTS for file in path.iterdir()):
            needs.lack(f"weights in {path}", f"put a model with {' or '.join(WEIGHTS)} files there")
    elif not is_hub_name(model) and recorded(model, store):
        note = f"{noun} {path} is not here: rows of it that were unpacked are found, no new ones computed"
        needs.notes += [] if note in needs.notes else [note]
    elif not is_hub_name(model):
        needs.lack(f"folder {path}", f"put the {noun}'s model there or change its name in params.yaml")
    elif not in_hub_cache(model, revision):
        at = f" at revision {revision}" if revision else ""
        needs.lack(f"{noun} {model}{at}", source.get)


def _editor(needs: Needs, editor: Editor, store: str) -> None:
    if editor.engine == "vllm":
        _model(needs, "editor", editor.model, editor.revision, store)
        return
    address = urlsplit(editor.address or "")
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), REACH_SECONDS).close()
    except OSError as error:
        needs.lack(f"server {editor.address}", f"start it, or change the editor's address ({error.strerror or error})")


def _backbone(needs: Needs, backbone: Backbone) -> None:
    source = catalogue.of_backbone(backbone)
    needs.use(f"backbone {backbone.model} {backbone.pretrained or ''}".strip(), source)
    needs.use(f"phi {backbone.phi}", catalogue.of_phi(backbone.phi))
    if not Path(backbone.phi).is_file():
        needs.lack(f"file {backbone.phi}", catalogue.of_phi(backbone.phi).get)
    if backbone.model.startswith(FOLDER):
        folder = Path(backbone.model.removeprefix(FOLDER))
        if not (folder / "open_clip_config.json").is_file():
            needs.lack(f"file {folder / 'open_clip_config.json'}", "put the model's folder there, or name another")
    elif not Path(backbone.pretrained or "").is_file() and not in_hub_cache(source.repository, backbone.revision):
        at = f" at revision {backbone.revision}" if backbone.revision else ""
        needs.lack(f"backbone {backbone.model} {backbone.pretrained}{at}", source.get)


def in_hub_cache(repository: str | None, revision: str | None) -> bool:
    """Whether weights of a hub repository lie whole in the local cache, at a revision or the main one."""
    from huggingface_hub import try_to_load_from_cache

    if repository is None:
        return False
    names = ("model.safetensors.index.json", "model.safetensors", "open_clip_model.safetensors",
             "open_clip_pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model.bin")  # fmt: skip
    for name in names:
        found = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(found, str):
            return _whole(Path(found))
    return False


def _whole(file: Path) -> bool:
    """Whether an index's shards are all beside it; a single file is whole."""
    if file.suffix != ".json":
        return True
    shards = set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values())
    return all((file.parent / shard).exists() for shard in shards)
