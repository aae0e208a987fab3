"""The catalogue: every fact has its source, and what is not known stays unknown."""

from importlib import resources
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from cvsi.core.params import load
from cvsi.models import catalogue
from cvsi.models.catalogue import Entry, gigabytes
from tests.imports import ROOT

CONTENT: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(
    (resources.files("cvsi.models") / "catalogue.yaml").read_text(encoding="utf-8")
)
ENTRIES = [(section, name) for section, entries in CONTENT.items() for name in entries]
# Where to get something is advice; a width is open_clip's, a repository open_clip's own table.
WITHOUT_SOURCE = {"get", "width", "repository"}


@pytest.mark.parametrize(("section", "name"), ENTRIES)
def test_every_fact_has_a_source(section: str, name: str) -> None:
    entry = CONTENT[section][name]
    for key, fact in entry.items():
        if key not in WITHOUT_SOURCE:
            for single in fact if isinstance(fact, list) else [fact]:
                assert len(single["source"]) > 10, (name, key)


@pytest.mark.parametrize(
    "entry",
    [
        {"parameters": 7}, {"download": {"value": 7}}, {"download": {"value": 7, "source": ""}},
        {"download": {"value": 0, "source": "a page"}}, {"revision": {"value": "main", "source": "a page"}},
        {"terms": "MIT"}, {"rates": [{"rows": "captions", "device": "cpu", "per_second": 1}]},
        {"size": {"value": 7, "source": "a page"}},
    ],
)  # fmt: skip
def test_a_fact_without_a_source_or_with_a_wrong_value_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Entry.model_validate(entry)


def test_revisions_of_params_are_those_of_the_catalogue() -> None:
    content = load(ROOT / "params.yaml")
    pinned = [(catalogue.of_backbone(backbone), backbone.revision) for backbone in content.backbones.values()]
    pinned += [(catalogue.of_model(block["model"]), block.get("revision")) for block in content.editors.values()]
    compared = [(entry.revision.value, revision) for entry, revision in pinned if entry.revision and revision]
    assert len(compared) == 8 and all(one == other for one, other in compared)


def test_widths_and_parameters_of_backbones_are_those_of_open_clip() -> None:
    import open_clip
    import torch

    for name, entry in CONTENT["backbones"].items():
        model, _, tag = name.partition("/")
        config = open_clip.get_model_config(model)
        assert config is not None and config["embed_dim"] == entry["width"]
        assert open_clip.pretrained.get_pretrained_cfg(model, tag)["hf_hub"].rstrip("/") == entry["repository"]
        with torch.device("meta"):
            made = open_clip.model.CLIP(**config)
        assert sum(weight.numel() for weight in made.parameters()) == entry["parameters"]["value"]


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "unknown"), (1, "0.1 GB"), (605143284, "0.6 GB"), (9_940_000_000, "9.9 GB"), (31 * 10**9, "31 GB")],
)
def test_sizes_for_people(size: int | None, text: str) -> None:
    assert gigabytes(size) == text
