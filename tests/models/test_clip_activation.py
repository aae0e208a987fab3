"""CLIP weights in a file: a model with another activation is refused where it is known, one line where it is not."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cvsi.core.errors import CvsiError
from cvsi.core.params import Backbone, Compute
from cvsi.models import clip_activation, clip_checkpoint
from cvsi.models.clip import recipe
from cvsi.models.clip_activation import check_file
from cvsi.models.clip_encoder import Encoder
from tests.imports import ROOT

GELU, QUICK = "ViT-B-32", "ViT-B-32-quickgelu"
CACHED = "models--timm--vit_base_patch32_clip_224.openai/snapshots/abc/open_clip_model.safetensors"
TRAINED_WITH_QUICKGELU = [
    "ViT-B-32.pt",  # OpenAI's own name
    "vit-b-32-openai.safetensors",
    "openai/model.safetensors",
    "openai_clip_vit_b_32/weights.bin",
    CACHED,
    "ViT-B-32-quickgelu.safetensors",
    "vit_b_32-quickgelu-laion400m_e32-46683a32.pt",
    "laion400m_e31.safetensors",  # for this architecture; see below
    "metaclip_fullcc.pt",
]
TRAINED_WITH_GELU = [
    "vit_b_32-laion2b_e16-af8dbd0c.pth",
    "CLIP-ViT-B-32-laion2B-s34B-b79K/open_clip_model.safetensors",
    "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K/snapshots/abc/open_clip_model.safetensors",
    "datacomp_xl_s13b_b90k.safetensors",
    "my-laion2b-finetune/epoch_3.pt",
]
UNKNOWN = ["weights.pt", "ViT-B-32.safetensors", "clip/epoch_7.bin", "openai-and-laion2b.safetensors", "mine/model.pth"]


def placed(folder: Path, name: str) -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"weights")
    return str(file)


@pytest.mark.parametrize(
    ("name", "fits", "other"),
    [(name, QUICK, GELU) for name in TRAINED_WITH_QUICKGELU] + [(name, GELU, QUICK) for name in TRAINED_WITH_GELU],
)
def test_a_known_file_fits_one_of_the_two_models(name: str, fits: str, other: str, tmp_path: Path) -> None:
    file = placed(tmp_path / "w", name)
    assert check_file(fits, file) == ""
    with pytest.raises(CvsiError, match=f"; set this backbone's model to {fits}$") as error:
        check_file(other, file)
    assert str(error.value).startswith(f"params.yaml: '{file}' was trained with ") and "\n" not in str(error.value)


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("model", [GELU, QUICK])
def test_of_an_unknown_file_a_line_names_both_choices(name: str, model: str, tmp_path: Path) -> None:
    line = check_file(model, placed(tmp_path / "w", name))
    other = GELU if model == QUICK else QUICK
    assert f"The model {model} computes with" in line and f"set model to {other} (OpenAI's" in line and "\n" not in line


def test_the_same_tag_may_mean_another_activation_for_another_architecture(tmp_path: Path) -> None:
    file = placed(tmp_path / "w", "laion400m_e31.safetensors")
    assert check_file("ViT-B-16", file) == ""
    with pytest.raises(CvsiError, match=r"set this backbone's model to ViT-B-16$"):
        check_file("ViT-B-16-quickgelu", file)


def test_a_link_says_what_its_target_says(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    link = tmp_path / "w" / "clip.safetensors"
    link.symlink_to(placed(tmp_path / "hub", CACHED))
    assert check_file(QUICK, str(link)) == ""
    with pytest.raises(CvsiError, match="was trained with QuickGELU"):
        check_file(GELU, str(link))


@pytest.mark.parametrize("quick", [True, False])
def test_a_published_file_is_known_by_its_digest(quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = f"published {quick}".encode()
    sha = hashlib.sha256(content).hexdigest()
    addresses = {
        True: f"https://openaipublic.azureedge.net/clip/models/{sha}/Other.pt",
        False: f"https://github.com/mlfoundations/open_clip/releases/download/v0/other-{sha[:8]}.pt",
    }
    table = {"Other": {"tag": {"url": addresses[quick], "quick_gelu": quick}}}
    monkeypatch.setattr(open_clip.pretrained, "_PRETRAINED", table)
    clip_activation._table.cache_clear()
    file = Path(placed(tmp_path / "w", "renamed.pt"))
    assert "nothing says which" in check_file(GELU, str(file))
    file.write_bytes(content)
    fits, other = (QUICK, GELU) if quick else (GELU, QUICK)
    assert check_file(fits, str(file)) == ""
    with pytest.raises(CvsiError, match=r"\(by its SHA-256\)"):
        check_file(other, str(file))
    clip_activation._table.cache_clear()


def test_open_clips_table_has_the_digests_of_openais_files() -> None:
    digests, names = clip_activation._table()
    full = [digest for digest, quick in digests.items() if len(digest) == 64 and quick]
    assert len(full) == 9 and names["ViT-L-14-336px.pt"] is True
    assert digests["af8dbd0c"] is False and digests["d867053b"] is True


def test_a_program_is_openais_format(tmp_path: Path) -> None:
    class Doubles(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    file = tmp_path / "weights.pt"
    torch.jit.save(torch.jit.script(Doubles()), str(file))
    with pytest.raises(CvsiError, match=r"trained with QuickGELU \(it is a TorchScript program, as OpenAI publishes"):
        check_file(GELU, str(file))
    assert check_file(QUICK, str(file)) == ""
    with pytest.raises(
        CvsiError, match=r"it is a program \(TorchScript\), which is not run; use the same weights as safe"
    ):
        _ = encoder(QUICK, file).model


@pytest.mark.parametrize(
    ("model", "tag", "message"),
    [
        (
            "ViT-B-32",
            "openai",
            "'openai' was trained with QuickGELU, ViT-B-32 computes with GELU; set .* to ViT-B-32-qui",
        ),
        ("ViT-L-14", "openai", "set this backbone's model to ViT-L-14-quickgelu"),
        ("ViT-B-32", "laion400m_e31", "set this backbone's model to ViT-B-32-quickgelu"),
        ("ViT-H-14-378", "dfn5b", "set this backbone's model to ViT-H-14-378-quickgelu"),
        ("roberta-ViT-B-32", "laion2b_s12b_b32k", 'GELU, roberta-.* computes with QuickGELU; set .* "quick_gelu"'),
    ],
)
def test_a_tag_of_another_activation_is_refused(model: str, tag: str, message: str) -> None:
    with pytest.raises(CvsiError, match=message):
        clip_checkpoint.tag(Backbone(model=model, pretrained=tag, phi="none"))


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Little` and `Little-quickgelu`, a few thousand weights, with a tag `laion2b_little` trained with GELU."""
    config: dict[str, Any] = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    tags = {"laion2b_little": {"hf_hub": "people/little/"}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Little", config)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Little-quickgelu", config | {"quick_gelu": True})
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Little", tags)
    clip_activation._tags.cache_clear()
    clip_checkpoint._say_once.cache_clear()


def encoder(model: str, file: Path) -> Encoder:
    return Encoder(Backbone(model=model, pretrained=str(file), phi="none"), Compute(device="cpu"))


def test_the_two_activations_give_other_vectors_so_a_mismatch_is_refused_before_any_row_is_used(
    little: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = open_clip.create_model("Little").state_dict()
    unknown, known = tmp_path / "weights.safetensors", tmp_path / "little-openai.safetensors"
    save_file(state, unknown)
    shutil.copy(unknown, known)
    images = [Image.new("RGB", (32, 32), "red")]
    vectors = []
    for model in ("Little", "Little-quickgelu"):
        ours = encoder(model, unknown)
        encoder(model, unknown)
        vectors.append(ours.image_embeddings([ours.prepare(image) for image in images]))
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-4)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("trained with QuickGELU or with GELU, nothing says which" in line for line in lines)
    assert "set model to Little-quickgelu (" in lines[0] and "set model to Little (" in lines[1]
    assert encoder("Little-quickgelu", known).model is not None
    with pytest.raises(CvsiError, match="was trained with QuickGELU"):
        encoder("Little", known)
    with pytest.raises(CvsiError, match="was trained with QuickGELU"):  # rows of an earlier version in the store
        recipe(Backbone(model="Little", pretrained=str(known), phi="none"), "image", "fp32")


def test_weights_with_the_settings_of_openais_program_need_quickgelu(little: None, tmp_path: Path) -> None:
    """`torch.save(program.state_dict())` keeps the three numbers that the program lists among its tensors."""
    state = dict(open_clip.create_model("Little").state_dict())
    settings = {name: torch.tensor(16) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.save(state | settings, tmp_path / "weights.pt")
    assert encoder("Little-quickgelu", tmp_path / "weights.pt").model is not None
    with pytest.raises(CvsiError, match=r"it lists the settings of OpenAI's program.*set .* to Little-quickgelu"):
        _ = encoder("Little", tmp_path / "weights.pt").model


@pytest.mark.parametrize(
    ("needs", "name"), [("true", "openai"), ("true", "my-quickgelu"), ("false", "laion2b"), ("false", "datacomp_xl")]
)
def test_a_folder_whose_configuration_contradicts_its_weights_is_refused(needs: str, name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(ROOT / "demo/weights/clip", folder)
    file = folder / "open_clip_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model_cfg"]["quick_gelu"] = needs == "false"
    file.write_text(json.dumps(content), encoding="utf-8")
    backbone = Backbone(model=f"local-dir:{folder}", phi="none")
    with pytest.raises(
        CvsiError, match=f'; set "quick_gelu": {needs} in the model_cfg of its open_clip_config'
    ) as error:
        _ = Encoder(backbone, Compute(device="cpu")).model
    assert "\n" not in str(error.value)
    content["model_cfg"]["quick_gelu"] = needs == "true"
    file.write_text(json.dumps(content), encoding="utf-8")
    assert Encoder(backbone, Compute(device="cpu")).model is not None


def test_the_demos_folder_needs_no_word(capsys: pytest.CaptureFixture[str]) -> None:
    backbone = Backbone(model=f"local-dir:{ROOT / 'demo/weights/clip'}", phi="none")
    assert Encoder(backbone, Compute(device="cpu")).model is not None
    assert capsys.readouterr().err == ""
    assert len(load_file(ROOT / "demo/weights/clip/open_clip_model.safetensors")) == 96
