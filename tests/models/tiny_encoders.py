"""A tiny CLIP and a tiny Qwen3-VL with random weights, their tokenizers and processors built here, as folders."""

import json
from pathlib import Path
from typing import Any

import torch

from tests.models.tiny_qwen import SPECIAL, TEMPLATE, tokenizer_of

SIDE = 32  # of the tiny CLIP's images


def save_clip(folder: Path, seed: int = 0, eos: int | None = None) -> Path:
    """Write a CLIPModel with its tokenizer and image processor to a folder; the folder."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    characters = [chr(code) for code in range(33, 127)]
    pieces = [*characters, *(f"{char}</w>" for char in characters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = CLIPTokenizerFast(vocab=vocabulary, merges=[], pad_token="<|endoftext|>")
    end = tokenizer.eos_token_id
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config=sizes | {
            "vocab_size": len(tokenizer), "max_position_embeddings": 64, "eos_token_id": end if eos is None else eos,
            "bos_token_id": tokenizer.bos_token_id, "pad_token_id": end,
        },
        vision_config=sizes | {"image_size": SIDE, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = CLIPModel(config)
    _randomise(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def save_qwen(folder: Path, seed: int = 0, head: bool = True, template: str = TEMPLATE) -> Path:
    """Write a Qwen3-VL to a folder, with the head that writes texts or without it; the folder."""
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = tokenizer_of()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
        "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"], tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    _randomise(model)
    state = {name: value for name, value in model.state_dict().items() if head or not name.startswith("lm_head")}
    model.save_pretrained(folder, state_dict=state)
    patches: dict[str, Any] = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    Qwen3VLProcessor(
        Qwen2VLImageProcessor(**patches), tokenizer, Qwen3VLVideoProcessor(**patches), chat_template=template
    ).save_pretrained(folder)
    return folder


def _randomise(model: Any) -> None:
    with torch.no_grad():  # large enough that images and texts change the vectors
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
