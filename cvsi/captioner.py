"""A BLIP-2 through transformers: pictures to n sampled captions each.

The image goes through the vision tower and the Q-Former once, the language model reads its prefix once, and n sequences
go on from there. Nucleus sampling draws by the inverse of the distribution function from one uniform number a token,
seeded by the image's digest: a caption depends on neither the batch, nor the order, nor which images are new.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cvsi.errors import CvsiError
from cvsi.params import Captioner, Compute
from cvsi.weights import DTYPES, device, identify, precision

CODE = 1


def recipe(captioner: Captioner, compute: Compute) -> dict[str, Any]:
    """What decides a caption besides the image's bytes."""
    settings = captioner.model_dump(exclude={"model", "revision", "precision"})
    used = precision(captioner.precision, device(compute))
    return settings | identify(captioner.model, captioner.revision) | {"precision": used, "code": CODE}


class Blip2:
    """A loaded BLIP-2 and its sampling settings."""

    def __init__(self, captioner: Captioner, compute: Compute) -> None:
        """Load model, image processor and tokenizer; raises CvsiError when they can not be loaded."""
        from transformers import (  # seconds of imports, needed only when a row is missing
            AutoImageProcessor,
            AutoTokenizer,
            Blip2ForConditionalGeneration,
        )

        self.settings, self.device = captioner, device(compute)
        source = {"revision": captioner.revision} if captioner.revision else {}
        dtype = DTYPES[precision(captioner.precision, self.device)]
        try:
            self.processor: Any = AutoImageProcessor.from_pretrained(captioner.model, **source)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(captioner.model, **source)
            model = Blip2ForConditionalGeneration.from_pretrained(captioner.model, dtype=dtype, **source)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CvsiError(f"params.yaml: captioner model '{captioner.model}' does not load: {reason}") from None
        self.model: Any = model.to(self.device).eval().requires_grad_(False)
        ends = self.model.generation_config.eos_token_id
        self.ends = torch.tensor([ends] if isinstance(ends, int) else ends, device=self.device)

    def prepare(self, picture: Image.Image) -> Tensor:
        """A picture to the vision tower's input [3, s, s] float32."""
        return self.processor(images=picture, return_tensors="pt")["pixel_values"][0]  # type: ignore[no-any-return]

    @torch.inference_mode()
    def captions(self, pixels: Tensor, digests: Sequence[str]) -> list[list[str]]:
        """Pixels [b, 3, s, s] and the images' digests to n captions each."""
        n, steps = self.settings.n, self.settings.max_tokens
        chances = torch.from_numpy(np.stack([uniforms(self.settings.seed, digest, n, steps) for digest in digests]))
        tokens = self._sample(self._prefix(pixels), chances.flatten(0, 1).to(self.device))
        texts = self.tokenizer.batch_decode(tokens.tolist(), skip_special_tokens=True)
        lines = [" ".join(text.split()) for text in texts]
        return [lines[start : start + n] for start in range(0, len(lines), n)]

    def _prefix(self, pixels: Tensor) -> Tensor:
        """The language model's input for each image: projected query tokens and the start token, [b, q + 1, w]."""
        model = self.model
        seen = model.vision_model(pixel_values=pixels.to(self.device, model.dtype)).last_hidden_state
        queries = model.query_tokens.expand(seen.shape[0], -1, -1)
        asked = model.qformer(query_embeds=queries, encoder_hidden_states=seen.to(queries.dtype)).last_hidden_state
        projected = model.language_projection(asked.to(seen.dtype))
        start = torch.full((len(pixels), 1), model.config.text_config.bos_token_id, device=self.device)
        return torch.cat([projected, model.get_input_embeddings()(start).to(projected.dtype)], dim=1)

    def _sample(self, prefix: Tensor, chances: Tensor) -> Tensor:
        """Sample sequences [b * n, steps] from prefixes [b, q + 1, w] and uniform numbers [b * n, steps]."""
        pad = int(self.ends[0])
        language = self.model.language_model
        output = language(inputs_embeds=prefix, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        cache.batch_repeat_interleave(self.settings.n)
        logits = output.logits[:, -1].repeat_interleave(self.settings.n, dim=0)
        drawn = torch.full(chances.shape, pad, device=self.device)
        finished = torch.zeros(len(chances), dtype=torch.bool, device=self.device)
        for step in range(chances.shape[1]):
            chosen = nucleus(logits.float() / self.settings.temperature, self.settings.top_p, chances[:, step])
            drawn[:, step] = torch.where(finished, pad, chosen)
            finished |= torch.isin(chosen, self.ends)
            if step + 1 == chances.shape[1] or bool(finished.all()):
                break
            output = language(input_ids=drawn[:, step : step + 1], past_key_values=cache, use_cache=True)
            logits = output.logits[:, -1]
        return drawn


def uniforms(seed: int, digest: str, n: int, steps: int) -> np.ndarray:
    """One uniform float32 number a sequence and token, [n, steps], from the seed and the image's digest alone."""
    generator = np.random.Generator(np.random.Philox(key=int(digest[:32], 16) ^ seed))
    return generator.random((n, steps), dtype=np.float32)


def nucleus(logits: Tensor, top_p: float, chances: Tensor) -> Tensor:
    """One token a row from the smallest set of most likely tokens with mass of at least `top_p`.

    Logits [m, vocabulary] float32 and uniform numbers [m] in [0, 1) to token ids [m]; equal logits rank by token id.
    """
    ordered, tokens = torch.sort(logits, dim=-1, descending=True, stable=True)
    mass = torch.softmax(ordered, dim=-1).cumsum(dim=-1)
    kept = (mass < top_p).sum(dim=-1, keepdim=True).clamp(max=mass.shape[1] - 1)
    target = chances.unsqueeze(1) * mass.gather(1, kept)
    place = torch.minimum((mass <= target).sum(dim=-1, keepdim=True), kept)
    return tokens.gather(1, place).squeeze(1)
