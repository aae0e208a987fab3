"""Settings to the digests that name recipes and keys: rows that anybody has stored are found by exactly these.

A digest that changes here means that rows of that kind are computed again, a caption on a GPU among them. A change of
meaning raises the recipe's `code` on purpose; anything else is a mistake.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from tests.golden import library
from tests.imports import ROOT

REVISION = "0123456789abcdef0123456789abcdef01234567"
HUB = {"model": "example/model", "revision": REVISION}
LOCAL = {"precision": "fp32", "n": 5, "top_p": 0.9, "temperature": 1.0, "max_tokens": 30, "seed": 0}
PROMPTS = {"edited": "Rewrite it.", "added": "Name it: «é»."}
SERVER = HUB | {"engine": "server", "address": "http://127.0.0.1:9/v1"}
PHI = "demo/weights/phi.safetensors"
TINY = {"model": "local-dir:demo/weights/clip", "phi": PHI, "precision": "fp32"}
TAG = {
    "model": "ViT-B-32-quickgelu",
    "pretrained": "openai",
    "revision": "a6f597a30f7b82c51704746581f9a4e41421e878",
    "phi": PHI,
}
TRAINING = {
    "backbone": "tiny", "spans": {"words": "demo/keywords.txt"}, "steps": 700, "batch": 256, "learning_rate": 0.002,
    "beta2": 0.98, "warmup": 35, "schedule": "cosine", "clip": 1.0, "held_out": 2000, "validate_every": 100,
    "checkpoint_every": 50, "precision": "fp32", "seed": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory from which the demo's models can be named."""
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(recipe: library.Recipe, pinned: str) -> None:
    """Hold a recipe's digest against the pinned one, and show the recipe where it is another."""
    assert library.digest_of(recipe) == pinned, json.dumps(recipe, indent=1, sort_keys=True)


def test_the_canonical_form() -> None:
    assert (
        library.digest_of({"b": [1, 2.5, None, True], "a": "é $\n"}, "x")
        == "5a34a37ee340a82b3bcfe1826d9a0294f9784bcaeb5d53d3334e0b9deea50f16"
    )
    assert library.digest_of() == "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"


@pytest.mark.parametrize(
    ("settings", "device", "pinned"),
    [
        ({"model": "a/b"}, "cuda", "b3236b8bdfd719f77984f8a88d0078ed7c3ac8c1c370198a81ab0353f7bdb8e1"),
        (HUB, "cpu", "e9387ef009b6290f591a2f0ada4f559821f7f1f4329ee62104c44087265613fb"),
        (HUB, "cuda", "c94a4d08b35cd893bd7fd1d369fc2de727b47334d9547f2ad5585a9268146e83"),
        (
            HUB | {"decoding": "beam-sample", "beams": 20, "n": 10, "min_tokens": 2},
            "cuda",
            "365c5e965a13aafedb23c3c370bc72d422c394cf112315bff3a9c79160814dca",
        ),
        (
            HUB | {"engine": "transformers", "precision": "fp16", "redraws": 0, "seed": 7},
            "cuda",
            "a9e2742ec4f9c79f2a4c25730d67dbe0bcade922d01ae78ba363b44aab4b967c",
        ),
        (HUB | {"engine": "vllm"}, "cuda", "8b8dd8bd7b0298bcb3757752249e351216b2f6e34588d00519d04bd5b3574fc4"),
        (
            {"model": "example/model", "engine": "vllm", "temperature": 0.7},
            "cpu",
            "70d51d69490d3c199ecd475a2110514e12addaa44deb591b46ed2ff243ddeeed",
        ),
        (
            {"model": "demo/weights/blip2"} | LOCAL,
            "cpu",
            "1f5010a5fc79dd2c1aaf9ad3ddb72a10fff5c781a92e1c888202d07f30540a7c",
        ),
        (
            {"model": "demo/weights/blip2", "engine": "vllm"} | LOCAL,
            "cpu",
            "3cfe0d447d8781f5735391c5364ed60c0c35097b2ad27fd5c3909cdb8bbf1305",
        ),
        (HUB | {"engine": "blip"}, "cpu", "ff70c7e4f781aac7d1c285ffcc8d6070dfa65ea509c642f279cc6bb9bc96de05"),
        (HUB | {"engine": "blip"}, "cuda", "666565e0738817defeee84284fd229802fc052caa9612d9d587916288cf2a0f5"),
        (
            {"model": "demo/weights/blip2", "engine": "blip"} | LOCAL,  # any folder will do here
            "cpu",
            "d8fa52badeac25426ea06c60383202df14ee1153826ebf5d67cb2068005c793f",
        ),
    ],
)
def test_captions(settings: dict[str, Any], device: str, pinned: str) -> None:
    check(library.caption_recipe(settings, device), pinned)


@pytest.mark.parametrize(
    ("settings", "device", "pinned"),
    [
        (HUB, "cpu", "5789923ff442972955ceacb91ea149a42b690eafe499dca9d726173f5becd144"),
        (HUB, "cuda", "78c20bd1821f65da5a960065bd127a94dc40aa11b44823acf0bae8a3a87c2f62"),
        (
            HUB | {"style": "chat", "context": 4096},
            "cuda",
            "9c6499cfb2cbe75b3632cb038ecbddc7e1b8147f5c86810444b780fb1f8b6056",
        ),
        (
            HUB | {"mode": "each", "max_tokens": 64},
            "cuda",
            "d06624f848446e0d45a4329f919168315f03a3c0490f4bb16c3ee718b8bb789c",
        ),
        (
            HUB | {"exact": True, "precision": "fp16"},
            "cuda",
            "f8905ff15b4544c6d86d30275e7592a3adef17695c642ae35a07e70bd541259c",
        ),
        (SERVER, "cpu", "22871961e602f57980e1e1be5ce5e306e758cba049193b8e3ea3e09df819cb93"),
        (SERVER, "cuda", "22871961e602f57980e1e1be5ce5e306e758cba049193b8e3ea3e09df819cb93"),
        (
            SERVER | {"style": "chat", "address": "https://elsewhere.example/v1"},
            "cpu",
            "242614bccd6a6993262c9333cac2f27a1db630ee03e945e8580084e8b67dcab3",
        ),
        (
            {"model": "demo/weights/llama", "precision": "fp32", "max_tokens": 64},
            "cpu",
            "14c133832f8bb7d50c502db1ad8f5772b514a6f0647dd2d40dbe35b55366add6",
        ),
    ],
)
def test_edits(settings: dict[str, Any], device: str, pinned: str) -> None:
    check(library.edit_recipe(settings, PROMPTS, device), pinned)


@pytest.mark.parametrize(
    ("names", "pinned"),
    [
        ({}, "0b4391f2b5acb7db4a38210a2e113911dc19cfc9849360f7ea0f0a66b70214f7"),
        ({"edited": "general", "added": "added"}, "0b4391f2b5acb7db4a38210a2e113911dc19cfc9849360f7ea0f0a66b70214f7"),
        (
            {"edited": "structural", "added": "added"},
            "02ac7f5d17173016a55508b5a4f0773bca120e5d8b7d3c4cbf5aa3024d9dc235",
        ),
        ({"edited": "fashion", "added": "added"}, "2be6fe2701147be2664f3ce7b06f503dc99bf1bf4721a1a2d87d796ded9060e7"),
        (
            {"edited": "demo_edited", "added": "demo_added"},
            "c9f7e728bb0ea219272cf14ff08e01acd887936b828325bea5ed74d9b3d4473d",
        ),
    ],
)
def test_edits_with_the_prompts_of_the_package(names: dict[str, str], pinned: str) -> None:
    check(library.edit_recipe(HUB, library.prompt_texts(names), "cuda"), pinned)


@pytest.mark.parametrize(
    ("backbone", "kind", "pinned"),
    [
        (TINY, "image", "13af5b2906c671d00639c8bd4a5594f72c9e30a54b3c4cbfdfb9124a24c41dce"),
        (TINY | {"preprocess": "plain"}, "image", "a81665af0f8c80f1a46e2d7983a4cd68f2abc6b5d9323954de2b767d784c77ed"),
        (TINY, "text", "55a92ecabdb669c7a2eacf2561058c1c48cf81854bd4e1e4a2ec49ca2fb07b5a"),
        (
            TINY | {"preprocess": "plain", "precision": "auto"},
            "text",
            "55a92ecabdb669c7a2eacf2561058c1c48cf81854bd4e1e4a2ec49ca2fb07b5a",
        ),
        (TINY, "pseudo", "bc4c89b55fa46101dcdb0329b65984db9271797e7e7e7cff0f30b398400572bd"),
        (TINY | {"preprocess": "plain"}, "pseudo", "49690f2a5d0a341c41e8dc4fa1f257111ffdda39f9648e3b5dfb4d06999b27ad"),
        (TAG, "image", "9ed8fd4cc7665263f6a330f2610cf70d22c1d1658b571447865a3a2d330d789b"),
        (
            TAG | {"preprocess": "plain", "precision": "bf16"},
            "image",
            "d7706c546b1c08447bb89d38cd3f7ee1bc5154a7a1a2621a8b9c1fd1fd7aac15",
        ),
        (TAG | {"revision": None}, "image", "78d94d5fc98241d08f58b1c905cbf23c813cc588089ab7f2f22aefe2cf81cd97"),
        (TAG, "text", "7117a2d1add639659d075639e70d3ffe6b768873d23494597e199fadf1685bd4"),
        (TAG, "pseudo", "168f8968f68ea9da9a9304e9f69057d66c69b63c64dada1ef66b99d701592cf7"),
        (
            {"model": "ViT-B-32", "pretrained": PHI, "phi": PHI},
            "image",
            "a1d4f89832113965144b0319dc8582f3af5e1efd901b0ac072f092cacd1c0eec",
        ),  # any file will do here
    ],
)
def test_vectors(backbone: dict[str, Any], kind: str, pinned: str) -> None:
    check(library.vector_recipe(backbone, kind), pinned)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_the_registry_of_kinds_gives_the_recipes_of_clip(kind: str) -> None:
    assert library.backbone_recipe(TINY, kind) == library.vector_recipe(TINY, kind)


@pytest.mark.parametrize(
    ("backbone", "kind", "pinned"),
    [
        (HUB | {"kind": "bge-vl"}, "image", "158669847b4dec6ea5c7316cb9fe5105cfda4430af9e06c1e07b946348c4e7b6"),
        (HUB | {"kind": "bge-vl"}, "text", "96012543423f2db0bf4f508e1b79446f8dcb4a65c95414c562cd6c17d5418b6d"),
        (HUB | {"kind": "bge-vl"}, "composed", "d6a5bd10bcfa56d1f2476f34561e9bfd98152955e283ece3241f763275d46c01"),
        (
            HUB | {"kind": "bge-vl", "preprocess": "target-pad"},
            "composed",
            "ccb444e514b3743b710ce55e40ce427733f145e6ef9702682ac69c2efe914976",
        ),
        (
            HUB | {"kind": "qwen3-vl-embedding"},
            "image",
            "cb93a99e58fe0e75da53d079f79e5833cb032e392db1b457e43b165277a1c241",
        ),
        (
            HUB | {"kind": "qwen3-vl-embedding"},
            "text",
            "cd408489a2a9d4b8b99b2511b77c411ccdc05dfb321d1fc37b3e5eda4bef4230",
        ),
        (
            HUB | {"kind": "qwen3-vl-embedding"},
            "composed",
            "df35ac4027bbb6aea223cafe47f0fa8a76740c0694d93c933f4f50e856c94000",
        ),
        (
            HUB | {"kind": "qwen3-vl-embedding", "composed_instruction": "Change it."},
            "composed",
            "5130ddb22f0edbe584619bb595510bfd2f6eaae0103f990d28bda57945eddb04",
        ),
    ],
)
def test_vectors_of_other_kinds_of_backbones(backbone: dict[str, Any], kind: str, pinned: str) -> None:
    check(library.backbone_recipe(backbone, kind), pinned)


def test_facts_of_files() -> None:
    check(library.file_recipe(), "1f857f2f97f025a8281f786bdddddb8e8a2069a33eca6fd75a094c11b11ec004")


def test_keyword_spans() -> None:
    check(
        library.span_recipe(Path("demo/keywords.txt")),
        "50a83066445610cfbd888f49d5be62e4e4a5b22800470a133b67e537f007354a",
    )
    Path("words.txt").write_text("red\nhat\n", encoding="utf-8")
    check(library.span_recipe(Path("words.txt")), "381aa2374b180f96663a4de0a5be6c2c6ac1cbd34dfd6add9e996f9bf235182d")


def test_a_trained_phi() -> None:
    Path("captions.txt").write_text("a red hat\na blue boat\n", encoding="utf-8")
    check(
        library.phi_recipe(TRAINING | {"captions": "captions.txt"}, TINY),
        "7cf827cc970f2cdae8b565926a739c69e30013b8f7040fbaf7ce360c6b512c75",
    )
    least = {"backbone": "tiny", "captions": "captions.txt", "spans": {"words": "demo/keywords.txt"}, "steps": 9}
    check(
        library.phi_recipe(least, TINY | {"precision": "bf16"}),
        "8612e3f147399f016b0775a12c7a8a18fc3c9bebdd739c3db5555f8fd8135fc6",
    )


def test_records_of_weights(models: Path) -> None:
    recipe = "5a0579e03692c2a21b8ebfcd8a252eb7a2c97a4113e40553fb4646fe8e77c87c"
    check(library.weights_recipe(), recipe)
    for model in ("local-dir:models/clip", "models/clip/"):
        library.record_weights(model, "00ff", "store")
    (file,) = (models / "store" / "weights" / recipe).glob("*.parquet")
    assert pl.read_parquet(file).to_dicts() == [
        {"key": "8fc0058d0adefb2e42e715dd957845c189e8aaad6d5585e0101e8a824f60a2fb", "weights": "00ff"}
    ]


def test_keys_of_edits_texts_and_pseudo_tokens() -> None:
    assert (
        library.edit_key(["a red hat", "a «hat»"], "is blue")
        == "6e2faecea098a13e44936457d8a90f28a0d355092c45c61a8fe29074f4315ead"
    )
    assert library.edit_key([], "is blue") == "858aa71c71ba0c3978ebb9e042107f1e4e1f6c0d5901e8930a376a9880417ca6"
    assert library.text_key("a red hat") == "fb352c29d713241c6535b8a7d02120d4efa63a3d40e4b0950b6f03d699a9125b"
    assert library.text_key("café 🙂\n") == "e9b14923ff5cbe5886fb04b04824b23c070197edbe7a33089d105c261f7e4658"
    full, half = library.sentence("is blue", "a boat"), library.sentence("costs $5", "")
    assert full == "a photo of $ that is blue. And the photo should have a boat."
    assert half == "a photo of $ that costs $5."
    assert library.pseudo_key("00ff", full) == "a49e33b18ef6d4eb6502657c2c2669916ddccd50b9b99475ab3e49932711e6c8"
    assert library.pseudo_key("00ff", half) == "15803a00362ce068c7edbd9d4cacd80b41ee80d32fc8441a66db977742f89100"


def test_keys_of_files_and_captions(models: Path) -> None:
    image = min((ROOT / "tests/golden/data/images").glob("*.png")).read_bytes()
    (models / "photos" / "below").mkdir(parents=True)
    file = models / "photos" / "below" / "a b.png"
    file.write_bytes(image)
    os.utime(file, ns=(0, 1_700_000_000_123_456_000))
    parts = {"captioner": HUB, "editor": HUB, "fusion": {"query": {"edited": 1}, "gallery": {"image": 1}}}
    dataset = {"format": "folder", "root": "photos"} | parts
    Path("photos/queries.jsonl").write_text(
        '{"reference": "below/a b.png", "instruction": "is blue", "targets": ["below/a b.png"]}\n', encoding="utf-8"
    )
    content = {"active": [], "runs": {}, "datasets": {"toy": dataset}, "backbones": {}, "store": "store"}
    Path("params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    library.index("toy")
    digest = hashlib.sha256(image).hexdigest()
    (stored,) = (models / "store" / "files").glob("*/*.parquet")
    status = file.stat()
    key = f"photos/below/a b.png {len(image)} 1700000000123456000 {status.st_ctime_ns} {status.st_ino} 0"
    assert pl.read_parquet(stored).to_dicts() == [
        {"key": key, "digest": digest, "width": 64, "height": 64, "reason": ""}
    ]
    # The key of captions and of image vectors.
    assert pl.read_parquet("cache/toy/index/images.parquet")["digest"].to_list() == [digest]
