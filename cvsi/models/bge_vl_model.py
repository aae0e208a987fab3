"""A loaded BGE-VL, or another CLIP of transformers: images, texts, and both together, to vectors.

The text tower is causal and a text's vector is the state of its end token, so tokens after it change nothing: a batch
of texts is cut to its length.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from cvsi.core.devices import device, dtype, precision
from cvsi.core.errors import CvsiError, cause
from cvsi.core.params import PATH, Backbone, Compute
from cvsi.models.batching import LENGTH_STEP, full, length_batches
from cvsi.models.bge_vl import ARCHITECTURE, settings_of, width
from cvsi.models.clip_encoder import target_pad
from cvsi.models.encoder import BackboneEncoder
from cvsi.models.transformers_model import check_tokenizer, load_model, load_part, words_only

LEGACY_END = 2  # in configurations of before: the end token is the one with the largest number


class BgeVl(BackboneEncoder):
    """Two towers with projections; the model is loaded when it is first used."""

    def __init__(self, backbone: Backbone, compute: Compute, worker: int = 0) -> None:
        """Choose a worker's device and the precision; nothing is loaded yet."""
        self.backbone, self.compute, self.settings = backbone, compute, settings_of(backbone)
        self.device = device(compute, worker)
        self.precision = precision(backbone.precision, self.device.type)
        self.width = width(backbone)
        self.name = f"{PATH}: backbone model '{backbone.model}'"

    def load(self) -> None:
        """Load model, tokenizer and image processor, and check that they belong together."""
        _ = self.model, self.tokenizer, self.processor

    @cached_property
    def model(self) -> Any:
        """The model; raises CvsiError where it cannot be loaded."""
        model = load_model(self.backbone, ARCHITECTURE, dtype(self.precision))
        if model.config.projection_dim != self.width:
            raise CvsiError(f"{self.name}: vectors of {model.config.projection_dim}, not of {self.width} as catalogued")
        return model.to(self.device)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer; raises CvsiError for one whose end token is not that of the model."""
        from transformers import AutoTokenizer  # seconds of imports, needed only when a row is missing

        tokenizer = load_part(self.backbone, AutoTokenizer.from_pretrained)
        text = self.model.config.text_config
        check_tokenizer(self.backbone, tokenizer, text.vocab_size)
        end = tokenizer.eos_token_id
        if not (end == text.eos_token_id or (text.eos_token_id == LEGACY_END and end == len(tokenizer) - 1)):
            raise CvsiError(
                f"{self.name}: the end token of its tokenizer is {end}, that of its config.json is "
                f"{text.eos_token_id}; take both from the same model"
            )
        return tokenizer

    @cached_property
    def processor(self) -> Any:
        """The image processor; raises CvsiError for one that gives another size than the vision tower was built for."""
        from transformers import AutoImageProcessor

        processor = load_part(self.backbone, AutoImageProcessor.from_pretrained)
        side = self.model.config.vision_config.image_size
        try:
            given = tuple(_pixels(processor, Image.new("RGB", (2 * side, side))).shape[1:])
        except Exception as error:  # whatever its configuration leads to
            raise CvsiError(f"{self.name}: its image processor fails: {cause(error)}") from None
        if given != (side, side):
            raise CvsiError(
                f"{self.name}: its image processor makes images of {given[1]} x {given[0]}, its config.json needs "
                f"{side} x {side}; take preprocessor_config.json from this model"
            )
        return processor

    def prepare(self, image: Image.Image) -> Tensor:
        """An image to [3, s, s] float32, padded first where `preprocess` is `target-pad`."""
        return _pixels(self.processor, target_pad(image) if self.settings.preprocess == "target-pad" else image)

    @torch.inference_mode()
    def image_embeddings(self, images: Sequence[Tensor]) -> Tensor:
        """At most `image_batch` images [3, s, s] to projected, un-normalised embeddings [n, d] float32 on the CPU.

        A short batch is filled up, so that an image's last bit does not depend on the others.
        """
        pixels = torch.stack(full(images, self.compute.image_batch)).to(self.device, dtype(self.precision))
        features = self.model.get_image_features(pixel_values=pixels).pooler_output
        return features.float().cpu()[: len(images)]  # type: ignore[no-any-return]

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Texts to token ids [n, context] on the CPU, cut to the context with the end token kept."""
        context = self.model.config.text_config.max_position_embeddings
        words = words_only(list(texts), self.tokenizer)
        encoded = self.tokenizer(words, padding="max_length", truncation=True, max_length=context, return_tensors="pt")
        return encoded["input_ids"]  # type: ignore[no-any-return]

    @torch.inference_mode()
    def text_vectors(self, tokens: Tensor, images: Tensor | None = None) -> Tensor:
        """Token ids [n, context] to unit vectors [n, d] float32 on the CPU, in full batches of like length."""
        return normalize(self._text_embeddings(tokens), dim=-1)

    @torch.inference_mode()
    def composed_vectors(self, images: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
        """At most `image_batch` images [3, s, s] with an instruction each to unit vectors [n, d] float32 on the CPU.

        The sum of both embeddings, scaled to unit length; of the image alone where the instruction has no word.
        """
        total = self.image_embeddings(images)
        spoken = [position for position, text in enumerate(texts) if text.strip()]
        if spoken:
            total[spoken] += self._text_embeddings(self.tokens([texts[position] for position in spoken]))
        return normalize(total, dim=-1)

    def _text_embeddings(self, tokens: Tensor) -> Tensor:
        """Token ids [n, context] to projected, un-normalised embeddings [n, d] float32 on the CPU."""
        lengths = ((tokens == self.tokenizer.eos_token_id).int().argmax(dim=1) + 1).tolist()
        embedded = torch.empty(len(tokens), self.width)
        for positions in length_batches(lengths, self.compute.text_batch):
            length = -(-lengths[positions[0]] // LENGTH_STEP) * LENGTH_STEP
            batch = tokens[full(positions, self.compute.text_batch), :length].to(self.device)
            features = self.model.get_text_features(input_ids=batch).pooler_output
            embedded[positions] = features[: len(positions)].float().cpu()
        return embedded


def _pixels(processor: Any, image: Image.Image) -> Tensor:
    return processor(images=image, return_tensors="pt")["pixel_values"][0]  # type: ignore[no-any-return]
