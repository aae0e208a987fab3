"""Presets for own photos: a captioner, an editor and a backbone that fit a kind of machine; `presets.yaml` has them.

The choice by GPU memory, and the settings that are complete only with a server's address and model, are made here.
"""

from functools import cache
from importlib import resources
from typing import Annotated

import yaml
from pydantic import Field, PositiveInt

from cvsi.core.errors import CvsiError
from cvsi.core.params import Block, Name, Prompts, Settings

GIB = 1 << 30
SERVER, FALLBACK, TINY = "server", "laptop", "tiny"


class Part(Settings):
    """An entry of params.yaml: its name, and its settings as its engine takes them."""

    name: Name
    settings: Block

    def served(self, address: str, model: str) -> "Part":
        """This entry with a server's address and model; the model is part of its name."""
        short = "".join(char if char.isascii() and char.isalnum() else "-" for char in model.lower()).strip("-")
        settings = {"engine": self.settings["engine"], "address": address, "model": model} | self.settings
        return Part(name=f"{self.name}-{short}"[:100], settings=settings)


class Preset(Settings):
    """Models for one kind of machine; `gpu_gib` is the least GPU memory, None where none is needed."""

    machine: Annotated[str, Field(min_length=1)]
    captioner: Part
    editor: Part
    backbone: Part
    prompts: Prompts = Prompts(edited="chat_general", added="chat_added")
    gpu_gib: PositiveInt | None = None


@cache
def presets() -> dict[str, Preset]:
    """The presets by name, in their order, read once."""
    text = (resources.files("cvsi.models") / "presets.yaml").read_text(encoding="utf-8")
    return {name: Preset.model_validate(block) for name, block in yaml.safe_load(text).items()}


def preset(name: str) -> Preset:
    """A preset by name; raises CvsiError, which lists all names, for another one."""
    if name not in presets():
        raise CvsiError(f"--preset {name[:80]}: no such preset; there are: {', '.join(presets())}")
    return presets()[name]


def choose(gpu_bytes: int) -> tuple[str, str]:
    """The preset for a GPU's memory in bytes (0: no GPU), by name, and the reason in words."""
    if not gpu_bytes:
        return FALLBACK, "nvidia-smi found no GPU"
    memory = f"the GPU has {gpu_bytes / GIB:.0f} GiB"
    least = {name: preset.gpu_gib * GIB for name, preset in presets().items() if preset.gpu_gib is not None}
    fitting = [name for name, needed in least.items() if needed <= gpu_bytes]
    if not fitting:
        return FALLBACK, f"{memory}, too little for {' and '.join(least)}"
    return max(fitting, key=least.__getitem__), memory


def served(chosen: Preset, address: str, caption_model: str, edit_model: str) -> Preset:
    """The preset `server` with the address and the two models; raises CvsiError where one of them is missing."""
    missing = [f"--{kind}-model" for kind, model in (("caption", caption_model), ("edit", edit_model)) if not model]
    if missing:
        raise CvsiError(
            f"--preset {SERVER} needs the name of a model that sees images: --model NAME, or --caption-model NAME and "
            f"--edit-model NAME (missing: {', '.join(missing)})"
        )
    if not address.startswith(("http://", "https://")) or any(char.isspace() or char == "@" for char in address):
        raise CvsiError(
            f"--address {address[:80]}: not an address such as http://localhost:11434/v1, without user names"
        )
    parts = {
        "captioner": chosen.captioner.served(address, caption_model),
        "editor": chosen.editor.served(address, edit_model),
    }
    return chosen.model_copy(update=parts)
