"""What decides a row of the store besides its key: facts of captioner, editor and backbone, for the recipe's digest.

A number here is raised by hand when the meaning of that code changes, so that rows made before are not found. Nothing
slow is imported: whoever only counts what is missing needs no model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvsi.core.model_settings import Backbone, Captioner, Editor
from cvsi.models.clip_checkpoint import identity
from cvsi.models.model_id import identify

CAPTION_CODE = 1
EDIT_CODE = 2
VECTOR_CODE = 1


def captions(captioner: Captioner, precision: str, store: str | Path | None = None) -> dict[str, Any]:
    """What decides a caption besides the image's bytes; `store` may know a model that is not there."""
    # Captions of transformers are older than the key `engine`; without it they keep the recipe they were stored under.
    unnamed = {"engine"} if captioner.engine == "transformers" else set()
    settings = captioner.model_dump(exclude={"model", "revision", "precision"} | unnamed)
    model = identify(captioner.model, captioner.revision, store)
    return settings | model | {"precision": precision, "code": CAPTION_CODE}


def edits(
    editor: Editor, prompts: Mapping[str, str], precision: str, store: str | Path | None = None
) -> dict[str, Any]:
    """What decides an edit besides captions and instruction, `prompts` being the few-shot texts by task.

    A server's address does not; the precision that it computes in is its own affair. `store` may know a model that is
    not there.
    """
    settings = editor.model_dump(exclude={"model", "revision", "precision", "address"})
    if editor.engine == "server":
        model: dict[str, str | None] = {"model": editor.model, "revision": editor.revision}
    else:
        model = identify(editor.model, editor.revision, store) | {"precision": precision}
    return settings | model | {"prompts": dict(prompts), "code": EDIT_CODE}


def vectors(backbone: Backbone, kind: str, precision: str) -> dict[str, Any]:
    """What decides a backbone's `image` or `text` rows, and part of what decides its `pseudo` rows."""
    facts: dict[str, Any] = {"kind": kind, "code": VECTOR_CODE, "precision": precision} | identity(backbone)
    return facts | ({} if kind == "text" else {"preprocess": backbone.preprocess})
