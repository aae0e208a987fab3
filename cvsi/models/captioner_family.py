"""A captioner's `config.json` to its family of models, and to the line that says which engine loads it instead.

It reads the file alone, so that `cvsi check` needs no model library.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvsi.core.errors import cause

CONFIG = "config.json"


@dataclass(frozen=True)
class Family:
    """Models that some engines of this project load, and those engines.

    `model_type` is that of their configurations, `architecture` the class in transformers that captions.
    `encoder_decoders` are the model types of language models, other than decoders, that a BLIP-2 may have.
    """

    name: str
    model_type: str
    architecture: str
    engines: tuple[str, ...]
    encoder_decoders: tuple[str, ...] = ()


# `PROMPTED` is any other vision-language model, with a chat template; `BLIP2_DECODER` a BLIP-2 as vLLM has it.
BLIP, BLIP2, BLIP2_DECODER, PROMPTED = "blip", "blip-2", "blip-2-decoder", "prompted"
FAMILIES = {
    BLIP: Family("BLIP", "blip", "BlipForConditionalGeneration", ("blip",)),
    BLIP2: Family("BLIP-2", "blip-2", "Blip2ForConditionalGeneration", ("transformers", "vllm"), ("t5",)),
    BLIP2_DECODER: Family("BLIP-2", "blip-2", "Blip2ForConditionalGeneration", ("transformers", "vllm")),
    PROMPTED: Family("vision-language model with a chat template", "", "", ("vllm",)),
}


def refusal(config: Mapping[str, Any], wanted: str) -> str | None:
    """Why an engine for the family `wanted` does not load the model of a `config.json`; None if it does.

    The line continues "the model ..." and says what to do.
    """
    family, found = FAMILIES[wanted], config.get("model_type")
    if found is None:
        return f"names no model_type in its {CONFIG}; download it again"
    other = next((known for known in FAMILIES.values() if known.model_type == found), None)
    if wanted == PROMPTED:
        return f"is a {other.name}, which takes no prompt; leave prompt out{_engine_of(other)}" if other else None
    if found != family.model_type:
        return f"is a {other.name if other else found}, not a {family.name}; {_advice(config, other)}"
    if wrong := _without_captions(config.get("architectures"), family.architecture):
        return f"is a {wrong}, which writes no captions; name one whose architecture is {family.architecture}"
    return _encoder_decoder(config, family) if found == BLIP2 else None


def _engine_of(family: Family) -> str:
    """The engine to set besides, where vLLM does not have the family."""
    return "" if "vllm" in family.engines else f" and set engine: {' or '.join(family.engines)}"


def _advice(config: Mapping[str, Any], family: Family | None) -> str:
    """What to do with a model of another family."""
    if family:
        return f"set engine: {' or '.join(family.engines)}, or name another model"
    prompted = ", or, if it has a chat template, set engine: vllm and a prompt" if _sees(config) else ""
    return f"name another model{prompted}"


def _sees(config: Mapping[str, Any]) -> bool:
    """Whether a configuration has a vision part, as vision-language models in transformers have."""
    return isinstance(config.get("vision_config"), dict)


def refusal_of_file(file: Path, wanted: str) -> str | None:
    """The same for a file; also for one that is missing or no JSON."""
    if not file.is_file():
        return f"has no {CONFIG}; put the model's whole folder there"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"has no readable {CONFIG} ({cause(error)}); download it again"
    if not isinstance(config, dict):
        return f"has no readable {CONFIG} (it holds no mapping); download it again"
    return refusal(config, wanted)


def _without_captions(architectures: Any, captioning: str) -> str | None:
    """The first of the architectures where all of them are other heads of the same family (retrieval, answers)."""
    head = captioning.partition("For")[0] + "For"
    names = [str(name) for name in architectures] if isinstance(architectures, list) else []
    if names and all(name.startswith(head) and name != captioning for name in names):
        return names[0]
    return None


def _encoder_decoder(config: Mapping[str, Any], family: Family) -> str | None:
    """The refusal of a BLIP-2 whose language model is no decoder alone, unless the family has it."""
    text = config.get("text_config")
    text = text if isinstance(text, dict) else {}
    name, states = text.get("model_type", "opt"), text.get("is_encoder_decoder")
    if name in family.encoder_decoders:
        return None
    if name != "t5" and states is not True and config.get("use_decoder_only_language_model", True):
        return None
    known = name in FAMILIES[BLIP2].encoder_decoders
    where = "which vLLM does not have; set engine: transformers, or" if known else "which no engine here supports;"
    return (
        f"is a BLIP-2 with {name}, an encoder-decoder, {where} use one with OPT, "
        "e.g. Salesforce/blip2-opt-2.7b-coco or blip2-opt-6.7b-coco"
    )
