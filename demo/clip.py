"""A tiny CLIP of open_clip's architecture, trained from scratch and written as a `local-dir:` folder.

During training the text tower's vocabulary has only the tokens that the training sentences use; the export copies their
embeddings into CLIP's vocabulary of 49,408. First the image tower is trained to classify the content of each cell, then
both towers are trained to match pictures and sentences.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import torch
from open_clip import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from demo.common import MEAN, STD, Trainer, log, pictures
from demo.texts import compose, composed_text, describe, near_miss, relative, vocabulary
from demo.world.scenes import BACKGROUNDS, CELLS, COLOURS, SHAPES, SIZES, TEXTURES, Scene, draw_scene

WIDTH = 128  # of both towers and of the joint embedding space
CONTEXT = 48  # tokens
VOCABULARY = 49408  # of CLIP's own tokenizer
NORM = 16.0  # mean length of an embedding before normalisation; phi's training adds noise of unit variance to it
VISION = {"image_size": 64, "layers": 4, "width": WIDTH, "patch_size": 16, "head_width": 32, "no_ln_pre": True}
TEXT = {"context_length": CONTEXT, "width": WIDTH, "heads": 4, "layers": 3}
CELL_LOSS_WEIGHT = 0.1  # weight of the cell classifier's loss during contrastive training
LABELS = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "size": SIZES}


class CompactTokenizer:
    """CLIP's tokenizer with a compact vocabulary: the tokens of the training sentences, the end token last."""

    def __init__(self) -> None:
        """Collect the tokens; takes some seconds."""
        self.tokenizer = SimpleTokenizer()
        used = {token for word in vocabulary() for token in self._encode(word)}
        self.ids = sorted({*used, self.tokenizer.sot_token_id, self.tokenizer.eot_token_id})
        self.compact = {token: index for index, token in enumerate(self.ids)}
        self.token = cache(self._token)
        self.placeholder = self.compact[self._encode("$")[0]]

    def _encode(self, word: str) -> list[int]:
        return list(self.tokenizer.encode(word))

    def _token(self, word: str) -> list[int]:
        return [self.compact[token] for token in self._encode(word)]

    def __call__(self, texts: list[str]) -> Tensor:
        """Compact token ids of the texts, cut to the context and padded with zeros to the longest: [texts, length]."""
        start, end = self.compact[self.tokenizer.sot_token_id], len(self.ids) - 1
        rows = [[start, *(token for word in text.split() for token in self.token(word))] for text in texts]
        rows = [[*row[: CONTEXT - 1], end] for row in rows]
        longest = max(map(len, rows))
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def build(vocabulary: int) -> CLIP:
    """An untrained model with that many tokens."""
    return CLIP(WIDTH, VISION, {**TEXT, "vocab_size": vocabulary})


def encode_text(model: CLIP, tokens: Tensor, embedded: Tensor | None = None) -> Tensor:
    """Text embeddings, not normalised: [texts, WIDTH]; unlike open_clip, short rows are not padded to the context.

    `embedded` replaces the token embeddings of `tokens`.
    """
    length = tokens.shape[1]
    x = model.token_embedding(tokens) if embedded is None else embedded
    x = model.transformer(x + model.positional_embedding[:length], attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)
    return torch.as_tensor(x[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection)


def encode_sentences(model: CLIP, tokenizer: CompactTokenizer, texts: list[str]) -> Tensor:
    """Normalised text embeddings, [texts, WIDTH]: texts are batched by length to save padding."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    size = -(-len(texts) // 4)
    parts = [
        encode_text(model, tokenizer([texts[index] for index in order[at : at + size]]))
        for at in range(0, len(order), size)
    ]
    inverse = torch.tensor(order).argsort()
    return functional.normalize(torch.cat(parts)[inverse], dim=-1)


def patches(model: CLIP, images: Tensor) -> Tensor:
    """The image tower's last hidden states after its last layer norm: [images, 17, WIDTH], the class token first."""
    visual = model.visual
    return torch.as_tensor(visual.ln_post(visual.transformer(visual._embeds(images))))


class CellClassifier(nn.Module):
    """Linear heads that classify the content of each cell and the background from the image tower's hidden states."""

    def __init__(self) -> None:
        """Create untrained heads; an empty cell is an additional class of the shape."""
        super().__init__()
        sizes = {name: len(values) + (name == "shape") for name, values in LABELS.items()}
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, size) for name, size in sizes.items()})
        self.background = nn.Linear(WIDTH, len(BACKGROUNDS))

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """Map hidden states [scenes, 17, WIDTH] to logits [scenes, cells, values] by label."""
        grid = hidden[:, 1:].view(
            -1, 2, 2, 2, 2, WIDTH
        )  # rows of cells, rows of patches in a cell, then the same for columns
        cells = grid.transpose(2, 3).reshape(-1, CELLS, 4, WIDTH).mean(2)
        return {name: head(cells) for name, head in self.heads.items()}

    def loss(self, hidden: Tensor, scenes: list[Scene]) -> Tensor:
        """The sum of the cross entropies against the scenes' labels."""
        labels = labels_of(scenes)
        backgrounds = torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes])
        loss = functional.cross_entropy(self.background(hidden[:, 0]), backgrounds)
        for index, logits in enumerate(self(hidden).values()):
            loss = loss + functional.cross_entropy(logits.flatten(0, 1), labels[..., index].flatten(), ignore_index=-1)
        return loss


def labels_of(scenes: list[Scene]) -> Tensor:
    """The class indices of each cell, in the order of LABELS: [scenes, cells, labels]; -1 where no label applies."""
    labels = np.full((len(scenes), CELLS, len(LABELS)), -1)
    labels[..., 0] = len(SHAPES)  # an empty cell
    for row, scene in enumerate(scenes):
        for item in scene.items:
            indices = [values.index(getattr(item, name)) for name, values in LABELS.items()]
            for cell in item.cells:
                labels[row, cell] = indices
    return torch.from_numpy(labels)


def warm_up(model: CLIP, classifier: CellClassifier, steps: int, random: Random) -> None:
    """Train the image tower and the classifier on the content of each cell."""
    trainable = iter([*model.visual.parameters(), *classifier.parameters()])
    trainer = Trainer("CLIP's image tower", steps, [(trainable, 1e-3)])
    for step in trainer:
        scenes = [draw_scene(random, "training") for _ in range(64)]
        trainer.update(step, classifier.loss(patches(model, pictures(scenes)), scenes))


def _draw_pairs(random: Random, size: int) -> tuple[list[Scene], list[str]]:
    """One batch of scenes and texts: descriptions, some of near misses, relative clauses and composed sentences."""
    scenes: list[Scene] = []
    texts: list[str] = []
    while len(scenes) < size:
        choice = random.random()
        if choice < 0.4:
            example = compose(random)
            scenes.append(example.target)
            texts.append(composed_text(example, random))
            continue
        scene = draw_scene(random, "training")
        if choice < 0.55:
            scenes += [scene, near_miss(scene, random), near_miss(scene, random)]
            texts += [describe(one, random, complete=True) for one in scenes[-3:]]
        else:
            scenes.append(scene)
            texts.append((describe if choice < 0.85 else relative)(scene, random))
    return scenes[:size], texts[:size]


def train_contrastive(
    model: CLIP, tokenizer: CompactTokenizer, classifier: CellClassifier, steps: int, random: Random
) -> None:
    """Train both towers to match pictures and sentences; the cell loss is kept because it helps the captioner."""
    text = [p for name, p in model.named_parameters() if not name.startswith("visual.")]
    image_side = [*model.visual.parameters(), *classifier.parameters()]
    trainer = Trainer("CLIP", steps, [(iter(image_side), 4e-4), (iter(text), 1.5e-3)])
    for step in trainer:
        scenes, texts = _draw_pairs(random, 256)
        hidden = patches(model, pictures(scenes))
        image = functional.normalize(hidden[:, 0] @ model.visual.proj, dim=-1)
        sentence = encode_sentences(model, tokenizer, texts)
        logits = model.logit_scale.clamp(max=4.6).exp() * image @ sentence.T
        target = torch.arange(len(scenes))
        loss = functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
        trainer.update(step, loss / 2 + CELL_LOSS_WEIGHT * classifier.loss(hidden, scenes))


@torch.no_grad()
def scale_projections(model: CLIP, tokenizer: CompactTokenizer) -> None:
    """Scale both projections so that embeddings have the mean length NORM; their directions do not change."""
    scenes, texts = _draw_pairs(Random("settle"), 512)
    model.visual.proj *= NORM / model.visual(pictures(scenes)).norm(dim=-1).mean()
    model.text_projection *= NORM / encode_text(model, tokenizer(texts)).norm(dim=-1).mean()


@torch.no_grad()
def quality(model: CLIP, tokenizer: CompactTokenizer, classifier: CellClassifier) -> dict[str, float]:
    """Held-out figures in percent on 500 new draws from the training part."""
    random = Random("held out")
    scenes = [draw_scene(random, "training") for _ in range(500)]
    hidden = patches(model, pictures(scenes))
    labels = labels_of(scenes)
    shape_correct = (classifier(hidden)["shape"].argmax(-1) == labels[..., 0])[labels[..., 1] >= 0]
    image = functional.normalize(hidden[:, 0] @ model.visual.proj, dim=-1)
    text = encode_sentences(model, tokenizer, [describe(scene, random, complete=True) for scene in scenes])
    text_correct = (image @ text.T).argmax(-1) == torch.arange(len(scenes))
    others = [near_miss(scene, random) for scene in scenes]
    wrong = encode_sentences(model, tokenizer, [describe(scene, random, complete=True) for scene in others])
    near_miss_correct = (image * text).sum(-1) > (image * wrong).sum(-1)
    examples = [compose(random, hard=0.0) for _ in range(500)]
    target = functional.normalize(model.visual(pictures([one.target for one in examples])), dim=-1)
    composed = encode_sentences(model, tokenizer, [composed_text(one, random) for one in examples])
    picture_correct = (composed @ target.T).argmax(-1) == torch.arange(len(examples))
    return {
        "shape named in its cell": 100 * float(shape_correct.float().mean()),
        "description of 500 ranked first": 100 * float(text_correct.float().mean()),
        "description distinguished from a near one": 100 * float(near_miss_correct.float().mean()),
        "picture of 500 ranked first for a composed text": 100 * float(picture_correct.float().mean()),
    }


def export(model: CLIP, tokenizer: CompactTokenizer, folder: Path) -> None:
    """Write the model as an open_clip folder with CLIP's whole vocabulary; tokens not trained on get small noise."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().clone() for name, value in model.state_dict().items() if name != "attn_mask"}
    rows = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.01
    rows[torch.tensor(tokenizer.ids)] = state["token_embedding.weight"]
    state["token_embedding.weight"] = rows
    half = {name: value.half().contiguous() for name, value in state.items()}
    save_file(half, folder / "open_clip_model.safetensors")
    config = {
        "model_cfg": {"embed_dim": WIDTH, "vision_cfg": VISION, "text_cfg": {**TEXT, "vocab_size": VOCABULARY}},
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load(folder: Path, tokenizer: CompactTokenizer) -> CLIP:
    """The exported model in float32 with the compact vocabulary."""
    state = load_file(folder / "open_clip_model.safetensors")
    state["token_embedding.weight"] = state["token_embedding.weight"][torch.tensor(tokenizer.ids)]
    model = build(len(tokenizer.ids))
    model.load_state_dict({name: value.float() for name, value in state.items()})
    return model.eval().requires_grad_(False)


def train(folder: Path, seed: int, warm: int, steps: int) -> dict[str, float]:
    """Train and write CLIP; returns its held-out figures."""
    torch.manual_seed(seed)
    random = Random(f"clip {seed}")
    tokenizer = CompactTokenizer()
    model = build(len(tokenizer.ids))
    log(f"CLIP: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer.ids)} tokens")
    classifier = CellClassifier()
    warm_up(model, classifier, warm, random)
    train_contrastive(model, tokenizer, classifier, steps, random)
    scale_projections(model, tokenizer)
    model.eval()
    figures = quality(model, tokenizer, classifier)
    export(model, tokenizer, folder)
    return figures
