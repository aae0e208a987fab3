"""What the captioners in transformers share: loading a checked model, and nucleus-sampled captions of image batches.

A model encodes each image once; all sequences of the image continue from there, many images per batch. Tokens are drawn
in `sampling`, with numbers that settings and the image's digest decide.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cvsi.core.devices import device, dtype, precision
from cvsi.core.errors import CvsiError, cause
from cvsi.core.params import Compute
from cvsi.models.batching import full
from cvsi.models.captioner import SamplingSettings
from cvsi.models.checkpoint_keys import misfit, pattern
from cvsi.models.model_id import require
from cvsi.models.sampling import sample_top_p, uniforms
from cvsi.models.transformers_keys import ADVICE, checked_prefix, loaded_difference

S = TypeVar("S", bound=SamplingSettings)


class SampledCaptioner(ABC, Generic[S]):
    """A loaded captioner and its sampling settings."""

    architecture: str  # the class in transformers

    def __init__(self, captioner: S, compute: Compute, worker: int = 0) -> None:
        """Load model, image processor and tokenizer for a worker; raises CvsiError when they cannot be loaded."""
        require(captioner.model)
        self.settings, self.device = captioner, device(compute, worker)
        self.batch = compute.caption_batch
        try:
            self.check()
            model, report = self._load()
        except CvsiError:
            raise
        except Exception as error:  # transformers raises many kinds on a broken or hostile model; none of it was run
            raise CvsiError(f"{self.name} does not load: {cause(error)}") from None
        left = loaded_difference(report["missing_keys"], report["unexpected_keys"], report["mismatched_keys"])
        if left:  # what the check of the headers did not see
            raise misfit(captioner.model, "", left, ADVICE)
        self.model: Any = model.to(self.device).eval().requires_grad_(False)
        self._check_size()
        self._check_tokenizer()
        self.ends = torch.tensor(self.end_tokens(), device=self.device)

    @property
    def name(self) -> str:
        """The model as the beginning of an error."""
        return f"params.yaml: captioner model '{self.settings.model}'"

    def _load(self) -> tuple[Any, dict[str, Any]]:
        """Image processor, tokenizer and model; the model, and what transformers reports about its keys."""
        import transformers  # seconds of imports, needed only when a row is missing

        # For a hub model that is a pickle alone, transformers would ask a web service to convert it, and download the
        # result as well.
        os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
        settings = self.settings
        source: dict[str, Any] = {"trust_remote_code": False}  # otherwise transformers offers to run a model's code
        source |= {"revision": settings.revision} if settings.revision else {}
        renamed = pattern(checked_prefix(settings.model, settings.revision, self.architecture))
        self.processor: Any = transformers.AutoImageProcessor.from_pretrained(settings.model, **source)
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(settings.model, **source)
        model, report = getattr(transformers, self.architecture).from_pretrained(
            settings.model, dtype=dtype(precision(settings.precision, self.device.type)),
            key_mapping=renamed or None, output_loading_info=True, **source,
        )  # fmt: skip
        return model, report

    def _check_size(self) -> None:
        """Raise CvsiError where the image processor gives another size than the vision tower was built for.

        A tower takes the first positions of a smaller image without any message.
        """
        side = self.model.config.vision_config.image_size
        needed = (side, side) if isinstance(side, int) else tuple(side)
        try:
            given = tuple(self.prepare(Image.new("RGB", needed)).shape[1:])
        except Exception as error:  # whatever its configuration leads to
            raise CvsiError(f"{self.name}: its image processor fails: {cause(error)}") from None
        if given != needed:
            raise CvsiError(
                f"{self.name}: its image processor makes images of {given[0]} x {given[1]}, its config.json needs "
                f"{needed[0]} x {needed[1]}; take processor_config.json and preprocessor_config.json from this model"
            )

    def _check_tokenizer(self) -> None:
        """Raise CvsiError for a tokenizer that lacks most of the model's tokens.

        Where its files are missing, transformers makes one of special tokens alone, and every caption would be empty.
        """
        pieces, tokens = len(self.tokenizer), self.model.config.text_config.vocab_size
        if 2 * pieces < tokens:
            raise CvsiError(
                f"{self.name}: its tokenizer has {pieces:,} of the model's {tokens:,} tokens; "
                "put the model's tokenizer files there (tokenizer.json, or vocab.txt)"
            )

    @abstractmethod
    def check(self) -> None:
        """Raise CvsiError where the model's configuration is not one that this captioner can run."""

    @abstractmethod
    def end_tokens(self) -> list[int]:
        """The tokens that end a caption; raises CvsiError where the loaded model names none."""

    @abstractmethod
    def _prefix(self, pixels: Tensor) -> Tensor:
        """Each image [b, 3, s, s] as what the language model reads of it, [b, p, w]."""

    @abstractmethod
    def _read(self, prefix: Tensor, sequences: int) -> tuple[Tensor, Any]:
        """Read each prefix once: logits of the first token [b * sequences, vocabulary], and the cache for the rest."""

    @abstractmethod
    def _next(self, tokens: Tensor, cache: Any) -> Tensor:
        """Logits [m, vocabulary] after one more token [m] of each sequence."""

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
        tokens = self._tokens(prefix, digests, draw).tolist()
        return [" ".join(text.split()) for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def _tokens(self, prefix: Tensor, digests: Sequence[str], draw: int) -> Tensor:
        """Sampled tokens [b * n, steps] from prefixes [b, p, w]."""
        return self._nucleus(prefix, digests, draw)

    def _nucleus(self, prefix: Tensor, digests: Sequence[str], draw: int) -> Tensor:
        """Nucleus-sampled tokens [b * n, steps] from prefixes [b, p, w]."""
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

    def _scaled(self, logits: Tensor, step: int) -> Tensor:
        """Logits in float32 over the temperature; no end before `min_tokens`."""
        scaled = logits.float() / self.settings.temperature
        if step < self.settings.min_tokens:
            scaled[:, self.ends] = -torch.inf
        return scaled
