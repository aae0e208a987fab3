"""A captioner's model to its configuration, refused in one line where it is no BLIP-2 that this project can run."""

from typing import Any

from cvsi.core.errors import CvsiError
from cvsi.models.captioner_family import BLIP2, refusal


def config_of(model: str, revision: str | None, family: str = BLIP2) -> Any:
    """A BLIP-2's configuration, from its folder or the hub; raises CvsiError for a model outside the family."""
    from transformers import AutoConfig  # seconds of imports, needed only when a row is missing

    config, name = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False), f"'{model}'"
    if wrong := refusal(config.to_dict(), family):
        raise CvsiError(f"params.yaml: captioner model {name} {wrong}")
    needed = ["bos_token_id", *(["decoder_start_token_id"] if config.text_config.is_encoder_decoder else [])]
    for key in needed:
        if getattr(config.text_config, key, None) is None:
            raise CvsiError(f"params.yaml: captioner model {name} names no {key}; complete its config.json")
    return config


def language_start(config: Any) -> int | None:
    """The token after the projected query tokens: the last one before a caption, or the last one of T5's encoder."""
    start: int | None = config.text_config.bos_token_id
    return start


def ends_of(model: str, ends: Any) -> list[int]:
    """The tokens that end a caption, as a list; raises CvsiError where the generation configuration names none."""
    if ends is None or ends == []:
        raise CvsiError(
            f"params.yaml: captioner model '{model}' names no eos_token_id; complete its generation_config.json"
        )
    return [ends] if isinstance(ends, int) else list(ends)
