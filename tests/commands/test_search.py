"""`cvsi search`: options to one query, tables that fit, JSON and pages; what is wrong is one line."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from cvsi.commands import search
from cvsi.commands.main import app
from cvsi.core import params
from cvsi.core.console import plain
from cvsi.core.errors import CvsiError
from cvsi.evaluation.report.thumbnails import thumbnail
from cvsi.explorer import client
from cvsi.explorer.engine import Engine
from cvsi.explorer.requests import Answer, Request
from cvsi.explorer.requests import Result as Found
from tests.conftest import Workspace, environment
from tests.explorer.conftest import COPY, made, run

__all__ = ["made", "run"]  # fixtures


def cvsi(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["search", "toy-tiny", *arguments], input=stdin)


def results(*arguments: str) -> list[dict[str, Any]]:
    done = cvsi(*arguments, "--json")
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert list(content) == ["results"]
    return content["results"]  # type: ignore[no-any-return]


def test_the_json_of_a_query_of_the_dataset_is_that_of_scores(run: Workspace) -> None:
    found = results("--image", "red.png", "is green", "-k", "100")
    rows = pl.read_parquet("cache/toy/tiny/scores/rankings.parquet").filter(split="val")
    rows = rows.filter(pl.col("query_id") == rows["query_id"][0])
    assert [row["image_id"] for row in found] == rows["image_id"].to_list()
    assert [row["rank"] for row in found] == rows["rank"].to_list()
    assert [row["score"] for row in found] == pytest.approx(rows["score"].to_list(), abs=1e-6)
    assert all(set(row) == {"rank", "image_id", "path", "score"} for row in found)
    assert all((Path("photos") / row["path"]).exists() for row in found)


@pytest.mark.parametrize(
    "arguments",
    [("--image", "photos/red.png", "is green"), ("is green", "--image", "red.png"),
     ("--text", "is green", "--image", "red.png")],
)  # fmt: skip
def test_a_query_can_be_given_in_several_ways(run: Workspace, arguments: tuple[str, ...]) -> None:
    assert results(*arguments) == results("--image", "red.png", "is green")


@pytest.mark.parametrize(
    "arguments", [("--text", "a green disc"), ("a green disc",), ("--like", "red.png"), ("--like", "photos/red.png"),
                  ("--image", "red.png", "is new", "--edited", "a disc", "--edited", "a white disc")]
)  # fmt: skip
@pytest.mark.parametrize("k", [1, 4])
def test_every_kind_of_query_gives_k_images(run: Workspace, arguments: tuple[str, ...], k: int) -> None:
    assert [row["rank"] for row in results(*arguments, "-k", str(k))] == list(range(1, k + 1))


def test_twenty_are_the_default() -> None:
    assert search.Options(text="a").request().k == 20


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "the text is empty"),
        (("",), "the text is empty"),
        (("--text", " \t"), "the text is empty"),
        (("--image", "red.png"), "--image needs a text"),
        (("--image", "red.png", " "), "--image needs a text"),
        (("--image", "red.png", "--like", "red.png"), "--image and --like"),
        (("--image", "red.png", "--like", "red.png", "a"), "--image and --like"),
        (("--like", "red.png", "a"), "--like takes no text"),
        (("--like", "red.png", "--text", "a"), "--like takes no text"),
        (("a", "--text", "b"), "given twice"),
        (("a", "--edited", "b"), "--edited needs --image"),
        (("--like", "red.png", "--edited", "b"), "--edited needs --image"),
        (("--image", "red.png", "a", "--edited", ""), "the text is empty"),
        (("a", "-k", "0"), "k: "),
        (("a", "-k", "-5"), "k: "),
        (("a", "-k", "5000"), "k: "),
        (("a" * 30_000,), "text: "),
        (("--like", "nope.png"), "nope.png: no such file, and no such image of dataset toy"),
        (("--like", "photos"), "photos: not a file"),
        (("--like", "/dev/null"), "/dev/null: not a file"),
        (("--like", "params.yaml"), "params.yaml: the image cannot be read: not an image"),
        (("--like", "empty.png"), "empty.png: the image cannot be read: empty file"),
        (("--like", "half.png"), "half.png: the image cannot be read"),
        (("--image", "half.png", "a"), "half.png: the image cannot be read"),
        (("--like", "x" * 3_000), "image_id: "),
        (("a", "--html", "no/such/folder.html"), "no/such/folder.html: No such file or directory"),
        (("a", "--html", "photos"), "photos: Is a directory"),
    ],
)
def test_bad_input_is_one_line(run: Workspace, arguments: tuple[str, ...], line: str) -> None:
    Path("empty.png").touch()
    Path("half.png").write_bytes(Path("photos/red.png").read_bytes()[:90])
    done = cvsi(*arguments)
    assert isinstance(done.exception, CvsiError), done.output
    assert line in str(done.exception) and "\n" not in str(done.exception)


def test_a_run_that_cannot_be_searched_is_one_line(run: Workspace) -> None:
    done = CliRunner().invoke(app, ["search", "nope", "a"])
    assert str(done.exception) == "params.yaml: no run 'nope'; there are: toy-tiny"
    for stage in ("query_vectors", "gallery_vectors"):
        shutil.rmtree(f"cache/toy/tiny/{stage}")
        assert f"run the stage {stage} first (dvc repro)" in str(cvsi("a").exception)
    Path("params.yaml").unlink()
    assert "params.yaml: no such file" in str(cvsi("a").exception)


def drawn(answer: Answer, width: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width).print(search.table(answer))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 80, 160])
@pytest.mark.parametrize(
    "path", ["a.png", "x" * 300 + ".png", "/".join(["folder"] * 40), "[red]not[/red] markup.png", "a\x1b[31m\nb.png"]
)
def test_a_table_fits_and_keeps_every_name(path: str, width: int) -> None:
    answer = Answer(results=(Found(rank=100, image_id="i", path=path, score=-0.123456),))
    lines = drawn(answer, width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width and "\x1b" not in text
    assert all(word in text for word in ("rank", "file", "score", "100", "-0.1235"))
    shown = "".join(re.sub(r"^ *100|-0\.1235|\s", "", line) for line in lines[3:])
    assert shown.startswith(re.sub(r"\s", "", plain(path)))


def test_a_page_contains_its_pictures_and_escapes_every_text(run: Workspace) -> None:
    done = cvsi("--image", "blue.png", "is <script>alert(1)</script> & {{ 7 * 7 }}", "--html", "page.html")
    assert done.exit_code == 0 and "page.html: written" in done.output
    page = Path("page.html").read_text(encoding="utf-8")
    assert "<script" not in page and "{{ 7 * 7 }}" in page and "a copy of [red] &amp; &lt;b&gt;blue.png" in page
    assert page.count('src="data:image/') == 9 and "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'; img-src data:" in page and COPY not in page


@pytest.mark.parametrize("kind", ["text", "like", "own"])
def test_a_page_shows_the_own_picture_and_survives_a_lost_one(run: Workspace, kind: str) -> None:
    Image.new("RGB", (40, 40), "navy").save("own.png")
    query = {"text": ("a disc",), "like": ("--like", "red.png"), "own": ("--like", "own.png")}[kind]
    Path("photos/green.png").unlink()
    thumbnail.cache_clear()  # of other tests, whose pictures have the same paths
    assert cvsi(*query, "--html", "page.html").exit_code == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/') == (8 if kind == "text" else 9) and page.count(">no picture<") == 1


def test_an_interactive_session_goes_on_after_an_error(run: Workspace) -> None:
    bad = ["", "--frob", '"open -k 3', "--like nope", "-k x a"]
    text = "\n".join(['--image red.png "is green"', *bad, "is white", "--like blue.png -k 2", "exit", "a", ""])
    done = cvsi("--interactive", "-k", "3", "--json", stdin=text)
    assert done.exit_code == 0, done.output
    decoder, rest, answers = json.JSONDecoder(), done.stdout, []
    while rest := rest.strip():
        content, end = decoder.raw_decode(rest)
        answers.append([row["image_id"] for row in content["results"]])
        rest = rest[end:]
    assert [len(answer) for answer in answers] == [3, 3, 2]
    assert "red.png" not in answers[0] + answers[1] and sorted(answers[2]) == [COPY, "blue.png"]
    lines = [line for line in done.stderr.splitlines() if "searched for" not in line]
    assert len(lines) == 4 and all(line.startswith("cvsi: ") for line in lines), lines


def test_an_interactive_session_makes_one_engine(run: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    made_engines, init = [], Engine.__init__

    def counted(engine: Engine, *arguments: Any) -> None:
        made_engines.append(engine)
        init(engine, *arguments)

    monkeypatch.setattr(Engine, "__init__", counted)
    assert cvsi("a disc", "--interactive", stdin="a green disc\na white disc\n").exit_code == 0
    assert len(made_engines) == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("at night", {"words": "at night", "image": "a.png"}),
        ('it\'s "night"', {"words": 'it\'s "night"', "image": "a.png"}),
        ("--text night", {"text": "night", "image": ""}),
        ("--like b.png", {"like": "b.png", "image": ""}),
        ("--image 'b c.png' by day -k 3", {"words": "by day", "image": "b c.png", "k": 3}),
        ("by day --edited 'a beach'", {"words": "by day", "image": "a.png", "edited": ("a beach",)}),
        ("a well-known place", {"words": "a well-known place", "image": "a.png"}),
    ],
)
def test_a_line_of_a_session(line: str, expected: dict[str, Any]) -> None:
    before = search.Options(words="old", image="a.png", k=7, edited=("old",))
    plain = {"words": "", "text": "", "like": "", "edited": (), "k": 7}
    assert search.parsed(line, before) == search.Options(**{**plain, **expected})


class Fixed:
    """A server that answers with one image."""

    def answer(self, wanted: Request) -> Answer:
        return Answer(
            results=(Found(rank=1, image_id="served", path="s.png", score=1),), edited=("e",), status="no answer",
            fell_back=True,
        )  # fmt: skip


def test_a_server_is_used_where_one_runs(run: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "find", lambda name, artifacts: Fixed() if name == "toy-tiny" else None)
    assert results("a disc")[0]["image_id"] == "served"
    assert "gave no usable edit (no answer)" in cvsi("a disc").stderr
    monkeypatch.setattr(search, "MAX_SENT", 10)  # a larger image is not sent
    assert results("--like", "photos/red.png")[0]["image_id"] != "served"


def test_the_side_of_the_user_loads_no_large_library() -> None:
    names = "('torch', 'polars', 'pyarrow', 'PIL', 'starlette', 'uvicorn', 'jinja2', 'numpy')"
    code = f"import sys, cvsi.commands.search; sys.exit(str([name for name in {names} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_ctrl_c_is_one_line(run: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "answer", stop)
    done = cvsi("a disc")
    assert done.exit_code == 130 and done.stderr == "cvsi: stopped\n"


def test_errors_leave_standard_output_empty(run: Workspace) -> None:
    command = [sys.executable, "-c", "from cvsi.commands.main import main; main()", "search", "toy-tiny", "--like", "x"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(run.path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "cvsi: x: no such file, and no such image of dataset toy\n"


def test_serving_bad_input_is_one_line(run: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from cvsi.explorer.server import listen
    from cvsi.explorer.state import ServerState

    with listen(0) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(app, ["serve", "toy-tiny", "--port", str(port)])
        assert isinstance(done.exception, CvsiError) and f"port {port}: " in str(done.exception)
    assert "no run 'nope'" in str(CliRunner().invoke(app, ["serve", "nope"]).exception)
    other = ServerState.of("toy-tiny", 9, "t" * 43, "")
    monkeypatch.setattr(client, "running", lambda name: other)
    assert "is served already, on port 9" in str(CliRunner().invoke(app, ["serve", "toy-tiny"]).exception)
    monkeypatch.undo()
    monkeypatch.chdir(run.path)
    shutil.rmtree("cache/toy/tiny/gallery_vectors")
    assert "gallery_vectors first (dvc repro)" in str(CliRunner().invoke(app, ["serve", "toy-tiny"]).exception)
    assert params.load().run("toy-tiny")
