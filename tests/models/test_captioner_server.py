"""The captioner engine `server` itself: settings, recipe, seeds, and the images that are sent."""

import base64
import io
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, PngImagePlugin

from cvsi.core import images
from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.params import Compute
from cvsi.models import server_client
from cvsi.models.captioner_server import ENGINE, PROMPT, ServerCaptioner, ServerCaptionerSettings, seed_of
from cvsi.models.editor import STOPPED, Answer, Unfinished
from cvsi.models.engines import captioner_settings
from cvsi.models.image_data import data_url
from cvsi.pipeline.captions import CaptionJob
from cvsi.store.rows import Store
from tests.vision_server import ADJECTIVES, Reply, Seen, choice, error, good, serving

BLOCK = {"engine": "server", "address": "http://localhost:11434/v1", "model": "gemma3:4b"}
CHANGES: dict[str, Any] = {
    "model": "other", "revision": "r", "n": 2, "temperature": 0.5, "top_p": 0.5, "max_tokens": 9, "seed": 1,
    "prompt": "What is this?", "image_size": 512, "send_temperature": False, "send_top_p": False, "send_seed": False,
    "chat_template_kwargs": {"enable_thinking": False},
}  # fmt: skip


def settings(**changes: Any) -> ServerCaptionerSettings:
    return captioner_settings(BLOCK | changes, "captioner")  # type: ignore[return-value]


def recipe(**changes: Any) -> dict[str, Any]:
    return CaptionJob(Compute(device="cpu"), Store(Path("none")), "toy", Path(), settings(**changes)).recipe()


def picture(wide: int = 300, high: int = 200, colour: str = "red") -> Image.Image:
    image = Image.new("RGB", (wide, high), "grey")
    ImageDraw.Draw(image).rectangle((10, 10, wide - 10, high - 10), fill=colour)
    return image


def sent(url: str) -> tuple[bytes, Image.Image]:
    content = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"), validate=True)
    return content, Image.open(io.BytesIO(content))


def test_the_short_block_is_complete() -> None:
    made = settings(n=3)
    assert made.prompt == PROMPT and (made.n, made.image_size, made.seed, made.temperature) == (3, 768, 0, 1.0)
    assert settings().n == 3


def test_each_setting_is_in_the_recipe_but_those_that_change_no_caption() -> None:
    neutral: dict[str, Any] = {"address": "http://b/v1", "max_tokens_as": "max_completion_tokens", "precision": "bf16"}
    assert {*CHANGES, *neutral, "engine"} == set(ServerCaptionerSettings.model_fields)
    digests = [digest(recipe(**{name: value})) for name, value in CHANGES.items()]
    assert len({*digests, digest(recipe())}) == len(CHANGES) + 1
    assert recipe(**neutral) == recipe()
    assert all(isinstance(value, str | int | float | bool | None) for value in recipe(**CHANGES).values())


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"n": 0}, "captioner.n: "),
        ({"n": 65}, "captioner.n: "),
        ({"address": "localhost:11434/v1"}, "captioner.address: "),
        ({"address": "http://user:key@host/v1"}, "captioner.address: "),
        ({"address": "file:///etc/passwd"}, "captioner.address: "),
        ({"prompt": " \n"}, "captioner.prompt: "),
        ({"prompt": "x" * 5000}, "captioner.prompt: "),
        ({"image_size": 8}, "captioner.image_size: "),
        ({"image_size": 100_000}, "captioner.image_size: "),
        ({"temperature": -0.1}, "captioner.temperature: "),
        ({"temperature": float("nan")}, "captioner.temperature: "),
        ({"temperature": 0}, "temperature is 0, so all 3 captions would be equal; set n: 1"),
        ({"top_p": 0}, "captioner.top_p: "),
        ({"max_tokens": 0}, "captioner.max_tokens: "),
        ({"seed": -1}, "captioner.seed: "),
        ({"max_tokens_as": "tokens"}, "captioner.max_tokens_as: "),
        ({"key": "sk-1"}, "captioner.key: unknown key"),
    ],
)
def test_a_wrong_block_is_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(CvsiError) as raised:
        settings(**changes)
    assert line in str(raised.value) and "\n" not in str(raised.value)


def test_one_caption_needs_no_sampling() -> None:
    assert settings(n=1, temperature=0).temperature == 0
    assert settings(temperature=0, send_temperature=False).n == 3


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        ((300, 200), 768, (300, 200)),  # never scaled up
        ((3000, 1500), 768, (768, 384)),
        ((1500, 3000), 768, (384, 768)),
        ((769, 768), 768, (768, 767)),
        ((2000, 2), 768, (768, 1)),
        ((1, 1), 768, (1, 1)),
        ((300, 200), 32, (32, 21)),
    ],
)
def test_an_image_is_sent_within_the_size(size: tuple[int, int], limit: int, expected: tuple[int, int]) -> None:
    assert sent(data_url(Image.new("RGB", size, "red"), limit))[1].size == expected


def test_an_image_is_sent_as_the_same_bytes_without_metadata(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "secret place")
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    picture().save(tmp_path / "a.png", pnginfo=info)
    picture().save(tmp_path / "b.png", exif=exif, dpi=(300, 300), icc_profile=b"secret place" * 20)
    picture().save(tmp_path / "c.jpg", comment=b"secret place", exif=exif)
    first, second, third = (
        sent(images.use((tmp_path / name).read_bytes(), lambda image: data_url(image, 768)))
        for name in ("a.png", "b.png", "c.jpg")
    )
    assert first[0] == second[0] == sent(data_url(picture(), 768))[0]
    assert b"secret" not in first[0] + third[0] and not {"exif", "comment", "icc_profile"} & third[1].info.keys()


def test_an_image_is_sent_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(tmp_path / "a.jpg", exif=exif)
    url = images.use((tmp_path / "a.jpg").read_bytes(), lambda image: data_url(image, 768))
    assert sent(url)[1].size == (200, 300)


def test_seeds_differ_by_setting_image_and_number() -> None:
    seeds = [seed_of(seed, name * 64, number) for seed in (0, 1, 2**53 - 1) for name in "ab" for number in range(5)]
    assert len(set(seeds)) == 30 and all(0 <= seed < 2**31 for seed in seeds)
    assert seed_of(0, "a" * 64, 0) == 221277121


def test_the_engine_answers_image_by_image() -> None:
    with serving() as server:
        captioner = ServerCaptioner(settings(address=server.address), Compute(requests=8))
        prepared = [captioner.prepare(picture(colour=colour)) for colour in ("red", "blue")]
        answers = captioner.answers(prepared, ["a" * 64, "b" * 64])
    expected = [
        f"a {ADJECTIVES[seed_of(0, name * 64, number) % len(ADJECTIVES)]} {colour} picture of 300 by 200 pixels"
        for colour, name in (("red", "a"), ("blue", "b"))
        for number in range(3)
    ]
    assert answers == [Answer(text, STOPPED) for text in expected]


def test_answers_that_arrived_before_the_end_are_kept() -> None:
    with serving(lambda seen, before: good(seen) if len(server.seen) < 5 else error(401, "no")) as server:
        captioner = ServerCaptioner(settings(address=server.address), Compute(requests=1))
        prepared = [captioner.prepare(picture(colour=colour)) for colour in ("red", "blue")]
        with pytest.raises(Unfinished) as end:
            captioner.answers(prepared, ["a" * 64, "b" * 64])
    assert [answer is not None for answer in end.value.answers] == [True] * 4 + [False] * 2
    assert isinstance(end.value.__cause__, CvsiError)


def test_reasoning_in_a_field_of_its_own_is_left_out() -> None:
    with serving(lambda seen, before: (200, choice("a disc", reasoning_content="hm"), {})) as server:
        captioner = ServerCaptioner(settings(address=server.address, n=1), Compute())
        assert captioner.answers([captioner.prepare(picture())], ["a" * 64]) == [Answer("a disc", STOPPED)]


def test_a_server_that_computes_few_at_once_gets_fewer_requests_after_timeouts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server_client, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(server_client, "FIRST_PAUSE", 0.1)
    active, lock = [0], threading.Lock()

    def script(seen: Seen, before: int) -> Reply:
        with lock:
            active[0] += 1
            busy = active[0] > 4
        time.sleep(0.8 if busy else 0.02)
        with lock:
            active[0] -= 1
        return good(seen)

    with serving(script) as server:
        captioner = ServerCaptioner(settings(address=server.address, n=24), Compute(requests=16))
        answers = captioner.answers([captioner.prepare(picture())], ["a" * 64])
    assert len(answers) == 24 and {answer.finish for answer in answers} == {STOPPED}
    assert 1 <= captioner.client.at_once <= 8
    assert f"{server.address}: no answer within 0.5 s; 8 requests at once from now on" in capsys.readouterr().out


def test_check_looks_up_the_server_alone() -> None:
    needed = ENGINE.requirements(settings())
    assert needed.servers == (BLOCK["address"],) and not needed.models and not needed.packages
