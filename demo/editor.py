"""A tiny Llama for both edit tasks in the pipeline's prompt format, trained on instructions of the training part.

A prompt has several captions that disagree: in the first phase generated ones with random errors, in the second the
tiny captioner's own captions of training pictures. The correct answers are computed from the scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cvsi.pipeline.prompting import ADDED_CUE, EDITED_CUE, few_shot, prompt
from demo import blip2
from demo.common import Trainer, log
from demo.texts import Composed, added, caption, compose, edited
from demo.tokens import train_tokenizer
from demo.world.scenes import COLOURS, MAX_COUNT, SHAPES, Item, Scene, draw_scene

CAPTIONS = 5  # per picture, as in the demo's parameters
CONTEXT = 512
INIT_STD = 0.08  # of the initial weights: about 1 / sqrt(width)
BATCH = 64
PROMPT_WEIGHT = 0.2  # loss weight of a prompt's token; an answer's token has 1
TRAINING_SCENES = 5000  # scenes whose sampled captions the second phase trains on
HELD_OUT_SCENES = 400  # further scenes, for the held-out figures
SAMPLED_CAPTIONS = 8  # per scene; a prompt has five of them
TASKS = {EDITED_CUE: "demo_edited", ADDED_CUE: "demo_added"}  # each task's cue and its few-shot text

Example = tuple[str, str]  # prompt and answer


def build(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model for a tokenizer."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=CONTEXT, tie_word_embeddings=True, initializer_range=INIT_STD,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def noisy_captions(scene: Scene, number: int, random: Random) -> list[str]:
    """Generated captions of one scene with random errors; the same items are wrong in several of them."""
    error_rates = [random.uniform(0.1, 0.6) if random.random() < 0.2 else 0.03 for _ in scene.items]
    wrong_items = [_wrong(item, random) for item in scene.items]
    texts = []
    for _ in range(number):
        items: dict[str, Item] = {}
        for item, error_rate, wrong in zip(scene.items, error_rates, wrong_items, strict=True):
            shown = wrong if random.random() < error_rate else item
            items.setdefault(shown.shape, shown)
        texts.append(caption(replace(scene, items=tuple(items.values())), random))
    return texts


def _wrong(item: Item, random: Random) -> Item:
    """The item with an error that a captioner might make: another shape, at times another colour or number."""
    choice = random.random()
    if choice < 0.6:
        return replace(item, shape=random.choice(SHAPES))
    if choice < 0.8:
        return replace(item, colour=random.choice(COLOURS))
    return replace(item, cells=item.cells * 2 if len(item.cells) == 1 else item.cells[1 : MAX_COUNT - 1])


def build_example(example: Composed, captions: Sequence[str], cue: str) -> Example:
    """A prompt in the pipeline's format and the correct answer."""
    background = any(f"{example.source.background} background" in text for text in captions)
    answer = edited(example, background=background) if cue == EDITED_CUE else added(example)
    return prompt(few_shot(TASKS[cue]), captions, example.clause, cue), f" {answer}"


def _draw_cue(random: Random) -> str:
    """The cue of a random task; mostly the first one, because the second is easier."""
    return EDITED_CUE if random.random() < 0.75 else ADDED_CUE


def _loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]) -> Tensor:
    """Cross entropy of the answers and the end token and, with a lower weight, of the prompts.

    The prompts are included because their captions repeat each other, and most of an answer repeats the captions.
    """
    prompts = tokenizer([text for text, _ in examples])["input_ids"]
    replies = [[*row, tokenizer.eos_token_id] for row in tokenizer([answer for _, answer in examples])["input_ids"]]
    longest = max(len(first) + len(last) for first, last in zip(prompts, replies, strict=True))
    tokens = torch.full((len(examples), longest), int(tokenizer.pad_token_id))
    weights = torch.zeros(tokens.shape)
    for row, (first, last) in enumerate(zip(prompts, replies, strict=True)):
        tokens[row, : len(first) + len(last)] = torch.tensor(first + last)
        weights[row, : len(first)] = PROMPT_WEIGHT
        weights[row, len(first) : len(first) + len(last)] = 1.0
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    losses = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    target_weights = weights[:, 1:].flatten()
    return (losses * target_weights).sum() / (target_weights == 1.0).sum()


@torch.no_grad()
def generate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> list[str]:
    """The answers by greedy decoding."""
    answers: list[str] = []
    for start in range(0, len(prompts), 100):
        batch = tokenizer(list(prompts[start : start + 100]), padding=True, return_tensors="pt")
        tokens = model.generate(**batch, do_sample=False, max_new_tokens=64)[:, batch["input_ids"].shape[1] :]
        answers += [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    return answers


def train_on_generated(seed: int, steps: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train on generated captions: three per prompt for the first half of the steps, which trains faster, then all."""
    torch.manual_seed(seed)
    random = Random(f"editor {seed}")
    examples = [compose(random) for _ in range(4000)]
    texts = [text for one in examples for text in build_example(one, [caption(one.source, random)], _draw_cue(random))]
    tokenizer = train_tokenizer(texts, 460)
    model = build(tokenizer)
    log(f"editor: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    trainer = Trainer("editor on generated captions", steps, [(model.parameters(), 2e-3)])
    for step in trainer:
        number = 3 if step < 0.5 * steps else CAPTIONS
        composed = [compose(random) for _ in range(BATCH)]
        batch = [build_example(one, noisy_captions(one.source, number, random), _draw_cue(random)) for one in composed]
        trainer.update(step, _loss(model, tokenizer, batch))
    return model, tokenizer


def quality(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, scenes: Sequence[Scene],
    captions: Sequence[Sequence[str]],
) -> dict[str, float]:  # fmt: skip
    """Held-out figures in percent: exactly correct answers for sampled captions of scenes not trained on."""
    random = Random("held out edits")
    examples = [compose(random, source=scene) for scene in scenes]
    figures = {}
    for name, cue in (("edited descriptions exact", EDITED_CUE), ("added objects exact", ADDED_CUE)):
        pairs = [build_example(one, texts[:CAPTIONS], cue) for one, texts in zip(examples, captions, strict=True)]
        answers = generate(model, tokenizer, [text for text, _ in pairs])
        exact = [answer == right.strip() for answer, (_, right) in zip(answers, pairs, strict=True)]
        figures[name] = 100 * sum(exact) / len(exact)
        if cue == EDITED_CUE:
            for items in (1, 2, 3):
                chosen = [value for value, one in zip(exact, examples, strict=True) if len(one.source.items) == items]
                figures[f"{name}, {items} items"] = 100 * sum(chosen) / len(chosen)
    return figures


def train_on_sampled(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, captioner: Path, seed: int, steps: int
) -> dict[str, float]:
    """Continue training on captions sampled from the captioner in a folder; returns the held-out figures."""
    torch.manual_seed(seed)
    random = Random(f"editor real {seed}")
    scenes = [draw_scene(random, "training") for _ in range(TRAINING_SCENES + HELD_OUT_SCENES)]
    captions = blip2.sample(*blip2.load(captioner), scenes, SAMPLED_CAPTIONS)
    trainer = Trainer("editor on sampled captions", steps, [(model.parameters(), 1e-3)])
    model.train()
    for step in trainer:
        batch = []
        for index in (random.randrange(TRAINING_SCENES) for _ in range(BATCH)):
            example = compose(random, source=scenes[index])
            batch.append(build_example(example, random.sample(captions[index], CAPTIONS), _draw_cue(random)))
        trainer.update(step, _loss(model, tokenizer, batch))
    model.eval()
    return quality(model, tokenizer, scenes[TRAINING_SCENES:], captions[TRAINING_SCENES:])


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in half precision and its tokenizer, in the form that transformers and vLLM load."""
    model.half().save_pretrained(folder)
    model.float()
    tokenizer.save_pretrained(folder)
