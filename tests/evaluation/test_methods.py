"""The methods of the table against the design, methods of params.yaml, and a dataset whose fusion is a name."""

from typing import Any

import numpy as np
import pytest
import yaml

from cvsi.core.errors import CvsiError
from cvsi.core.params import Params
from cvsi.evaluation import methods
from cvsi.evaluation.fusion import Form
from tests.conftest import project_params
from tests.imports import ROOT

NAMES = ["edited", "pseudo", "image", "text", "image+text", "product", "pdv", "adast", "seize"]
OF_ROLES = ["soft", "osrcir", "sdr", "roles"]
OF_BACKBONES = ["composed"]
WEIGHTS = ["edited", "pseudo", "image", "text", "image+text", "pdv"]


def settings(**changes: Any) -> Params:
    return Params.model_validate(project_params() | changes)


def form(params: Params, name: str) -> Form:
    weights = methods.methods(params)[name].fusion("circo").weights
    assert weights is not None
    return weights


def test_the_methods_of_the_table() -> None:
    params = settings()
    table = methods.table(params, "circo")
    assert list(table) == ["cvsi", *NAMES, *OF_ROLES, *OF_BACKBONES]
    assert table["cvsi"].recipe() == project_params()["datasets"]["circo"]["fusion"] | {"score": {"kind": "sum"}}
    assert form(params, "image+text").query == {"reference": 0.5, "instruction": 0.5}
    assert all(form(params, name).gallery == {"image": 1.0} for name in WEIGHTS)
    # b aT + (1-b) aI, 0, 1-b, b (1-aT) - (1-b) aI, 0 with b = .75, aI = aT = 1.4: the same floats, not nearly the same.
    b, text, image = 0.75, 1.4, 1.4
    weights = {"edited": b * text + (1 - b) * image, "reference": 1 - b, "source": b * (1 - text) - (1 - b) * image}
    assert form(params, "pdv").query == weights


def test_pdv_is_the_formula_of_its_paper() -> None:
    edited, reference, source = np.random.default_rng(0).normal(size=(3, 8))
    text_side = source + 1.4 * (edited - source)
    image_side = reference + 1.4 * (edited - source)
    weights = form(settings(), "pdv").query
    vectors = {"edited": edited, "reference": reference, "source": source}
    fused = sum(weight * vectors[name] for name, weight in weights.items())
    assert fused == pytest.approx(0.75 * text_side + 0.25 * image_side)


def test_methods_of_params_follow_the_built_in_ones() -> None:
    params = settings(
        methods={"mine": {"known_as": "a test", "source": "here", **project_params()["datasets"]["demo"]["fusion"]}}
    )
    assert list(methods.table(params, "demo")) == ["cvsi", *NAMES, *OF_ROLES, *OF_BACKBONES, "mine"]
    assert methods.methods(params)["mine"].about.known_as == "a test"
    assert methods.table(params, "demo")["mine"] == methods.table(params, "demo")["cvsi"]


def named(fusion: str, **changes: Any) -> Params:
    content = project_params()
    content["datasets"]["demo"]["fusion"] = fusion
    return Params.model_validate(content | changes)


def test_a_fusion_may_be_the_name_of_a_method() -> None:
    params = named("image+text")
    assert methods.fusion_of(params, "demo") == methods.methods(params)["image+text"].fusion("circo")
    own = {"query": {"edited": 1.0}, "gallery": {"caption": 1.0}}
    assert methods.fusion_of(named("mine", methods={"mine": own}), "demo").describe() == "1 edited, on 1 caption"


@pytest.mark.parametrize(
    ("params", "line"),
    [
        (named("sdrs"), "datasets.demo.fusion: unknown method 'sdrs'; there are: cvsi, edited, pseudo, image"),
        (settings(methods={"pdv": {}}), "methods.pdv: this name is taken"),
        (settings(methods={"cvsi": {}}), "methods.cvsi: this name is taken"),
        (settings(methods={"mine": {"query": {"edited": "x"}, "gallery": {}}}), "methods.mine.query.edited: .*number"),
        (settings(methods={"mine": {"query": {}, "gallery": {}, "b": 1}}), "methods.mine.b: unknown key"),
    ],
)
def test_a_bad_method_is_one_line(params: Params, line: str) -> None:
    with pytest.raises(CvsiError, match=f"^params.yaml: {line}") as error:
        methods.table(params, "demo")
    assert "\n" not in str(error.value)


def test_the_file_of_this_repository_has_the_key_that_dvc_tracks() -> None:
    assert project_params()["methods"] == {}
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert [name for name, stage in stages.items() if "methods" in stage.get("do", stage).get("params", [])] == [
        "scores",
        "report",
    ]


def test_constants_are_those_of_the_dataset_format() -> None:
    params = settings()
    known = methods.methods(params)
    assert known["adast"].fusion("circo").recipe()["score"] == {"kind": "gate", "scale": 4.0, "margin": 0.0}
    assert known["adast"].fusion("folder").recipe()["score"] == {"kind": "gate", "scale": 4.0, "margin": 0.1}
    assert known["sdr"].fusion("cirr").recipe()["query"] == {"anchored": 1.5, "instruction": 0.5, "target": -0.5}
    assert known["sdr"].fusion("cirr").recipe()["parts"] == {"anchored": {"unit": {"target": 0.95, "reference": 0.05}}}
    fashioniq = project_params()["datasets"]["fashioniq-dress"]["fusion"]
    assert known["cvsi"].fusion("fashioniq").recipe() == fashioniq | {"score": {"kind": "sum"}}


def test_every_method_says_what_it_is() -> None:
    for name, method in methods.methods(settings()).items():
        assert method.about.about and method.about.known_as, name
        assert method.about.source or name in ("image", "text", "image+text"), name


def test_the_own_fusion_has_the_name_that_params_give_it() -> None:
    params = named("sdr")
    table = methods.table(params, "demo")
    assert list(table)[:2] == ["sdr", "cvsi"] and table["sdr"] == methods.fusion_of(params, "demo")
    assert table["cvsi"] == methods.methods(params)["cvsi"].fusion("circo")
    assert methods.own_name(settings(), "demo") == "cvsi"


@pytest.mark.parametrize(
    ("constants", "line"),
    [
        ({"circo": {"query": {"edited": "x"}}}, "methods.mine.constants.circo.query.edited: "),
        ({"circo": {"score": {"kind": "gate"}}}, "methods.mine.constants.circo.score.scale: key is missing"),
        ({"circo": 3}, "methods.mine.constants.circo: "),
        ({"circo": {"margin": 3}}, "methods.mine.constants.circo.margin: unknown key"),
    ],
)
def test_bad_constants_are_one_line(constants: Any, line: str) -> None:
    params = settings(methods={"mine": {"query": {"edited": 1}, "gallery": {"image": 1}, "constants": constants}})
    with pytest.raises(CvsiError, match=f"^params.yaml: {line}"):
        methods.methods(params)
