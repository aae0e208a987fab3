"""The demo's BLIP-2 in vLLM: greedy as in transformers, drawn image by image, under a recipe of its own."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from cvsi.core import params
from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.model_settings import Captioner
from cvsi.core.params import Compute
from cvsi.core.schema import CAPTIONS
from cvsi.models import recipes
from cvsi.models.blip2 import Blip2
from cvsi.models.blip2_vllm import VllmBlip2, seed_of
from demo.world.drawing import picture
from demo.world.scenes import draw_scene
from tests.conftest import Workspace
from tests.imports import ROOT
from tests.models.test_clip import Hostile

pytestmark = pytest.mark.xdist_group("captioner_vllm")  # loading takes most of the time, so one process loads
PICTURES = 12


def settings(**changes: object) -> Captioner:
    captioner = params.load(ROOT / "params.yaml").captioners["tiny"]
    return captioner.model_copy(update={"engine": "vllm", "model": str(ROOT / "demo/weights/blip2")} | changes)


def pictures() -> tuple[list[Image.Image], list[str]]:
    """Drawn scenes in sizes that have to be scaled, and a digest each."""
    random = Random(4)
    drawn = [picture(draw_scene(random)) for _ in range(PICTURES)]
    scaled = [image.resize((150 + 17 * place, 220 - 11 * place)) for place, image in enumerate(drawn)]
    return scaled, [f"{place:064x}" for place in range(PICTURES)]


@pytest.fixture(scope="module")
def model() -> VllmBlip2:
    return VllmBlip2(settings(), Compute(device="cpu"))


def captions(model: VllmBlip2, seen: list[Image.Image], digests: list[str], **changes: object) -> list[list[str]]:
    """Captions with changed settings; the engine is kept."""
    kept = model.settings
    model.settings = settings(**changes)
    try:
        return model.captions(seen, digests)
    finally:
        model.settings = kept


def test_the_most_likely_caption_is_that_of_transformers(model: VllmBlip2) -> None:
    seen, digests = pictures()
    other = Blip2(settings(top_p=1e-6, n=2), Compute(device="cpu"))
    theirs = other.captions(torch.stack([other.prepare(image) for image in seen]), digests)
    assert captions(model, seen, digests, top_p=1e-6, n=2) == theirs
    assert len({lines[0] for lines in theirs}) >= PICTURES // 2
    other.settings = settings(top_p=1e-6, n=2, min_tokens=20)
    theirs = other.captions(torch.stack([other.prepare(image) for image in seen]), digests)
    assert captions(model, seen, digests, top_p=1e-6, n=2, min_tokens=20) == theirs
    assert model.ends == other.ends.tolist()


def test_draws_depend_on_seed_and_image_alone(model: VllmBlip2) -> None:
    seen, digests = pictures()
    together = model.captions(seen, digests)
    assert [len(lines) for lines in together] == [5] * PICTURES
    assert all(line == " ".join(line.split()) and line for lines in together for line in lines)
    assert sum(len(set(lines)) > 1 for lines in together) >= PICTURES // 2
    assert model.captions(seen[::-1], digests[::-1])[::-1] == together
    assert model.captions(seen[3:4], digests[3:4]) == together[3:4]
    turned = [digests[-1], *digests[:-1]]
    assert model.captions(seen, turned) != together
    assert captions(model, seen, digests, seed=7) != together


def test_near_seeds_share_no_sequence() -> None:
    """Sequence i of an image is drawn from the image's seed + i."""
    seeds = [seed_of(seed, f"{image:064x}", draw) for seed in range(5) for image in range(20) for draw in range(4)]
    apart = sorted(seeds)
    assert min(after - before for before, after in pairwise(apart)) > 10_000
    assert 0 <= apart[0] and apart[-1] < 2**56


def test_empty_captions_are_drawn_again_and_left_out_in_the_end(
    model: VllmBlip2, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, digests = pictures()
    plain = model._sampling

    def make_ends_likely(seed: int) -> Any:
        sampling = plain(seed)
        sampling.logit_bias = {end: 8.5 for end in model.ends}
        return sampling

    monkeypatch.setattr(model, "_sampling", make_ends_likely)
    found = [captions(model, seen, digests, redraws=redraws, temperature=2.0, top_p=1.0) for redraws in (0, 1, 8)]
    counts = [sum(map(len, lines)) for lines in found]
    assert 0 < counts[0] < counts[1] < counts[2] <= 5 * PICTURES
    assert all(set(old) <= set(new) for old, new in zip(*found[:2], strict=True))
    assert all(line for lines in found[2] for line in lines)


def test_transformers_captions_keep_the_recipe_they_had_before_there_were_engines() -> None:
    facts = {
        "model": "a/b", "revision": None, "precision": "bf16", "code": 1, "decoding": "nucleus", "n": 15, "beams": None,
        "top_p": 0.9, "temperature": 1.0, "min_tokens": 0, "max_tokens": 30, "redraws": 3, "seed": 0,
    }  # fmt: skip
    for unnamed in (Captioner(model="a/b"), Captioner(model="a/b", engine="transformers")):
        assert recipes.captions(unnamed, "bf16") == facts
        assert digest(facts) == "b3236b8bdfd719f77984f8a88d0078ed7c3ac8c1c370198a81ab0353f7bdb8e1"
    assert recipes.captions(Captioner(model="a/b", engine="vllm"), "bf16") == facts | {"engine": "vllm"}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"decoding": "beam-sample"}, "decoding is beam-sample, which engine: vllm has not; set engine: transformers"),
        ({"temperature": 0.001}, "temperature is 0.001; engine: vllm samples at 0.01 or more"),
    ],
)
def test_what_vllm_can_not_draw_is_refused(changes: dict[str, Any], line: str) -> None:
    assert Captioner.model_validate({"model": "a/b"} | changes)
    with pytest.raises(ValidationError, match=line):
        Captioner.model_validate({"model": "a/b", "engine": "vllm"} | changes)


def test_models_that_vllm_can_not_take_are_one_line(model: VllmBlip2, tmp_path: Path) -> None:
    folder = tmp_path / "blip2"
    shutil.copytree(ROOT / "demo/weights/blip2", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"image_token_index": None}), encoding="utf-8")
    with pytest.raises(CvsiError, match="blip2' has no image token, which engine: vllm needs; take a newer"):
        VllmBlip2(settings(model=str(folder)), Compute(device="cpu"))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CvsiError, match=r"blip2' has room for 55 tokens; lower max_tokens \(now 500\)"):
        VllmBlip2(settings(model=str(folder), max_tokens=500), Compute(device="cpu"))
    with pytest.raises(CvsiError, match="llama' is a llama, not a BLIP-2; name another model"):
        VllmBlip2(settings(model=str(ROOT / "demo/weights/llama")), Compute(device="cpu"))
    torch.save({"query_tokens": Hostile(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(CvsiError, match="does not load: the file holds more than tensors; it was not opened"):
        VllmBlip2(settings(model=str(folder)), Compute(device="cpu"))
    assert not (tmp_path / "ran").exists()


def test_the_stage_captions_with_the_engine_that_is_named(toy: Workspace, model: VllmBlip2) -> None:
    tiny = toy.params()["datasets"]["toy"]["captioner"]
    toy.params(datasets__toy__captioner=tiny | {"engine": "vllm"}, compute={"device": "cpu", "workers": 2})
    toy.run("index", "toy")
    assert "8 to caption" in toy.run("captions", "toy")
    (file,) = (toy.path / "cache/toy/captions").glob("*.parquet")
    assert pq.read_schema(file).equals(CAPTIONS)
    rows = pq.read_table(file).to_pylist()
    seen = [Image.open(toy.path / "photos" / row["image_id"]).convert("RGB") for row in rows]
    assert [row["captions"] for row in rows] == model.captions(seen, [row["digest"] for row in rows])
