"""Settings and rows to recipes, keys and store files: every function of the library that the golden test calls.

Where such a function moves or is renamed, this file follows it. The pinned values beside it stay as they are.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from cvsi.core import params, schema
from cvsi.core.digest import digest
from cvsi.core.params import Backbone, Compute, PhiTraining, Prompts, WordList, World
from cvsi.datasets import files
from cvsi.datasets import index as indexing
from cvsi.models import model_id
from cvsi.models.clip import template
from cvsi.models.clip_encoder import Encoder
from cvsi.models.encoder import recipe_of
from cvsi.models.engines import captioner_settings, editor_settings
from cvsi.pipeline import prompting
from cvsi.pipeline.captions import CaptionJob
from cvsi.pipeline.edits import EditJob, with_keys
from cvsi.pipeline.embeddings import text_keys
from cvsi.store.rows import Store
from cvsi.training import keywords, train
from demo.world.dataset import draw

Recipe = dict[str, Any]
Settings = Mapping[str, Any]
ON_CPU = Compute(device="cpu")
VECTORS = ("image_vectors", "text_vectors", "pseudo_vectors")


def digest_of(*parts: Any) -> str:
    """The digest that names recipes and keys."""
    return digest(*parts)


def caption_recipe(captioner: Settings, device: str) -> Recipe:
    """What decides the captions of a captioner on a kind of device (`cpu`, `cuda`)."""
    settings = captioner_settings(dict(captioner), "captioner")
    return CaptionJob(
        Compute.model_validate({"device": device}), Store(Path("store")), "toy", Path(), settings
    ).recipe()


def edit_recipe(settings: Settings, prompts: Mapping[str, str], device: str) -> Recipe:
    """What decides the edits of an editor with these few-shot texts."""
    editor = editor_settings(dict(settings), "editor")
    return EditJob(Compute.model_validate({"device": device}), Store(Path("store")), "toy", editor, prompts).recipe()


def prompt_texts(names: Settings) -> dict[str, str]:
    """The few-shot texts of both tasks that a dataset's `prompts` name."""
    return prompting.load_prompts(Prompts.model_validate(names))


def vector_recipe(backbone: Settings, kind: str) -> Recipe:
    """What decides the `image`, `text` or `pseudo` vectors of a backbone on the CPU."""
    return Encoder(Backbone.model_validate(backbone), ON_CPU).recipe(kind)


def file_recipe() -> Recipe:
    """What decides the facts of a file."""
    return files.FACTS_RECIPE


def span_recipe(words: Path) -> Recipe:
    """What decides the keyword spans that a word list finds."""
    return keywords.identify(WordList(words=str(words)))


def weights_recipe() -> Recipe:
    """What decides the records of weights that are not here."""
    return model_id.RECORDS


def backbone_recipe(backbone: Settings, kind: str) -> Recipe:
    """What decides the `image`, `text` or `composed` vectors of a backbone of any kind in fp32."""
    return recipe_of(Backbone.model_validate(backbone), kind, "fp32")


def phi_recipe(training: Settings, backbone: Settings) -> Recipe:
    """What decides a trained phi, on the CPU; the tower's weights are in float32, as in the stage."""
    tower = Backbone.model_validate(backbone).model_copy(update={"precision": "fp32"})
    return train.recipe(PhiTraining.model_validate(training), Encoder(tower, ON_CPU))


def edit_key(captions: Sequence[str], instruction: str) -> str:
    """The key of an edit."""
    query = pl.DataFrame({"captions": [list(captions)], "instruction": [instruction]})
    return str(with_keys(query)["key"][0])


def text_key(text: str) -> str:
    """The key of a text's vector."""
    return str(text_keys(pl.Series([text]))[0])


def sentence(instruction: str, added: str) -> str:
    """The sentence that holds a pseudo token."""
    return template(instruction, added)


def pseudo_key(file: str, text: str) -> str:
    """The key of a pseudo-token vector, from the reference's file digest and the sentence."""
    return digest(file, text)


def index(name: str) -> None:
    """Index a dataset of the `params.yaml` in the working directory."""
    indexing.build(name, params.load())


def record_weights(model: str, known: str, store: str) -> None:
    """Keep the digest of a model that is not here."""
    model_id.record(model, known, Store(Path(store)))


def edit_row(
    key: str, mode: str, captions: Sequence[str], answers: Sequence[str | None], added: str | None
) -> dict[str, Any]:
    """A row of the edits from raw answers, None for a prompt that was too long, without finish reasons as before."""
    every = [*answers, added]
    status = "prompt too long" if None in every else "ok"
    return {
        "key": key, "edited": list(captions), "added": "", "status": status,
        "answers": [answer or "" for answer in every], "finish": [],
    }  # fmt: skip


def append(store: Path, kind: str, recipe: Recipe, rows: Sequence[Mapping[str, Any]], width: int = 0) -> None:
    """Add rows to the store as one file; vectors have `width` numbers."""
    schemas = {"captions": schema.STORED_CAPTIONS, "edits": schema.STORED_EDITS}
    columns = schema.stored_vectors(width) if kind in VECTORS else schemas[kind]
    Store(store).rows(kind, recipe, columns).append(pa.Table.from_pylist(list(rows), columns))


def draw_world(root: Path, seed: int, gallery: int, val: int, test: int) -> None:
    """Draw a demo world: pictures and annotations in CIRCO's layout."""
    draw(root, World(seed=seed, gallery=gallery, val=val, test=test))
