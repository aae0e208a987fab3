"""A loaded Qwen3-VL-Embedding: images, texts, and both together, each in one prompt, to the state of its last token.

Prompts are padded at their end: attention is causal, so padding changes no state before it. A batch of texts is full
and of one length; images of a batch differ in size, so their last bits may depend on the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import normalize, pad

from cvsi.core.devices import device, dtype, precision
from cvsi.core.errors import CvsiError, cause
from cvsi.core.params import PATH, Backbone, Compute
from cvsi.models.batching import LENGTH_STEP, full, length_batches
from cvsi.models.encoder import BackboneEncoder
from cvsi.models.qwen3_vl_embedding import ARCHITECTURE, settings_of, width
from cvsi.models.transformers_model import check_tokenizer, load_model, load_part, words_only

UNUSED = ("lm_head.weight",)  # what writes texts; a checkpoint may have it
MARK = "{the text}"  # stands for a text while the template is rendered
MAX_RATIO = 100  # of an image's sides; the image processor refuses more than 200


@dataclass(frozen=True)
class Picture:
    """A prepared image: its patches [n, values], its grid [1, 3], and how many tokens it takes."""

    patches: Tensor
    grid: Tensor
    tokens: int


@dataclass(frozen=True)
class Frame:
    """What the template puts before and after a text."""

    before: str
    after: str


class Qwen3VlEmbedding(BackboneEncoder):
    """The model, its tokenizer and its image processor; loaded when they are first used."""

    def __init__(self, backbone: Backbone, compute: Compute, worker: int = 0) -> None:
        """Choose a worker's device and the precision; nothing is loaded yet."""
        self.backbone, self.compute, self.settings = backbone, compute, settings_of(backbone)
        self.device = device(compute, worker)
        self.precision = precision(backbone.precision, self.device.type)
        self.width = width(backbone)
        self.name = f"{PATH}: backbone model '{backbone.model}'"

    def load(self) -> None:
        """Load model and processor, and check that they belong together."""
        _ = self.model, self.processor, self._text, self._image, self._both

    @cached_property
    def model(self) -> Any:
        """The model without what writes texts; raises CvsiError where it cannot be loaded."""
        model = load_model(self.backbone, ARCHITECTURE, dtype(self.precision), unused=UNUSED)
        found = model.config.text_config.hidden_size
        if found != self.width:
            raise CvsiError(f"{self.name}: vectors of {found}, not of {self.width} as catalogued")
        return model.to(self.device)

    @cached_property
    def processor(self) -> Any:
        """Tokenizer, image processor and template; raises CvsiError where they are not those of the model."""
        from transformers import Qwen3VLProcessor  # seconds of imports, needed only when a row is missing

        processor = load_part(self.backbone, Qwen3VLProcessor.from_pretrained)
        config, images = self.model.config, processor.image_processor
        check_tokenizer(self.backbone, processor.tokenizer, config.text_config.vocab_size)
        sizes = (images.patch_size, images.merge_size, images.temporal_patch_size)
        vision = config.vision_config
        needed = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
        if sizes != needed:
            raise CvsiError(
                f"{self.name}: its image processor makes patches of {sizes} (side, merged, frames), its config.json "
                f"needs {needed}; take preprocessor_config.json from this model"
            )
        number = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        if number != config.image_token_id:
            raise CvsiError(
                f"{self.name}: the image token of its tokenizer is {number}, that of its config.json is "
                f"{config.image_token_id}; take both from the same model"
            )
        return processor

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self.processor.tokenizer

    def prepare(self, image: Image.Image) -> Picture:
        """An image to patches, resized to a size between `min_pixels` and `max_pixels`; a very long one is padded."""
        size = {"shortest_edge": self.settings.min_pixels, "longest_edge": self.settings.max_pixels}
        made = self.processor.image_processor(images=[padded(image)], size=size, return_tensors="pt")
        tokens = int(made["image_grid_thw"].prod()) // self.processor.image_processor.merge_size**2
        # In the model's precision at once: the patches of a block of large images take gigabytes.
        return Picture(made["pixel_values"].to(dtype(self.precision)), made["image_grid_thw"], tokens)

    @torch.inference_mode()
    def image_embeddings(self, images: Sequence[Picture]) -> Tensor:
        """At most `image_batch` images to un-normalised states [n, d] float32 on the CPU."""
        return self._states_of(images, [self._prompt(self._image, image) for image in images])

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts in their prompts to token ids, cut to `max_length`."""
        words = words_only(list(texts), self.tokenizer)
        return self._ids([self._prompt(self._text, None, text) for text in words])

    @torch.inference_mode()
    def text_vectors(self, tokens: list[list[int]], images: Tensor | None = None) -> Tensor:
        """Token ids of prompts to unit vectors [n, d] float32 on the CPU, in full batches of like length."""
        lengths = [len(ids) for ids in tokens]
        vectors = torch.empty(len(tokens), self.width)
        for positions in length_batches(lengths, self.compute.text_batch):
            batch = full(positions, self.compute.text_batch)
            states = self._states([tokens[position] for position in batch])
            vectors[positions] = normalize(states[: len(positions)], dim=-1)
        return vectors

    @torch.inference_mode()
    def composed_vectors(self, images: Sequence[Picture], texts: Sequence[str]) -> Tensor:
        """At most `image_batch` images with an instruction each to unit vectors [n, d] float32 on the CPU.

        An instruction without any word leaves the prompt with the image alone.
        """
        words = words_only(list(texts), self.tokenizer)
        prompts = [
            self._prompt(self._both, image, text) if text.strip() else self._prompt(self._alone, image)
            for image, text in zip(images, words, strict=True)
        ]
        return normalize(self._states_of(images, prompts), dim=-1)

    @cached_property
    def _text(self) -> Frame:
        return self._frame(self.settings.instruction, image=False, text=True)

    @cached_property
    def _image(self) -> Frame:
        return self._frame(self.settings.instruction, image=True, text=False)

    @cached_property
    def _both(self) -> Frame:
        return self._frame(self.settings.composed_instruction, image=True, text=True)

    @cached_property
    def _alone(self) -> Frame:
        """Of a composed query without a word."""
        return self._frame(self.settings.composed_instruction, image=True, text=False)

    def _frame(self, instruction: str, image: bool, text: bool) -> Frame:
        """The template around a text; without one, all of it is before. Raises CvsiError where it drops something."""
        (system,) = words_only([instruction], self.tokenizer)
        content = [{"type": "image"}] * image + [{"type": "text", "text": MARK}] * text
        turns = [
            {"role": "system", "content": [{"type": "text", "text": system}]},
            {"role": "user", "content": content},
        ]
        try:
            rendered = self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template is a program of the model's author and raises what it likes
            raise CvsiError(f"{self.name}: no chat template, or one that fails ({cause(error)})") from None
        before, mark, after = rendered.partition(MARK)
        if system not in rendered or bool(mark) != text or before.count(self.processor.image_token) != image:
            raise CvsiError(
                f"{self.name}: its chat template leaves out the instruction, the image or the text; take "
                "chat_template.jinja or chat_template.json from this model"
            )
        return Frame(before, after)

    def _prompt(self, frame: Frame, image: Picture | None, text: str = "") -> str:
        """The prompt of an image and a text, the text cut to what `max_length` leaves."""
        before = frame.before
        if image is not None:
            token = self.processor.image_token
            before = before.replace(token, token * image.tokens)
        space = self.settings.max_length - self._length(frame) - (image.tokens - 1 if image else 0)
        if space < (1 if text else 0):
            tokens = f" beside an image of {image.tokens} tokens" if image else ""
            raise CvsiError(
                f"{self.name}: max_length {self.settings.max_length} leaves no space{tokens}; raise it, or lower "
                f"max_pixels (now {self.settings.max_pixels})"
            )
        return before + self._cut(text, space) + frame.after

    def _length(self, frame: Frame) -> int:
        """The tokens of a template without its text, its one image token included."""
        if frame not in self._lengths:
            self._lengths[frame] = len(self._ids([frame.before + frame.after])[0])
        return self._lengths[frame]

    @cached_property
    def _lengths(self) -> dict[Frame, int]:
        return {}

    def _cut(self, text: str, tokens: int) -> str:
        """The beginning of a text that has so many tokens; a token is at least one byte."""
        if len(text.encode()) <= tokens:
            return text
        ends = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if len(ends) <= tokens:
            return text
        # A character of several tokens is not cut in two: all of these name the whole character.
        return text[: min(ends[tokens - 1][1], ends[tokens][0])]

    def _ids(self, prompts: list[str]) -> list[list[int]]:
        return self.tokenizer(prompts)["input_ids"]  # type: ignore[no-any-return]

    def _states_of(self, images: Sequence[Picture], prompts: list[str]) -> Tensor:
        """The last states of prompts with one image each, [n, d] float32 on the CPU."""
        patches = torch.cat([image.patches for image in images]).to(self.device)
        grids = torch.cat([image.grid for image in images]).to(self.device)
        return self._states(self._ids(prompts), pixel_values=patches, image_grid_thw=grids)

    def _states(self, prompts: list[list[int]], **images: Tensor) -> Tensor:
        """The last states of prompts, [n, d] float32 on the CPU; `images` are those of all of them, in order."""
        lengths = torch.tensor([len(ids) for ids in prompts])
        longest = -(-int(lengths.max()) // LENGTH_STEP) * LENGTH_STEP
        filler = self.tokenizer.pad_token_id or 0
        ids = torch.stack([pad(torch.tensor(one), (0, longest - len(one)), value=filler) for one in prompts])
        mask = (torch.arange(longest) < lengths.unsqueeze(1)).long()
        types = ((ids == self.model.config.image_token_id) & mask.bool()).int()
        kinds = {"mm_token_type_ids": types.to(self.device)} if images else {}
        states = self.model(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device), use_cache=False, **images, **kinds
        ).last_hidden_state
        rows = torch.arange(len(prompts), device=self.device)
        return states[rows, lengths.to(self.device) - 1].float().cpu()  # type: ignore[no-any-return]


def padded(image: Image.Image) -> Image.Image:
    """An image with black along its long sides, so that these are at most `MAX_RATIO` times the others."""
    least = -(-max(image.size) // MAX_RATIO)
    across, down = max(least - image.width, 0), max(least - image.height, 0)
    if not across + down:
        return image
    return ImageOps.expand(image, (across // 2, down // 2, across - across // 2, down - down // 2), fill=0)
