"""A captioner's model to its configuration, refused in one line where it is no BLIP-2 that this project can run."""

from typing import Any

from cvsi.core.errors import CvsiError
from cvsi.models.captioner_family import BLIP2, refusal


def config_of(model: str, revision: str | None) -> Any:
    """A BLIP-2's configuration, from its folder or the hub; raises CvsiError for another model, and for one with T5."""
    from transformers import AutoConfig  # seconds of imports, needed only when a row is missing

    config, name = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False), f"'{model}'"
    if wrong := refusal(config.to_dict(), BLIP2):
        raise CvsiError(f"params.yaml: captioner model {name} {wrong}")
    if language_start(config) is None:
        raise CvsiError(f"params.yaml: captioner model {name} names no bos_token_id; complete its config.json")
    return config


def language_start(config: Any) -> int | None:
    """The token that stands between the projected query tokens and a caption."""
    start: int | None = config.text_config.bos_token_id
    return start


def ends_of(model: str, ends: Any) -> list[int]:
    """The tokens that end a caption, as a list; raises CvsiError where the generation configuration names none."""
    if ends is None or ends == []:
        raise CvsiError(
            f"params.yaml: captioner model '{model}' names no eos_token_id; complete its generation_config.json"
        )
    return [ends] if isinstance(ends, int) else list(ends)
