"""The captioner engine `server` through the stage `captions`: vision servers that work, refuse, cut, fail or differ."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

from cvsi.commands import pack, unpack
from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.core.schema import STORED_ANSWERED_CAPTIONS, STORED_CAPTIONS
from cvsi.evaluation import scores
from cvsi.explorer.components import NewQueries
from cvsi.explorer.images import NewImage
from cvsi.models import server_client
from cvsi.models.captioner_server import KEY
from cvsi.models.engines import EDITORS
from cvsi.pipeline import captions, edits, vectors
from tests import toy_engines
from tests.conftest import COLOURS, Workspace
from tests.stage_inputs import write_index
from tests.vision_server import Reply, Script, Seen, VisionServer, choice, error, good, serving

IMAGES = len(COLOURS)


@pytest.fixture(scope="module")
def server() -> Iterator[VisionServer]:
    with serving() as running:
        yield running


class Case:
    """The toy dataset's eight pictures, whose captioner is the server."""

    def __init__(self, toy: Workspace, server: VisionServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.toy, self.server, self.monkeypatch = toy, server, monkeypatch
        write_index()
        self.captioner()

    def captioner(self, requests: int = 1, address: str = "", **changes: Any) -> None:
        block = {"engine": "server", "address": address or self.server.address, "model": "m"} | changes
        self.toy.params(datasets__toy__captioner=block, compute={"device": "cpu", "requests": requests})

    def run(self, script: Script = good) -> pl.DataFrame:
        """Run the stage's function against the script; the table that it wrote."""
        self.server.run(script)
        captions.write("toy", params.load())
        return pl.read_parquet("cache/toy/captions/*.parquet")

    def stored(self) -> int:
        """How many rows the store has."""
        files = list((self.toy.path / "cache/store/captions").rglob("*.parquet"))
        return sum(pl.read_parquet(file).height for file in files)


@pytest.fixture
def case(toy: Workspace, server: VisionServer, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setattr(server_client, "FIRST_PAUSE", 0.0)
    return Case(toy, server, monkeypatch)


def only(colour: str, reply: Reply) -> Callable[[Seen, int], Reply]:
    """A good server but for the pictures of one colour."""
    return lambda seen, before: reply if seen.colour == colour else good(seen)


def texts(table: pl.DataFrame, colour: str) -> list[str]:
    return table.filter(pl.col("image_id") == f"{colour}.png")["captions"][0].to_list()  # type: ignore[no-any-return]


def status(table: pl.DataFrame, colour: str) -> str:
    return str(table.filter(pl.col("image_id") == f"{colour}.png")["status"][0])


def test_each_image_gets_captions_of_its_own_pixels(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.captioner(requests=4)
    table = case.run()
    assert table.columns == ["image_id", "digest", "captions", "status", "answer_status"]
    for number, name in enumerate(table["image_id"]):
        colour, lines = name.removesuffix(".png"), table["captions"][number].to_list()
        high = 48 + 4 * COLOURS.index(colour)
        assert len(lines) == 3 and all(f"{colour} picture of 64 by {high} pixels" in line for line in lines)
    assert table["status"].to_list() == ["ok"] * IMAGES
    assert table["answer_status"].to_list() == [["ok"] * 3] * IMAGES
    assert "captions: 8 ok" in capsys.readouterr().out
    assert len(case.server.seen) == 3 * IMAGES and case.stored() == IMAGES
    assert case.run().equals(table) and not case.server.seen  # every row is in the store


def test_n_captions_are_n_requests_with_seeds_of_their_own(case: Case) -> None:
    case.run()
    seeds = Counter(seen.body["seed"] for seen in case.server.seen)
    assert len(seeds) == 3 * IMAGES and all(0 <= seed < 2**31 for seed in seeds)
    assert all("n" not in seen.body for seen in case.server.seen)


@pytest.mark.parametrize("requests", [1, 7])
def test_a_caption_does_not_depend_on_other_images_or_on_speed(case: Case, requests: int) -> None:
    table = case.run()
    (case.toy.path / "photos" / "green.png").unlink()
    lines = (case.toy.path / "photos" / "queries.jsonl").read_text().replace("green.png", "blue.png")
    (case.toy.path / "photos" / "queries.jsonl").write_text(lines)
    write_index()
    case.captioner(requests=requests)
    case.toy.params(store="cache/other", compute={"device": "cpu", "requests": requests, "caption_batch": 2})
    assert case.run().equals(table.filter(pl.col("image_id") != "green.png"))


def test_what_is_sent(case: Case) -> None:
    case.captioner(prompt="  What is this?\n", temperature=0.7, top_p=0.8, max_tokens=50, image_size=32)
    case.run()
    body, image = case.server.seen[0].body, case.server.seen[0].image
    text, picture = body["messages"][0]["content"]
    assert len(body["messages"]) == 1 and text == {"type": "text", "text": "What is this?"}
    assert picture["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.7, 0.8, 50)
    assert image.format == "JPEG" and max(image.size) == 32
    case.captioner(
        max_tokens_as="max_completion_tokens", send_temperature=False, send_top_p=False, send_seed=False,
        chat_template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    case.run()
    body = case.server.seen[0].body
    assert body["max_completion_tokens"] == 128 and body["chat_template_kwargs"] == {"enable_thinking": False}
    assert not {"max_tokens", "temperature", "top_p", "seed"} & body.keys()


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (error(400, "The response was filtered", code="content_filter"), "refused: content filter"),
        (error(400, "Your request was rejected as a result of our safety system"), "refused: content filter"),
        (error(422, "moderation: prohibited content"), "refused: content filter"),
        ((200, choice("", "content_filter"), {}), "refused: content filter"),
        ((200, choice(None, refusal="I can't help with that."), {}), "refused: I can't help with that."),
        ((200, choice("I'm sorry, but I cannot describe this image."), {}), "refused: the model declines"),
        ((200, choice("No image was provided."), {}), "refused: the model got no image"),
        (error(400, "This model's maximum context length is 4096 tokens"), "too long"),
        (error(500, "the request exceeds the available context size"), "too long"),
        ((200, choice("a red thing on", "length"), {}), "cut: max_tokens reached"),
        ((200, choice("<think>hm", "length"), {}), "cut: max_tokens reached while reasoning"),
        ((200, choice(""), {}), "no answer: empty"),
        ((200, choice("red " * 100_000), {}), "refused: more than 2,000 characters"),
        ((200, choice("<html><body>Sign in</body></html>"), {}), "refused: a tag"),
    ],
)
def test_a_refused_image_keeps_its_status_in_the_store(
    case: Case, reply: Reply, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case.captioner(requests=4)
    table = case.run(only("red", reply))
    assert status(table, "red") == expected and texts(table, "red") == []
    assert Counter(table["status"])["ok"] == IMAGES - 1
    out = capsys.readouterr()
    kind = expected.partition(":")[0]
    assert f"captions: 7 ok, 1 {kind}" in out.out
    assert f"1 image of 8 without a caption (red.png); most frequent: {expected} (1)" in out.err
    assert case.stored() == IMAGES
    assert case.run().equals(table) and not case.server.seen
    files = [file.stat().st_size for file in (case.toy.path / "cache").rglob("*.parquet")]
    assert sum(files) < 200_000


@pytest.mark.parametrize(
    ("text", "finish", "caption", "expected"),
    [
        ('Here is a caption: "A red disc."', "stop", "A red disc.", "repaired: preamble"),
        ("**Caption:** A red disc.", "stop", "A red disc.", "repaired: preamble"),
        ("Image description: a red disc", "stop", "a red disc", "repaired: preamble"),
        ("Sure! Here's one sentence:\n\nA red disc.", "stop", "A red disc.", "repaired: preamble"),
        ("```\nA red disc.\n```", "stop", "A red disc.", "repaired: code"),
        ('{"caption": "A red disc."}', "stop", "A red disc.", "repaired: JSON"),
        ("<think>It is\n\nred.</think>\n\nA red disc.", "stop", "A red disc.", "repaired: reasoning"),
        ("<caption>A red disc.</caption>", "stop", "A red disc.", "repaired: tag"),
        ("A red disc.\n\nLet me know if you need more.", "stop", "A red disc.", "repaired: commentary"),
        ("A red disc. Would you like more details?", "stop", "A red disc.", "repaired: commentary"),
        ("“A red disc”", "stop", "A red disc", "repaired: markup"),
        ("A red disc.   It is\n round and", "length", "A red disc.", "repaired: cut to whole sentences"),
        ("A red   disc\nin  grey.", "stop", "A red disc in grey.", "ok"),
        ("A clock at 12:30.", "stop", "A clock at 12:30.", "ok"),
        ('A sign that says "Sorry, I can\'t".', "stop", 'A sign that says "Sorry, I can\'t".', "ok"),
        ("A page of instructions with a caption.", "stop", "A page of instructions with a caption.", "ok"),
        ([{"type": "text", "text": "A red disc."}], "stop", "A red disc.", "ok"),
    ],
)
def test_what_surrounds_a_caption_is_removed(case: Case, text: Any, finish: str, caption: str, expected: str) -> None:
    case.captioner(n=1)
    table = case.run(only("red", (200, choice(text, finish), {})))
    assert (texts(table, "red"), status(table, "red")) == ([caption], expected)


@pytest.mark.parametrize("text", ["1. a disc\n2. a ball", "Captions:\n- a disc\n- a ball", '["a disc", "a ball"]'])
def test_a_list_is_no_caption(case: Case, text: str) -> None:
    assert status(case.run(only("red", (200, choice(text), {}))), "red") == "refused: a list instead of one caption"


def test_an_image_keeps_the_captions_that_it_got(case: Case) -> None:
    def script(seen: Seen, before: int) -> Reply:
        refused = seen.colour == "red" and sum(other.colour == "red" for other in case.server.seen) == 2
        return error(400, "content_filter") if refused else good(seen)

    table = case.run(script)
    assert status(table, "red") == "refused: content filter" and len(texts(table, "red")) == 2
    assert case.stored() == IMAGES


@pytest.mark.parametrize(
    ("reply", "words", "tries"),
    [
        (error(500, "boom"), "no answer: HTTP 500", 7),
        (error(503, "busy"), "no answer: HTTP 503", 7),
        (error(429, "slow down"), "no answer: HTTP 429", 7),
        (error(400, "could not process image"), "no answer: HTTP 400, ", 1),
        (error(422, "unsupported image format"), "no answer: HTTP 422, ", 1),
        ((200, choice(None) | {"choices": []}, {}), "no answer: an answer that is not in OpenAI's format", 7),
        ((200, {"choices": None}, {}), "no answer: an answer that is not in OpenAI's format", 7),
        ((200, b'{"choices": [{"me', {}), "no answer: an answer that is not in OpenAI's format", 7),
        ((200, b"<html>log in</html>", {"Content-Type": "text/html"}), "no answer: an answer that is not", 7),
        ((200, choice(7), {}), "no answer: an answer that is not in OpenAI's format", 7),
    ],
)
def test_a_failure_that_may_pass_is_not_stored(
    case: Case, reply: Reply, words: str, tries: int, capsys: pytest.CaptureFixture[str]
) -> None:
    table = case.run(only("red", reply))
    assert status(table, "red").startswith(words) and texts(table, "red") == []
    assert sum(seen.colour == "red" for seen in case.server.seen) == 3 * tries
    assert case.stored() == IMAGES - 1
    assert "1 image got too few captions because of failures that may pass" in capsys.readouterr().err
    again = case.run()
    assert again["status"].to_list() == ["ok"] * IMAGES
    assert {seen.colour for seen in case.server.seen} == {"red"}


@pytest.mark.parametrize(
    "reply", [error(429, "slow"), error(503, "busy"), (200, b"{", {}), (200, {"choices": []}, {}), (-1, b"", {})]
)
def test_a_failure_that_passes_leaves_no_trace(case: Case, reply: Reply) -> None:
    clean = case.run()
    case.toy.params(store="cache/other")
    assert case.run(lambda seen, before: good(seen) if before > 1 else reply).equals(clean)


@pytest.mark.parametrize("reply", [(-1, b"", {}), error(500, "down"), error(429, "quota"), (200, b"<html>", {})])
@pytest.mark.parametrize("requests", [1, 4])
def test_a_server_that_breaks_off_ends_the_run_and_captions_that_arrived_are_kept(
    case: Case, reply: Reply, requests: int
) -> None:
    case.captioner(requests=requests)
    case.monkeypatch.setattr(server_client, "IN_A_ROW", 5)
    with pytest.raises(CvsiError) as raised:
        case.run(lambda seen, before: good(seen) if len(case.server.seen) <= 14 else reply)
    assert case.server.address in str(raised.value) and "\n" not in str(raised.value)
    kept = case.stored()
    assert 1 <= kept <= 4
    assert case.run()["status"].to_list() == ["ok"] * IMAGES
    assert len(case.server.seen) == 3 * (IMAGES - kept)


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (error(401, "no"), "the key was refused; set the environment variable CVSI_CAPTIONER_KEY"),
        (error(403, "no"), "the key was refused; set the environment variable CVSI_CAPTIONER_KEY"),
        (error(404, "no"), "no model 'm' there (or no such path); check the captioner in params.yaml"),
        (error(429, "quota", code="insufficient_quota"), "the account's quota is used up"),
        (
            error(400, "Use 'max_completion_tokens' instead"),
            "set max_tokens_as: max_completion_tokens for the captioner",
        ),
        (error(400, "'temperature' does not support 1.0"), "set send_temperature: false for the captioner"),
        (error(400, "Unsupported parameter: top_p is not supported"), "set send_top_p: false for the captioner"),
        (error(422, "seed: extra fields not permitted"), "set send_seed: false for the captioner"),
        (error(400, "the chat template is missing"), "start the server with a chat template"),
    ],
)
def test_what_concerns_every_image_ends_the_run_with_one_line(case: Case, reply: Reply, line: str) -> None:
    with pytest.raises(CvsiError) as raised:
        case.run(lambda seen, before: reply)
    assert line in str(raised.value) and "\n" not in str(raised.value) and "editor" not in str(raised.value)
    assert len(case.server.seen) == 1 and case.stored() == 0


@pytest.mark.parametrize(
    "reply",
    [
        error(400, "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"),
        error(500, "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"),
        error(500, 'Failed to parse messages: Unsupported content part type: "image_url"'),
        error(400, "this model does not support image input"),
        error(400, "m is not a multimodal model"),
        error(400, "At most 0 image(s) may be provided in one prompt."),
        error(404, "No endpoints found that support image input"),
        error(400, "Invalid content type. image_url is only supported by certain models."),
        error(422, "unknown variant `image_url`, expected `text`"),
        error(400, "messages[0].content must be a string"),
        error(500, "this model is missing data required for image input"),
        error(400, "Model does not support images. Please use a model that does."),
        error(501, "Vision is not supported by this server"),
    ],
)
def test_a_server_without_vision_ends_the_run_with_one_line(case: Case, reply: Reply) -> None:
    with pytest.raises(
        CvsiError, match=r"'m' takes no images there .*; name a vision model for the captioner"
    ) as raised:
        case.run(lambda seen, before: reply)
    assert "\n" not in str(raised.value) and len(case.server.seen) == 1


def test_a_complaint_about_one_image_after_good_answers_does_not_end_the_run(case: Case) -> None:
    reply = error(400, "this model does not support images")
    table = case.run(lambda seen, before: good(seen) if len(case.server.seen) < 4 else only("red", reply)(seen, 0))
    assert status(table, "red").startswith("no answer: HTTP 400") and case.stored() == IMAGES - 1


@pytest.mark.parametrize("reply", [(200, choice("I cannot see images."), {}), (200, choice("", "content_filter"), {})])
def test_a_dataset_without_any_caption_is_one_line_and_no_table(case: Case, reply: Reply) -> None:
    with pytest.raises(
        CvsiError, match=r"datasets\.toy\.captioner: none of 8 images got a caption; most frequent: ref"
    ):
        case.run(lambda seen, before: reply)
    assert not Path("cache/toy/captions").exists()


def test_the_key_is_sent_and_is_in_no_file_or_line(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    key = "sk-secret-7f3a"
    case.monkeypatch.setenv(KEY, key)
    case.monkeypatch.setenv("CVSI_EDITOR_KEY", "sk-other")
    case.run(only("red", error(400, f"bad luck with {key}")))
    assert {seen.headers["authorization"] for seen in case.server.seen} == {f"Bearer {key}"}
    with pytest.raises(CvsiError) as raised:
        case.toy.params(store="cache/other")
        case.run(lambda seen, before: error(401, f"Incorrect API key provided: {key}"))
    out = capsys.readouterr()
    assert key not in out.out + out.err + str(raised.value)
    assert not [file for file in case.toy.path.rglob("*") if file.is_file() and key.encode() in file.read_bytes()]


@pytest.mark.parametrize("key", ["a\nb", "schlüssel", "a\rb"])
def test_a_key_that_is_none_is_one_line(case: Case, key: str) -> None:
    case.monkeypatch.setenv(KEY, key)
    with pytest.raises(CvsiError, match=f"^the environment variable {KEY} is no key") as raised:
        case.run()
    assert key not in str(raised.value)


def test_a_server_that_is_down_is_one_line(case: Case) -> None:
    case.monkeypatch.setattr(server_client, "RETRIES", 1)
    with serving() as other:
        address = other.address
    case.captioner(address=address)
    with pytest.raises(CvsiError, match=f"^{address}: no answer after 1 retries; is the server up"):
        case.run()


def test_all_stages_with_an_image_without_captions(case: Case) -> None:
    case.captioner(requests=4)
    case.toy.params(datasets__toy__editor={"engine": "rule", "ending": "now"})
    with EDITORS.using("rule", toy_engines.EDITOR):
        case.run(only("black", (200, choice("", "content_filter"), {})))
        edits.write("toy", params.load())
        vectors.write_gallery("toy", "tiny", params.load())
        vectors.write_queries("toy", "tiny", params.load())
        scores.build("toy", "tiny", params.load())
    lengths = vector_lengths("gallery_vectors", "caption", "image_id")
    assert lengths.pop("black.png") == 0 and min(lengths.values()) > 0.1
    assert min(vector_lengths("gallery_vectors", "image", "image_id").values()) > 0.9
    table = pl.read_parquet("cache/toy/edits/*.parquet")
    assert table["status"].to_list() == ["ok", "ok", "refused: a tag"]
    assert table["edited"][2].to_list() == ["costs $5 & is <b>white</b>"]  # there is no caption to fall back to
    assert vector_lengths("query_vectors", "source", "query_id")["2"] == 0
    assert vector_lengths("query_vectors", "edited", "query_id")["2"] > 0.9
    rankings = pl.read_parquet("cache/toy/tiny/scores/rankings.parquet")
    assert rankings.group_by("query_id").len()["len"].to_list() == [7, 7, 7]


def vector_lengths(stage: str, part: str, key: str) -> dict[str, float]:
    """The length of each vector of a column, by the row's id."""
    table = pl.read_parquet(f"cache/toy/tiny/{stage}/*.parquet").sort(key)
    matrix = np.array(table[part].to_list(), dtype=np.float32)
    return dict(zip(table[key], np.linalg.norm(matrix, axis=1).tolist(), strict=True))


def test_a_search_gets_captions_of_a_new_image(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "new.png"
    Image.new("RGB", (50, 70), "blue").save(path)
    image = NewImage.of(path.read_bytes())
    queries = NewQueries(params.load().run("toy-tiny"), params.load())
    case.server.run(lambda seen, before: error(400, "bad luck"))
    assert queries.captions(image) == []
    case.server.run(good)
    captions_of_image = queries.captions(image)  # what failed is asked for again
    assert len(captions_of_image) == 3 and all("blue picture of 50 by 70" in line for line in captions_of_image)
    case.server.run(good)
    assert queries.captions(image) == captions_of_image and not case.server.seen
    case.captioner(seed=1)
    with pytest.raises(CvsiError, match="the key was refused"):
        case.server.run(lambda seen, before: good(seen) if len(case.server.seen) < 2 else error(401, "no"))
        NewQueries(params.load().run("toy-tiny"), params.load()).captions(image)


@pytest.mark.parametrize("columns", [("raw", "finish"), ()])
def test_captions_of_a_pack_are_used_as_they_are(case: Case, columns: tuple[str, ...]) -> None:
    """`cvsi pack` publishes captions alone; rows with answers are parsed."""
    job = captions.caption_job("toy", params.load())
    keys = job.wanted()["key"].to_list()
    rows: dict[str, Any] = {"key": keys, "captions": [["a disc"]] * 7 + [[]]}
    schema = STORED_ANSWERED_CAPTIONS if columns else STORED_CAPTIONS
    rows |= {"raw": [["Caption: a ball"]] * 8, "finish": [["stop"]] * 8} if columns else {}
    job.store.rows("captions", job.recipe(), schema).append(pa.table(rows, schema=schema))
    table = case.run()
    assert not case.server.seen
    expected = [["a ball"]] * 8 if columns else [["a disc"]] * 7 + [[]]
    assert table["captions"].to_list() == expected
    assert table["status"].to_list() == (
        ["repaired: preamble"] * 8 if columns else ["ok"] * 7 + ["no answer: the store has none"]
    )


def test_a_pack_of_captions_serves_a_store_without_them(case: Case, tmp_path: Path) -> None:
    case.captioner(chat_template_kwargs={"enable_thinking": False})
    table = case.run(only("red", (200, choice("", "content_filter"), {})))
    pack.write("toy", tmp_path / "pack", params.load(), ["captions"])
    case.toy.params(store="cache/other")
    unpack.unpack(tmp_path / "pack", params.load())
    again = case.run()
    assert not case.server.seen and again.select(table.columns[:3]).equals(table.select(table.columns[:3]))
    assert status(again, "red") == "no answer: the store has none" and status(again, "blue") == "ok"


def test_the_stage_s_own_process_prints_lines_and_no_traceback(case: Case) -> None:
    case.server.run(only("red", (200, choice("", "content_filter"), {})))
    text = case.toy.run("captions", "toy")
    assert "captions: 7 ok, 1 refused" in text and "1 image of 8 without a caption (red.png)" in text
    case.toy.params(store="cache/other")
    case.server.run(lambda seen, before: error(400, "image input is not supported"))
    assert case.toy.error("captions", "toy").startswith(
        f"captions toy: {case.server.address}: 'm' takes no images there"
    )
