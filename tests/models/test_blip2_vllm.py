"""The demo's BLIP-2 in vLLM: greedy as in transformers, drawn image by image, under a recipe of its own."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cvsi.core import params
from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.params import Compute
from cvsi.core.schema import CAPTIONS
from cvsi.models.blip2_model import Blip2
from cvsi.models.blip2_vllm import ENGINE, VllmBlip2, VllmBlip2Settings
from cvsi.models.engines import CAPTIONERS, captioner_settings
from cvsi.models.vllm_engine import seed_of
from cvsi.pipeline import captions
from cvsi.pipeline.captions import CaptionJob
from cvsi.store.rows import Store
from demo.world.drawing import picture
from demo.world.scenes import draw_scene
from tests.conftest import Workspace
from tests.imports import ROOT
from tests.models.conftest import blip2_settings
from tests.stage_inputs import write_index
from tests.untrusted import CreatesFile

pytestmark = pytest.mark.xdist_group("vllm")  # loading takes most of the time, so one process loads
PICTURES = 12


def settings(**changes: object) -> VllmBlip2Settings:
    return VllmBlip2Settings.model_validate(blip2_settings().model_dump() | {"engine": "vllm"} | changes)


def pictures() -> tuple[list[Image.Image], list[str]]:
    """Drawn scenes in sizes that have to be scaled, and a digest each."""
    random = Random(4)
    drawn = [picture(draw_scene(random)) for _ in range(PICTURES)]
    scaled = [image.resize((150 + 17 * number, 220 - 11 * number)) for number, image in enumerate(drawn)]
    return scaled, [f"{number:064x}" for number in range(PICTURES)]


@pytest.fixture(scope="module")
def loaded() -> VllmBlip2:
    return VllmBlip2(settings(), Compute(device="cpu"))


@pytest.fixture
def model(loaded: VllmBlip2) -> Iterator[VllmBlip2]:
    """The loaded engine; a test may change its `settings`."""
    yield loaded
    loaded.settings = settings()


def test_the_most_likely_caption_is_that_of_transformers(model: VllmBlip2, blip2: Blip2) -> None:
    images, digests = pictures()
    blip2.batch = PICTURES
    prepared = [blip2.prepare(image) for image in images]
    for changes in ({}, {"min_tokens": 20}):
        blip2.settings = blip2_settings(top_p=1e-6, n=2, **changes)
        model.settings = settings(top_p=1e-6, n=2, **changes)
        theirs = blip2.captions(prepared, digests)
        assert model.captions(images, digests) == theirs
        assert len({lines[0] for lines in theirs}) >= PICTURES // 2
    assert model.ends == blip2.ends.tolist()


def test_draws_depend_on_seed_and_image_alone(model: VllmBlip2) -> None:
    images, digests = pictures()
    together = model.captions(images, digests)
    assert [len(lines) for lines in together] == [5] * PICTURES
    assert all(line == " ".join(line.split()) and line for lines in together for line in lines)
    assert sum(len(set(lines)) > 1 for lines in together) >= PICTURES // 2
    assert model.captions(images[::-1], digests[::-1])[::-1] == together
    assert model.captions(images[3:4], digests[3:4]) == together[3:4]
    rotated = [digests[-1], *digests[:-1]]
    assert model.captions(images, rotated) != together
    model.settings = settings(seed=7)
    assert model.captions(images, digests) != together


def test_near_seeds_share_no_sequence() -> None:
    """Sequence i of an image is drawn from the image's seed + i."""
    seeds = [seed_of(seed, f"{image:064x}", draw) for seed in range(5) for image in range(20) for draw in range(4)]
    apart = sorted(seeds)
    assert min(after - before for before, after in pairwise(apart)) > 10_000
    assert 0 <= apart[0] and apart[-1] < 2**56


def test_empty_captions_are_drawn_again_and_left_out_in_the_end(
    model: VllmBlip2, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, digests = pictures()
    plain = model._sampling

    def make_ends_likely(seed: int) -> Any:
        sampling = plain(seed)
        sampling.logit_bias = {end: 8.5 for end in model.ends}
        return sampling

    monkeypatch.setattr(model, "_sampling", make_ends_likely)
    results = []
    for redraws in (0, 1, 8):
        model.settings = settings(redraws=redraws, temperature=2.0, top_p=1.0)
        results.append(model.captions(images, digests))
    counts = [sum(map(len, lines)) for lines in results]
    assert 0 < counts[0] < counts[1] < counts[2] <= 5 * PICTURES
    assert all(set(old) <= set(new) for old, new in zip(*results[:2], strict=True))
    assert all(line for lines in results[2] for line in lines)


def test_transformers_captions_keep_the_recipe_they_had_before_there_were_engines(tmp_path: Path) -> None:
    facts = {
        "model": "a/b", "revision": None, "precision": "bf16", "code": 1, "decoding": "nucleus", "n": 15, "beams": None,
        "top_p": 0.9, "temperature": 1.0, "min_tokens": 0, "max_tokens": 30, "redraws": 3, "seed": 0,
    }  # fmt: skip

    def recipe(**block: str) -> dict[str, Any]:
        captioner = captioner_settings({"model": "a/b", "precision": "bf16"} | block, "captioner")
        return CaptionJob(Compute(), Store(tmp_path), "toy", tmp_path, captioner).recipe()

    assert recipe() == recipe(engine="transformers") == facts
    assert digest(facts) == "b3236b8bdfd719f77984f8a88d0078ed7c3ac8c1c370198a81ab0353f7bdb8e1"
    assert recipe(engine="vllm") == facts | {"engine": "vllm"}


def test_models_that_vllm_cannot_load_are_one_line(model: VllmBlip2, tmp_path: Path) -> None:
    folder = tmp_path / "blip2"
    shutil.copytree(ROOT / "demo/weights/blip2", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"image_token_index": None}), encoding="utf-8")
    with pytest.raises(CvsiError, match="blip2' has no image token, which engine: vllm needs; take a newer"):
        VllmBlip2(settings(model=str(folder)), Compute(device="cpu"))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CvsiError, match=r"blip2' has space for 55 tokens; lower max_tokens \(now 500\)"):
        VllmBlip2(settings(model=str(folder), max_tokens=500), Compute(device="cpu"))
    with pytest.raises(CvsiError, match="llama' is a llama, not a BLIP-2; name another model"):
        VllmBlip2(settings(model=str(ROOT / "demo/weights/llama")), Compute(device="cpu"))
    torch.save({"query_tokens": CreatesFile(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(CvsiError, match="does not load: the file holds more than tensors; it was not opened"):
        VllmBlip2(settings(model=str(folder)), Compute(device="cpu"))
    assert not (tmp_path / "ran").exists()


def check_the_table(toy: Workspace, model: VllmBlip2) -> None:
    """The table `captions` has the captions of the loaded model."""
    (file,) = (toy.path / "cache/toy/captions").glob("*.parquet")
    assert pq.read_schema(file).equals(CAPTIONS)
    rows = pq.read_table(file).to_pylist()
    images = [Image.open(toy.path / "photos" / row["image_id"]).convert("RGB") for row in rows]
    assert [row["captions"] for row in rows] == model.captions(images, [row["digest"] for row in rows])


def name_vllm(toy: Workspace) -> None:
    tiny = toy.params()["datasets"]["toy"]["captioner"]
    toy.params(datasets__toy__captioner=tiny | {"engine": "vllm"}, compute={"device": "cpu", "workers": 2})
    write_index()


def test_the_stage_captions_with_the_engine_that_params_name(
    toy: Workspace, model: VllmBlip2, capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine loads once, whatever the number of workers, since it uses all cores or GPUs by itself."""
    loads: list[int] = []

    def load(chosen: VllmBlip2Settings, compute: Compute, worker: int) -> VllmBlip2:
        assert chosen == settings()
        loads.append(worker)
        return model

    name_vllm(toy)
    toy.params(compute={"device": "cpu", "workers": 2, "caption_batch": 2, "block_batches": 1})
    with CAPTIONERS.using("vllm", replace(ENGINE, load=load)):
        captions.write("toy", params.load())
    assert "8 to caption" in capsys.readouterr().out and loads == [0]
    check_the_table(toy, model)


@pytest.mark.slow  # the same in a process of its own, which loads vLLM once more
def test_the_stages_process_captions_with_vllm(toy: Workspace, model: VllmBlip2) -> None:
    name_vllm(toy)
    assert "8 to caption" in toy.run("captions", "toy")
    check_the_table(toy, model)
