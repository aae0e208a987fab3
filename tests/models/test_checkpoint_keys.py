"""Checkpoints that do not fit their model are refused by name, in every loader; one shared prefix is removed."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cvsi.core.errors import CvsiError
from cvsi.core.params import Backbone, Compute
from cvsi.models import phi
from cvsi.models.blip2 import ENGINE
from cvsi.models.blip2_model import Blip2
from cvsi.models.blip2_vllm import VllmBlip2, VllmBlip2Settings
from cvsi.models.checkpoint_keys import difference, shared_prefixes
from cvsi.models.clip_encoder import Encoder
from cvsi.models.llm_vllm import VllmEditor, VllmEditorSettings
from cvsi.models.transformers_keys import checked_prefix
from cvsi.store.rows import Store
from tests.conftest import Workspace
from tests.imports import ROOT
from tests.models import checkpoints
from tests.models.checkpoints import Change, alternately, folder_of, prefixed, renamed, reshaped, same, without
from tests.models.conftest import blip2_settings
from tests.stage_inputs import write_index

CPU = Compute(device="cpu")
PREFIXES = [
    "module.",
    "model.",
    "_orig_mod.",
    "module._orig_mod.",
    "base_model.model.",
    "blip2.",
    "a.b.c.",
    "wrapped_",
    "x",
]
BROKEN: list[tuple[str, Change, str]] = [
    ("blip2", without("language_projection."), r"2 keys are missing \(language_projection\.bias, language_proj"),
    ("blip2", without("qformer."), r"\d\d keys are missing \(qformer\.encoder\.layer\.0\..*, \.\.\.\)"),
    ("blip2", without("query_tokens"), r"1 key is missing \(query_tokens\)"),
    ("blip2", without("vision_model.encoder.layers.3."), r"missing \(vision_model\.encoder\.layers\.3\."),
    ("blip2", checkpoints.with_one_more, r"1 key is unknown to the model \(head\.more\)"),
    ("blip2", alternately("module.", ""), r"8\d keys are missing .*; 8\d keys are unknown to the model \(module\."),
    ("blip2", alternately("module.", "model."), r"keys are missing .*keys are unknown"),
    ("blip2", renamed("qformer", "q_former"), r"missing \(qformer\..*unknown to the model \(q_former\."),
    ("blip2", reshaped("q_proj.weight"), r"q_proj\.weight has shape \(3, 5\), the model needs \(128, 128\)"),
    ("blip2", reshaped("language_projection.bias"), r"has shape \(3, 5\), the model needs \(128\)"),
    ("llama", without("layers.1."), r"9 keys are missing \(model\.layers\.1\.input_layernorm\.weight, "),
    (
        "llama",
        without("layers.1.self_attn.k_proj"),
        r"1 key is missing \(model\.layers\.1\.self_attn\.k_proj\.weight\)",
    ),
    ("llama", without("embed_tokens"), r"missing \(lm_head\.weight, model\.embed_tokens\.weight\)"),
    ("llama", checkpoints.with_one_more, r"1 key is unknown to the model \(head\.more\)"),
    ("llama", alternately("module.", ""), r"\d\d keys are missing .*; 19 keys are unknown to the model \(module\."),
    ("llama", reshaped("embed_tokens.weight"), r"embed_tokens\.weight has shape \(3, 5\), the model needs"),
    ("blip2", lambda state: prefixed("module.")(without("query_tokens")(state)), r"1 key is missing \(query_tokens\)"),
    (
        "llama",
        lambda state: prefixed("module.")(without("norm.weight")(state)),
        r"begins with 'module\.'; without it\): ",
    ),
    ("llama", lambda state: {}, r"39 keys are missing|no readable weights|does not load"),
]


def refusal(check: object, *arguments: object) -> str:
    """The single line with which a call fails."""
    with pytest.raises(CvsiError) as error:
        check(*arguments)  # type: ignore[operator]
    assert "\n" not in str(error.value)
    return str(error.value)


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Our own lines on standard error; a stage sends the libraries' to a log."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("cvsi: ")]


def test_prefixes_that_all_keys_share() -> None:
    assert shared_prefixes(["a.b.c", "a.b.d", "a.b.e.f"]) == ["a.", "a.b."]
    assert shared_prefixes(["a.b", "ab.c"]) == [] == shared_prefixes([]) == shared_prefixes(["weight", "bias"])
    assert shared_prefixes(["model.weight"]) == ["model."]
    assert shared_prefixes(["my_a.b", "my_c"], own=["c", "a.b"]) == ["my_"]


def test_a_difference_names_a_few_keys_and_counts_all() -> None:
    expected = {f"k{number}": (2,) for number in range(9)} | {"one": (), "two": (4, 4)}
    left = difference(expected, {"one": (1,), "two": (4, 5), "more": (1,)})
    assert str(left) == (
        "9 keys are missing (k0, k1, k2, ...); 1 key is unknown to the model (more); "
        "one has shape (1), the model needs (), and 1 more"
    )
    assert not difference(expected, expected)


@pytest.mark.parametrize(("name", "change", "message"), BROKEN)
def test_keys_that_do_not_fit_are_named(name: str, change: Change, message: str, tmp_path: Path) -> None:
    folder = folder_of(name, change, tmp_path / name)
    with pytest.raises(CvsiError, match=message) as error:
        checked_prefix(str(folder), None)
    assert str(error.value).startswith(f"{folder}: the checkpoint does not fit its model")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", ["blip2", "llama"])
def test_a_prefix_of_every_key_is_found(
    name: str, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(name, prefixed(prefix), tmp_path / name)
    found = checked_prefix(str(folder), None)
    assert found and prefix.startswith(found)  # transformers itself knows `model.` in front of a language model's keys
    assert printed(capsys) == [f"cvsi: {folder}: every key begins with '{found}'; loaded without it"]


@pytest.mark.parametrize("name", ["blip2", "llama"])
def test_a_good_checkpoint_in_other_forms_is_taken_without_a_word(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_head(state: checkpoints.State) -> checkpoints.State:
        (key,) = (key for key in state if key.endswith("embed_tokens.weight"))
        start = "language_model." if name == "blip2" else ""
        return state | {f"{start}lm_head.weight": state[key].clone()}

    def with_constants(state: checkpoints.State) -> checkpoints.State:
        names = ("embeddings.position_ids", "model.layers.0.self_attn.rotary_emb.inv_freq", "h.0.attn.masked_bias")
        return state | {key: torch.arange(4.0) for key in names}

    forms = {"plain": same, "tied head": with_head, "constants of earlier versions": with_constants}
    for form, change in forms.items():
        assert checked_prefix(str(folder_of(name, change, tmp_path / form)), None) == ""
    sharded, pickle = (folder_of(name, same, tmp_path / form) for form in ("sharded", "pickle"))
    checkpoints.shard(sharded, 3)
    checkpoints.as_pickle(pickle)
    assert checked_prefix(str(sharded), None) == checked_prefix(str(pickle), None) == ""
    assert printed(capsys) == []


def test_files_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    folder = folder_of("llama", same, tmp_path / "llama")
    names = checkpoints.shard(folder, 3)
    (folder / names[1]).unlink()
    line = refusal(checked_prefix, str(folder), None)
    assert line.endswith(f"model.safetensors.index.json: 1 of its 3 files are missing ({names[1]}); download them")
    (folder / "model.safetensors.index.json").write_text("{")
    assert "index.json: no readable index of weights" in refusal(checked_prefix, str(folder), None)
    (folder / "model.safetensors.index.json").unlink()
    for name in (names[0], names[2]):
        (folder / name).unlink()
    assert f"{folder}: no weights (*.safetensors or *.bin)" in refusal(checked_prefix, str(folder), None)


@pytest.mark.parametrize("content", [b"", b"junk", b"\x08\0\0\0\0\0\0\0{}      "], ids=["empty", "junk", "no tensors"])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_captioner_whose_file_is_broken_is_one_line(content: bytes, file: str, tmp_path: Path) -> None:
    folder = folder_of("blip2", same, tmp_path / "blip2")
    (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(content)
    line = refusal(Blip2, blip2_settings(model=str(folder)), CPU)
    assert str(folder) in line and ("does not load" in line or "164 keys are missing" in line)


def test_a_quantised_checkpoint_needs_a_tensor_for_every_module(tmp_path: Path) -> None:
    """Packed weights stand in for a module's own; a module without any of them is missing all the same."""

    def packed(state: checkpoints.State, lost: str = "none") -> checkpoints.State:
        linear = {key.removesuffix("weight"): key for key in state if key.endswith("_proj.weight")}
        parts = {"qweight": torch.ones(2, 2, dtype=torch.int32), "scales": torch.ones(2), "qzeros": torch.ones(2)}
        new = {start + end: tensor.clone() for start in linear if lost not in start for end, tensor in parts.items()}
        return {key: tensor for key, tensor in state.items() if key not in linear.values()} | new

    for method in ("awq", "gptq", "compressed-tensors"):
        folder = folder_of("llama", packed, tmp_path / method)
        checkpoints.configure(folder, quantization_config={"quant_method": method, "bits": 4})
        assert checked_prefix(str(folder), None) == ""
    lost = folder_of("llama", lambda state: packed(state, "layers.2.mlp.up_proj"), tmp_path / "lost")
    checkpoints.configure(lost, quantization_config={"quant_method": "awq", "bits": 4})
    assert "1 key is missing (model.layers.2.mlp.up_proj.weight)" in refusal(checked_prefix, str(lost), None)
    more = folder_of("llama", lambda state: packed(state) | {"head.more": torch.ones(2)}, tmp_path / "more")
    checkpoints.configure(more, quantization_config={"quant_method": "awq", "bits": 4})
    assert "1 key is unknown to the model (head.more)" in refusal(checked_prefix, str(more), None)
    unnamed = folder_of("llama", packed, tmp_path / "unnamed")  # packed, but the configuration names no method
    assert "28 keys are missing" in refusal(checked_prefix, str(unnamed), None)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"architectures": ["OfAnotherLibrary"]}, "transformers does not know its architecture"),
        ({"architectures": None}, "transformers does not know its architecture"),
        ({"model_type": "of_another_library"}, "does not recognize this architecture"),
    ],
)
def test_what_transformers_does_not_know_is_stated_as_unchecked(
    changes: dict[str, object], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of("llama", without("layers.1."), tmp_path / "llama")
    checkpoints.configure(folder, **changes)
    assert checked_prefix(str(folder), None) == ""
    line = capsys.readouterr().err
    assert line.startswith(f"cvsi: {folder}: the keys of its checkpoint were not checked (") and why in line


def test_a_gguf_file_is_stated_as_unchecked(capsys: pytest.CaptureFixture[str]) -> None:
    assert checked_prefix("models/editor.GGUF", None) == ""
    assert "models/editor.GGUF: the keys of its checkpoint were not checked (it is a GGUF file)" in (
        capsys.readouterr().err
    )


def test_a_model_of_the_hub_is_checked_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "hub/models--people--editor"
    snapshot = cached / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    folder_of("llama", without("layers.1."), snapshot)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for revision in (None, "a" * 40):
        assert "people/editor: the checkpoint does not fit its model: 9 keys" in refusal(
            checked_prefix, "people/editor", revision
        )


@pytest.mark.parametrize("change", [without("language_projection."), checkpoints.with_one_more])
def test_a_captioner_that_does_not_fit_is_refused(change: Change, tmp_path: Path) -> None:
    folder = folder_of("blip2", change, tmp_path / "blip2")
    assert "the checkpoint does not fit its model" in refusal(Blip2, blip2_settings(model=str(folder)), CPU)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module._orig_mod."])
def test_a_captioner_with_a_prefix_captions_as_without(
    prefix: str, blip2: Blip2, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of("blip2", prefixed(prefix), tmp_path / "blip2")
    model = Blip2(blip2_settings(model=str(folder)), Compute(device="cpu", caption_batch=blip2.batch))
    assert f"every key begins with '{prefix}'; loaded without it" in capsys.readouterr().err
    image = blip2.prepare(Image.new("RGB", (64, 64), "red"))
    assert model.captions([image], ["1" * 64]) == blip2.captions([image], ["1" * 64])


def test_captions_of_a_prefixed_checkpoint_that_were_stored_as_random_are_not_used_again(tmp_path: Path) -> None:
    """Earlier versions loaded it as random numbers, under the digest of the same folder."""
    recipes = []
    for prefix in ("", "module."):
        folder = folder_of("blip2", prefixed(prefix), tmp_path / f"blip2{prefix}")
        recipes.append(ENGINE.recipe(blip2_settings(model=str(folder)), "fp32", Store(tmp_path)))
    assert "without_prefix" not in recipes[0] and recipes[1]["without_prefix"] == "module."


def test_a_stage_prints_the_removal_and_stores_nothing_of_a_broken_checkpoint(toy: Workspace, tmp_path: Path) -> None:
    write_index()
    broken = folder_of("blip2", without("language_projection."), tmp_path / "broken")
    toy.params(datasets__toy__captioner__model=str(broken))
    line = toy.error("captions", "toy")
    assert line.startswith(f"captions toy: {broken}: the checkpoint does not fit its model: 2 keys are missing")
    assert not list((toy.path / "cache/store/captions").rglob("*.parquet"))
    good = folder_of("blip2", prefixed("module."), tmp_path / "prefixed")
    toy.params(datasets__toy__captioner__model=str(good))
    assert f"captions toy: {good}: every key begins with 'module.'; loaded without it" in toy.run("captions", "toy")


@pytest.mark.xdist_group("vllm")
def test_vllm_loads_an_editor_without_its_prefix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of("llama", prefixed("module."), tmp_path / "llama")
    answers = []
    for model in (ROOT / "demo/weights/llama", folder):
        settings = VllmEditorSettings(model=str(model), precision="fp32", max_tokens=16)
        answers.append(VllmEditor(settings, CPU).answers(["a red circle\nInstruction: is blue\nEdited Description:"]))
    assert "every key begins with 'module.'; loaded without it" in capsys.readouterr().err
    assert answers[0] == answers[1]
    parallel = Compute(device="cpu", tensor_parallel=2)
    line = refusal(VllmEditor, VllmEditorSettings(model=str(folder), precision="fp32"), parallel)
    assert "every key begins with 'module.'; remove it from the keys to use several processes" in line


@pytest.mark.parametrize("change", [without("layers.1.self_attn.k_proj"), checkpoints.with_one_more])
def test_vllm_editors_that_do_not_fit_are_refused_before_vllm_starts(change: Change, tmp_path: Path) -> None:
    folder = folder_of("llama", change, tmp_path / "llama")
    line = refusal(VllmEditor, VllmEditorSettings(model=str(folder), precision="fp32"), CPU)
    assert line.startswith(f"{folder}: the checkpoint does not fit its model: 1 key is")


def test_a_vllm_captioner_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = folder_of("blip2", without("language_projection."), tmp_path / "blip2")
    settings = VllmBlip2Settings.model_validate(blip2_settings().model_dump() | {"engine": "vllm"})
    settings = settings.model_copy(update={"model": str(folder)})
    assert "2 keys are missing (language_projection.bias" in refusal(VllmBlip2, settings, CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_decoder_only_language_model": False}, "is a BLIP-2 with opt, an encoder-decoder"),
        ({"text_config": {"model_type": "bart", "d_model": 16}}, "is a BLIP-2 with bart, an encoder-decoder, which no"),
        ({"model_type": "instructblip"}, "is a instructblip, not a BLIP-2; name another model"),
        ({"model_type": "blip"}, "is a BLIP, not a BLIP-2; set engine: blip, or name another model"),
        (
            {"architectures": ["Blip2ForImageTextRetrieval"]},
            "is a Blip2ForImageTextRetrieval, which writes no captions",
        ),
        ({"model_type": "llama"}, "is a llama, not a BLIP-2; name another model"),
    ],
)
def test_models_that_no_captioner_engine_supports_are_one_line(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "blip2"
    shutil.copytree(ROOT / "demo/weights/blip2", folder)
    checkpoints.configure(folder, **changes)
    vllm = VllmBlip2Settings.model_validate(blip2_settings().model_dump() | {"engine": "vllm", "model": str(folder)})
    for line in (refusal(Blip2, blip2_settings(model=str(folder)), CPU), refusal(VllmBlip2, vllm, CPU)):
        assert line.startswith(f"params.yaml: captioner model '{folder}' {message}"), line
        assert "bart" not in line or line.endswith("e.g. Salesforce/blip2-opt-2.7b-coco or blip2-opt-6.7b-coco")


def clip(folder: Path) -> Encoder:
    backbone = Backbone(model=f"local-dir:{folder}", phi="none", precision="fp32")
    return Encoder(backbone, Compute(device="cpu", text_batch=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("visual.proj"), r"1 key is missing \(visual\.proj\)"),
        (without("resblocks.1."), r"24 keys are missing \(transformer\.resblocks\.1\."),
        (without("logit_scale"), r"1 key is missing \(logit_scale\)"),
        (checkpoints.with_one_more, r"1 key is unknown to the model \(head\.more\)"),
        (alternately("module.", ""), r"48 keys are missing .*; 48 keys are unknown to the model \(module\."),
        (alternately("modulex", ""), r"48 keys are missing .*; 48 keys are unknown to the model \(modulex"),
        (
            lambda state: prefixed("module.")(without("visual.proj")(state)),
            r"every key begins with 'module\.'; without it\): 1 key is missing \(visual\.proj\)",
        ),
        (renamed("visual", "vision"), r"keys are missing \(visual\..*unknown to the model \(vision\."),
        (reshaped("visual.positional_embedding"), r"visual\.positional_embedding has shape \(3, 5\), .* \(17, 128\)"),
        (reshaped("ln_final.bias"), r"ln_final\.bias has shape \(3, 5\), the model needs \(128\)"),
    ],
)
def test_clip_weights_that_do_not_fit_are_named(change: Change, message: str, tmp_path: Path) -> None:
    folder = folder_of("clip", change, tmp_path / "clip")
    with pytest.raises(CvsiError, match=message) as error:
        _ = clip(folder).model
    assert str(error.value).startswith(f"{folder}/open_clip_model.safetensors: the checkpoint does not fit its model")
    assert "\n" not in str(error.value)


def test_position_embeddings_of_another_image_size_are_not_resized_silently(tmp_path: Path) -> None:
    def larger(state: checkpoints.State) -> checkpoints.State:
        old = state["visual.positional_embedding"]
        return state | {"visual.positional_embedding": torch.cat([old, old[:20]])}

    folder = folder_of("clip", larger, tmp_path / "clip")
    with pytest.raises(CvsiError, match=r"has shape \(34, 128\), the model needs \(17, 128\)"):
        _ = clip(folder).model


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.module.", "clip_model.", "clip_"])
@pytest.mark.parametrize("form", ["safetensors", "bin", "state_dict"])
def test_clip_weights_with_a_prefix_give_the_same_vectors(
    prefix: str, form: str, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of("clip", prefixed(prefix), tmp_path / "clip")
    file = folder / "open_clip_model.safetensors"
    if form != "safetensors":
        state = load_file(file)
        file.unlink()
        file = folder / "open_clip_pytorch_model.bin"
        torch.save({"epoch": 3, "state_dict": state} if form == "state_dict" else state, file)
    ours = clip(folder)
    texts = ["a red circle", "a blue star"]
    assert torch.equal(ours.text_vectors(ours.tokens(texts)), encoder.text_vectors(encoder.tokens(texts)))
    assert f"{file}: every key begins with '{prefix}'; loaded without it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "the file holds no dictionary of tensors"),
        ({"epoch": 3}, "the file holds no dictionary of tensors"),
        ([torch.ones(2)], "the file holds no dictionary of tensors"),
        ({"model": {"visual.proj": torch.ones(2)}}, "the file holds no dictionary of tensors"),
    ],
)
def test_clip_files_without_a_state_dict_are_one_line(content: object, message: str, tmp_path: Path) -> None:
    folder = folder_of("clip", same, tmp_path / "clip")
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(content, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(CvsiError, match=f"does not load .*{message}"):
        _ = clip(folder).model


def phi_file(file: Path, change: Change) -> Path:
    state = {key: tensor.clone() for key, tensor in change(phi.Phi(8, 6).state_dict()).items()}
    if file.suffix == ".pt":
        torch.save({"Phi": state}, file)
    else:
        save_file(state, file)
    return file


@pytest.mark.parametrize("name", ["phi.pt", "phi.safetensors"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("layers.3."),
            r"layers\.3\.bias is missing, the backbone needs \(32,\) \(likewise layers\.3\.weight\)",
        ),
        (checkpoints.with_one_more, r"head\.more is \(3,\), the backbone needs none; use"),
        (alternately("module.", ""), r"\(likewise .*, \.\.\.\); use"),
        (renamed("layers", "net"), r"layers\.0\.bias is missing.*\(likewise layers\.0\.weight, "),
        (reshaped("layers.6.weight"), r"layers\.6\.weight is \(3, 5\), the backbone needs \(6, 32\); use"),
    ],
)
def test_a_phi_that_does_not_fit_is_named(change: Change, message: str, name: str, tmp_path: Path) -> None:
    file = phi_file(tmp_path / name, change)
    with pytest.raises(CvsiError, match=message) as error:
        phi.load(str(file), 8, 6)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("prefix", ["module.", "phi.", "_orig_mod.module.", "phi_"])
@pytest.mark.parametrize("name", ["phi.pt", "phi.safetensors"])
def test_a_phi_with_a_prefix_is_that_phi(
    prefix: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    plain = phi_file(tmp_path / name, same)
    torch.manual_seed(1)
    (tmp_path / "with").mkdir()
    file = phi_file(tmp_path / "with" / name, prefixed(prefix))
    vectors = torch.randn(3, 8)
    assert torch.equal(phi.load(str(file), 8, 6)(vectors), phi.load(str(plain), 8, 6)(vectors))
    assert printed(capsys) == [f"cvsi: {file}: every key begins with '{prefix}'; loaded without it"]
    written = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for source, target in zip((plain, file), written, strict=True):
        phi.convert(source, target, None, False)
    assert written[0].read_bytes() == written[1].read_bytes()
