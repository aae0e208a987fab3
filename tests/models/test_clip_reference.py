"""Our path through open_clip compared with transformers' CLIP, another implementation, with the same random weights.

Each architecture of params.yaml gets random weights, biases and norms included, and both implementations share their
storage, so that ViT-bigG fits: one tower at a time. Ids are padded to the whole context for transformers, ours are
trimmed. `make test-slow` runs the large ones and prints largest differences, peak memory and time of each tower.
"""

import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import linear, normalize
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.core.params import Backbone, Compute
from cvsi.models import phi
from cvsi.models.clip import embedding_dims, template
from cvsi.models.clip_encoder import Encoder
from tests.imports import ROOT

TOLERANCE = 1e-4
CONTEXT, END = 77, 49407


@dataclass(frozen=True)
class Architecture:
    """What the papers' models are: (width, layers, heads, hidden units) of both towers, and what they share."""

    image: tuple[int, int, int, int]
    text: tuple[int, int, int, int]
    patch: int
    projection: int
    activation: str


ARCHITECTURES = {
    "ViT-B-32-quickgelu": Architecture((768, 12, 12, 3072), (512, 12, 8, 2048), 32, 512, "quick_gelu"),
    "ViT-L-14-quickgelu": Architecture((1024, 24, 16, 4096), (768, 12, 12, 3072), 14, 768, "quick_gelu"),
    "ViT-bigG-14": Architecture((1664, 48, 16, 8192), (1280, 32, 20, 5120), 14, 1280, "gelu"),
}
SMALL, *LARGE = ARCHITECTURES
EVERY = pytest.mark.parametrize("name", [SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])

# Texts, and where the first `$` stands among the tokens, the start token included; the longest is cut.
TEXTS = {
    template("is red and large", "a blue star"): 4,
    template("costs $5, not $10", ""): 4,
    "$ is shown": 1,
    "two photos of the dog beside $": 7,
    template("is red " * 200, "a star"): 4,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """The small architecture with random weights in both towers and phi, made once."""
    return our_encoder(SMALL, "", tmp_path_factory.mktemp("small"))


def encoder_of(name: str, tower: str, request: pytest.FixtureRequest) -> Encoder:
    """Our encoder with random weights, of a large architecture in this tower alone."""
    if name == SMALL:
        return request.getfixturevalue("small")  # type: ignore[no-any-return]
    return our_encoder(name, tower, request.getfixturevalue("tmp_path"))


def our_encoder(name: str, tower: str, folder: Path) -> Encoder:
    """Our encoder with random weights in one tower, or both (ViT-bigG gets no other), and in phi."""
    width, token_width = ARCHITECTURES[name].projection, ARCHITECTURES[name].text[0]
    mapping = phi.Phi(width, token_width)
    randomise(mapping, "", seed=1)
    save_file(mapping.state_dict(), folder / "phi.safetensors")
    compute = Compute(device="cpu", image_batch=2, text_batch=2)
    encoder = Encoder(Backbone(model=name, phi=str(folder / "phi.safetensors")), compute)
    if name == "ViT-bigG-14":
        with torch.device("meta"):
            model = open_clip.create_model(name, device="meta")
        model.register_buffer("attn_mask", torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1), persistent=False)
        encoder.__dict__["model"] = model.eval().requires_grad_(False)
    randomise(encoder.model, tower, seed=2)
    return encoder


def randomise(model: nn.Module, tower: str, seed: int) -> None:
    """Draw every weight of a tower anew, so that signals keep their size from layer to layer."""
    generator = torch.Generator().manual_seed(seed)
    for path, weight in list(model.named_parameters()):
        if path == "logit_scale" or (tower and (tower == "image") != path.startswith("visual.")):
            continue
        module, _, leaf = path.rpartition(".")
        drawn = torch.empty(weight.shape).normal_(generator=generator)
        if leaf in ("proj", "text_projection"):
            drawn *= weight.shape[0] ** -0.5
        elif weight.dim() > 1 and "embedding" not in path:
            drawn *= math.prod(weight.shape[1:]) ** -0.5
        else:
            drawn *= 0.2
        if module.rpartition(".")[2].startswith("ln_") and leaf == "weight":
            drawn += 1
        setattr(model.get_submodule(module), leaf, nn.Parameter(drawn, requires_grad=False))


def other_images(name: str, ours: Any, activation: str | None = None) -> CLIPVisionModelWithProjection:
    """The image tower of transformers over our weights."""
    shape = ARCHITECTURES[name]
    with torch.device("meta"):
        config = CLIPVisionConfig(**options(shape, shape.image, activation), patch_size=shape.patch, image_size=224)
        model = CLIPVisionModelWithProjection(config)
    state = {
        "vision_model.embeddings.class_embedding": ours.class_embedding,
        "vision_model.embeddings.patch_embedding.weight": ours.conv1.weight,
        "vision_model.embeddings.position_embedding.weight": ours.positional_embedding,
        "visual_projection.weight": ours.proj.T,
        **pair("vision_model.pre_layrnorm", ours.ln_pre),
        **pair("vision_model.post_layernorm", ours.ln_post),
        **layers("vision_model", ours.transformer),
    }
    return filled(model, state, model.vision_model.embeddings)


def other_texts(name: str, ours: Any, activation: str | None = None) -> CLIPTextModelWithProjection:
    """The text tower of transformers over our weights."""
    shape = ARCHITECTURES[name]
    with torch.device("meta"):
        config = CLIPTextConfig(**options(shape, shape.text, activation), eos_token_id=END)
        model = CLIPTextModelWithProjection(config)
    state = {
        "text_model.embeddings.token_embedding.weight": ours.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": ours.positional_embedding,
        "text_projection.weight": ours.text_projection.T,
        **pair("text_model.final_layer_norm", ours.ln_final),
        **layers("text_model", ours.transformer),
    }
    return filled(model, state, model.text_model.embeddings)


def options(shape: Architecture, tower: tuple[int, int, int, int], activation: str | None) -> dict[str, Any]:
    width, depth, heads, hidden = tower
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": hidden,
        "projection_dim": shape.projection,
        "hidden_act": activation or shape.activation,
        "attn_implementation": "eager",  # its own products and softmax, where open_clip calls torch's attention
    }


def layers(tower: str, transformer: Any) -> dict[str, Tensor]:
    """The state of every layer, query, key and value as thirds of one matrix, without a copy."""
    state: dict[str, Tensor] = {}
    for number, block in enumerate(transformer.resblocks):
        layer = f"{tower}.encoder.layers.{number}"
        weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
        for letter, weight, bias in zip("qkv", weights, biases, strict=True):
            state |= {f"{layer}.self_attn.{letter}_proj.weight": weight, f"{layer}.self_attn.{letter}_proj.bias": bias}
        state |= pair(f"{layer}.self_attn.out_proj", block.attn.out_proj)
        state |= pair(f"{layer}.layer_norm1", block.ln_1) | pair(f"{layer}.layer_norm2", block.ln_2)
        state |= pair(f"{layer}.mlp.fc1", block.mlp.c_fc) | pair(f"{layer}.mlp.fc2", block.mlp.c_proj)
    return state


def pair(prefix: str, module: Any) -> dict[str, Tensor]:
    return {f"{prefix}.weight": module.weight, f"{prefix}.bias": module.bias}


def filled(model: Any, state: dict[str, Tensor], embeddings: Any) -> Any:
    """The model with this state, complete and in the same storage."""
    model.load_state_dict(state, strict=True, assign=True)
    positions: Tensor = embeddings.position_ids
    embeddings.position_ids = torch.arange(positions.shape[1]).expand(1, -1)
    assert not [path for path, weight in model.named_parameters() if weight.is_meta]
    return model.eval()


def other_phi(file: Path, embeddings: Tensor) -> Tensor:
    """phi by its formula: three linear layers with the exact GELU between them."""
    state = load_file(file)
    hidden = embeddings
    for number in (0, 3, 6):
        hidden = linear(hidden, state[f"layers.{number}.weight"], state[f"layers.{number}.bias"])
        if number != 6:
            hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    return hidden


@torch.inference_mode()
def encoded(model: CLIPTextModelWithProjection, ids: Tensor, words: Tensor | None = None) -> Tensor:
    """Unit text vectors of transformers; `words`, where given, replace the first `$`."""

    def put(module: nn.Module, arguments: tuple[Tensor], embeddings: Tensor) -> Tensor:
        changed = embeddings.clone()
        if words is not None:
            changed[torch.arange(len(ids)), torch.tensor(list(TEXTS.values()))] = words
        return changed

    hook = model.text_model.embeddings.token_embedding.register_forward_hook(put)
    try:
        return normalize(model(input_ids=ids).text_embeds, dim=-1)
    finally:
        hook.remove()


def apart(vectors: Tensor) -> float:
    """The least difference between two rows, as the comparison measures it: of their largest entry."""
    differences = (vectors[:, None] - vectors[None]).abs().amax(dim=-1)
    return float(differences[~torch.eye(len(vectors), dtype=torch.bool)].min())


def largest(ours: Tensor, expected: Tensor) -> float:
    assert ours.shape == expected.shape and bool(ours.isfinite().all())
    return float((ours - expected).abs().max())


@contextmanager
def measured(label: str) -> Iterator[dict[str, float]]:
    """Print what was compared, the process's peak memory and the time; pytest shows it with -rP."""
    values: dict[str, float] = {}
    began = time.monotonic()
    yield values
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    differences = ", ".join(f"{kind} {value:.1e}" for kind, value in values.items())
    sys.stdout.write(f"{label}: {differences}; peak {peak:.1f} GiB; {time.monotonic() - began:.0f} s\n")


@EVERY
def test_image_embeddings_are_those_of_transformers(name: str, request: pytest.FixtureRequest) -> None:
    with measured(f"{name} image") as differences:
        encoder = encoder_of(name, "image", request)
        pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(3))
        ours = encoder.image_embeddings(list(pixels))
        with torch.inference_mode():
            theirs = other_images(name, encoder.model.visual)(pixel_values=pixels).image_embeds
        length = theirs.norm(dim=-1, keepdim=True)
        assert apart(theirs / length) > 100 * TOLERANCE
        assert ((length - 1).abs() > 0.1).all()  # not normalised: phi reads lengths too
        differences["image"] = largest(ours / length, theirs / length)
    assert max(differences.values()) < TOLERANCE


@EVERY
def test_text_and_pseudo_vectors_are_those_of_transformers(name: str, request: pytest.FixtureRequest) -> None:
    with measured(f"{name} text") as differences:
        encoder = encoder_of(name, "text", request)
        texts = list(TEXTS)
        ids = open_clip.get_tokenizer(name)(texts, context_length=CONTEXT)
        assert ids.shape == (len(texts), CONTEXT) and ids[-1, -1] == END and (ids[:-1, -1] == 0).all()
        model = other_texts(name, encoder.model)
        theirs = encoded(model, ids)
        assert apart(theirs) > 100 * TOLERANCE
        differences["text"] = largest(encoder.text_vectors(encoder.tokens(texts)), theirs)
        differences["trimmed"] = largest(encoder.text_vectors(encoder.tokens(texts[:-1])), theirs[:-1])

        embeddings = 3 * torch.randn(len(texts), encoder.width, generator=torch.Generator().manual_seed(4))
        assert encoder.backbone.phi is not None
        words = other_phi(Path(encoder.backbone.phi), embeddings)
        differences["phi"] = largest(encoder.pseudo_tokens(embeddings), words)
        with_words = encoded(model, ids, words)
        assert float((with_words - theirs).abs().amax(dim=1).min()) > 100 * TOLERANCE
        differences["pseudo"] = largest(encoder.text_vectors(encoder.tokens(texts), embeddings), with_words)
    assert max(differences.values()) < TOLERANCE


def test_the_comparison_notices_another_activation(small: Encoder) -> None:
    ids = open_clip.get_tokenizer(SMALL)(list(TEXTS), context_length=CONTEXT)
    wrong = encoded(other_texts(SMALL, small.model, "gelu"), ids)
    assert largest(small.text_vectors(small.tokens(list(TEXTS))), wrong) > 10 * TOLERANCE
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        theirs = other_images(SMALL, small.model.visual, "gelu")(pixel_values=pixels).image_embeds
    length = theirs.norm(dim=-1, keepdim=True)
    assert largest(small.image_embeddings(list(pixels)) / length, theirs / length) > 10 * TOLERANCE


@pytest.mark.parametrize(
    ("backbone", "model", "expected"),
    [
        ("vit-b-32", "ViT-B-32-quickgelu", (512, 512)),
        ("vit-l-14", "ViT-L-14-quickgelu", (768, 768)),
        ("vit-bigg-14", "ViT-bigG-14", (1280, 1280)),
    ],
)
def test_each_backbone_has_its_published_widths(
    backbone: str, model: str, expected: tuple[int, int], tmp_path: Path
) -> None:
    settings = params.load(ROOT / "params.yaml").backbone(backbone)
    shape = ARCHITECTURES[model]
    assert settings.model == model
    assert embedding_dims(settings) == expected == (shape.projection, shape.text[0])
    save_file(phi.Phi(64, 64).state_dict(), tmp_path / "phi.safetensors")
    unfit = Encoder(settings.model_copy(update={"phi": str(tmp_path / "phi.safetensors")}), Compute(device="cpu"))
    message = rf"phi\.safetensors: layers\.0\.bias is \(256,\), the backbone needs \({4 * expected[0]},\)"
    with pytest.raises(CvsiError, match=message):
        unfit.check_phi()
    absent = Encoder(settings.model_copy(update={"phi": str(tmp_path / "none")}), Compute(device="cpu"))
    absent.check_phi()
    with pytest.raises(CvsiError, match="no such file"):
        _ = absent.phi
