"""Readers of queries with two reference images: both are sent, in order; queries with one are as before."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest
from PIL import Image

from cvsi.core import params, tables
from cvsi.core.schema import OPTIONAL_QUERIES, QUERIES
from cvsi.models.engines import EDITORS
from cvsi.models.reader_vllm import VllmReader, VllmReaderSettings
from cvsi.pipeline import edits
from cvsi.pipeline.reading_prompts import BOTH
from cvsi.pipeline.readings import ReadingJob, reading_job
from tests import toy_engines
from tests.conftest import Workspace
from tests.stage_inputs import DISC_CAPTIONS, write_captions, write_index
from tests.vision_server import Reply, Seen, VisionServer, choice, colour_of, error, serving

ROLES = {"target": 1, "forbidden": 3}


@pytest.fixture
def server() -> Iterator[VisionServer]:
    with serving() as running, EDITORS.using("rule", toy_engines.EDITOR):
        yield running


def prepare(toy: Workspace, server: VisionServer, *seconds: str, **reader: Any) -> None:
    """The toy dataset, its queries (of red, blue and black) with these second references, and a reader."""
    write_index()
    if seconds:
        path = toy.path / "cache/toy/index/queries.parquet"
        queries = pl.read_parquet(path).with_columns(second_reference_id=pl.Series(seconds))
        schema = QUERIES.append(OPTIONAL_QUERIES.field("second_reference_id"))
        with tables.output("index", "toy") as out:
            images = pl.read_parquet(toy.path / "cache/toy/index/images.parquet")
            out.table("images.parquet", images.to_arrow(), tables.read("index", "toy", "images.parquet").schema)
            out.table("queries.parquet", queries.to_arrow(), schema)
    write_captions()
    block = {"engine": "server", "address": server.address, "model": "m", "roles": ROLES} | reader
    editor = {"engine": "rule", "ending": "now"}
    toy.params(datasets__toy__reader=block, datasets__toy__editor=editor, compute={"device": "cpu", "requests": 1})


def job() -> ReadingJob:
    made = reading_job("toy", params.load())
    assert made is not None
    return made


def shown(seen: Seen) -> tuple[list[str], str]:
    """The colours of the images of a request, in order, and its text."""
    content = seen.body["messages"][-1]["content"]
    if isinstance(content, str):
        return [], content
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    images = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
    return [colour_of(image) for image in images], content[-1]["text"]


def answering(seen: Seen, before: int) -> Reply:
    return 200, choice(json.dumps({role: [f"{' and '.join(shown(seen)[0])} {role}"] for role in ROLES})), {}


def run(server: VisionServer) -> list[tuple[list[str], str]]:
    """Run the stage; what the reader got."""
    server.run(answering)
    edits.write("toy", params.load())
    return [shown(seen) for seen in server.seen]


def test_both_images_are_sent_in_order_and_one_image_as_before(toy: Workspace, server: VisionServer) -> None:
    prepare(toy, server, "green.png", "", "white.png")
    seen = run(server)
    assert [images for images, _ in seen] == [["red", "green"], ["blue"], ["black", "white"]]
    assert [text for _, text in seen[:2]] == [f"{BOTH}\nInstruction: is green", "Instruction: is yellow"]
    table = pl.read_parquet("cache/toy/edits/*.parquet")
    assert table["target"].to_list() == [["red and green target"], ["blue target"], ["black and white target"]]


def test_a_query_with_one_image_has_the_key_it_had_and_another_second_image_is_another_row(
    toy: Workspace, server: VisionServer
) -> None:
    prepare(toy, server)
    before, recipe = job().wanted()["key"].to_list(), job().recipe()
    assert len(run(server)) == 3
    prepare(toy, server, "", "", "")
    assert job().wanted()["key"].to_list() == before and job().recipe() == recipe and run(server) == []
    prepare(toy, server, "green.png", "", "")
    assert [images for images, _ in run(server)] == [["red", "green"]]
    assert job().wanted()["key"].to_list()[1:] == before[1:]
    prepare(toy, server, "yellow.png", "", "")
    assert [images for images, _ in run(server)] == [["red", "yellow"]]
    prepare(toy, server, "green.png", "", "red.png")
    assert [images for images, _ in run(server)] == [["black", "red"]]
    prepare(toy, server)
    assert run(server) == []


def test_a_text_model_reads_the_captions_of_both(toy: Workspace, server: VisionServer) -> None:
    prepare(toy, server, "green.png", "", "", sees="captions", captions=2)
    (images, text), (_, other), _ = run(server)
    both = ", ".join((DISC_CAPTIONS["red.png"][0], DISC_CAPTIONS["green.png"][0]))
    assert images == [] and text == f"Image Content: {both}\nInstruction: is green"
    assert "Image Content: a blue circle on a grey background, a blue circle\n" in other


def test_a_server_that_takes_one_image_gives_a_status(toy: Workspace, server: VisionServer) -> None:
    def one_image(seen: Seen, before: int) -> Reply:
        if len(shown(seen)[0]) > 1:
            return error(400, "At most 1 image(s) may be provided in one prompt.")
        return answering(seen, before)

    prepare(toy, server, "green.png", "", "")
    server.run(one_image)
    edits.write("toy", params.load())
    table = pl.read_parquet("cache/toy/edits/*.parquet")
    assert table["reader_status"].to_list()[1] == "ok" and "At most 1 image" in table["reader_status"][0]
    assert table["target"].to_list()[0] == []


@pytest.mark.parametrize(
    ("message", "advice"),
    [("At most 1 image(s) may be provided in one prompt.", True), ("at most 1 images", True), ("broken", False)],
)
def test_the_error_of_a_model_in_vllm_that_takes_one_image_names_what_to_do(message: str, advice: bool) -> None:
    reader = VllmReader.__new__(VllmReader)
    reader.settings = VllmReaderSettings(model="m", roles={"target": 1})
    line = str(reader._failed(ValueError(message)))
    assert message in line and ("set second_reference: ignore" in line) == advice and "\n" not in line
