"""The command `cvsi add`: a folder of photos to entries of params.yaml (models of a preset, dataset, run), as a diff.

The file is edited as text, so comments, anchors and order stay. The new text is checked as `cvsi check` does before it
replaces the file; where anything is refused, the file is unchanged.
"""

import json
import os
import re
import unicodedata
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import polars as pl
import yaml

from cvsi.commands.forecast import gpu_bytes
from cvsi.commands.set_value import read, replace
from cvsi.core import paths
from cvsi.core.console import count
from cvsi.core.errors import CvsiError
from cvsi.core.params import PATH, Backbone, Params, parse
from cvsi.core.yaml_edit import Document, one_line
from cvsi.datasets.base import Listing
from cvsi.datasets.folder import QUERIES
from cvsi.datasets.index import read_listing
from cvsi.datasets.roots import roots_of
from cvsi.datasets.walk import skipped_lines
from cvsi.models.engines import DEFAULT_CAPTIONER, DEFAULT_EDITOR
from cvsi.models.presets import SERVER, Part, Preset, choose, preset, served

ADDRESS = "http://localhost:11434/v1"  # Ollama's
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
LONGEST_NAME, LONGEST_DERIVED = 80, 40
UNNAMED = "photos"
DEFAULT_ENGINES = {"captioners": DEFAULT_CAPTIONER, "editors": DEFAULT_EDITOR}
NO_PHI = (
    "# No weight for `pseudo`: the published phi checkpoints must be fetched by hand and are for non-commercial use."
)
FUSION = ("fusion:", "  query: {edited: 1.0}", "  gallery: {image: 0.8, caption: 0.2}")
FUSION_WITH_PHI = ("fusion:", "  query: {edited: 0.6, pseudo: 0.4}", "  gallery: {image: 0.8, caption: 0.2}")


@dataclass(frozen=True)
class Options:
    """What the command line sets; empty texts are not set. `roots` are further folders that links may lead to."""

    preset: str = ""
    name: str = ""
    roots: tuple[str, ...] = ()
    address: str = ""
    model: str = ""
    caption_model: str = ""
    edit_model: str = ""


@dataclass(frozen=True)
class Added:
    """What was found in the folder, the lines that params.yaml got, and the run; no run: nothing was changed."""

    facts: tuple[str, ...]
    diff: tuple[str, ...] = ()
    run: str = ""


def add(folder: str, options: Options) -> Added:
    """Add a folder of photos to params.yaml; a folder that is a dataset already changes nothing.

    Raises CvsiError, with the file unchanged, for a folder that cannot be a dataset, a name that cannot be used, a
    preset that is not complete, and a params.yaml that is missing, read-only or not valid.
    """
    before = read(PATH)
    text = before.decode()
    params = parse(text, PATH)
    root = _root(folder, params)
    existing = _dataset_of(root, params)
    if existing and options.name in ("", existing):
        return Added((_already(root, existing, params),))
    name = options.name or _name_of(root)
    _check_name(name, bool(options.name), params)
    title, chosen, why = _preset(options)
    run = f"{name}-{title}"
    if run in params.runs:
        raise CvsiError(f"{PATH}: runs.{run} exists already; choose another name: --name NAME")
    further = tuple(_written(_directory(other)) for other in options.roots)
    texts = _entries(text, params, chosen, name, _written(root), further, run)
    facts = _facts(parse(texts[-1], PATH), name)
    added = Added((f"preset {title}: {why}", *facts), tuple(_diff(texts)), run)
    replace(PATH, before, texts[-1])
    return added


def _directory(folder: str) -> Path:
    """An existing folder as an absolute path, links not followed; raises CvsiError for anything else."""
    try:
        path = Path(folder).expanduser().absolute()
        if ".." in path.parts:
            path = path.resolve()
        os.fspath(path).encode()
        if not path.exists():
            raise CvsiError(f"{folder}: no such folder" if folder else "the folder's name is empty")
        if not path.is_dir():
            raise CvsiError(f"{folder}: a file, not a folder; give the folder that has the photos")
        next(path.iterdir(), None)
    except UnicodeEncodeError:
        raise CvsiError(f"{folder!r}: the path is not UTF-8 text; rename the folder") from None
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: ~name of no user
        raise CvsiError(f"{folder}: {getattr(error, 'strerror', None) or error}") from None
    return path


def _root(folder: str, params: Params) -> Path:
    """The folder, if a dataset may be there: not where outputs are, and not around the project."""
    if not folder.strip():
        raise CvsiError("the folder's name is empty; give the folder that has the photos")
    path = _directory(folder)
    if paths.inside(Path.cwd(), path):
        raise CvsiError(f"{folder}: contains this project; put the photos into a folder of their own")
    for own, what in (
        (paths.CACHE, "computed files are"),
        (Path(params.store), "the store is"),
        (paths.WORLD, "the stage world draws the demo"),
        (paths.DVC_CACHE.parent, "DVC's files are"),
        *((paths.phi_folder(name), "the training of a phi writes") for name in params.phis),
    ):
        if paths.inside(path, own) or paths.inside(own, path):
            relation = "lies in" if paths.inside(path, own) else "contains"
            raise CvsiError(f"{folder}: {relation} {own}, where {what}; put the photos into a folder of their own")
    return path


def _written(path: Path) -> str:
    """A path as params.yaml has it: relative inside the project, else absolute."""
    here = Path.cwd()
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()


def _dataset_of(root: Path, params: Params) -> str:
    """The first dataset of format `folder` whose root is this folder, links followed; empty if there is none."""
    real = os.path.realpath(root)
    of_folders = (name for name, dataset in params.datasets.items() if dataset.format == "folder")
    return next((name for name in of_folders if os.path.realpath(params.datasets[name].root) == real), "")


def _already(root: Path, name: str, params: Params) -> str:
    runs = [run for run, settings in params.runs.items() if settings.dataset == name]
    used = f"in the runs {', '.join(runs)}" if runs else "in no run"
    return (
        f"{_written(root)} is the dataset {name} already, {used}; nothing changed (a second dataset needs --name NAME)"
    )


def _name_of(root: Path) -> str:
    """A name from the folder's: letters, digits, `-` and `_`, beginning with a letter."""
    letters = unicodedata.normalize("NFKD", root.name).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9_]+", "-", letters).strip("-_")[:LONGEST_DERIVED].strip("-_")
    if not name:
        return UNNAMED
    return name if _is_name(name) else f"{UNNAMED}-{name}"


def _is_name(name: str) -> bool:
    """Whether a name is plain text for YAML, too: `no` and `null` are not."""
    return NAME.fullmatch(name) is not None and yaml.safe_load(name) == name


def _check_name(name: str, given: bool, params: Params) -> None:
    """Raise CvsiError for a name that cannot be a dataset's: its form, reserved, or in use."""
    advice = "choose another name" + ("" if given else ": --name NAME")
    if not _is_name(name) or len(name) > LONGEST_NAME:
        raise CvsiError(
            f"--name {name[:100]}: not a name for a dataset; use letters, digits, - and _, at most {LONGEST_NAME}, "
            "beginning with a letter (DVC reads a dot as a step to a key, and YAML reads words such as no)"
        )
    if what := paths.reserved().get(paths.comparable(name)):
        raise CvsiError(f"{PATH}: datasets.{name}: the name is reserved, {what} has it; {advice}")
    for other, dataset in params.datasets.items():
        if paths.comparable(other) == paths.comparable(name):
            raise CvsiError(f"{PATH}: datasets.{other} exists already, its root is {dataset.root}; {advice}")


def _preset(options: Options) -> tuple[str, Preset, str]:
    """The preset's name, the preset, and why it was chosen."""
    title, why = (options.preset, "by --preset") if options.preset else choose(gpu_bytes())
    chosen = preset(title)
    if title == SERVER:
        caption_model, edit_model = options.caption_model or options.model, options.edit_model or options.model
        return title, served(chosen, options.address or ADDRESS, caption_model, edit_model), why
    for option in ("address", "model", "caption_model", "edit_model"):
        if getattr(options, option):
            raise CvsiError(f"--{option.replace('_', '-')} is for --preset {SERVER} alone; the preset is {title}")
    return title, chosen, why if options.preset else f"{why}; --preset names another"


def _entries(
    text: str, params: Params, chosen: Preset, name: str, root: str, further: tuple[str, ...], run: str
) -> list[str]:
    """The text of params.yaml after each entry: models, backbone, dataset, run, active; what is there is used again."""
    texts = [text]
    after, captioner = _model(texts[-1], "captioners", "captioner", chosen.captioner)
    texts.append(after)
    after, editor = _model(texts[-1], "editors", "editor", chosen.editor)
    texts.append(after)
    after, backbone = _backbone(texts[-1], params, chosen.backbone)
    texts.append(after)
    lines = ["format: folder", f"root: {_yaml(root)}"]
    lines += [f"roots: [{', '.join(map(_yaml, further))}]"] if further else []
    lines += [*captioner, *editor, f"prompts: {{edited: {chosen.prompts.edited}, added: {chosen.prompts.added}}}"]
    lines += FUSION_WITH_PHI if chosen.backbone.settings.get("phi") else (NO_PHI, *FUSION)
    texts.append(Document(texts[-1], str(PATH)).append("datasets", name, "\n".join(lines)))
    texts.append(Document(texts[-1], str(PATH)).append("runs", run, f"dataset: {name}\nbackbone: {backbone}"))
    return [*texts, Document(texts[-1], str(PATH)).extend("active", name)]


def _model(text: str, section: str, noun: str, part: Part) -> tuple[str, list[str]]:
    """The text with a captioner's or editor's entry, and the dataset's lines that refer to it.

    Where the section is missing, comes after the datasets or is written in one line, the dataset has the settings
    itself: an alias must follow its anchor.
    """
    document = Document(text, str(PATH))
    anchors, own = document.anchors(), [f"{noun}:", *(f"  {line}" for line in _block(part.settings))]
    if not 0 <= document.start(section) < document.start("datasets"):
        return text, own
    entries = document.data.get(section) or {}
    default = {"engine": DEFAULT_ENGINES[section]}
    for other, settings in entries.items():
        if isinstance(settings, dict) and default | settings == default | part.settings:
            anchor = anchors.get(f"{section}.{other}")
            return text, [f"{noun}: *{anchor}"] if anchor else own
    if part.name in entries:
        raise CvsiError(
            f"{PATH}: {section}.{part.name} exists already with other settings than the preset's; rename that entry"
        )
    anchor = _unused(re.sub(r"[^A-Za-z0-9]+", "_", part.name), set(anchors.values()))
    try:
        return document.append(section, part.name, "\n".join(_block(part.settings)), anchor), [f"{noun}: *{anchor}"]
    except CvsiError:
        return text, own


def _backbone(text: str, params: Params, part: Part) -> tuple[str, str]:
    """The text with the backbone's entry, and its name; one with the same settings is used again."""
    wanted = Backbone.model_validate(part.settings)
    for name, backbone in params.backbones.items():
        if backbone == wanted:
            return text, name
    for name in params.backbones:
        if paths.comparable(name) == paths.comparable(part.name):
            raise CvsiError(
                f"{PATH}: backbones.{name} exists already with other settings than the preset's; rename that entry"
            )
    return Document(text, str(PATH)).append("backbones", part.name, "\n".join(_block(part.settings))), part.name


def _block(settings: dict[str, object]) -> list[str]:
    """Settings as lines of YAML."""
    return [f"{key}: {_yaml(value)}" for key, value in settings.items()]


def _yaml(value: object) -> str:
    """A value as YAML in one line, also inside a list; JSON, which YAML contains, for a text with line breaks."""
    text = one_line(value)
    flow = isinstance(value, str) and re.search(r"[\[\]{},]", value)
    return json.dumps(value, ensure_ascii=False) if flow or yaml.safe_load(text) != value else text


def _unused(anchor: str, used: set[str]) -> str:
    """An anchor that the file does not have yet."""
    candidates = (anchor if number == 1 else f"{anchor}_{number}" for number in range(1, len(used) + 2))
    return next(candidate for candidate in candidates if candidate not in used)


def _facts(params: Params, name: str) -> list[str]:
    """What is in the folder: images, files that are not read, queries; raises CvsiError where no image is."""
    dataset = params.dataset(name)
    listing = read_listing(dataset, name, roots_of(dataset, name))
    skipped = skipped_lines(listing.skipped)
    if not listing.images.height:
        raise CvsiError("; ".join([f"{dataset.root}: no images in it", *skipped, f"{PATH} is unchanged"]))
    lines = [f"{dataset.root}: {count(listing.images.height, 'image')}", *skipped]
    if listing.refused:
        path, reason = next(iter(listing.refused.items()))
        number = count(len(listing.refused), "image")
        lines.append(f"{number} cannot be read: {path}: {reason}; rename it, or set bad_images: drop")
    return [*lines, _queries(listing)]


def _queries(listing: Listing) -> str:
    """A line about the queries: how many there are, or that none are needed."""
    if not listing.queries.height:
        return f"{'; '.join(listing.notes)} (none are needed to search)"
    labelled = listing.queries.filter(pl.col("target_ids").list.len() > 0).height
    return f"{QUERIES}: {count(listing.queries.height, 'query')}, {labelled:,} with targets"


def _diff(texts: list[str]) -> list[str]:
    """The lines by which each text differs from the one before, with `-` or `+`, below the name of their section."""
    shown = []
    for before, after in pairwise(texts):
        if before == after:
            continue
        old, new = before.splitlines(), after.splitlines()
        first = _equal(old, new)
        last = _equal(old[first:][::-1], new[first:][::-1])
        section = next((line for line in reversed(new[: first + 1]) if re.match(r"\w", line)), "")
        shown += [f"{PATH}, {section.partition(':')[0]}:"]
        shown += [f"-{line}" for line in old[first : len(old) - last]]
        shown += [f"+{line}" for line in new[first : len(new) - last]]
    return shown


def _equal(one: list[str], other: list[str]) -> int:
    """How many lines at the beginning are equal."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, pair in pairs if pair[0] != pair[1]), min(len(one), len(other)))
