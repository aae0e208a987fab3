"""What a kind of backbone is, and the registry of kinds by the key `kind` of a backbone in params.yaml.

A kind is one file of this package: its settings, what it requires, what identifies it in a recipe, and how it is
loaded. Nothing else compares kinds by name. To add one, write one file and one line below (or an entry point).
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cvsi.core.errors import CvsiError, cause
from cvsi.core.params import PATH, Backbone, Compute, Settings, checked
from cvsi.core.registry import Registry
from cvsi.models import catalogue
from cvsi.models.engines import Model
from cvsi.models.model_id import identify, is_hub_name
from cvsi.store.kinds import CODE_VERSIONS

if TYPE_CHECKING:  # torch takes seconds to import, and a recipe needs none
    import torch
    from PIL import Image
    from torch import Tensor

S = TypeVar("S", bound=Settings)
CONFIG = "config.json"


class BackboneEncoder(ABC):
    """A loaded backbone: images, texts, and images with texts, to vectors on the CPU."""

    device: "torch.device"

    @abstractmethod
    def load(self) -> None:
        """Load the model and what prepares its inputs; raises CvsiError where they cannot be loaded.

        A phi is checked too, where its file exists: the queries need one that fits, and a gallery may take days.
        """

    @abstractmethod
    def prepare(self, image: "Image.Image") -> Any:
        """An image to the model's input; called by several threads."""

    @abstractmethod
    def image_embeddings(self, images: Sequence[Any]) -> "Tensor":
        """At most `image_batch` prepared images to projected, un-normalised embeddings [n, d] float32."""

    @abstractmethod
    def tokens(self, texts: Sequence[str]) -> Any:
        """Texts to what `text_vectors` takes, cut to the model's length; called by a thread."""

    @abstractmethod
    def text_vectors(self, tokens: Any, images: "Tensor | None" = None) -> "Tensor":
        """Texts to unit vectors [n, d] float32; `images` [n, d] are those of texts with a pseudo token."""

    def composed_vectors(self, images: Sequence[Any], texts: Sequence[str]) -> "Tensor":
        """At most `image_batch` prepared images, each with its instruction, to unit vectors [n, d] float32.

        An instruction without any word leaves the image alone. Raises CvsiError for a kind that composes nothing.
        """
        raise CvsiError(f"{PATH}: this kind of backbone makes no composed vectors")


@dataclass(frozen=True)
class EncoderKind:
    """One kind of backbone.

    `width` is the length of its vectors. `recipe` gets the kind of rows (`image`, `text`, `pseudo`, `composed`) and the
    precision on this machine, and returns what decides a row's value; both load no model. `load` gets the backbone, the
    settings of speed, and a worker's number. `settings` checks the keys `Backbone.own`; None where there are no others
    than `Backbone` has itself. `models` are folders or repositories of the hub that must be on this machine.
    """

    width: Callable[[Backbone], int]
    recipe: Callable[[Backbone, str, str], dict[str, Any]]
    load: Callable[[Backbone, Compute, int], BackboneEncoder]
    settings: type[Settings] | None = None
    models: Callable[[Backbone], tuple[Model, ...]] = lambda backbone: ()
    composes: bool = False


ENCODERS: Registry[EncoderKind] = Registry(
    "kind of backbone",
    "cvsi.backbones",
    {
        "open_clip": "cvsi.models.clip:KIND",
        "bge-vl": "cvsi.models.bge_vl:KIND",
        "qwen3-vl-embedding": "cvsi.models.qwen3_vl_embedding:KIND",
    },
)


def kind_of(backbone: Backbone, where: str = "backbones") -> EncoderKind:
    """The kind of a backbone; raises CvsiError, which begins with `where`, for an unknown kind, key or value."""
    kind = ENCODERS.get(backbone.kind, f"{PATH}: {where}.kind")
    if kind.settings is not None:
        checked(kind.settings, backbone.own, where)
    return kind


def width_of(backbone: Backbone) -> int:
    """The length of a backbone's vectors, from its configuration alone; raises CvsiError where there is none."""
    return kind_of(backbone).width(backbone)


def recipe_of(backbone: Backbone, kind: str, precision: str) -> dict[str, Any]:
    """What decides a backbone's rows of a kind besides their keys; loads no model."""
    return kind_of(backbone).recipe(backbone, kind, precision)


def load_encoder(backbone: Backbone, compute: Compute, worker: int = 0) -> BackboneEncoder:
    """A backbone for a worker; its weights are loaded by `load`, or when they are first used."""
    return kind_of(backbone).load(backbone, compute, worker)


def composes(backbone: Backbone) -> bool:
    """Whether a backbone makes one vector of an image and a text together."""
    return kind_of(backbone).composes


def own_settings(settings: type[S], backbone: Backbone) -> S:
    """The keys of a backbone's own kind as its settings; raises CvsiError for an unknown key or value."""
    return checked(settings, backbone.own, f"backbone {backbone.model}")


def model_of(backbone: Backbone) -> tuple[Model, ...]:
    """The model of a kind that is one folder or repository of transformers."""
    return (Model(backbone.model, backbone.revision, backbone.precision),)


def facts(backbone: Backbone, kind: str, precision: str) -> dict[str, Any]:
    """The fields that the recipes of such a kind have in common: the kinds of rows and backbone, code, weights."""
    versions = {"kind": kind, "code": CODE_VERSIONS[f"{kind}_vectors"], "encoder": backbone.kind}
    return versions | {"precision": precision} | identify(backbone.model, backbone.revision)


def configuration(backbone: Backbone, model_type: str, what: str) -> dict[str, Any] | None:
    """The `config.json` of such a model on this machine; None for a model of the hub that is not in the cache.

    Raises CvsiError for one that is unreadable or of another `model_type`, and for a folder without one; `what` names
    the right models.
    """
    file = _config_file(backbone)
    if file is None:
        return None
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CvsiError(
            f"{file}: no readable configuration of a model ({cause(error)}); put the whole model there"
        ) from None
    content = content if isinstance(content, dict) else {}
    found = content.get("model_type")
    if found != model_type:
        raise CvsiError(
            f"{PATH}: backbone model '{backbone.model}' is of type '{found}', but a backbone of kind {backbone.kind} "
            f"is {what}; name such a model, or another kind"
        )
    return dict(content)


def width_in(backbone: Backbone, content: dict[str, Any] | None, *keys: str) -> int:
    """The number at nested `keys` of a configuration, or where that is None the catalogue's width of the model."""
    if content is None:
        known = catalogue.of_backbone(backbone).width
        if known is None:
            raise CvsiError(
                f"{PATH}: backbone model '{backbone.model}': its {CONFIG} is not in the hub's cache; run "
                "cvsi check --download, or name a folder with the model"
            )
        return known
    value: Any = content
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, int) or value < 1:
        raise CvsiError(f"{PATH}: backbone model '{backbone.model}': no {'.'.join(keys)} in its {CONFIG}")
    return value


def _config_file(backbone: Backbone) -> Path | None:
    """Where the configuration of a model is; None for a model of the hub that is not in the cache."""
    folder = Path(backbone.model)
    if folder.is_dir() or not is_hub_name(backbone.model):
        return folder / CONFIG
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(backbone.model, CONFIG, revision=backbone.revision)
    return Path(file) if isinstance(file, str) else None
