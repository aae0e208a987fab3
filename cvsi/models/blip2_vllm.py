"""The captioner engine `vllm`: BLIP-2 in vLLM, images to n sampled captions each, with other draws than `blip2`.

vLLM encodes an image once for all of its sequences, and starts the next image's as soon as some have ended. Its prompt
is the same: the projected query tokens, then the start token, and no text. A captioner with a `prompt` is another model
of this engine, see `captioner_vllm`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import Field, field_validator, model_validator

from cvsi.core.errors import CvsiError
from cvsi.core.params import Compute
from cvsi.models import captioner_vllm
from cvsi.models.blip2_config import config_of, ends_of, language_start
from cvsi.models.captioner import SamplingSettings
from cvsi.models.captioner_family import BLIP2_DECODER
from cvsi.models.engines import Engine, Model, Requirements, facts_of
from cvsi.models.model_id import identify, require
from cvsi.models.vllm_engine import LOWEST_TEMPERATURE, loading, seed_of, start
from cvsi.store.rows import Store

KEYS = ("image_size", "context", "chat_template_kwargs")  # of a prompted model


class VllmBlip2Settings(SamplingSettings):
    """A BLIP-2 in vLLM and how it is sampled; all of it is part of a caption's recipe."""

    engine: Literal["vllm"]
    decoding: Literal["nucleus"] = "nucleus"
    beams: None = None
    temperature: Annotated[float, Field(ge=LOWEST_TEMPERATURE, allow_inf_nan=False)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def no_key_of_a_prompted_model(cls, block: Any) -> Any:
        """Refuse the keys of the other models of this engine, which are chosen by the key `prompt`."""
        if isinstance(block, dict) and (given := [key for key in KEYS if key in block]):
            raise ValueError(
                f"{given[0]} is for a vision-language model with a chat template, which needs a prompt; add prompt, or "
                f"leave {given[0]} out"
            )
        return block

    @field_validator("decoding", mode="before")
    @classmethod
    def decoding_is_nucleus(cls, decoding: Any) -> Any:
        """Refuse beam-sample, which vLLM does not have."""
        if decoding == "beam-sample":
            raise ValueError("beam-sample is not available in engine: vllm; set engine: transformers or nucleus")
        return decoding


class VllmBlip2:
    """A BLIP-2 loaded by vLLM and its sampling settings."""

    def __init__(self, captioner: VllmBlip2Settings, compute: Compute, worker: int = 0) -> None:
        """Load the engine; raises CvsiError when the model cannot be loaded."""
        require(captioner.model)
        self.settings = captioner
        with loading("captioner", captioner.model, "set another compute.gpu_memory"):
            config = _config(captioner)
            self.engine: Any = start(
                captioner.model, captioner.revision, captioner.precision, compute, limit_mm_per_prompt={"image": 1},
                # Just what a caption needs, so that the cache need not hold the language model's whole context.
                max_model_len=config.num_query_tokens + 1 + captioner.max_tokens,
                mm_processor_cache_gb=0,  # each image is captioned once; cached pixels would not be used again
            )  # fmt: skip
            ends = self.engine.model_config.try_get_generation_config().get("eos_token_id")
        self.ends = ends_of(captioner.model, ends)
        self.start = [language_start(config)]  # vLLM puts the query tokens before it
        self.tokenizer = self.engine.get_tokenizer()

    def prepare(self, image: Image.Image) -> Image.Image:
        """The image itself; vLLM resizes it."""
        return image

    def captions(self, images: Sequence[Image.Image], digests: Sequence[str]) -> list[list[str]]:
        """Images (RGB) and their digests to at most n captions each.

        An empty caption is drawn again, `redraws` times at most, and left out if it is still empty then.
        """
        lines: list[list[str]] = [[""] * self.settings.n for _ in images]
        for draw in range(self.settings.redraws + 1):
            empty = [index for index, captions in enumerate(lines) if not all(captions)]
            drawn = self._draw([images[index] for index in empty], [digests[index] for index in empty], draw)
            for index, new in zip(empty, drawn, strict=True):
                lines[index] = [old or text for old, text in zip(lines[index], new, strict=True)]
        return [[line for line in captions if line] for captions in lines]

    def _draw(self, images: Sequence[Image.Image], digests: Sequence[str], draw: int) -> list[list[str]]:
        """One draw of n captions per image; `draw` counts from 0."""
        if not images:
            return []
        prompts = [{"prompt_token_ids": self.start, "multi_modal_data": {"image": image}} for image in images]
        sampling = [self._sampling(seed_of(self.settings.seed, digest, draw)) for digest in digests]
        outputs = self.engine.generate(prompts, sampling, use_tqdm=False)
        tokens = [list(sequence.token_ids) for output in outputs for sequence in output.outputs]
        texts = [" ".join(text.split()) for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        n = self.settings.n
        return [texts[start : start + n] for start in range(0, len(texts), n)]

    def _sampling(self, seed: int) -> Any:
        """How one image's captions are drawn; the same end tokens end one as in transformers."""
        from vllm import SamplingParams

        settings = self.settings
        return SamplingParams(
            n=settings.n, seed=seed, temperature=settings.temperature, top_p=settings.top_p,
            min_tokens=settings.min_tokens, max_tokens=settings.max_tokens,
            ignore_eos=True, stop_token_ids=self.ends, detokenize=False,
        )  # fmt: skip


def _config(captioner: VllmBlip2Settings) -> Any:
    """The model's configuration; raises CvsiError where vLLM could not caption with it."""
    name = f"params.yaml: captioner model '{captioner.model}'"
    config = config_of(captioner.model, captioner.revision, BLIP2_DECODER)
    if config.image_token_index is None:
        raise CvsiError(f"{name} has no image token, which engine: vllm needs; take a newer revision, or transformers")
    longest = config.text_config.max_position_embeddings - config.num_query_tokens - 1
    if captioner.max_tokens > longest:
        raise CvsiError(f"{name} has space for {longest} tokens; lower max_tokens (now {captioner.max_tokens})")
    return config


def _recipe(settings: VllmBlip2Settings, precision: str, store: Store) -> dict[str, Any]:
    return facts_of(settings) | identify(settings.model, settings.revision, store) | {"precision": precision}


ENGINE = Engine(
    settings=VllmBlip2Settings,
    requirements=lambda settings: Requirements(
        (Model(settings.model, settings.revision, settings.precision, BLIP2_DECODER),), packages=("vllm",)
    ),
    recipe=_recipe,
    load=VllmBlip2,
    one_worker=True,
    prompted=captioner_vllm.ENGINE,
)
