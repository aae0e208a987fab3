"""The captioner engine `blip`: the settings and the recipe of BLIP (version 1); `blip_model` has the loaded model.

It is far smaller than BLIP-2, for machines without a GPU. BLIP-2 is another architecture, with the engines
`transformers` and `vllm`.
"""

from typing import Any, Literal

from pydantic import PositiveInt

from cvsi.models.captioner import SamplingSettings
from cvsi.models.captioner_family import BLIP
from cvsi.models.engines import Engine, Model, Requirements, facts_of, imported
from cvsi.models.model_id import identify
from cvsi.store.rows import Store


class BlipSettings(SamplingSettings):
    """A BLIP and how it is sampled; all of it is part of a caption's recipe."""

    engine: Literal["blip"]
    n: PositiveInt = 5


def _recipe(settings: BlipSettings, precision: str, store: Store) -> dict[str, Any]:
    return facts_of(settings) | identify(settings.model, settings.revision, store) | {"precision": precision}


ENGINE = Engine(
    settings=BlipSettings,
    requirements=lambda settings: Requirements((Model(settings.model, settings.revision, settings.precision, BLIP),)),
    recipe=_recipe,
    load=imported("cvsi.models.blip_model:Blip"),
)
