"""`methods.yaml` and the parameter `methods` to named fusions: the rows of the report's table, and `fusion: NAME`."""

import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from pydantic import Field

from cvsi.core.errors import CvsiError
from cvsi.core.params import PATH, Block, Name, Params, Settings, checked
from cvsi.evaluation import OWN
from cvsi.evaluation.fusion import Fusion, read_fusion

DEFAULT = "default"  # of `constants`: for every format without an entry


class About(Settings):
    """What a method's block says beside its fusion, and the keys that it changes by format."""

    known_as: str = ""
    source: str = ""
    about: str = ""
    needs: str = ""
    constants: dict[Name, Block] = Field(default={})


@dataclass(frozen=True)
class Method:
    """A named fusion, what it is known as, and where that is described.

    `fusions` has one for each dataset format with constants of its own, and the one for all others.
    """

    name: str
    about: About
    fusions: Mapping[str, Fusion]

    def fusion(self, dataset_format: str) -> Fusion:
        """The fusion for datasets of a format."""
        return self.fusions.get(dataset_format, self.fusions[DEFAULT])


def fusion_of(params: Params, name: str) -> Fusion:
    """The fusion of a dataset, which params.yaml gives as weights, as forms with a score, or as the name of a method.

    Raises CvsiError with one line for an unknown name, an unknown key or a bad number.
    """
    dataset, where = params.dataset(name), f"datasets.{name}.fusion"
    if not isinstance(dataset.fusion, str):
        return read_fusion(dataset.fusion, where)
    known = methods(params)
    if dataset.fusion not in known:
        raise CvsiError(f"{PATH}: {where}: unknown method '{dataset.fusion[:80]}'; there are: {', '.join(known)}")
    return known[dataset.fusion].fusion(dataset.format)


def methods(params: Params) -> dict[str, Method]:
    """All methods by name: those of `methods.yaml`, then those of params.yaml; raises CvsiError for a bad one."""
    known = dict(_builtin())
    for name, block in params.methods.items():
        if name in known:
            raise CvsiError(f"{PATH}: methods.{name}: this name is taken; choose another one")
        known[name] = read_method(name, block)
    return known


def block_of(params: Params, dataset: str, name: str) -> dict[str, Any]:
    """The data of a method of a dataset's table, with the constants of its format and without texts, as it is written.

    Numbers may be lists there. Raises CvsiError for an unknown name.
    """
    settings = params.dataset(dataset)
    if name == OWN and not isinstance(settings.fusion, str):
        return dict(settings.fusion)
    blocks = dict(_builtin_blocks()) | params.methods
    if name not in blocks:
        raise CvsiError(f"unknown method '{name[:80]}'; there are: {', '.join(blocks)}, and files that end in .yaml")
    return for_format(blocks[name], settings.format, f"methods.{name}")


def for_format(block: Mapping[str, Any], dataset_format: str, where: str) -> dict[str, Any]:
    """A method's block with the constants of a format in place, without them and without texts."""
    about, common = _divided(block, where)
    return _merged(common, about.constants.get(dataset_format, about.constants.get(DEFAULT, {})))


def own_name(params: Params, name: str) -> str:
    """The name of a dataset's own fusion in its table: that of the method it names, else `cvsi`."""
    fusion = params.dataset(name).fusion
    return fusion if isinstance(fusion, str) else OWN


def table(params: Params, name: str) -> dict[str, Fusion]:
    """The fusions of a dataset's table in its order: the dataset's own first, then every other method."""
    dataset_format = params.dataset(name).format
    others = {key: method.fusion(dataset_format) for key, method in methods(params).items()}
    return {own_name(params, name): fusion_of(params, name)} | {
        key: fusion for key, fusion in others.items() if key != own_name(params, name)
    }


def read_method(name: str, block: Mapping[str, Any]) -> Method:
    """A method from its block; raises CvsiError for a bad one."""
    where = f"methods.{name}"
    about, common = _divided(block, where)
    fusions = {
        key: read_fusion(_merged(common, changes), f"{where}.constants.{key}")
        for key, changes in about.constants.items()
    }
    return Method(name, about, {DEFAULT: read_fusion(common, where)} | fusions)


def _divided(block: Mapping[str, Any], where: str) -> tuple[About, dict[str, Any]]:
    """What a block says beside its fusion, and the fusion."""
    about = checked(About, {key: value for key, value in block.items() if key in About.model_fields}, where)
    return about, {key: value for key, value in block.items() if key not in About.model_fields}


def _merged(block: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A block with other values for some keys.

    `score` is merged key by key; weights, parts and forms are replaced as a whole, by name.
    """
    merged = dict(block)
    for key, value in changes.items():
        before = merged.get(key)
        together = key in ("score", "parts", "forms") and isinstance(before, dict) and isinstance(value, dict)
        merged[key] = {**before, **value} if together else value  # type: ignore[dict-item]
    return merged


@cache
def _builtin() -> Mapping[str, Method]:
    return {name: read_method(name, block) for name, block in _builtin_blocks().items()}


@cache
def _builtin_blocks() -> Mapping[str, Block]:
    text = (importlib.resources.files("cvsi.evaluation") / "methods.yaml").read_text(encoding="utf-8")
    blocks: dict[str, Block] = yaml.safe_load(text)
    return blocks
