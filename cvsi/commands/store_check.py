"""The model folders of params.yaml to what does not fit in them, and the recipes of rows in the store that they made.

Earlier versions loaded such folders and filled what was missing with random numbers.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from cvsi.commands.store import Part
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params
from cvsi.models.engines import (
    captioner_engine,
    captioner_settings,
    editor_engine,
    editor_settings,
    judge_engine,
    judge_settings,
    reader_engine,
    reader_settings,
)
from cvsi.models.model_id import content_digest
from cvsi.models.transformers_keys import checked_prefix


def misfits(params: Params, parts: Sequence[Part]) -> Iterator[str]:
    """A line for each local model of params.yaml whose checkpoint does not fit, with the rows to remove."""
    for model in _folders(params):
        try:
            checked_prefix(model, None)
        except (CvsiError, RuntimeError) as error:
            weights = content_digest(Path(model))
            made = [part for part in parts if _weights(part) == weights]
            rows = ", ".join(f"{part.kind}: cvsi store --remove {part.folder.name[:16]}" for part in made)
            yield f"{error}; rows made with it: {rows or 'none in the store'}"


def _folders(params: Params) -> list[str]:
    """The folders of models that params.yaml names, in their own blocks and in those of datasets and reranks."""
    captioners = [*params.captioners.values(), *(dataset.captioner for dataset in params.datasets.values())]
    editors = [*params.editors.values(), *(dataset.editor for dataset in params.datasets.values())]
    readers = [*params.readers.values(), *(dataset.reader for dataset in params.datasets.values() if dataset.reader)]
    judges = [*params.judges.values(), *(rerank.judge for rerank in params.reranks.values())]
    models = [
        model.name
        for blocks, settings_of, engine_of in (
            (captioners, captioner_settings, captioner_engine),
            (editors, editor_settings, editor_engine),
            (readers, reader_settings, reader_engine),
            (judges, judge_settings, judge_engine),
        )
        for settings in (settings_of(block, "block") for block in blocks)
        for model in engine_of(settings).requirements(settings).models  # type: ignore[arg-type]
    ]
    return [model for model in dict.fromkeys(models) if Path(model).is_dir()]


def _weights(part: Part) -> str | None:
    try:
        facts = json.loads((part.folder / "recipe.json").read_bytes())
        return str(facts["weights"]) if "weights" in facts else None
    except (OSError, ValueError, TypeError):
        return None
