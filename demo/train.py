"""Trains all of the demo's models from scratch: `python -m demo.train`.

Two processes of one thread each: this one trains CLIP, BLIP-2 and phi, the other one the editor, which waits for the
captioner before its second phase, and then the reader, which continues from the captioner. Each part loads the exported
weights of the parts before it, as the pipeline does. The weights are written to a temporary folder, which replaces the
old weights at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from demo import blip2, clip, editor, phi, reader
from demo.common import log, size_in_mb

WEIGHTS = Path("demo/weights")
STEPS = {"warm": 1600, "clip": 1000, "blip2": 1500, "phi": 700, "generated": 900, "sampled": 400, "reader": 1400}

Figures = dict[str, float]
_captioner_ready: Event  # set in the second process only


def _start_second(ready: Event) -> None:
    """Initialise the second process."""
    global _captioner_ready
    _captioner_ready = ready
    torch.set_num_threads(1)


def _train_editor_and_reader(folder: Path, seed: int, steps: dict[str, int]) -> dict[str, Figures]:
    """The task of the second process."""
    parts: dict[str, Figures] = {}
    with timed("llama") as parts["llama"]:
        model, tokenizer = editor.train_on_generated(seed, steps["generated"])
        _captioner_ready.wait()
        parts["llama"] |= editor.train_on_sampled(model, tokenizer, folder / "blip2", seed, steps["sampled"])
        editor.export(model, tokenizer, folder / "llama")
    with timed("reader") as parts["reader"]:
        parts["reader"] |= reader.train(folder / "blip2", folder / "reader", seed, steps["reader"])
    return parts


@contextmanager
def timed(part: str) -> Iterator[Figures]:
    """Yield a dictionary for the figures of one part and add its wall-clock and processor minutes to it at the end."""
    figures: Figures = {}
    clock, processor = time.monotonic(), time.process_time()
    yield figures
    figures["minutes"] = (time.monotonic() - clock) / 60
    figures["processor minutes"] = (time.process_time() - processor) / 60
    log(f"{part}: {figures}")


def train(folder: Path, seed: int, steps: dict[str, int]) -> dict[str, Figures]:
    """Train all parts and write their weights to a folder; returns the held-out figures by part."""
    torch.set_num_threads(1)
    context = get_context("spawn")
    ready = context.Event()
    parts: dict[str, Figures] = {}
    with ProcessPoolExecutor(1, context, _start_second, (ready,)) as second:
        others = second.submit(_train_editor_and_reader, folder, seed, steps)
        try:
            with timed("clip") as parts["clip"]:
                parts["clip"] |= clip.train(folder / "clip", seed, steps["warm"], steps["clip"])
            with timed("blip2") as parts["blip2"]:
                parts["blip2"] |= blip2.train(folder / "clip", folder / "blip2", seed, steps["blip2"])
        finally:
            ready.set()  # also after a failure: the second process then ends, because there is no captioner to load
        with timed("phi") as parts["phi"]:
            parts["phi"] |= phi.train(folder / "clip", folder / "phi.safetensors", seed, steps["phi"])
        parts |= others.result()
    return parts


def write_figures(parts: dict[str, Figures], minutes: float, seed: int, folder: Path) -> None:
    """Write the held-out figures to the folder of the weights that they were measured on."""
    processes = (("clip", "blip2", "phi"), ("llama", "reader"))
    minutes_of = [sum(parts[part]["processor minutes"] for part in process) for process in processes]
    parts["training"] = {
        "minutes": minutes,
        "processor minutes of the longer process": max(minutes_of),
        "seed": seed,
        "megabytes": size_in_mb(folder),
    }
    rounded = {part: {name: round(value, 3) for name, value in figures.items()} for part, figures in parts.items()}
    (folder / "figures.json").write_text(json.dumps(rounded, indent=2) + "\n")


def main() -> None:
    """Train with the given seed and steps, and replace the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder to write")
    parser.add_argument("--steps", type=float, default=1.0, help="fraction of the steps, for a quick trial")
    arguments = parser.parse_args()
    started = time.monotonic()
    fresh = arguments.weights.with_name(arguments.weights.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    steps = {name: max(2, int(number * arguments.steps)) for name, number in STEPS.items()}
    parts = train(fresh, arguments.seed, steps)
    minutes = (time.monotonic() - started) / 60
    write_figures(parts, minutes, arguments.seed, fresh)
    shutil.rmtree(arguments.weights, ignore_errors=True)
    fresh.rename(arguments.weights)
    log(f"all parts in {minutes:.1f} minutes, {parts['training']['megabytes']:.1f} MB in {arguments.weights}")


if __name__ == "__main__":
    main()
