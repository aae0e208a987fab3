"""A tiny BLIP-2 of transformers' architecture: CLIP's image tower (frozen), a Q-Former and an OPT.

It is trained to caption scenes of the training part; its captions omit texture, size and position.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from open_clip import CLIP
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    GenerationConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from demo.clip import VISION, WIDTH, CompactTokenizer
from demo.clip import load as load_clip
from demo.common import MEAN, STD, Trainer, log, pictures
from demo.texts import caption, caption_claims
from demo.tokens import train_tokenizer
from demo.world.drawing import SIDE
from demo.world.scenes import Scene, draw_scene

QUERIES = 8  # tokens that the Q-Former passes to the language model
INIT_STD = 0.08  # of the initial weights: about 1 / sqrt(width)
MAX_TOKENS = 30  # per caption
TOP_P = 0.9  # of the sampling, as in the demo's parameters


def build(
    tokenizer: PreTrainedTokenizerFast, queries: int = QUERIES, layers: int = 3, context: int = 64
) -> Blip2ForConditionalGeneration:
    """An untrained model for a tokenizer; `layers` and `context` are the language model's."""
    text = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, word_embed_proj_dim=WIDTH, ffn_dim=4 * WIDTH,
        num_hidden_layers=layers, num_attention_heads=4, max_position_embeddings=context, dropout=0.0,
        init_std=INIT_STD, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config = Blip2Config(
        vision_config={
            "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": VISION["layers"],
            "num_attention_heads": WIDTH // int(VISION["head_width"]), "image_size": SIDE,
            "patch_size": VISION["patch_size"], "hidden_act": "gelu", "layer_norm_eps": 1e-5, "qkv_bias": True,
            "initializer_range": 0.02,
        },
        qformer_config={
            "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
            "encoder_hidden_size": WIDTH, "cross_attention_frequency": 1, "vocab_size": 4, "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0, "initializer_range": INIT_STD,
        },
        text_config=text.to_dict(), num_query_tokens=queries,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    model = Blip2ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    torch.nn.init.normal_(model.query_tokens, std=0.5)  # transformers initialises all of them with zeros
    return model


@torch.no_grad()
def copy_vision(clip: CLIP, model: Blip2ForConditionalGeneration) -> None:
    """Copy CLIP's image tower into the model and freeze it; hidden states after the last layer norm are the same."""
    source, target = clip.visual, model.vision_model
    target.requires_grad_(False)
    target.embeddings.patch_embedding.weight.copy_(source.conv1.weight)
    target.embeddings.patch_embedding.bias.zero_()  # CLIP's convolution has no bias
    target.embeddings.class_embedding.copy_(source.class_embedding.view(1, 1, -1))
    target.embeddings.position_embedding.copy_(source.positional_embedding.unsqueeze(0))
    for old, new in zip(source.transformer.resblocks, target.encoder.layers, strict=True):
        new.layer_norm1.load_state_dict(old.ln_1.state_dict())
        new.layer_norm2.load_state_dict(old.ln_2.state_dict())
        new.self_attn.qkv.weight.copy_(old.attn.in_proj_weight)
        new.self_attn.qkv.bias.copy_(old.attn.in_proj_bias)
        new.self_attn.projection.load_state_dict(old.attn.out_proj.state_dict())
        new.mlp.fc1.load_state_dict(old.mlp.c_fc.state_dict())
        new.mlp.fc2.load_state_dict(old.mlp.c_proj.state_dict())
    target.post_layernorm.load_state_dict(source.ln_post.state_dict())


def _prefix(model: Blip2ForConditionalGeneration, scenes: list[Scene]) -> Tensor:
    """The embeddings that precede the start token: [scenes, QUERIES, WIDTH]."""
    with torch.no_grad():
        hidden = model.vision_model(pictures(scenes)).last_hidden_state
    queries = model.query_tokens.expand(len(scenes), -1, -1)
    outputs = model.qformer(query_embeds=queries, encoder_hidden_states=hidden).last_hidden_state
    return torch.as_tensor(model.language_projection(outputs))


def _loss(
    model: Blip2ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, scenes: list[Scene], texts: list[str]
) -> Tensor:
    """Cross entropy of the captions' tokens and the end token, given the pictures."""
    rows = [[tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in tokenizer(texts)["input_ids"]]
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    embedded = torch.cat([_prefix(model, scenes), model.get_input_embeddings()(tokens[:, :-1])], dim=1)
    logits = model.language_model(inputs_embeds=embedded, use_cache=False).logits[:, QUERIES:]
    return functional.cross_entropy(
        logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=int(tokenizer.pad_token_id)
    )


@torch.no_grad()
def sample(
    model: Blip2ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, scenes: list[Scene], number: int
) -> list[list[str]]:
    """`number` sampled captions of each scene's picture."""
    rows: list[list[str]] = []
    for start in range(0, len(scenes), 64):
        tokens = model.generate(
            pictures(scenes[start : start + 64]), do_sample=True, top_p=TOP_P, top_k=0, temperature=1.0,
            num_return_sequences=number, max_new_tokens=MAX_TOKENS,
        )  # fmt: skip
        texts = [" ".join(text.split()) for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        rows += [texts[at : at + number] for at in range(0, len(texts), number)]
    return rows


def quality(model: Blip2ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Held-out figures in percent over sampled captions of 300 scenes: correct claims, entirely correct captions."""
    random = Random("held out captions")
    scenes = [draw_scene(random, "training") for _ in range(300)]
    correct = claimed = entirely_correct = 0
    for scene, texts in zip(scenes, sample(model, tokenizer, scenes, 2), strict=True):
        facts = caption_claims(caption(scene, random))
        for text in texts:
            claims = caption_claims(text)
            true_claims = [claim for claim in claims if claim in facts or claim == scene.background]
            correct, claimed = correct + len(true_claims), claimed + len(claims)
            complete = len(set(true_claims) - {scene.background}) == len(scene.items)
            entirely_correct += len(true_claims) == len(claims) and complete
    return {
        "items and backgrounds named correctly": 100 * correct / claimed,
        "captions wholly true": 100 * entirely_correct / 600,
    }


def export(
    model: Blip2ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path, queries: int = QUERIES
) -> None:
    """Write the model in half precision, its processor and tokenizer, in the form that transformers loads."""
    model.half().save_pretrained(folder)
    model.float()
    image_processor = BlipImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=MEAN, image_std=STD)
    Blip2Processor(image_processor, tokenizer, num_query_tokens=queries).save_pretrained(folder)
    image_processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(folder: Path) -> tuple[Blip2ForConditionalGeneration, PreTrainedTokenizerFast]:
    """The exported model in float32, and its tokenizer."""
    model = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def train(clip: Path, folder: Path, seed: int, steps: int) -> dict[str, float]:
    """Train and write the captioner with the image tower of the CLIP in `clip`; returns its held-out figures."""
    torch.manual_seed(seed)
    random = Random(f"blip2 {seed}")
    tokenizer = train_tokenizer((caption(draw_scene(random, "training"), random) for _ in range(20000)), 400)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    model = build(tokenizer)
    copy_vision(load_clip(clip, CompactTokenizer()), model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sizes = [sum(parameter.numel() for parameter in group) for group in (model.parameters(), trainable)]
    log(f"BLIP-2: {sizes[0]:,} parameters, {sizes[1]:,} trainable")
    trainer = Trainer("BLIP-2", steps, [(iter(trainable), 1.5e-3)])
    model.train()
    for step in trainer:
        scenes = [draw_scene(random, "training") for _ in range(96)]
        trainer.update(step, _loss(model, tokenizer, scenes, [caption(scene, random) for scene in scenes]))
    model.eval()
    figures = quality(model, tokenizer)
    export(model, tokenizer, folder)
    return figures
