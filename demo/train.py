"""The one command that trains all of the demo's models from scratch: `python -m demo.train`.

Two processes of one thread each: this one trains CLIP, BLIP-2 and phi, the other the editor, which waits for the
captioner's captions at the end. The weights are written beside their place and moved there when all are done.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from demo import blip2, clip, editor, phi
from demo.common import say, size_in_mb

WEIGHTS = Path("demo/weights")
STEPS = {"warm": 1600, "clip": 1000, "blip2": 2200, "phi": 600, "made up": 2000, "real": 600}
READ = 5000  # scenes whose captions the editor reads
HELD = 400  # more of them, on which it is measured
SAID = 8  # captions of each, of which a prompt shows five

Figures = dict[str, dict[str, float]]


def train_editor(folder: Path, seed: int, steps: dict[str, int], pipe: Connection) -> None:
    """The second process: trains the editor, takes the captions from the pipe, sends the figures back."""
    torch.set_num_threads(1)
    model, tokenizer = editor.learn_from_made_up(seed, steps["made up"])
    captions = pipe.recv()
    scenes = editor.sources(seed, READ + HELD)
    editor.learn_from_real(model, tokenizer, scenes[:READ], captions[:READ], seed, steps["real"])
    model.eval()
    figures = editor.quality(model, tokenizer, scenes[READ:], captions[READ:])
    editor.export(model, tokenizer, folder)
    pipe.send(figures)


def train(folder: Path, seed: int, steps: dict[str, int]) -> Figures:
    """Train all parts into a folder; returns each part's held-out figures."""
    torch.set_num_threads(1)
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    other = context.Process(target=train_editor, args=(folder / "llama", seed, steps, theirs), daemon=True)
    other.start()
    theirs.close()  # so that a dead editor ends the wait for its figures
    figures: Figures = {}
    model, words, figures["clip"] = clip.train(folder / "clip", seed, steps["warm"], steps["clip"])
    say(f"CLIP: {figures['clip']}")
    captioner, tokenizer, figures["blip2"] = blip2.train(model, folder / "blip2", seed, steps["blip2"])
    say(f"BLIP-2: {figures['blip2']}")
    ours.send(blip2.sample(captioner, tokenizer, editor.sources(seed, READ + HELD), SAID))
    figures["phi"] = phi.train(model, words, folder / "phi.safetensors", seed, steps["phi"])
    say(f"phi: {figures['phi']}")
    figures["llama"] = ours.recv()
    say(f"editor: {figures['llama']}")
    other.join()
    return figures


def main() -> None:
    """Train with the seed and steps asked for, and put the weights in their place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder to write")
    parser.add_argument("--steps", type=float, default=1.0, help="share of the steps, for a quick trial")
    arguments = parser.parse_args()
    begun = time.monotonic()
    fresh = arguments.weights.with_name(arguments.weights.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    steps = {name: max(2, int(number * arguments.steps)) for name, number in STEPS.items()}
    figures = train(fresh, arguments.seed, steps)
    minutes = (time.monotonic() - begun) / 60
    figures["training"] = {"minutes": minutes, "seed": arguments.seed, "megabytes": size_in_mb(fresh)}
    rounded = {part: {name: round(value, 3) for name, value in rows.items()} for part, rows in figures.items()}
    (fresh / "figures.json").write_text(json.dumps(rounded, indent=2) + "\n")
    shutil.rmtree(arguments.weights, ignore_errors=True)
    fresh.rename(arguments.weights)
    say(f"all parts in {minutes:.1f} minutes, {figures['training']['megabytes']:.1f} MB in {arguments.weights}")


if __name__ == "__main__":
    main()
