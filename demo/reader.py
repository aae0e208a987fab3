"""A tiny BLIP-2 that reads a picture and an instruction and answers with texts by role, one line each.

It continues from the captioner, whose image tower stays frozen: more queries of the Q-Former, one more layer and a
longer context of the OPT, and a vocabulary of its own. It is trained on pictures and instructions of the training part;
the correct answers are computed from the scenes. The pictures pass through JPEG as those of a reader do.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import Blip2ForConditionalGeneration, PreTrainedTokenizerFast

from cvsi.models.image_data import data_url
from demo import blip2
from demo.common import Trainer, log, normalised
from demo.roles import ROLES, answer, roles
from demo.texts import Composed, compose
from demo.tokens import train_tokenizer
from demo.world.drawing import SIDE, picture
from demo.world.scenes import Scene, draw_scene

QUERIES = 16  # tokens that the Q-Former passes to the language model
LAYERS = 4
CONTEXT = 192  # positions of the language model: the queries, an instruction and an answer
VOCABULARY = 460
TOKENIZER_EXAMPLES = 10000
BATCH = 64
POOL = 8  # batches that are drawn together and sorted by length, which saves padding
TRAINING_SCENES = 12000  # whose pictures the training uses
HELD_OUT_SCENES = 400  # further scenes, for the held-out figures
MAX_TOKENS = 128  # per answer
RATE = 1.5e-3
# The model has one task, so its template leaves out the task, and the form of the answer, before the instruction.
TEMPLATE = r"{{ bos_token }}{{ messages[-1]['content'].split('\n')[-1] + '\n' }}"


def prompt(instruction: str) -> str:
    """What precedes an answer: the last line of a reader's conversation, as the template writes it."""
    return f"Instruction: {instruction}\n"


def build(tokenizer: PreTrainedTokenizerFast, captioner: Path) -> Blip2ForConditionalGeneration:
    """A model that starts from the captioner in a folder; its tokens that the captioner knows have the same vectors."""
    old, known = blip2.load(captioner)
    model = blip2.build(tokenizer, queries=QUERIES, layers=LAYERS, context=CONTEXT)
    weights, vectors = old.state_dict(), old.get_input_embeddings().weight
    positions = "language_model.model.decoder.embed_positions.weight"
    with torch.no_grad():
        same = {
            name: weight
            for name, weight in weights.items()
            if name in model.state_dict() and model.state_dict()[name].shape == weight.shape
        }
        model.load_state_dict(same, strict=False)
        model.query_tokens[:, : blip2.QUERIES] = old.query_tokens
        model.state_dict()[positions][: len(weights[positions])] = weights[positions]
        for token, row in tokenizer.get_vocab().items():
            if token in known.get_vocab():
                model.get_input_embeddings().weight[row] = vectors[known.get_vocab()[token]]
    model.vision_model.requires_grad_(False)
    return model


def seen(scene: Scene) -> Image.Image:
    """A scene's picture as a reader gets it."""
    encoded = data_url(picture(scene), SIDE).partition(",")[2]
    return Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")


@torch.no_grad()
def hidden_states(model: Blip2ForConditionalGeneration, scenes: Sequence[Scene]) -> Tensor:
    """The frozen tower's hidden states of the scenes' pictures: [scenes, 17, width]."""
    parts = []
    for start in range(0, len(scenes), 250):
        pixels = np.stack([np.asarray(seen(scene)) for scene in scenes[start : start + 250]])
        parts.append(model.vision_model(normalised(pixels)).last_hidden_state)
    return torch.cat(parts)


def prefix(model: Blip2ForConditionalGeneration, hidden: Tensor) -> Tensor:
    """The embeddings that precede the prompt: [scenes, QUERIES, width]."""
    queries = model.query_tokens.expand(len(hidden), -1, -1)
    outputs = model.qformer(query_embeds=queries, encoder_hidden_states=hidden).last_hidden_state
    return torch.as_tensor(model.language_projection(outputs))


def _batches(
    tokenizer: PreTrainedTokenizerFast, scenes: Sequence[Scene], random: Random
) -> Iterator[tuple[list[int], list[list[int]], list[list[int]]]]:
    """Endless batches: numbers of scenes, and the tokens of prompts and of answers."""
    while True:
        numbers = [random.randrange(len(scenes)) for _ in range(POOL * BATCH)]
        examples = [compose(random, source=scenes[number]) for number in numbers]
        prompts = _tokens(tokenizer, [prompt(one.clause) for one in examples])
        answers = [[*row, tokenizer.eos_token_id] for row in tokenizer([answer(one) for one in examples])["input_ids"]]
        order = sorted(range(len(numbers)), key=lambda index: len(prompts[index]) + len(answers[index]))
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        random.shuffle(batches)
        for batch in batches:
            yield tuple([rows[index] for index in batch] for rows in (numbers, prompts, answers))  # type: ignore[misc]


def _tokens(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> list[list[int]]:
    """The tokens of prompts, after the start token."""
    return [[tokenizer.bos_token_id, *row] for row in tokenizer(list(prompts))["input_ids"]]


def _loss(
    model: Blip2ForConditionalGeneration, hidden: Tensor, prompts: list[list[int]], answers: list[list[int]]
) -> Tensor:
    """Cross entropy of the answers' tokens and the end token, given the pictures and the prompts."""
    longest = max(len(first) + len(last) for first, last in zip(prompts, answers, strict=True))
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)  # the token 0 is padding
    labels = torch.full(tokens.shape, -100)
    for row, (first, last) in enumerate(zip(prompts, answers, strict=True)):
        tokens[row, : len(first) + len(last)] = torch.tensor(first + last)
        labels[row, len(first) : len(first) + len(last)] = torch.tensor(last)
    embedded = torch.cat([prefix(model, hidden), model.get_input_embeddings()(tokens[:, :-1])], dim=1)
    states = model.language_model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state[:, QUERIES:]
    predicted = labels[:, 1:] != -100
    return functional.cross_entropy(model.language_model.lm_head(states[predicted]), labels[:, 1:][predicted])


@torch.no_grad()
def generate(
    model: Blip2ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    hidden: Tensor,
    instructions: Sequence[str],
) -> list[str]:
    """The answers by greedy decoding; prompts of equal length go together, so none is padded."""
    rows = _tokens(tokenizer, [prompt(text) for text in instructions])
    answers = [""] * len(rows)
    for length in sorted({len(row) for row in rows}):
        numbers = [number for number, row in enumerate(rows) if len(row) == length]
        words = model.get_input_embeddings()(torch.tensor([rows[number] for number in numbers]))
        embedded = torch.cat([prefix(model, hidden[numbers]), words], dim=1)
        tokens = model.language_model.generate(
            inputs_embeds=embedded, attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long), do_sample=False,
            max_new_tokens=MAX_TOKENS, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        for number, text in zip(numbers, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
            answers[number] = text.strip()
    return answers


def lines(text: str) -> dict[str, list[str]]:
    """An answer's texts by role; a role without a line has none."""
    found = dict(line.split(":", 1) for line in text.split("\n") if ":" in line)
    return {role: [item.strip() for item in found.get(role, "").split(";") if item.strip()] for role in ROLES}


def quality(examples: Sequence[Composed], answers: Sequence[str]) -> dict[str, float]:
    """Held-out figures in percent: by role, the texts that are right, and the answers whose texts are all right."""
    figures = {}
    pairs = [(lines(text), roles(one)) for text, one in zip(answers, examples, strict=True)]
    for role in ROLES:
        right = sum(len(set(given[role]) & set(correct[role])) for given, correct in pairs)
        figures[f"{role} texts right"] = 100 * right / max(1, sum(len(given[role]) for given, _ in pairs))
        figures[f"{role} texts found"] = 100 * right / sum(len(correct[role]) for _, correct in pairs)
    whole = [given == correct for given, correct in pairs]
    targets = [given["target"] == correct["target"] for given, correct in pairs]
    figures["answers wholly right"] = 100 * sum(whole) / len(whole)
    for items in (1, 2, 3):
        chosen = [right for right, one in zip(targets, examples, strict=True) if len(one.source.items) == items]
        figures[f"targets right, {items} items"] = 100 * sum(chosen) / max(1, len(chosen))
    return figures


def export(model: Blip2ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in half precision with processor, tokenizer and chat template, as vLLM loads them."""
    tokenizer.chat_template = TEMPLATE
    blip2.export(model, tokenizer, folder, QUERIES)


def train(captioner: Path, folder: Path, seed: int, steps: int) -> dict[str, float]:
    """Train and write the reader, beginning with the captioner in a folder; returns its held-out figures."""
    torch.manual_seed(seed)
    random = Random(f"reader {seed}")
    examples = [compose(random) for _ in range(TOKENIZER_EXAMPLES)]
    texts = [text for one in examples for text in (prompt(one.clause), answer(one))]
    tokenizer = train_tokenizer(texts, VOCABULARY)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    model = build(tokenizer, captioner)
    scenes = [draw_scene(random, "training") for _ in range(TRAINING_SCENES + HELD_OUT_SCENES)]
    hidden = hidden_states(model, scenes)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sizes = [sum(parameter.numel() for parameter in group) for group in (model.parameters(), trainable)]
    log(f"reader: {sizes[0]:,} parameters, {sizes[1]:,} trainable, {len(tokenizer)} tokens")
    trainer = Trainer("reader", steps, [(iter(trainable), RATE)])
    model.train()
    for step, (numbers, prompts, answers) in zip(
        trainer, _batches(tokenizer, scenes[:TRAINING_SCENES], random), strict=False
    ):
        trainer.update(step, _loss(model, hidden[numbers], prompts, answers))
    model.eval()
    export(model, tokenizer, folder)
    held_out = Random("held out roles")
    examples = [compose(held_out, source=scene) for scene in scenes[TRAINING_SCENES:]]
    instructions = [one.clause for one in examples]
    return quality(examples, generate(model, tokenizer, hidden[TRAINING_SCENES:], instructions))
