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
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from cvsi import phi as mapping
from cvsi.batches import LENGTH_STEP
from cvsi.errors import CvsiError
from cvsi.params import Backbone, Compute
from cvsi.pictures import target_pad
from cvsi.weights import DTYPES, device, identify, precision

TOKEN = "$"
CODE = 1


def template(instruction: str, added: str) -> str:
    """The sentence whose first `$` stands for the reference image; without objects added, its first half."""
    sentence = f"a photo of {TOKEN} that {instruction}."
    return f"{sentence} And the photo should have {added}." if added else sentence


def sizes(backbone: Backbone) -> tuple[int, int]:
    """A backbone's vector width and token width, from its configuration alone; raises CvsiError where there is none."""
    if backbone.model.startswith("local-dir:"):
        path = Path(backbone.model.removeprefix("local-dir:")) / "open_clip_config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        except (OSError, KeyError, ValueError) as error:
            raise CvsiError(f"{path}: no readable open_clip configuration ({error})") from None
    else:
        import open_clip

        config = open_clip.get_model_config(backbone.model)
        if config is None:
            raise CvsiError(f"params.yaml: open_clip knows no model '{backbone.model}'")
    return int(config["embed_dim"]), int(config["text_cfg"]["width"])


class Encoder:
    """One backbone's two towers and phi; the model is loaded when it is first used."""

    def __init__(self, backbone: Backbone, compute: Compute) -> None:
        """Settle device and precision; nothing is loaded yet."""
        self.backbone, self.compute = backbone, compute
        self.device = device(compute)
        self.precision = precision(backbone.precision, self.device)
        self.width, self.token_width = sizes(backbone)

    def recipe(self, kind: str) -> dict[str, Any]:
        """What decides this backbone's `image`, `text` or `pseudo` rows, for the store."""
        facts: dict[str, Any] = {"kind": kind, "code": CODE, "precision": self.precision}
        facts |= identify(self.backbone.model) | {"pretrained": self.backbone.pretrained}
        if kind == "image":
            facts["preprocess"] = self.backbone.preprocess
        if kind == "pseudo":
            facts |= {"preprocess": self.backbone.preprocess, "phi": identify(self.backbone.phi)}
            facts["template"] = template("{instruction}", "{added}")
        return facts

    @cached_property
    def model(self) -> Any:
        """The open_clip model in evaluation mode; raises CvsiError when it can not be loaded."""
        import open_clip  # seconds of imports, here and below, needed only when a row is missing

        logging.getLogger().setLevel(logging.ERROR)
        try:
            model = open_clip.create_model(
                self.backbone.model, pretrained=self.backbone.pretrained, precision="fp32", device="cpu"
            )
        except (RuntimeError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CvsiError(f"params.yaml: backbone model '{self.backbone.model}' does not load: {reason}") from None
        if not hasattr(model, "token_embedding") or model.text_pool_type != "argmax":
            raise CvsiError(f"params.yaml: backbone model '{self.backbone.model}' has no causal CLIP text tower")
        return model.to(self.device, DTYPES[self.precision]).eval().requires_grad_(False)

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
    def transform(self) -> Any:
        """A picture to the model's input [3, s, s]: resize, centre crop, scale, normalise."""
        from open_clip.transform import PreprocessCfg, image_transform_v2

        return image_transform_v2(PreprocessCfg(**self.model.visual.preprocess_cfg), is_train=False)

    def check_phi(self) -> None:
        """Raise CvsiError now if phi does not fit this backbone, before any work starts."""
        _ = self.phi

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many positions of the context each text takes, start and end token included."""
        tokens = self.tokenizer(list(texts), context_length=self.model.context_length)
        return (tokens.argmax(dim=1) + 1).tolist()  # type: ignore[no-any-return]

    def prepare(self, picture: Image.Image) -> Tensor:
        """A picture to [3, s, s] float32, padded first where the backbone's preprocessing says so."""
        padded = target_pad(picture) if self.backbone.preprocess == "target-pad" else picture
        return self.transform(padded)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def images(self, pixels: Tensor) -> Tensor:
        """Pixels [n, 3, s, s] to projected, un-normalised embeddings [n, d] float32 on the CPU."""
        return self.model.encode_image(pixels.to(self.device, DTYPES[self.precision])).float().cpu()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts to unit vectors [n, d] float32 on the CPU."""
        tokens = self._tokens(texts)
        return self._encode(tokens, self.model.token_embedding(tokens))

    @torch.inference_mode()
    def pseudo(self, texts: Sequence[str], words: Tensor) -> Tensor:
        """Texts whose first `$` is replaced by word embeddings [n, token width], to unit vectors [n, d] float32.

        Raises CvsiError for a text without a `$`.
        """
        tokens = self._tokens(texts)
        token = self.tokenizer.encode(TOKEN)[0]
        found = tokens == token
        if not bool(found.any(dim=1).all()):
            raise CvsiError(
                f"no '{TOKEN}' within the context of {texts[int((~found.any(dim=1)).int().argmax())][:80]!r}"
            )
        embeddings = self.model.token_embedding(tokens)
        rows = torch.arange(len(texts), device=self.device)
        embeddings[rows, found.int().argmax(dim=1)] = words.to(self.device, embeddings.dtype)
        return self._encode(tokens, embeddings)

    @torch.inference_mode()
    def words(self, embeddings: Tensor) -> Tensor:
        """Un-normalised image embeddings [n, d] to phi's word embeddings [n, token width]."""
        return self.phi(embeddings.to(self.device))  # type: ignore[no-any-return]

    def _tokens(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts), context_length=self.model.context_length)
        longest = int(tokens.argmax(dim=1).max()) + 1
        rounded = -(-longest // LENGTH_STEP) * LENGTH_STEP
        return tokens[:, :rounded].to(self.device)  # type: ignore[no-any-return]

    def _encode(self, tokens: Tensor, embeddings: Tensor) -> Tensor:
        model, length = self.model, tokens.shape[1]
        states = embeddings + model.positional_embedding[:length]
        states = model.transformer(states, attn_mask=model.attn_mask[:length, :length].to(states.dtype))
        ends = tokens.argmax(dim=1)  # the end token has the largest id
        pooled = model.ln_final(states)[torch.arange(len(tokens), device=self.device), ends]
        return normalize((pooled @ model.text_projection).float(), dim=-1).cpu()
