"""The demo's models, each loaded once per process."""

from collections.abc import Iterator

import pytest

from cvsi.core import params
from cvsi.core.params import Compute
from cvsi.models.blip2 import Blip2Settings
from cvsi.models.blip2_model import Blip2
from cvsi.models.clip_encoder import Encoder
from tests.imports import ROOT

TEXT_BATCH, IMAGE_BATCH, CAPTION_BATCH = 4, 2, 3


def blip2_settings(**changes: object) -> Blip2Settings:
    """The demo's captioner with changed settings."""
    block = params.load(ROOT / "params.yaml").captioners["tiny"]
    return Blip2Settings.model_validate(block | {"model": str(ROOT / "demo/weights/blip2")} | changes)


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """The demo's CLIP and phi."""
    backbone = params.load(ROOT / "params.yaml").backbone("tiny")
    paths = {"model": f"local-dir:{ROOT / 'demo/weights/clip'}", "phi": str(ROOT / "demo/weights/phi.safetensors")}
    compute = Compute(device="cpu", text_batch=TEXT_BATCH, image_batch=IMAGE_BATCH)
    return Encoder(backbone.model_copy(update=paths), compute)


@pytest.fixture(scope="session")
def loaded_blip2() -> Blip2:
    return Blip2(blip2_settings(), Compute(device="cpu", caption_batch=CAPTION_BATCH))


@pytest.fixture
def blip2(loaded_blip2: Blip2) -> Iterator[Blip2]:
    """The demo's captioner in transformers; a test may change its `settings` and its `batch`."""
    settings, batch = loaded_blip2.settings, loaded_blip2.batch
    yield loaded_blip2
    loaded_blip2.settings, loaded_blip2.batch = settings, batch
