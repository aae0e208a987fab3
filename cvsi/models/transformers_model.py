"""A backbone's folder or hub name to a model of transformers whose every tensor came from the checkpoint."""

import gc
import os
import re
from collections.abc import Callable, Collection
from typing import Any

from cvsi.core.errors import CvsiError
from cvsi.core.params import Backbone
from cvsi.models.checkpoint_keys import misfit, pattern
from cvsi.models.model_id import require
from cvsi.models.transformers_keys import ADVICE, checked_prefix, loaded_difference
from cvsi.models.vllm_engine import loading


def load_model(backbone: Backbone, architecture: str, dtype: Any, unused: Collection[str] = ()) -> Any:
    """A model of a class in transformers in evaluation mode, on the CPU.

    `unused` are tensors that the checkpoint may have besides: it is of a class of which `architecture` is a part.
    Raises CvsiError for a model that does not load, and for a checkpoint that lacks tensors or has others.
    """
    require(backbone.model)
    gc.collect()  # a model that is no longer used ends now: a GPU may not have the memory of two
    with loading("backbone", backbone.model, "choose a smaller model or a lower precision"):
        import transformers  # seconds of imports, needed only when a row is missing

        # For a hub model that is a pickle alone, transformers would ask a web service to convert it, and download the
        # result as well.
        os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
        # Of a part, transformers itself removes the prefix.
        prefix = "" if unused else checked_prefix(backbone.model, backbone.revision, architecture)
        model, report = getattr(transformers, architecture).from_pretrained(
            backbone.model,
            dtype=dtype,
            key_mapping=pattern(prefix) or None,
            output_loading_info=True,
            trust_remote_code=False,
            **_revision(backbone),
        )
        others = [name for name in report["unexpected_keys"] if name not in unused]
        left = loaded_difference(report["missing_keys"], others, report["mismatched_keys"])
        if left:  # what the check of the headers did not see
            raise misfit(backbone.model, "", left, ADVICE)
        return model.eval().requires_grad_(False)


def load_part(backbone: Backbone, load: Callable[..., Any]) -> Any:
    """A tokenizer or processor by its `from_pretrained`; raises CvsiError where it does not load."""
    with loading("backbone", backbone.model, "choose a smaller model"):
        return load(backbone.model, trust_remote_code=False, **_revision(backbone))


def check_tokenizer(backbone: Backbone, tokenizer: Any, tokens: int) -> None:
    """Raise CvsiError for a tokenizer without most of a model's `tokens`, or with others.

    Where its files are missing, transformers makes one of special tokens alone, and all texts would be equal.
    """
    pieces = len(tokenizer)
    if not tokens // 2 <= pieces <= tokens:
        raise CvsiError(
            f"params.yaml: backbone model '{backbone.model}': its tokenizer has {pieces:,} tokens, the model "
            f"{tokens:,}; put the model's own tokenizer files there (tokenizer.json, or vocab.json and merges.txt)"
        )


def words_only(texts: list[str], tokenizer: Any) -> list[str]:
    """Texts in which the names of the tokenizer's added tokens (`<|endoftext|>`) are broken up, so that they are words.

    A text that spells such a token could otherwise end early, or claim the position of an image.
    """
    names = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    # Some tokenizers match these names after they lowered the text.
    spelled = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)", re.IGNORECASE)
    return [spelled.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text) for text in texts]


def _revision(backbone: Backbone) -> dict[str, str]:
    return {"revision": backbone.revision} if backbone.revision else {}
