"""A captioner engine and an editor engine of another package: they need no model, and are reached by entry points."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from cvsi.core.params import Compute
from cvsi.models.captioner import CaptionerSettings
from cvsi.models.editor import Answer, EditorSettings, Prompt
from cvsi.models.engines import Engine, Requirements, facts_of
from cvsi.store.rows import Store

if TYPE_CHECKING:
    import pytest

ENTRY_POINTS = """
[cvsi.captioners]
colour = toy_engines:CAPTIONER
broken = toy_engines:NOTHING

[cvsi.editors]
rule = toy_engines:EDITOR
absent = no_such_module:EDITOR
"""


def install_toy_engines(folder: Path, monkeypatch: "pytest.MonkeyPatch") -> None:
    """Make a folder an installed package with these engines, on the path of this and other processes."""
    facts = folder / "toy_engines-1.0.dist-info"
    facts.mkdir(parents=True)
    shutil.copy(__file__, folder / "toy_engines.py")
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-engines\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))
    monkeypatch.syspath_prepend(folder)


class ColourSettings(CaptionerSettings):
    """Captions by the mean colour of an image."""

    engine: Literal["colour"]
    model: str = "none"
    words: str = "a picture of"


class ColourCaptioner:
    """Names the mean colour."""

    def __init__(self, settings: ColourSettings, compute: Compute, worker: int) -> None:
        self.settings = settings

    def prepare(self, image: Image.Image) -> tuple[int, ...]:
        mean = image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        assert isinstance(mean, tuple)
        return mean

    def captions(self, images: Sequence[tuple[int, ...]], digests: Sequence[str]) -> list[list[str]]:
        lines = [f"{self.settings.words} colour {'-'.join(map(str, mean))}" for mean in images]
        return [[f"{line}, take {take}" for take in range(self.settings.n)] for line in lines]


class RuleSettings(EditorSettings):
    """Edits by a rule."""

    engine: Literal["rule"]
    model: str = "none"
    ending: str


class RuleEditor:
    """Answers with the instruction of the prompt."""

    def __init__(self, settings: RuleSettings, compute: Compute, worker: int) -> None:
        self.settings = settings

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        instructions = [str(prompt).splitlines()[-2].removeprefix("Instruction: ") for prompt in prompts]
        return [Answer(f"it {text} {self.settings.ending}", "stop") for text in instructions]


def recipe(settings: ColourSettings | RuleSettings, precision: str, store: Store) -> dict[str, Any]:
    return facts_of(settings)


CAPTIONER = Engine(
    settings=ColourSettings, requirements=lambda settings: Requirements(), recipe=recipe, load=ColourCaptioner
)
EDITOR = Engine(settings=RuleSettings, requirements=lambda settings: Requirements(), recipe=recipe, load=RuleEditor)
