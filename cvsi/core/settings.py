"""What all settings of `params.yaml` share, and those of training phi, which belong to no dataset."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """Immutable settings that refuse keys they do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class WordList(Settings):
    """A file of keywords, one a line, for captions whose words are known; spaCy's blank English pipeline reads it."""

    words: str


class PhiTraining(Settings):
    """A phi trained on captions alone, for one backbone; the defaults are LinCIR's (arXiv 2312.01998).

    `spans` is an installed spaCy pipeline that tags parts of speech, or a word list.
    """

    backbone: Name
    captions: str
    spans: Name | WordList = "en_core_web_sm"
    steps: PositiveInt
    batch: PositiveInt = 512
    learning_rate: Positive = 1e-4
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    warmup: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["constant", "cosine"] = "constant"
    clip: Positive | None = None
    held_out: PositiveInt = 2000
    validate_every: PositiveInt = 500
    patience: PositiveInt | None = None
    checkpoint_every: PositiveInt = 500
    precision: Precision = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0

    @model_validator(mode="after")
    def warmup_ends(self) -> Self:
        """Refuse a warm-up as long as the training."""
        if self.warmup >= self.steps:
            raise ValueError(f"warmup is {self.warmup}, but steps are {self.steps}; warmup must be less")
        return self
