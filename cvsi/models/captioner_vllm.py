"""The captioner engine `vllm` with a `prompt`: any vision-language model that vLLM serves with a chat template.

Images and one text to n sampled captions each. The message is that of the engine `server`, so that a model sees the
same here and behind vLLM's own server. An image is encoded once for all of its captions, whose seed comes from the
settings' seed and the image's digest.
"""

from collections.abc import Sequence
from typing import Any, Literal, Self

from PIL import Image
from pydantic import PositiveInt, model_validator

from cvsi.core.errors import CvsiError, cause
from cvsi.core.params import Compute
from cvsi.models.captioner import PromptedSettings, message
from cvsi.models.captioner_family import PROMPTED, refusal
from cvsi.models.editor import TOO_LONG, Answer
from cvsi.models.engines import Engine, Model, Requirements
from cvsi.models.image_data import data_url
from cvsi.models.model_id import identify, require
from cvsi.models.server_errors import CONTEXT, TEMPLATE
from cvsi.models.vllm_chat import NO_REASONING
from cvsi.models.vllm_engine import LOWEST_TEMPERATURE, loading, seed_of, start
from cvsi.store.rows import Store

KEYS = ("decoding", "beams", "min_tokens", "redraws")  # of a BLIP-2


class VllmCaptionerSettings(PromptedSettings):
    """A model on this machine, by hub name or folder; `context` is the longest prompt with its answer, in tokens."""

    engine: Literal["vllm"]
    context: PositiveInt = 4096

    @model_validator(mode="before")
    @classmethod
    def no_key_of_blip2(cls, block: Any) -> Any:
        """Refuse the keys of BLIP-2, which is captioned without a prompt."""
        if isinstance(block, dict) and (given := [key for key in KEYS if key in block]):
            raise ValueError(f"{given[0]} is for a BLIP-2, which takes no prompt; leave {given[0]} out, or prompt")
        return block

    @model_validator(mode="after")
    def numbers_fit(self) -> Self:
        """Refuse a temperature that vLLM would raise, and answers that fill the context."""
        if 0 < self.temperature < LOWEST_TEMPERATURE:
            raise ValueError(
                f"temperature is {self.temperature:g}, which vLLM raises; set {LOWEST_TEMPERATURE:g} or more, or 0"
            )
        if self.max_tokens >= self.context:
            raise ValueError(
                f"max_tokens is {self.max_tokens}, which leaves no space for image and prompt in context {self.context}"
            )
        return self


class VllmCaptioner:
    """A vision-language model loaded by vLLM, and its sampling settings."""

    def __init__(self, settings: VllmCaptionerSettings, compute: Compute, worker: int = 0) -> None:
        """Load the engine; raises CvsiError where the model cannot be loaded, or cannot caption with a prompt."""
        require(settings.model)
        self.settings, self.name = settings, f"params.yaml: captioner model '{settings.model}'"
        with loading("captioner", settings.model, "lower the captioner's context or set another compute.gpu_memory"):
            self._check_family()
            self.engine: Any = start(
                settings.model, settings.revision, settings.precision, compute, max_model_len=settings.context,
                limit_mm_per_prompt={"image": 1, "video": 0, "audio": 0},
                mm_processor_cache_gb=0,  # each image is captioned once; cached pixels would not be used again
            )  # fmt: skip
            if not self.engine.model_config.is_multimodal_model:
                raise CvsiError(f"{self.name} takes no images; name a vision-language model")

    def prepare(self, image: Image.Image) -> str:
        """An image (RGB) as a data URL: a JPEG without metadata, at most `image_size` pixels wide and high."""
        return data_url(image, self.settings.image_size)

    def answers(self, images: Sequence[str], digests: Sequence[str]) -> list[Answer]:
        """`n` raw answers per image, image by image; those of an image that leaves no space are not computed."""
        try:
            return self._chat(images, digests)
        except Exception as error:  # vLLM refuses all where one prompt is too long
            if not CONTEXT.search(str(error)):
                raise self._failure(error) from None
        if len(images) == 1:
            return [Answer("", TOO_LONG)] * self.settings.n
        half = len(images) // 2
        return [*self.answers(images[:half], digests[:half]), *self.answers(images[half:], digests[half:])]

    def _chat(self, images: Sequence[str], digests: Sequence[str]) -> list[Answer]:
        settings = self.settings
        outputs = self.engine.chat(
            [message(settings.prompt, image) for image in images],
            [self._sampling(seed_of(settings.seed, digest, 0)) for digest in digests],
            use_tqdm=False, chat_template_kwargs={**NO_REASONING, **settings.chat_template_kwargs},
        )  # fmt: skip
        sequences = [sequence for output in outputs for sequence in output.outputs]
        return [Answer(sequence.text, sequence.finish_reason or "") for sequence in sequences]

    def _sampling(self, seed: int) -> Any:
        """How one image's captions are drawn."""
        from vllm import SamplingParams  # seconds of imports, needed only when a row is missing

        settings = self.settings
        return SamplingParams(
            n=settings.n, seed=seed, temperature=settings.temperature, top_p=settings.top_p,
            max_tokens=settings.max_tokens,
        )  # fmt: skip

    def _check_family(self) -> None:
        """Raise CvsiError for a BLIP or BLIP-2, before its weights are loaded."""
        from transformers import PretrainedConfig

        config, _ = PretrainedConfig.get_config_dict(self.settings.model, revision=self.settings.revision)
        if wrong := refusal(config, PROMPTED):
            raise CvsiError(f"{self.name} {wrong}")

    def _failure(self, error: Exception) -> CvsiError:
        """An error of a template, which raises what it likes, or of the engine, as one line."""
        if TEMPLATE.search(str(error)):
            return CvsiError(
                f"{self.name}: no chat template, or one that refuses the message ({cause(error)}); name an instruct "
                "model"
            )
        return CvsiError(f"{self.name} fails on an image ({cause(error)})")


def _recipe(settings: VllmCaptionerSettings, precision: str, store: Store) -> dict[str, Any]:
    facts = settings.facts() | settings.model_dump(include={"engine", "context"})
    return facts | identify(settings.model, settings.revision, store) | {"precision": precision}


ENGINE = Engine(
    settings=VllmCaptionerSettings,
    requirements=lambda settings: Requirements(
        (Model(settings.model, settings.revision, settings.precision, PROMPTED),), packages=("vllm",)
    ),
    recipe=_recipe,
    load=VllmCaptioner,
    one_worker=True,
    answers=True,
)
