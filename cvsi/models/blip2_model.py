"""A loaded BLIP-2 in transformers: images to n sampled captions each.

The image goes through the vision tower and the Q-Former once, the language model reads its prefix once, and all of the
image's sequences continue from there, many images per batch. With T5, its encoder reads the prefix, and the decoder
begins with a token of its own. Tokens are drawn in `sampling`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cvsi.models.blip2 import Blip2Settings
from cvsi.models.blip2_config import config_of, ends_of
from cvsi.models.sampled_captioner import SampledCaptioner
from cvsi.models.sampling import Beams, Noise, outside_top_p


class Encoded(NamedTuple):
    """What T5's decoder reads: its cache, and the encoder's states of each sequence [m, q + 1, w]."""

    cache: Any
    states: Tensor

    def reorder_cache(self, sources: Tensor) -> None:
        """Continue from these sequences; the states of an image's sequences are equal."""
        self.cache.reorder_cache(sources)


class Blip2(SampledCaptioner[Blip2Settings]):
    """A loaded BLIP-2 and its sampling settings."""

    architecture = "Blip2ForConditionalGeneration"

    def check(self) -> None:
        """Raise CvsiError for another model."""
        config_of(self.settings.model, self.settings.revision)

    def end_tokens(self) -> list[int]:
        """The tokens that end a caption, by the generation configuration; raises CvsiError where it names none.

        That of T5 may leave them out: `generate` then takes those of the language model.
        """
        ends = self.model.generation_config.eos_token_id
        if ends is None and self.encodes:
            ends = self.model.config.text_config.eos_token_id
        return ends_of(self.settings.model, ends)

    @property
    def encodes(self) -> bool:
        """Whether the language model is an encoder-decoder."""
        return bool(self.model.config.text_config.is_encoder_decoder)

    def _prefix(self, pixels: Tensor) -> Tensor:
        """The language model's input for each image: projected query tokens and the start token, [b, q + 1, w].

        Of an encoder-decoder, what its encoder makes of that.
        """
        model = self.model
        seen = model.vision_model(pixel_values=pixels.to(self.device, model.dtype)).last_hidden_state
        queries = model.query_tokens.expand(seen.shape[0], -1, -1)
        attended = model.qformer(query_embeds=queries, encoder_hidden_states=seen.to(queries.dtype)).last_hidden_state
        projected = model.language_projection(attended.to(seen.dtype))
        start = torch.full((len(pixels), 1), model.config.text_config.bos_token_id, device=self.device)
        inputs = torch.cat([projected, model.get_input_embeddings()(start).to(projected.dtype)], dim=1)
        if self.encodes:
            return model.language_model.encoder(inputs_embeds=inputs).last_hidden_state  # type: ignore[no-any-return]
        return inputs

    def _tokens(self, prefix: Tensor, digests: Sequence[str], draw: int) -> Tensor:
        """Tokens [b * n, steps] from prefixes [b, q + 1, w], by the decoding of the settings."""
        decode = self._nucleus if self.settings.decoding == "nucleus" else self._beam_sample
        return decode(prefix, digests, draw)

    def _beam_sample(self, prefix: Tensor, digests: Sequence[str], draw: int) -> Tensor:
        """The n best beam-sampled sequences of each image, tokens [b * n, steps], from prefixes [b, q + 1, w]."""
        steps, width = self.settings.max_tokens, self.settings.beams or self.settings.n
        noise = Noise(self.settings.seed, digests, draw, self.device)
        logits, cache = self._read(prefix, width)
        beams = Beams.start(len(digests), width, steps, self.ends)
        for step in range(steps):
            log_probs = torch.log_softmax(self._scaled(logits, step), dim=-1)
            out = outside_top_p(log_probs, self.settings.top_p, 1 + len(self.ends))
            grown = beams.step(step, log_probs.masked_fill(out, -torch.inf), noise.gumbel(width * log_probs.shape[1]))
            if step + 1 == steps or bool(beams.done.all()):
                break
            cache.reorder_cache(grown.sources)
            logits = self._next(grown.tokens, cache)
        return beams.best(self.settings.n)

    def _read(self, prefix: Tensor, sequences: int) -> tuple[Tensor, Any]:
        if self.encodes:
            first = torch.full((len(prefix),), self.model.config.text_config.decoder_start_token_id, device=self.device)
            output = self._decode(first, prefix)
            states = prefix.repeat_interleave(sequences, dim=0)
        else:
            output = self.model.language_model(inputs_embeds=prefix, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        cache.batch_repeat_interleave(sequences)
        logits = output.logits[:, -1].repeat_interleave(sequences, dim=0)
        return logits, Encoded(cache, states) if self.encodes else cache

    def _next(self, tokens: Tensor, cache: Any) -> Tensor:
        if isinstance(cache, Encoded):
            return self._decode(tokens, cache.states, cache.cache).logits[:, -1]  # type: ignore[no-any-return]
        output = self.model.language_model(input_ids=tokens.unsqueeze(1), past_key_values=cache, use_cache=True)
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def _decode(self, tokens: Tensor, states: Tensor, cache: Any = None) -> Any:
        """One step of T5's decoder, for one token [m] of each sequence."""
        return self.model.language_model(
            decoder_input_ids=tokens.unsqueeze(1), encoder_outputs=(states,), past_key_values=cache, use_cache=True
        )
