"""The captioner engine `transformers`: the settings and the recipe of BLIP-2; `blip2_model` has the loaded model."""

from typing import Any, Literal, Self

from pydantic import PositiveInt, model_validator

from cvsi.models.captioner import SamplingSettings
from cvsi.models.captioner_family import BLIP2
from cvsi.models.engines import Engine, Model, Requirements, facts_of, imported
from cvsi.models.model_id import identify
from cvsi.models.transformers_keys import shared_prefix
from cvsi.store.rows import Store


class Blip2Settings(SamplingSettings):
    """A BLIP-2 and how it is sampled; all of it is part of a caption's recipe."""

    engine: Literal["transformers"] = "transformers"
    decoding: Literal["nucleus", "beam-sample"] = "nucleus"
    beams: PositiveInt | None = None

    @model_validator(mode="after")
    def numbers_fit(self) -> Self:
        """Refuse fewer beams than captions, and beams without beam-sample."""
        if self.beams is not None and self.decoding != "beam-sample":
            raise ValueError("beams is set, but decoding is nucleus; set decoding: beam-sample or leave beams out")
        if self.beams is not None and self.beams < self.n:
            raise ValueError(f"beams is {self.beams}, but n captions are {self.n}; beams must be at least n")
        return self


def _recipe(settings: Blip2Settings, precision: str, store: Store) -> dict[str, Any]:
    # This engine's captions were stored before the key `engine` existed; without it they keep their recipe.
    model: dict[str, Any] = identify(settings.model, settings.revision, store)
    # Before a prefix was removed, such a checkpoint was loaded as random numbers: its rows must not be used again. The
    # keys of a BLIP-2 without one begin with different letters.
    prefix = shared_prefix(settings.model)
    model |= {"without_prefix": prefix} if prefix else {}
    return facts_of(settings, "engine") | model | {"precision": precision}


ENGINE = Engine(
    settings=Blip2Settings,
    requirements=lambda settings: Requirements((Model(settings.model, settings.revision, settings.precision, BLIP2),)),
    recipe=_recipe,
    load=imported("cvsi.models.blip2_model:Blip2"),
)
