"""A loaded CLIP backbone in open_clip: images, texts, and texts with a pseudo token, to vectors.

Token embeddings go through one text path whether they are the vocabulary's or phi's, so a pseudo token is treated
exactly as a word. The text tower is causal: tokens after the end token change nothing, so a batch is cut to its longest
text.
"""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import normalize

from cvsi.core.devices import device, dtype, precision
from cvsi.core.errors import CvsiError, cause
from cvsi.core.params import Backbone, Compute
from cvsi.models import phi as mapping
from cvsi.models.batching import LENGTH_STEP, full, length_batches
from cvsi.models.clip import TOKEN, embedding_dims, recipe
from cvsi.models.clip_activation import check_settings
from cvsi.models.clip_checkpoint import locate, tag
from cvsi.models.clip_tokenizer import Tokenizer
from cvsi.models.clip_weights import load_into
from cvsi.models.encoder import BackboneEncoder


class Encoder(BackboneEncoder):
    """One backbone's two towers and phi; the model is loaded when it is first used."""

    def __init__(self, backbone: Backbone, compute: Compute, worker: int = 0) -> None:
        """Choose a worker's device and the precision; nothing is loaded yet."""
        self.backbone, self.compute = backbone, compute
        self.device = device(compute, worker)
        self.precision = precision(backbone.precision, self.device.type)
        self.width, self.token_width = embedding_dims(backbone)
        tag(backbone)  # raises CvsiError now for weights that do not exist

    def recipe(self, kind: str) -> dict[str, Any]:
        """What decides this backbone's `image`, `text` or `pseudo` rows, for the store."""
        return recipe(self.backbone, kind, self.precision)

    def load(self) -> None:
        """Load the model and its tokenizer, and check phi where its file exists."""
        self.check_phi()
        _ = self.model, self.tokenizer

    @cached_property
    def model(self) -> Any:
        """The open_clip model in evaluation mode; raises CvsiError when it cannot be loaded."""
        import open_clip  # seconds of imports, here and below, needed only when a row is missing

        logging.getLogger().setLevel(logging.ERROR)
        name, (file, preprocess) = self.backbone.model, locate(self.backbone)
        try:
            model = open_clip.create_model(
                name, load_weights=False, pretrained_text=False, weights_only=True, force_preprocess_cfg=preprocess
            )
        except Exception as error:  # open_clip raises many kinds on a broken configuration
            raise CvsiError(f"params.yaml: backbone model '{name}' does not load: {cause(error)}") from None
        if not hasattr(model, "token_embedding") or model.text_pool_type != "argmax":
            raise CvsiError(f"params.yaml: backbone model '{name}' has no causal CLIP text tower")
        try:
            if file is not None and load_into(model, Path(file)):
                check_settings(name, file, quick=open_clip.get_model_config(name).get("quick_gelu", False))
        except CvsiError:
            raise
        except Exception as error:  # torch and safetensors raise many kinds on a broken file
            raise CvsiError(f"params.yaml: backbone model '{name}' does not load {file}: {cause(error)}") from None
        return model.to(self.device, dtype(self.precision)).eval().requires_grad_(False)

    @cached_property
    def phi(self) -> mapping.Phi:
        """The mapping network, in float32; raises CvsiError where the backbone has none."""
        if self.backbone.phi is None:
            raise CvsiError(
                f"params.yaml: backbone {self.backbone.model} has no phi, which pseudo tokens need; add one"
            )
        return mapping.load(self.backbone.phi, self.width, self.token_width).to(self.device)

    @cached_property
    def tokenizer(self) -> Any:
        """Texts to token ids, cut to the context with the end token kept."""
        import open_clip

        return open_clip.get_tokenizer(self.backbone.model)

    @cached_property
    def _tokenize(self) -> Tokenizer:
        return Tokenizer(self.tokenizer, self.model.context_length)

    @cached_property
    def transform(self) -> Any:
        """An image to the model's input [3, s, s]: resize, centre crop, scale, normalise."""
        from open_clip.transform import PreprocessCfg, image_transform_v2

        return image_transform_v2(PreprocessCfg(**self.model.visual.preprocess_cfg), is_train=False)

    def check_phi(self) -> None:
        """Raise CvsiError if the backbone has a phi whose file exists and does not fit."""
        if self.backbone.phi is not None and Path(self.backbone.phi).exists():
            _ = self.phi

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Texts to token ids [n, context] on the CPU, cut to the context with the end token kept."""
        return self._tokenize(texts)

    def lengths(self, tokens: Tensor) -> list[int]:
        """How many positions of the context each text [n, context] takes, start and end token included."""
        return (tokens.argmax(dim=1) + 1).tolist()

    def embed(self, tokens: Tensor, words: Tensor | None = None, replace: Literal["first", "all"] = "all") -> Tensor:
        """Token ids [n, context] to projected, un-normalised embeddings [n, d] float32 on the device.

        `words` [n, token width] replace the first `$` of their row, or all of them; gradients flow to them. Raises
        CvsiError where a row has none within the context.
        """
        tokens = self._trim(tokens)
        embeddings = self.model.token_embedding(tokens)
        if words is not None:
            places = tokens == self.tokenizer.encode(TOKEN)[0]
            if replace == "first":
                missing = ~places.any(dim=1)
                if bool(missing.any()):
                    number = int(missing.int().argmax()) + 1
                    raise CvsiError(f"no '{TOKEN}' within the context of text {number} of a batch")
                places &= places.cumsum(dim=1) == 1
            words = words.to(self.device, embeddings.dtype)
            embeddings = torch.where(places.unsqueeze(-1), words.unsqueeze(1), embeddings)
        return self._project(tokens, embeddings)

    def prepare(self, image: Image.Image) -> Tensor:
        """An image to [3, s, s] float32, padded first where the backbone's preprocessing is `target-pad`."""
        padded = target_pad(image) if self.backbone.preprocess == "target-pad" else image
        return self.transform(padded)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def image_embeddings(self, images: Sequence[Tensor]) -> Tensor:
        """At most `image_batch` images [3, s, s] to projected, un-normalised embeddings [n, d] float32 on the CPU.

        A short batch is filled up, so that an image's last bit does not depend on the others.
        """
        pixels = torch.stack(full(images, self.compute.image_batch)).to(self.device, dtype(self.precision))
        return self.model.encode_image(pixels).float().cpu()[: len(images)]  # type: ignore[no-any-return]

    @torch.inference_mode()
    def text_vectors(self, tokens: Tensor, images: Tensor | None = None) -> Tensor:
        """Token ids [n, context] to unit vectors [n, d] float32 on the CPU, in full batches of like length.

        With un-normalised `images` [n, d], phi's word for each replaces the first `$` of its text; raises CvsiError
        where there is none.
        """
        vectors = torch.empty(len(tokens), self.width)
        for positions in length_batches(self.lengths(tokens), self.compute.text_batch):
            batch = full(positions, self.compute.text_batch)
            words = None if images is None else self.pseudo_tokens(images[batch])
            embedded = normalize(self.embed(tokens[batch], words, replace="first"), dim=-1)
            vectors[positions] = embedded[: len(positions)].cpu()
        return vectors

    @torch.inference_mode()
    def pseudo_tokens(self, embeddings: Tensor) -> Tensor:
        """Un-normalised image embeddings [n, d] to phi's word embeddings [n, token width]."""
        return self.phi(embeddings.to(self.device))  # type: ignore[no-any-return]

    def _trim(self, tokens: Tensor) -> Tensor:
        longest = int(tokens.argmax(dim=1).max()) + 1
        rounded = -(-longest // LENGTH_STEP) * LENGTH_STEP
        return tokens[:, :rounded].to(self.device)

    def _project(self, tokens: Tensor, embeddings: Tensor) -> Tensor:
        model, length = self.model, tokens.shape[1]
        states = embeddings + model.positional_embedding[:length]
        states = model.transformer(states, attn_mask=model.attn_mask[:length, :length].to(states.dtype))
        ends = tokens.argmax(dim=1)  # the end token has the largest id
        pooled = model.ln_final(states)[torch.arange(len(tokens), device=self.device), ends]
        return (pooled @ model.text_projection).float()  # type: ignore[no-any-return]


def target_pad(image: Image.Image, ratio: float = 1.25) -> Image.Image:
    """Pad with zeros so that no side exceeds `ratio` times the other (the published preprocessing).

    With r = max(w, h) / min(w, h) >= ratio, left and right get max(int((max(w, h) / ratio - w) / 2), 0) pixels each,
    top and bottom the same with h.
    """
    width, height = image.size
    if max(width, height) / min(width, height) < ratio:
        return image
    scaled = max(width, height) / ratio
    across, down = max(int((scaled - width) / 2), 0), max(int((scaled - height) / 2), 0)
    return ImageOps.expand(image, (across, down, across, down), fill=0)
