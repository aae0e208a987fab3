"""`methods.yaml` and the parameter `methods` to named fusions: the rows of the report's table, and `fusion: NAME`."""

import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from cvsi.core.errors import CvsiError
from cvsi.core.params import PATH, Block, Params
from cvsi.evaluation import OWN
from cvsi.evaluation.fusion import Fusion, read_fusion


@dataclass(frozen=True)
class Method:
    """A named fusion, the published method that it is known as, and where that is described."""

    name: str
    known_as: str
    source: str
    fusion: Fusion


def fusion_of(params: Params, name: str) -> Fusion:
    """The fusion of a dataset, which params.yaml gives as weights, as forms with a score, or as the name of a method.

    Raises CvsiError with one line for an unknown name, an unknown key or a bad number.
    """
    fusion, where = params.dataset(name).fusion, f"datasets.{name}.fusion"
    if not isinstance(fusion, str):
        return read_fusion(fusion, where)
    known = methods(params)
    if fusion not in known:
        raise CvsiError(f"{PATH}: {where}: unknown method '{fusion[:80]}'; there are: {', '.join(known)}")
    return known[fusion].fusion


def methods(params: Params) -> dict[str, Method]:
    """All methods by name: those of `methods.yaml`, then those of params.yaml; raises CvsiError for a bad one."""
    known = dict(_builtin())
    for name, block in params.methods.items():
        if name in known or name == OWN:
            raise CvsiError(f"{PATH}: methods.{name}: this name is taken; choose another one")
        known[name] = read_method(name, block)
    return known


def table(params: Params, name: str) -> dict[str, Fusion]:
    """The fusions of a dataset's table in its order: the dataset's own as `cvsi`, then every method."""
    return {OWN: fusion_of(params, name)} | {key: method.fusion for key, method in methods(params).items()}


def read_method(name: str, block: Mapping[str, Any]) -> Method:
    """A method from its block; raises CvsiError for a bad one."""
    texts = {key: str(block.get(key, "")) for key in ("known_as", "source")}
    fusion = {key: value for key, value in block.items() if key not in texts}
    return Method(name, **texts, fusion=read_fusion(fusion, f"methods.{name}"))


@cache
def _builtin() -> Mapping[str, Method]:
    text = (importlib.resources.files("cvsi.evaluation") / "methods.yaml").read_text(encoding="utf-8")
    blocks: dict[str, Block] = yaml.safe_load(text)
    return {name: read_method(name, block) for name, block in blocks.items()}
