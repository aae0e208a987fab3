"""A BLIP-2 with T5 and random weights in a folder as people download it: configuration, pieces, processor, weights.

As in the published models, the head is no copy of the embeddings, and the language model has more rows than pieces.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import Blip2Config, Blip2ForConditionalGeneration, BlipImageProcessor, T5TokenizerFast

SIDE, QUERIES = 32, 4
PAD, END = 0, 1
SPECIAL = ("<pad>", "</s>", "<unk>")
WORDS = tuple("a the red blue green small large circle square star on with and one two grey white dog cat it".split())
PIECES = [*SPECIAL, "▁", *(f"▁{word}" for word in WORDS)]
VOCABULARY = len(PIECES) + 3


def configuration(**text: Any) -> Blip2Config:
    """The shape of the model; `text` changes the language model's."""
    language = {
        "model_type": "t5", "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2,
        "num_decoder_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu",
        "bos_token_id": END, "eos_token_id": END, "pad_token_id": PAD, "decoder_start_token_id": PAD,
        "tie_word_embeddings": False,
    }  # fmt: skip
    tower = {
        "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
        "image_size": SIDE, "patch_size": 8, "initializer_range": 0.3,
    }  # fmt: skip
    qformer = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "cross_attention_frequency": 1, "vocab_size": 10, "initializer_range": 0.3,
    }  # fmt: skip
    return Blip2Config(
        text_config=language | text, vision_config=tower, qformer_config=qformer, num_query_tokens=QUERIES,
        image_token_index=VOCABULARY - 1, initializer_range=0.3, architectures=["Blip2ForConditionalGeneration"],
    )  # fmt: skip


def save(folder: Path, seed: int = 4, **text: Any) -> Path:
    """Write a model of these random numbers, and return its folder."""
    torch.manual_seed(seed)
    model = Blip2ForConditionalGeneration(configuration(**text)).float()
    with torch.no_grad():
        model.query_tokens.normal_(0, 1)
        model.language_projection.weight.normal_(0, 0.5)
        if text.get("tie_word_embeddings") is not True:
            head = torch.randn_like(model.language_model.lm_head.weight)
            head[: len(SPECIAL)] *= 0.5  # captions of several words
            head[len(PIECES) :] *= 0.5
            model.language_model.lm_head.weight = torch.nn.Parameter(head)
    model.save_pretrained(folder)
    T5TokenizerFast(vocab=[(piece, -1.0) for piece in PIECES], extra_ids=0).save_pretrained(folder)
    BlipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder
