"""A captioner's model to its configuration, refused in one line where it is no BLIP-2 that this project can run."""

from typing import Any

from cvsi.core.errors import CvsiError


def config_of(model: str, revision: str | None) -> Any:
    """A BLIP-2's configuration, from its folder or the hub; raises CvsiError for another model, and for one with T5."""
    from transformers import AutoConfig  # seconds of imports, needed only when a row is missing

    config, name = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False), f"'{model}'"
    if config.model_type != "blip-2":
        raise CvsiError(
            f"params.yaml: captioner model {name} is a {config.model_type}, not a BLIP-2; name another model"
        )
    language = config.text_config.model_type
    if config.text_config.is_encoder_decoder or not config.use_decoder_only_language_model:
        raise CvsiError(
            f"params.yaml: captioner model {name} is a BLIP-2 with {language}, an encoder-decoder, which no engine "
            "here supports; use one with OPT, e.g. Salesforce/blip2-opt-2.7b-coco or blip2-opt-6.7b-coco"
        )
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
