"""What models for a machine without a GPU cost on this one: BLIP per image, ViT-B/32 per image and text, in float32.

The weights are random numbers in the published shapes, so a caption ends only at `max_tokens`: the figures are for
captions of exactly that length. `python -m benchmarks.laptop blip --threads 1` prints seconds of the processor (all
threads together, which other processes disturb less) and of the clock, and the process's peak memory. Loading is left
out of the times, not of the memory.
"""

import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import open_clip
import torch
import typer
from PIL import Image
from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor

from benchmarks import measure
from cvsi.core.params import Backbone, Compute
from cvsi.models.blip import BlipSettings
from cvsi.models.blip_model import Blip
from cvsi.models.clip_encoder import Encoder

PIECES = 30522  # of BERT's vocabulary; the model's two further tokens have no word piece
HEADS = 12  # of the published text decoder, where transformers' default is 8


def save_blip(folder: Path) -> None:
    """A BLIP with random weights in the shape of Salesforce/blip-image-captioning-base."""
    torch.manual_seed(0)
    config = BlipConfig(text_config={"num_attention_heads": HEADS}, vision_config={"initializer_range": 0.02})
    BlipForConditionalGeneration(config).save_pretrained(folder)
    special = ["[PAD]", *(f"[unused{number}]" for number in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *(f"w{number}" for number in range(PIECES - len(special)))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    BlipImageProcessor().save_pretrained(folder)


def timed(what: str, number: int, rounds: int, work: Callable[[], object]) -> None:
    """Print the median cost of one of `number` things; the first round warms up and does not count if more follow."""
    costs = []
    for _ in range(rounds + 1):
        cpu, clock = time.process_time(), time.perf_counter()
        work()
        costs.append((time.process_time() - cpu, time.perf_counter() - clock))
    cpu, clock = (statistics.median(column) / number for column in zip(*costs[min(rounds, 1) :], strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    measure.say(f"{what}: {cpu:.4f} s of the processor, {clock:.4f} s by the clock; peak {peak:,} MiB")


def blip(batch: int, n: int, tokens: int, rounds: int) -> None:
    """Captions of one full batch of photographs, from decoded pictures."""
    with tempfile.TemporaryDirectory() as folder:
        making = get_context("spawn").Process(target=save_blip, args=(Path(folder),))
        making.start()  # elsewhere, so that the peak is that of captioning alone
        making.join()
        settings = BlipSettings(
            engine="blip", model=folder, precision="fp32", n=n, min_tokens=tokens, max_tokens=tokens, redraws=0
        )
        model = Blip(settings, Compute(device="cpu", caption_batch=batch))
    pictures = [Image.effect_noise((640, 480), 60).convert("RGB") for _ in range(batch)]
    digests = [f"{number:064x}" for number in range(batch)]

    def work() -> None:
        model.captions([model.prepare(picture) for picture in pictures], digests)

    timed(f"BLIP, batch {batch}, {n} captions of {tokens} tokens, per image", batch, rounds, work)


def clip(batch: int, rounds: int) -> None:
    """ViT-B/32's image tower from decoded pictures, and its text tower for captions of about ten words."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "random.pt"
        torch.manual_seed(0)
        torch.save(open_clip.create_model("ViT-B-32-quickgelu").state_dict(), file)
        backbone = Backbone(model="ViT-B-32-quickgelu", pretrained=str(file), precision="fp32")
        encoder = Encoder(backbone, Compute(device="cpu", image_batch=batch, text_batch=batch))
        _ = encoder.model
    pictures = [Image.effect_noise((640, 480), 60).convert("RGB") for _ in range(batch)]
    texts = [f"a photograph of {number} dogs that run along a sandy beach" for number in range(2, 8 * batch + 2)]

    @torch.inference_mode()
    def images() -> None:
        encoder.model.encode_image(torch.stack([encoder.prepare(picture) for picture in pictures]))

    def captions() -> None:
        tokens = encoder.tokens(texts)
        for start in range(0, len(texts), batch):
            encoder.text_vectors(tokens[start : start + batch])

    timed(f"ViT-B/32, batch {batch}, per image", batch, rounds, images)
    timed(f"ViT-B/32, batch {batch}, per text", len(texts), rounds, captions)


def main(
    what: Annotated[str, typer.Argument(help="blip or clip.")],
    threads: Annotated[int, typer.Option(min=1)] = 2,
    batch: Annotated[int, typer.Option(min=1)] = 8,
    n: Annotated[int, typer.Option(min=1)] = 5,
    tokens: Annotated[int, typer.Option(min=1)] = 12,
    rounds: Annotated[int, typer.Option(min=0)] = 3,
) -> None:
    """Print what one image or text costs."""
    torch.set_num_threads(threads)
    if what == "blip":
        blip(batch, n, tokens, rounds)
    else:
        clip(batch, rounds)


if __name__ == "__main__":
    measure.run(main)
