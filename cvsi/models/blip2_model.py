"""A loaded BLIP-2 in transformers: images to n sampled captions each.

The image goes through the vision tower and the Q-Former once, the language model reads its prefix once, and all of the
image's sequences continue from there, many images per batch. Tokens are drawn in `sampling`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cvsi.core.devices import device, dtype, precision
from cvsi.core.errors import CvsiError, cause
from cvsi.core.params import Compute
from cvsi.models.batching import full
from cvsi.models.blip2 import Blip2Settings
from cvsi.models.blip2_config import config_of, ends_of
from cvsi.models.checkpoint_keys import misfit, pattern
from cvsi.models.model_id import require
from cvsi.models.sampling import Beams, Noise, outside_top_p, sample_top_p, uniforms
from cvsi.models.transformers_keys import ADVICE, checked_prefix, loaded_difference


class Blip2:
    """A loaded BLIP-2 and its sampling settings."""

    def __init__(self, captioner: Blip2Settings, compute: Compute, worker: int = 0) -> None:
        """Load model, image processor and tokenizer for a worker; raises CvsiError when they cannot be loaded."""
        from transformers import (  # seconds of imports, needed only when a row is missing
            AutoImageProcessor,
            AutoTokenizer,
            Blip2ForConditionalGeneration,
        )

        require(captioner.model)
        self.settings, self.device = captioner, device(compute, worker)
        self.batch = compute.caption_batch
        source: dict[str, Any] = {"trust_remote_code": False}  # otherwise transformers offers to run a model's code
        source |= {"revision": captioner.revision} if captioner.revision else {}
        chosen = dtype(precision(captioner.precision, self.device.type))
        name = f"params.yaml: captioner model '{captioner.model}'"
        try:
            config_of(captioner.model, captioner.revision)
            renamed = pattern(
                checked_prefix(captioner.model, captioner.revision, Blip2ForConditionalGeneration.__name__)
            )
            self.processor: Any = AutoImageProcessor.from_pretrained(captioner.model, **source)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(captioner.model, **source)
            model, report = Blip2ForConditionalGeneration.from_pretrained(
                captioner.model, dtype=chosen, key_mapping=renamed or None, output_loading_info=True, **source
            )
        except CvsiError:
            raise
        except Exception as error:  # transformers raises many kinds on a broken or hostile model; none of it was run
            raise CvsiError(f"{name} does not load: {cause(error)}") from None
        left = loaded_difference(report["missing_keys"], report["unexpected_keys"], report["mismatched_keys"])
        if left:  # what the check of the headers did not see
            raise misfit(captioner.model, "", left, ADVICE)
        self.model: Any = model.to(self.device).eval().requires_grad_(False)
        ends = ends_of(captioner.model, self.model.generation_config.eos_token_id)
        self.ends = torch.tensor(ends, device=self.device)

    def prepare(self, image: Image.Image) -> Tensor:
        """An image to the vision tower's input [3, s, s] float32."""
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]  # type: ignore[no-any-return]

    @torch.inference_mode()
    def captions(self, images: Sequence[Tensor], digests: Sequence[str]) -> list[list[str]]:
        """At most `caption_batch` images [3, s, s] and their digests to at most n captions each.

        A short batch is filled up with copies of its last image: every batch has the same shape, so an image's last bit
        does not depend on the others. An empty caption is drawn again, `redraws` times at most, and left out if it is
        still empty then.
        """
        number, digests = len(images), full(digests, self.batch)
        prefix, n = self._prefix(torch.stack(full(images, self.batch))), self.settings.n
        lines = self._draw(prefix, digests, 0)
        for draw in range(1, self.settings.redraws + 1):
            if all(lines):
                break
            lines = [old or new for old, new in zip(lines, self._draw(prefix, digests, draw), strict=True)]
        return [[line for line in lines[start : start + n] if line] for start in range(0, number * n, n)]

    def _draw(self, prefix: Tensor, digests: Sequence[str], draw: int) -> list[str]:
        """One draw of n captions per image, one image after the other; `draw` counts from 0."""
        decode = self._nucleus if self.settings.decoding == "nucleus" else self._beam_sample
        texts = self.tokenizer.batch_decode(decode(prefix, digests, draw).tolist(), skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def _prefix(self, pixels: Tensor) -> Tensor:
        """The language model's input for each image: projected query tokens and the start token, [b, q + 1, w]."""
        model = self.model
        seen = model.vision_model(pixel_values=pixels.to(self.device, model.dtype)).last_hidden_state
        queries = model.query_tokens.expand(seen.shape[0], -1, -1)
        attended = model.qformer(query_embeds=queries, encoder_hidden_states=seen.to(queries.dtype)).last_hidden_state
        projected = model.language_projection(attended.to(seen.dtype))
        start = torch.full((len(pixels), 1), model.config.text_config.bos_token_id, device=self.device)
        return torch.cat([projected, model.get_input_embeddings()(start).to(projected.dtype)], dim=1)

    def _nucleus(self, prefix: Tensor, digests: Sequence[str], draw: int) -> Tensor:
        """Nucleus-sampled tokens [b * n, steps] from prefixes [b, q + 1, w]."""
        n, steps = self.settings.n, self.settings.max_tokens
        numbers = np.stack([uniforms(self.settings.seed, digest, n, steps, draw) for digest in digests])
        uniform = torch.from_numpy(numbers).flatten(0, 1).to(self.device)
        logits, cache = self._read(prefix, n)
        drawn = torch.full(uniform.shape, int(self.ends[0]), device=self.device)
        finished = torch.zeros(len(uniform), dtype=torch.bool, device=self.device)
        for step in range(steps):
            chosen = sample_top_p(self._scaled(logits, step), self.settings.top_p, uniform[:, step])
            drawn[:, step] = torch.where(finished, self.ends[0], chosen)
            finished |= torch.isin(chosen, self.ends)
            if step + 1 == steps or bool(finished.all()):
                break
            logits = self._next(drawn[:, step], cache)
        return drawn

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
        """Read each prefix once: logits of the first token [b * sequences, vocabulary], and the cache for the rest."""
        output = self.model.language_model(inputs_embeds=prefix, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        cache.batch_repeat_interleave(sequences)
        return output.logits[:, -1].repeat_interleave(sequences, dim=0), cache

    def _next(self, tokens: Tensor, cache: Any) -> Tensor:
        """Logits [m, vocabulary] after one more token [m] of each sequence."""
        output = self.model.language_model(input_ids=tokens.unsqueeze(1), past_key_values=cache, use_cache=True)
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def _scaled(self, logits: Tensor, step: int) -> Tensor:
        """Logits in float32 over the temperature; no end before `min_tokens`."""
        scaled = logits.float() / self.settings.temperature
        if step < self.settings.min_tokens:
            scaled[:, self.ends] = -torch.inf
        return scaled
