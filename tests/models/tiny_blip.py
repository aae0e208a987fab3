"""A BLIP with random weights in a folder as people download it: configuration, word pieces, image processor, weights.

As in the published models, the tower is wider or narrower than the decoder, and the start token has no word piece.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor

SIDE, PATCH, POSITIONS = 32, 8, 40
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple("a the red blue green small large circle square star on with and one two grey ##s ##ish . ,".split())
END, START = SPECIAL.index("[SEP]"), len(SPECIAL) + len(WORDS)


def configuration(**text: Any) -> BlipConfig:
    """The shape of the model; `text` changes the decoder's."""
    decoder = {
        "vocab_size": START + 2, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": POSITIONS, "initializer_range": 0.3,
        "bos_token_id": START, "sep_token_id": END, "pad_token_id": 0,
    }  # fmt: skip
    tower = {
        "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
        "image_size": SIDE, "patch_size": PATCH, "initializer_range": 0.3,
    }  # fmt: skip
    return BlipConfig(
        text_config=decoder | text,
        vision_config=tower,
        initializer_range=0.3,
        architectures=["BlipForConditionalGeneration"],
    )


def save(folder: Path, seed: int = 0, **text: Any) -> Path:
    """Write a model of these random numbers, and return its folder."""
    torch.manual_seed(seed)
    BlipForConditionalGeneration(configuration(**text)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    BlipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder
