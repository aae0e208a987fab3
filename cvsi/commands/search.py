"""Options of `cvsi search` to a request, and an answer to a table, JSON or a page.

A server of the run answers where one runs (`cvsi serve`), else this process does, with the models that it needs.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, TextIO

import typer
from rich.console import Console

from cvsi.commands.layout import Table
from cvsi.core.console import encodable_json, info, warn
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params
from cvsi.explorer import client, state
from cvsi.explorer.requests import MAX_SENT, UNREADABLE, Answer, Request, Searcher, file_bytes, request

ENDS, SEARCHED = ("exit", "quit"), "searched for"


@dataclass(frozen=True)
class Options:
    """The request, in the words of the command line."""

    words: str = ""
    image: str = ""
    text: str = ""
    like: str = ""
    edited: tuple[str, ...] = ()
    k: int = 20

    @property
    def given(self) -> bool:
        """Whether there is a query among them; `--image` alone only begins an interactive session."""
        return bool(self.words or self.text or self.like or self.edited)

    def request(self) -> Request:
        """The checked request; raises CvsiError with one line for options that do not go together."""
        if self.image and self.like:
            raise CvsiError("--image and --like: give one of the two (--image with a text, --like alone)")
        if self.words and self.text:
            raise CvsiError("the text is given twice, as an argument and with --text; give one of the two")
        text = self.words or self.text
        if self.like and text:
            raise CvsiError("--like takes no text; use --image for an image that a text changes")
        if self.edited and not self.image:
            raise CvsiError("--edited needs --image and the text of the change")
        if self.image and not text.strip():
            raise CvsiError("--image needs a text that says what changes; --like searches by an image alone")
        if not (self.like or text.strip()):
            raise CvsiError("the text is empty; give a text, --image FILE with a text, or --like FILE")
        kind = "like" if self.like else "composed" if self.image else "text"
        return request(kind=kind, text=text, edited=self.edited, k=self.k, **_image(self.image or self.like))


class Search:
    """A run that answers requests: by its server where one runs, else by an engine in this process."""

    def __init__(self, run: str, params: Params) -> None:
        """Check that the run exists."""
        self.run, self.params = run, params
        self._engine: Searcher | None = None
        self.served, self.best = False, ""  # of the last answer: whether a server gave it, and the best image
        self.dataset = params.run(run).dataset
        self.root = Path(params.dataset(self.dataset).root)

    def answer(self, wanted: Request) -> Answer:
        """The answer; what is printed meanwhile goes to standard error."""
        with redirect_stdout(sys.stderr):
            answer = self._searcher(wanted).answer(wanted)
        self.served = self._engine is None
        self.best = answer.results[0].image_id if answer.results else ""
        return answer

    def _searcher(self, wanted: Request) -> Searcher:
        if self._engine is not None:
            return self._engine
        if len(wanted.image) <= MAX_SENT:
            server = client.find(self.run, state.artifacts(self.run, self.params))
            if server is not None:
                return server
        from cvsi.explorer.engine import Engine  # a second of imports that a server spares

        self._engine = Engine(self.run, self.params)
        return self._engine


def table(answer: Answer) -> Table:
    """Ranks, files and scores, for any width."""
    shown = Table().figures("rank", key=True).texts("file").figures("score")
    for result in answer.results:
        shown.add_row(str(result.rank), result.path, f"{result.score:.4f}")
    return shown


def results_json(answer: Answer, indent: int | None = 2) -> str:
    """The results as JSON for other programs."""
    return encodable_json(json.dumps(answer.model_dump(include={"results"}), indent=indent, ensure_ascii=False))


def remarks(answer: Answer) -> Iterator[str]:
    """Lines on the edit and the reading: what was searched for, and a warning where there is no usable answer."""
    if answer.fell_back:
        yield f"the language model gave no usable edit ({answer.status}); the captions of the image were used"
    elif answer.status:
        yield f"{SEARCHED}: {'; '.join(dict.fromkeys(answer.edited))}"
    if answer.roles and any(answer.roles.values()):
        yield "read: " + "; ".join(f"{role}: {', '.join(texts)}" for role, texts in answer.roles.items() if texts)
    elif answer.reader_status:
        yield f"the reader gave no usable texts ({answer.reader_status}); its roles count as empty"
    if not answer.results:
        yield "the gallery has no image to rank"


def lines(stream: TextIO, prompt: bool) -> Iterator[str]:
    """The lines of a session that are not blank; it ends with the stream, or with `exit`."""
    while True:
        if prompt:
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = stream.readline()
        if not line or line.strip() in ENDS:
            return
        if line.strip():
            yield line


class _Parser(argparse.ArgumentParser):
    """A parser whose errors do not end the process."""

    def error(self, message: str) -> NoReturn:
        raise CvsiError(message)


def parsed(line: str, before: Options) -> Options:
    """A line as options: a text without an image belongs to the image before, all else is as in the shell."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    for name in ("--image", "--text", "--like"):
        parser.add_argument(name, default="")
    parser.add_argument("--edited", action="append", default=[])
    parser.add_argument("-k", type=int, default=before.k)
    words = shlex.split(line) if " -" in f" {line}" else [line.strip()]
    given = parser.parse_args(words)
    image = given.image or ("" if given.text or given.like else before.image)
    return replace(
        before, words=" ".join(given.words), image=image, text=given.text, like=given.like,
        edited=tuple(given.edited), k=given.k,
    )  # fmt: skip


def _image(name: str) -> dict[str, object]:
    """A file's bytes where the name is a file's, else an image's id of the dataset."""
    if not name:
        return {}
    try:
        is_path = Path(name).exists()
    except (OSError, ValueError):  # a name too long, or with a character that no file has
        is_path = False
    return {"image": file_bytes(Path(name))} if is_path else {"image_id": name}


def show(session: Search, options: Options, console: Console, as_json: bool, page: Path | None) -> None:
    """Answer one query and print it, as a table or as JSON; write the page where one is wanted."""
    wanted = options.request()
    try:
        answer = session.answer(wanted)
    except CvsiError as error:
        if wanted.image and str(error).startswith(UNREADABLE):
            raise CvsiError(f"{options.image or options.like}: {error}") from None
        raise
    if as_json:
        typer.echo(results_json(answer))
    else:
        console.print(table(answer))
    for line in remarks(answer):
        # JSON is all that standard output has, for other programs.
        (warn if as_json or not line.startswith(SEARCHED) else info)(line)
    if page is not None:
        from cvsi.explorer.page import write

        write(page, session.run, session.dataset, session.root, wanted, answer)
        (warn if as_json else info)(f"{page}: written")


def loop(session: Search, options: Options, console: Console, as_json: bool, page: Path | None) -> None:
    """Answer queries from standard input until it ends; an error is one line, and the session goes on.

    A line is a text for the image of the last query that was answered, or has options as in the shell.
    """
    if sys.stdin.isatty():
        info("one query per line: a text, or options as in the shell; exit or Ctrl-D ends")
    before = options
    for line in lines(sys.stdin, sys.stdin.isatty()):
        try:
            wanted = parsed(line, before)
            show(session, wanted, console, as_json, page)
            before = wanted
        except (CvsiError, OSError, ValueError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            warn(str(error))
