"""A BLIP-2 through vLLM: pictures to n sampled captions each, as `captioner` gives them but with other draws.

vLLM sees a picture once for all of its sequences, and fills the places of those that have ended with the next
picture's. It reads what `captioner` reads: the projected query tokens, then the start token, and no text.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from PIL import Image

from cvsi.core.errors import CvsiError
from cvsi.core.model_settings import Captioner
from cvsi.core.params import Compute
from cvsi.models.vllm_engine import loading, start

SEED_BYTES = 7  # vLLM adds a sequence's number to it and wants 64 bits, signed


class VllmBlip2:
    """A BLIP-2 loaded by vLLM and its sampling settings."""

    def __init__(self, captioner: Captioner, compute: Compute) -> None:
        """Load the engine; raises CvsiError when the model can not be loaded."""
        self.settings = captioner
        with loading("captioner", captioner.model, "set another compute.gpu_memory"):
            config = _config(captioner)
            self.engine: Any = start(
                captioner, compute, limit_mm_per_prompt={"image": 1},
                # Just what a caption needs, so that the cache need not hold the language model's whole context.
                max_model_len=config.num_query_tokens + 1 + captioner.max_tokens,
                mm_processor_cache_gb=0,  # a picture is asked about once; kept pixels would be of no use
            )  # fmt: skip
            ends = self.engine.model_config.try_get_generation_config()["eos_token_id"]
        self.ends = [ends] if isinstance(ends, int) else list(ends)
        self.start = [config.text_config.bos_token_id]  # vLLM puts the query tokens before it
        self.tokenizer = self.engine.get_tokenizer()

    def prepare(self, picture: Image.Image) -> Image.Image:
        """The picture itself; vLLM resizes it."""
        return picture

    def captions(self, pictures: Sequence[Image.Image], digests: Sequence[str]) -> list[list[str]]:
        """Pictures (RGB) and their digests to at most n captions each.

        An empty caption is drawn again, `redraws` times at most, and left out if it is still empty then.
        """
        lines: list[list[str]] = [[""] * self.settings.n for _ in pictures]
        for draw in range(self.settings.redraws + 1):
            asked = [place for place, found in enumerate(lines) if not all(found)]
            drawn = self._draw([pictures[place] for place in asked], [digests[place] for place in asked], draw)
            for place, new in zip(asked, drawn, strict=True):
                lines[place] = [old or text for old, text in zip(lines[place], new, strict=True)]
        return [[line for line in found if line] for found in lines]

    def _draw(self, pictures: Sequence[Image.Image], digests: Sequence[str], draw: int) -> list[list[str]]:
        """One draw of n captions an image; `draw` counts from 0."""
        if not pictures:
            return []
        prompts = [{"prompt_token_ids": self.start, "multi_modal_data": {"image": picture}} for picture in pictures]
        sampling = [self._sampling(seed_of(self.settings.seed, digest, draw)) for digest in digests]
        outputs = self.engine.generate(prompts, sampling, use_tqdm=False)
        tokens = [list(sequence.token_ids) for output in outputs for sequence in output.outputs]
        texts = [" ".join(text.split()) for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        n = self.settings.n
        return [texts[place : place + n] for place in range(0, len(texts), n)]

    def _sampling(self, seed: int) -> Any:
        """How one image's captions are drawn; only the ends that transformers knows too end one."""
        from vllm import SamplingParams

        settings = self.settings
        return SamplingParams(
            n=settings.n, seed=seed, temperature=settings.temperature, top_p=settings.top_p,
            min_tokens=settings.min_tokens, max_tokens=settings.max_tokens,
            ignore_eos=True, stop_token_ids=self.ends, detokenize=False,
        )  # fmt: skip


def seed_of(seed: int, digest: str, draw: int) -> int:
    """The seed of an image's draw, hashed: vLLM gives sequence i seed + i, so near seeds would share captions."""
    return int.from_bytes(hashlib.sha256(f"{seed} {digest} {draw}".encode()).digest()[:SEED_BYTES], "big")


def _config(captioner: Captioner) -> Any:
    """The model's configuration; raises CvsiError where vLLM could not caption with it as it is asked to."""
    from transformers import AutoConfig  # seconds of imports, needed only when a row is missing

    name = f"params.yaml: captioner model '{captioner.model}'"
    config = AutoConfig.from_pretrained(captioner.model, revision=captioner.revision, trust_remote_code=False)
    if config.model_type != "blip-2":
        raise CvsiError(f"{name} is a {config.model_type}, not a BLIP-2; name another model")
    if config.image_token_index is None:
        raise CvsiError(f"{name} has no image token, which engine: vllm needs; take a newer revision, or transformers")
    room = config.text_config.max_position_embeddings - config.num_query_tokens - 1
    if captioner.max_tokens > room:
        raise CvsiError(f"{name} has room for {room} tokens; lower max_tokens (now {captioner.max_tokens})")
    return config
