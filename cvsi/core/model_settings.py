"""Settings of the models, parts of `params.yaml` that a dataset or a run names: captioner, editor and backbone."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from cvsi.core.settings import Name, Precision, Settings

VLLM_COLDEST = 0.01  # it draws at this where less is asked


class Captioner(Settings):
    """A BLIP-2, in transformers or vLLM, and how it is sampled; all of it is part of a caption's recipe."""

    engine: Literal["transformers", "vllm"] = "transformers"
    model: str
    revision: str | None = None
    precision: Precision = "auto"
    decoding: Literal["nucleus", "beam-sample"] = "nucleus"
    n: PositiveInt = 15
    beams: PositiveInt | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    min_tokens: Annotated[int, Field(ge=0, le=512)] = 0
    max_tokens: Annotated[int, Field(ge=1, le=512)] = 30
    redraws: Annotated[int, Field(ge=0, le=20)] = 3
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0

    @model_validator(mode="after")
    def numbers_fit(self) -> Self:
        """Refuse fewer beams than captions, beams without beam-sample, and a shortest length above the longest."""
        if self.beams is not None and self.decoding != "beam-sample":
            raise ValueError("beams is set, but decoding is nucleus; set decoding: beam-sample or leave beams out")
        if self.beams is not None and self.beams < self.n:
            raise ValueError(f"beams is {self.beams}, but n captions are {self.n}; beams must be at least n")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}, above max_tokens {self.max_tokens}")
        return self

    @model_validator(mode="after")
    def engine_can_draw(self) -> Self:
        """Refuse what vLLM can not do: beam-sample, and a temperature that it would raise unasked."""
        if self.engine == "vllm" and self.decoding == "beam-sample":
            raise ValueError("decoding is beam-sample, which engine: vllm has not; set engine: transformers or nucleus")
        if self.engine == "vllm" and self.temperature < VLLM_COLDEST:
            raise ValueError(f"temperature is {self.temperature}; engine: vllm samples at {VLLM_COLDEST} or more")
        return self


class Editor(Settings):
    """A language model, in vLLM here or behind an OpenAI-compatible server, that answers at temperature 0."""

    engine: Literal["vllm", "server"] = "vllm"
    address: Annotated[str, Field(pattern=r"^https?://[^@\s]+$")] | None = None
    model: str
    revision: str | None = None
    precision: Precision = "auto"
    style: Literal["completion", "chat"] = "completion"
    mode: Literal["joint", "each"] = "joint"
    exact: bool = False
    max_tokens: Annotated[int, Field(ge=1, le=8192)] = 700
    context: PositiveInt | None = None

    @model_validator(mode="after")
    def address_goes_with_server(self) -> Self:
        """Refuse a server without an address, and an address without a server."""
        if (self.engine == "server") != (self.address is not None):
            raise ValueError("address names the server of engine: server; give both or neither")
        return self


class Prompts(Settings):
    """Which few-shot texts of `cvsi/prompts/` the editor gets, by file name without `.txt`."""

    edited: Name = "general"
    added: Name = "added"


class Backbone(Settings):
    """A CLIP of open_clip (a name with `pretrained`, or `local-dir:FOLDER`) and the phi that belongs to it."""

    model: str
    pretrained: str | None = None
    revision: str | None = None
    phi: str
    precision: Precision = "auto"
    preprocess: Literal["target-pad", "plain"] = "target-pad"
