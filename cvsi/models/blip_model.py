"""A loaded BLIP in transformers: images to n sampled captions each.

The image goes through the vision tower once. The text decoder reads it by cross-attention in every layer, and its keys
and values are most of the memory: 577 positions per layer, compared with some ten tokens. They are not repeated per
caption. All n captions of an image stand in one row of the decoder's batch, side by side: their tokens of one step are
n neighbours with the same position, and a mask hides each caption from the others.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cvsi.core.errors import CvsiError
from cvsi.models.blip import BlipSettings
from cvsi.models.captioner_family import BLIP, FAMILIES, refusal
from cvsi.models.sampled_captioner import SampledCaptioner


@dataclass(frozen=True)
class Reading:
    """What the decoder has read: its cache, grown by every step, the images [b, p, w], and the captions per image."""

    cache: Any
    seen: Tensor
    sequences: int


class Blip(SampledCaptioner[BlipSettings]):
    """A loaded BLIP and its sampling settings."""

    architecture = FAMILIES[BLIP].architecture

    def check(self) -> None:
        """Raise CvsiError for another model, and one that lacks a start, an end, or space for the longest caption."""
        from transformers import AutoConfig  # seconds of imports, needed only when a row is missing

        settings = self.settings
        config = AutoConfig.from_pretrained(settings.model, revision=settings.revision, trust_remote_code=False)
        if wrong := refusal(config.to_dict(), BLIP):
            raise CvsiError(f"{self.name} {wrong}")
        text = config.text_config
        for key in ("bos_token_id", "sep_token_id"):
            if getattr(text, key) is None:
                raise CvsiError(f"{self.name} names no {key}; complete text_config in its config.json")
        if settings.max_tokens > text.max_position_embeddings:
            raise CvsiError(
                f"{self.name} has space for {text.max_position_embeddings} tokens; "
                f"lower max_tokens (now {settings.max_tokens})"
            )

    def end_tokens(self) -> list[int]:
        """The separator of BERT's word pieces: BLIP's own `generate` ends with it, whatever `eos_token_id` is."""
        return [self.model.config.text_config.sep_token_id]

    def _prefix(self, pixels: Tensor) -> Tensor:
        seen = self.model.vision_model(pixel_values=pixels.to(self.device, self.model.dtype))
        return seen.last_hidden_state  # type: ignore[no-any-return]

    def _read(self, prefix: Tensor, sequences: int) -> tuple[Tensor, Reading]:
        start = torch.full((len(prefix), 1), self.model.config.text_config.bos_token_id, device=self.device)
        output = self.model.text_decoder(input_ids=start, encoder_hidden_states=prefix, use_cache=True)
        logits = output.logits[:, -1].repeat_interleave(sequences, dim=0)
        return logits, Reading(output.past_key_values, prefix, sequences)

    def _next(self, tokens: Tensor, cache: Reading) -> Tensor:
        n, read = cache.sequences, cache.cache.get_seq_length()
        steps = (read - 1) // n + 1  # the start token, and the captions' tokens since
        output = self.model.text_decoder(
            input_ids=tokens.view(-1, n),
            position_ids=torch.full((1, n), steps, device=self.device),
            attention_mask=own_tokens(n, read + n, self.device).to(self.model.dtype),
            encoder_hidden_states=cache.seen,
            past_key_values=cache.cache,
            use_cache=True,
        )
        return output.logits.flatten(0, 1)  # type: ignore[no-any-return]


def own_tokens(n: int, length: int, device: torch.device) -> Tensor:
    """The mask of n captions side by side, [1, 1, n, length]: 0 for the start token and a caption's own, else -inf.

    Position 0 is the start token of all; then follow n tokens for each step, in the order of the captions.
    """
    position = torch.arange(length, device=device)
    own = (position - 1) % n == torch.arange(n, device=device).unsqueeze(1)
    return torch.zeros(n, length, device=device).masked_fill(~(own | (position == 0)), -torch.inf)[None, None]
