"""A tiny Llama that does both edit tasks in the real prompt's form, trained on instructions of the training part.

It reads several captions that disagree: first made up, each wrong in its own way, then those that the tiny captioner
really says of training pictures. The right answers come from the scenes.
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

from cvsi.pipeline.editor import ADDED_CUE, EDITED_CUE, few_shot, prompt
from demo import blip2
from demo.common import Trainer, say
from demo.texts import Composed, added, caption, compose, edited
from demo.tokens import learn
from demo.world.scenes import COLOURS, MOST, SHAPES, Item, Scene, draw_scene

CAPTIONS = 5  # a picture, as the demo's parameters have it
CONTEXT = 512
INIT = 0.08  # of the weights: about 1 / sqrt(width), for a width so small
BATCH = 64
PROMPT_WEIGHT = 0.2  # of a prompt's token against an answer's
READ = 5000  # scenes whose captions it reads
HELD = 400  # more of them, on which it is measured
SAID = 8  # captions of each, of which a prompt shows five
TASKS = {EDITED_CUE: "demo_edited", ADDED_CUE: "demo_added"}  # each task's cue and its few-shot text

Example = tuple[str, str]  # prompt and answer


def build(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model for that tokenizer."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=CONTEXT, tie_word_embeddings=True, initializer_range=INIT,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def blurred(scene: Scene, number: int, random: Random) -> list[str]:
    """Made-up captions of one scene: a caption errs in an item now and then, and more often where another did."""
    doubts = [random.uniform(0.1, 0.6) if random.random() < 0.2 else 0.03 for _ in scene.items]
    wrongs = [_wrong(item, random) for item in scene.items]
    texts = []
    for _ in range(number):
        items: dict[str, Item] = {}
        for item, doubt, wrong in zip(scene.items, doubts, wrongs, strict=True):
            shown = wrong if random.random() < doubt else item
            items.setdefault(shown.shape, shown)
        texts.append(caption(replace(scene, items=tuple(items.values())), random))
    return texts


def _wrong(item: Item, random: Random) -> Item:
    """The item as a doubtful captioner would have it: another shape, at times another colour or number."""
    choice = random.random()
    if choice < 0.6:
        return replace(item, shape=random.choice(SHAPES))
    if choice < 0.8:
        return replace(item, colour=random.choice(COLOURS))
    return replace(item, cells=item.cells * 2 if len(item.cells) == 1 else item.cells[1 : MOST - 1])


def asked(example: Composed, captions: Sequence[str], cue: str) -> Example:
    """A prompt in the real form, and the right answer."""
    said = any(f"{example.source.background} background" in text for text in captions)
    answer = edited(example, background=said) if cue == EDITED_CUE else added(example)
    return prompt(few_shot(TASKS[cue]), captions, example.clause, cue), f" {answer}"


def _cue(random: Random) -> str:
    """Mostly the first task: the second is easier."""
    return EDITED_CUE if random.random() < 0.75 else ADDED_CUE


def _loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]) -> Tensor:
    """Cross entropy of the answers and the end token and, for less, of the prompts.

    A prompt's captions repeat each other, and learning to repeat is what the answers need most.
    """
    prompts = tokenizer([question for question, _ in examples])["input_ids"]
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
    learnt = weights[:, 1:].flatten()
    return (losses * learnt).sum() / (learnt == 1.0).sum()


@torch.no_grad()
def reply(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> list[str]:
    """The greedy answers."""
    answers: list[str] = []
    for start in range(0, len(prompts), 100):
        batch = tokenizer(list(prompts[start : start + 100]), padding=True, return_tensors="pt")
        tokens = model.generate(**batch, do_sample=False, max_new_tokens=64)[:, batch["input_ids"].shape[1] :]
        answers += [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    return answers


def learn_from_made_up(seed: int, steps: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train on made-up captions: three a prompt at first, which is quicker to learn from, then all."""
    torch.manual_seed(seed)
    random = Random(f"editor {seed}")
    examples = [compose(random) for _ in range(4000)]
    texts = [text for one in examples for text in asked(one, [caption(one.source, random)], _cue(random))]
    tokenizer = learn(texts, 460)
    model = build(tokenizer)
    say(f"editor: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    trainer = Trainer("editor on made-up captions", steps, [(model.parameters(), 2e-3)])
    for step in trainer:
        number = 3 if step < 0.5 * steps else CAPTIONS
        composed = [compose(random) for _ in range(BATCH)]
        batch = [asked(one, blurred(one.source, number, random), _cue(random)) for one in composed]
        trainer.update(step, _loss(model, tokenizer, batch))
    return model, tokenizer


def quality(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, scenes: Sequence[Scene],
    captions: Sequence[Sequence[str]],
) -> dict[str, float]:  # fmt: skip
    """Held-out figures in percent: answers exactly right, on real captions of scenes not trained on."""
    random = Random("held out edits")
    examples = [compose(random, source=scene) for scene in scenes]
    figures = {}
    for name, cue in (("edited descriptions exact", EDITED_CUE), ("added objects exact", ADDED_CUE)):
        pairs = [asked(one, said[:CAPTIONS], cue) for one, said in zip(examples, captions, strict=True)]
        answers = reply(model, tokenizer, [question for question, _ in pairs])
        exact = [answer == right.strip() for answer, (_, right) in zip(answers, pairs, strict=True)]
        figures[name] = 100 * sum(exact) / len(exact)
        if cue == EDITED_CUE:
            for items in (1, 2, 3):
                of = [good for good, one in zip(exact, examples, strict=True) if len(one.source.items) == items]
                figures[f"{name}, {items} items"] = 100 * sum(of) / len(of)
    return figures


def learn_from_real(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, captioner: Path, seed: int, steps: int
) -> dict[str, float]:
    """Train on with what the captioner in a folder says of pictures; returns the held-out figures."""
    torch.manual_seed(seed)
    random = Random(f"editor real {seed}")
    scenes = [draw_scene(random, "training") for _ in range(READ + HELD)]
    captions = blip2.sample(*blip2.load(captioner), scenes, SAID)
    trainer = Trainer("editor on real captions", steps, [(model.parameters(), 1e-3)])
    model.train()
    for step in trainer:
        batch = []
        for place in (random.randrange(READ) for _ in range(BATCH)):
            example = compose(random, source=scenes[place])
            batch.append(asked(example, random.sample(captions[place], CAPTIONS), _cue(random)))
        trainer.update(step, _loss(model, tokenizer, batch))
    model.eval()
    return quality(model, tokenizer, scenes[READ:], captions[READ:])


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in half precision and its tokenizer, as transformers and vLLM read them from a folder."""
    model.half().save_pretrained(folder)
    model.float()
    tokenizer.save_pretrained(folder)
