"""A CLIP backbone through open_clip: pictures, texts, and texts with a pseudo token, to vectors.

Token embeddings go through one text path whether they are a vocabulary's or phi's, so a pseudo token is treated
exactly as a word. The text tower is causal: what follows the end token changes nothing, so a batch is cut to its
longest text.
"""

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import normalize

from cvsi.core.devices import device, dtype, precision
from cvsi.core.errors import CvsiError, cause
from cvsi.core.model_settings import Backbone
from cvsi.core.params import Compute
from cvsi.models import phi as mapping
from cvsi.models import recipes
from cvsi.models.batching import LENGTH_STEP
from cvsi.models.clip_checkpoint import FOLDER, locate, tag
from cvsi.models.clip_tokenizer import Tokenizer
from cvsi.models.model_id import identify

TOKEN = "$"


def template(instruction: str, added: str) -> str:
    """The sentence whose first `$` stands for the reference image; without objects added, its first half."""
    sentence = f"a photo of {TOKEN} that {instruction}."
    return f"{sentence} And the photo should have {added}." if added else sentence


def sizes(backbone: Backbone) -> tuple[int, int]:
    """A backbone's vector width and token width, from its configuration alone; raises CvsiError where there is none."""
    if backbone.model.startswith(FOLDER):
        path = Path(backbone.model.removeprefix(FOLDER)) / "open_clip_config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
            return int(config["embed_dim"]), int(config["text_cfg"]["width"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise CvsiError(f"{path}: no readable open_clip configuration ({error})") from None
    import open_clip

    if backbone.model not in open_clip.list_models():
        raise CvsiError(
            f"params.yaml: open_clip knows no model '{backbone.model}'; take one of its names, or {FOLDER}FOLDER"
        )
    config = open_clip.get_model_config(backbone.model)
    return int(config["embed_dim"]), int(config["text_cfg"]["width"])


class Encoder:
    """One backbone's two towers and phi; the model is loaded when it is first used."""

    def __init__(self, backbone: Backbone, compute: Compute, worker: int = 0) -> None:
        """Settle a worker's device, and the precision; nothing is loaded yet."""
        self.backbone, self.compute = backbone, compute
        self.device = device(compute, worker)
        self.precision = precision(backbone.precision, self.device.type)
        self.width, self.token_width = sizes(backbone)
        tag(backbone)  # raises CvsiError now for weights that do not exist

    def recipe(self, kind: str) -> dict[str, Any]:
        """What decides this backbone's `image`, `text` or `pseudo` rows, for the store."""
        facts = recipes.vectors(self.backbone, kind, self.precision)
        if kind == "pseudo":
            facts |= {"phi": identify(self.backbone.phi), "template": template("{instruction}", "{added}")}
        return facts

    @cached_property
    def model(self) -> Any:
        """The open_clip model in evaluation mode; raises CvsiError when it can not be loaded."""
        import open_clip  # seconds of imports, here and below, needed only when a row is missing

        logging.getLogger().setLevel(logging.ERROR)
        name, (file, preprocess) = self.backbone.model, locate(self.backbone)
        try:
            model = open_clip.create_model(
                name,
                file,
                force_preprocess_cfg=preprocess,
                require_pretrained=bool(file) or name.startswith(FOLDER),
                weights_only=True,  # a checkpoint runs no code
            )
        except Exception as error:  # open_clip, torch and safetensors raise many kinds on a broken file
            source = f" {file}" if file else ""
            raise CvsiError(f"params.yaml: backbone model '{name}' does not load{source}: {cause(error)}") from None
        if not hasattr(model, "token_embedding") or model.text_pool_type != "argmax":
            raise CvsiError(f"params.yaml: backbone model '{self.backbone.model}' has no causal CLIP text tower")
        return model.to(self.device, dtype(self.precision)).eval().requires_grad_(False)

    @cached_property
    def phi(self) -> mapping.Phi:
        """The mapping network, in float32."""
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
        """A picture to the model's input [3, s, s]: resize, centre crop, scale, normalise."""
        from open_clip.transform import PreprocessCfg, image_transform_v2

        return image_transform_v2(PreprocessCfg(**self.model.visual.preprocess_cfg), is_train=False)

    def check_phi(self, optional: bool = False) -> None:
        """Raise CvsiError now if phi does not fit this backbone, before any work starts; where `optional`, if any."""
        if not optional or Path(self.backbone.phi).exists():
            _ = self.phi

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Texts to token ids [n, context] on the CPU, cut to the context with the end token kept."""
        return self._tokenize(texts)

    def lengths(self, tokens: Tensor) -> list[int]:
        """How many positions of the context each text [n, context] takes, start and end token included."""
        return (tokens.argmax(dim=1) + 1).tolist()

    def embed(self, tokens: Tensor, words: Tensor | None = None) -> Tensor:
        """Token ids [n, context] to projected, un-normalised embeddings [n, d] float32 on the device.

        `words` [n, token width] stand in place of every `$` of their row; gradients flow to them.
        """
        tokens = self._trim(tokens)
        embeddings = self.model.token_embedding(tokens)
        if words is not None:
            found = (tokens == self.tokenizer.encode(TOKEN)[0]).unsqueeze(-1)
            embeddings = torch.where(found, words.unsqueeze(1).to(embeddings.dtype), embeddings)
        return self._project(tokens, embeddings)

    def prepare(self, picture: Image.Image) -> Tensor:
        """A picture to [3, s, s] float32, padded first where the backbone's preprocessing says so."""
        padded = target_pad(picture) if self.backbone.preprocess == "target-pad" else picture
        return self.transform(padded)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def images(self, pixels: Tensor) -> Tensor:
        """Pixels [n, 3, s, s] to projected, un-normalised embeddings [n, d] float32 on the CPU."""
        return self.model.encode_image(pixels.to(self.device, dtype(self.precision))).float().cpu()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def texts(self, tokens: Tensor, words: Tensor | None = None) -> Tensor:
        """Token ids [n, context] to unit vectors [n, d] float32 on the CPU.

        `words` [n, token width] take the place of the first `$` of their row; raises CvsiError where there is none.
        """
        tokens = self._trim(tokens)
        embeddings = self.model.token_embedding(tokens)
        if words is not None:
            found = tokens == self.tokenizer.encode(TOKEN)[0]
            lost = ~found.any(dim=1)
            if bool(lost.any()):
                raise CvsiError(f"no '{TOKEN}' within the context of text {int(lost.int().argmax()) + 1} of a batch")
            rows = torch.arange(len(tokens), device=self.device)
            embeddings[rows, found.int().argmax(dim=1)] = words.to(self.device, embeddings.dtype)
        return normalize(self._project(tokens, embeddings), dim=-1).cpu()

    @torch.inference_mode()
    def words(self, embeddings: Tensor) -> Tensor:
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
