"""`cvsi explore` at CIRCO's gallery and 4,000 queries: the server as a process of its own, asked over HTTP.

The vectors are random, with captions, edits, and a report's values for every method. A first split has 220 queries.
"""

import hashlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from threading import Thread
from typing import Annotated, Any

import numpy as np
import polars as pl
import pyarrow as pa
import typer
import yaml
from PIL import Image

from benchmarks import measure, random_vectors
from benchmarks.measure import Case
from cvsi.core import params, parquet, schema
from cvsi.datasets.formats import FORMATS
from cvsi.evaluation import methods

IMAGES, QUERIES, FIRST, WIDTH = 123_403, 4_000, 220, 512
PICTURES, CAPTIONS = 2_300, 15  # of the page without a server
MOVES, METRICS = 60, 3
PROTOCOL = FORMATS.get("circo", "benchmarks").protocol
WORDS = ("a", "red", "dog", "on", "the", "grass", "with", "two", "people", "near", "an", "old", "house", "at", "night")
LIMITS: dict[str, float] = {
    "table": 2,
    "slider, 95th percentile": 0.15,
    "metric of 220": 1,
    "metric of 4,000": 6,
    "cancelled metric": 0.3,
}
MEMORY_MB, PAGE_MB = 1_430, 19  # 1.5 and 20 in thousands of millions


def sentences(random: np.random.Generator, rows: int, words: int) -> list[str]:
    """Random sentences of so many words."""
    chosen = random.integers(len(WORDS), size=(rows, words))
    return [" ".join(WORDS[word] for word in row) for row in chosen]


def world(
    folder: Path, images: int, queries: int, width: int, each: int = 1, parts: Sequence[str] = random_vectors.PARTS
) -> None:
    """The vectors, captions (so many for each image), edits and scores of a run `big-tiny`, without pictures."""
    random_vectors.write(folder, images, queries + FIRST, width, excluded=True, parts=parts, first=FIRST)
    content = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    content["runs"] = {"big-tiny": {"dataset": "big", "backbone": "tiny"}}
    (folder / "params.yaml").write_text(json.dumps(content), encoding="utf-8")
    random, cache = np.random.default_rng(1), folder / "cache" / "big"
    for name in ("captions", "edits"):
        (cache / name).mkdir()
    ids = [str(number) for number in range(images)]
    lines = np.array(sentences(random, images * each, 9)).reshape(images, each).tolist()
    captions = pa.table([ids, ["0" * 64] * images, lines], schema=schema.CAPTIONS)
    for number, start in enumerate(range(0, images, parquet.SHARD_ROWS)):
        part = captions.slice(start, parquet.SHARD_ROWS)
        parquet.write_parquet(part, cache / "captions" / f"part-{number:05d}.parquet")
    keys = pl.read_parquet(cache / "index" / "queries.parquet", columns=["query_id", "split"])
    texts = pl.Series(np.array(sentences(random, keys.height * each, 12)).reshape(keys.height, each).tolist())
    edits = keys.with_columns(
        edited=texts, added=pl.lit("a red ring"), status=pl.lit("ok"), answer_status=pl.lit(["ok"] * each),
        answers=texts, finish=pl.lit(["stop"] * each),
    )  # fmt: skip
    parquet.write_parquet(edits.to_arrow().cast(schema.EDITS), cache / "edits" / "part-00000.parquet")
    measure.process([*measure.script("scores"), "big", "tiny"], folder)


def photographs(folder: Path, images: int) -> None:
    """Pictures of 300 x 200 with large and small structures, whose thumbnails take as much as those of photographs."""
    random, names = np.random.default_rng(2), [f"{number}.jpg" for number in range(images)]
    (folder / "photographs").mkdir()
    digests = []
    for name in names:
        rough, fine = (_structures(random, size) for size in ((5, 7), (50, 75)))
        Image.blend(rough, fine, 0.25).save(folder / "photographs" / name, quality=85)
        digests.append(hashlib.sha256((folder / "photographs" / name).read_bytes()).hexdigest())
    index = folder / "cache" / "big" / "index" / "images.parquet"
    table = pl.read_parquet(index).with_columns(
        path=pl.Series(names), digest=pl.Series(digests), width=pl.lit(300), height=pl.lit(200)
    )
    parquet.write_parquet(table.to_arrow().select(schema.IMAGES.names).cast(schema.IMAGES), index)
    content = json.loads((folder / "params.yaml").read_text(encoding="utf-8"))
    content["datasets"]["big"]["root"] = "photographs"
    (folder / "params.yaml").write_text(json.dumps(content), encoding="utf-8")


def _structures(random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    noise = random.integers(256, size=(*size, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((300, 200), Image.Resampling.BICUBIC)


def static_page(folder: Path) -> tuple[float, int]:
    """The seconds of the stage report at `QUERIES` queries and so many pictures, and the bytes of its page."""
    world(folder, PICTURES, QUERIES - FIRST, WIDTH, CAPTIONS, (*schema.QUERY_PARTS, *schema.ROLES))
    photographs(folder, PICTURES)
    ended = measure.process([*measure.script("report"), "big", "tiny"], folder)
    made = folder / "cache" / "big" / "tiny" / "report"
    files = [made / "explore.html", *(file for file in (made / "explore").rglob("*") if file.is_file())]
    return ended.seconds, sum(file.stat().st_size for file in files)


def report(folder: Path) -> None:
    """The tables of a report: the values of `scores` again for every method, as if each ranked alike."""
    run = folder / "cache" / "big" / "tiny"
    names = list(methods.table(params.load(folder / "params.yaml"), "big"))
    values = pl.read_parquet(run / "scores" / "per_query.parquet")
    rows = pl.concat([values.select(pl.lit(name).alias("method"), pl.all()) for name in names])
    (run / "report").mkdir()
    wanted = schema.per_method(PROTOCOL.names())
    parquet.write_parquet(rows.to_arrow().select(wanted.names).cast(wanted), run / "report" / "methods.parquet")
    metrics = json.loads((run / "scores" / "metrics.json").read_text(encoding="utf-8"))
    splits = {split: dict.fromkeys(names, of_split) for split, of_split in metrics.items()}
    (run / "report" / "weightings.json").write_text(json.dumps({"splits": splits}), encoding="utf-8")


@dataclass(frozen=True)
class Server:
    """A running `cvsi explore`: its port, the path of its token, its process."""

    port: int
    path: str
    pid: int

    def ask(self, path: str, question: Mapping[str, Any] | None = None) -> HTTPResponse:
        """The response to a request, its body not yet read."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=300)
        if question is None:
            connection.request("GET", f"{self.path}{path}")
        else:
            headers = {"content-type": "application/json"}
            connection.request("POST", f"{self.path}{path}", json.dumps(question), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status}: {response.read()[:500]!r}")
        return response

    def seconds(self, path: str, question: Mapping[str, Any] | None = None) -> float:
        """From a request to the end of its answer."""
        began = time.perf_counter()
        content = self.ask(path, question).read()
        if b'"error"' in content[-2000:]:
            raise RuntimeError(f"{path}: {content[-500:]!r}")
        return time.perf_counter() - began

    @property
    def peak(self) -> int:
        """The most memory that the process had, in bytes."""
        facts = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        return int(re.search(r"VmHWM:\s+(\d+) kB", facts)[1]) * 1024  # type: ignore[index]


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """`cvsi explore` in a folder, until the block ends."""
    program = "import sys; from cvsi.commands.main import main; sys.argv = ['cvsi', 'explore', 'big-tiny']; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"COLUMNS": "300"},
    )  # fmt: skip
    try:
        output = ""
        while (found := re.search(r"http://127\.0\.0\.1:(\d+)(/[\w-]+/)", output)) is None:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise RuntimeError(f"cvsi explore ended: {output[-1000:]}")
            output += line
        yield Server(int(found[1]), found[2], process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def fusion(number: int) -> dict[str, Any]:
    """Numbers that no other move has."""
    share = 0.3 + 0.4 * ((number * 37) % 101) / 101
    return {"query": {"edited": share, "pseudo": 1 - share}, "gallery": {"image": 0.7, "caption": 0.3}}


def cancelled(server: Server) -> float:
    """How long a metric that another one replaces goes on."""
    ended: list[float] = []
    response = server.ask("explore/api/big-tiny/metric", {"split": "val", "fusion": fusion(50)})

    def follow() -> None:
        lines = response.read().decode().strip().split("\n")
        ended.append(time.perf_counter())
        assert "cancelled" in lines[-1], lines[-1]

    thread = Thread(target=follow)
    thread.start()
    time.sleep(1)
    began = time.perf_counter()
    server.seconds("explore/api/big-tiny/metric", {"split": "first", "fusion": fusion(51)})
    thread.join()
    return ended[0] - began


def figures(server: Server) -> tuple[dict[str, list[float]], int]:
    """The seconds of everything that the page asks for, and the peak of the process."""
    took = {"table": [sum(server.seconds(f"explore/data/big-tiny/{part}.js") for part in ("run", "queries", "images"))]}
    took["first slider"] = [server.seconds("explore/api/big-tiny/rank", {"row": 0, "fusion": fusion(0)})]
    moves = ({"row": 0, "fusion": fusion(number)} for number in range(1, MOVES + 1))
    ranked = [server.seconds("explore/api/big-tiny/rank", move) for move in moves]
    took["slider, median"] = [statistics.median(ranked)]
    took["slider, 95th percentile"] = [statistics.quantiles(ranked, n=20, method="inclusive")[-1]]
    for split, name in (("first", "metric of 220"), ("val", "metric of 4,000")):
        questions = ({"split": split, "fusion": fusion(number)} for number in range(METRICS))
        took[name] = [statistics.median(server.seconds("explore/api/big-tiny/metric", one) for one in questions)]
    took["cancelled metric"] = [cancelled(server)]
    return took, server.peak


def main(
    images: Annotated[int, typer.Option(help="Images of the gallery.")] = IMAGES,
    queries: Annotated[int, typer.Option(help="Queries of the larger split.")] = QUERIES,
) -> None:
    """Measure the page's requests and the server's memory."""
    with tempfile.TemporaryDirectory() as name:
        world(Path(name), images, queries, WIDTH)
        report(Path(name))
        with served(Path(name)) as running:
            took, peak = figures(running)
    with tempfile.TemporaryDirectory() as name:
        seconds, size = static_page(Path(name))
    server, page = "server, with its most memory", "stage report, with the size of its page"
    case = Case(
        "explorer", took | {server: [sum(map(sum, took.values()))], page: [seconds]},
        f"{queries:,} queries and {FIRST}, {images:,} images, d = {WIDTH}; the server over HTTP",
        {server: peak, page: size}, most_seconds=LIMITS, most_mb={server: MEMORY_MB, page: PAGE_MB},
    )  # fmt: skip
    measure.publish("explorer", [case], pictures=PICTURES, captions=CAPTIONS)


if __name__ == "__main__":
    measure.run(main)
