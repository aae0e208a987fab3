"""Sixty-four plain pictures with queries and random vectors, and a server that judges by the colours it receives."""

import base64
import hashlib
import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from PIL import Image

from cvsi.core import params, provenance, tables
from cvsi.core.params import Params
from cvsi.core.schema import IMAGES, QUERIES, VERDICTS
from cvsi.evaluation import scores
from cvsi.evaluation.report.build import build as report
from cvsi.pipeline import verdicts as stage
from tests.conftest import Workspace
from tests.stage_inputs import write_captions, write_edits, write_vectors
from tests.vision_server import Reply, Seen, choice

LEVELS = (20, 80, 140, 200)
COLOURS = list(itertools.product(LEVELS, repeat=3))
IDS = [str(100 + number) for number in range(len(COLOURS))]
Distribution = Sequence[tuple[str, float]]  # the alternatives for the first token, with their probabilities


def make_world(toy: Workspace, groups: bool = False, queries: int = 30, hidden: int = 4, seed: int = 1) -> Params:
    """The index and the scores of such a dataset, and its parameters; with groups, it is one of CIRR."""
    random, root = np.random.default_rng(seed), toy.path / "plain"
    root.mkdir()
    for name, colour in zip(IDS, COLOURS, strict=True):
        Image.new("RGB", (24, 16), colour).save(root / f"{name}.png")
    images = pl.DataFrame(
        {
            "image_id": IDS,
            "path": [f"{name}.png" for name in IDS],
            "digest": [hashlib.sha256((root / f"{name}.png").read_bytes()).hexdigest() for name in IDS],
            "width": 24,
            "height": 16,
            "in_gallery": True,
        }
    )
    rows = [query_row(random, number, number >= queries, groups) for number in range(queries + hidden)]
    with tables.output("index", "toy") as out:
        out.table("images.parquet", images.to_arrow(), IMAGES)
        out.table("queries.parquet", pa.Table.from_pylist(rows, QUERIES), QUERIES)
    write_vectors(["edited", "pseudo"])
    toy.params(datasets__toy__format="cirr" if groups else "circo", datasets__toy__root="plain")
    toy.params(compute={"device": "cpu", "requests": 4})  # more at once would overflow the small server's queue
    settings = params.load()
    scores.build("toy", "tiny", settings)
    return settings


def query_row(random: np.random.Generator, number: int, hidden: bool, groups: bool) -> dict[str, Any]:
    """A query with one target and a group, or with up to four targets."""
    chosen = [IDS[place] for place in random.choice(len(IDS), 8, replace=False)]
    targets = chosen[1 : 2 if groups else 2 + number % 4]
    return {
        "query_id": str(number), "split": "test" if hidden else "val", "reference_id": chosen[0],
        "instruction": f"as request {number}", "target_ids": [] if hidden else targets,
        "exclude_ids": chosen[:1] if groups else [], "group_ids": chosen[:6] if groups else [],
        "aspects": ["odd" if number % 2 else "even"],
    }  # fmt: skip


def with_rerank(toy: Workspace, address: str, top: int = 25, mix: float = 1, **judge: Any) -> Params:
    """The parameters with a rerank `second` whose judge is a server."""
    block = {"engine": "server", "address": address, "model": "m"} | judge
    run = {"dataset": "toy", "backbone": "tiny"}
    toy.params(judges={"j": block}, reranks={"second": {"run": run, "judge": block, "top": top, "mix": mix}})
    return params.load()


def image_of(url: str) -> str:
    """The id of the picture in a data URL, by its colour."""
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    pixel = np.asarray(image.convert("RGB"), dtype=float).mean(axis=(0, 1))
    distances = [sum((a - b) ** 2 for a, b in zip(pixel, colour, strict=True)) for colour in COLOURS]
    return IDS[int(np.argmin(distances))]


def pair_of(seen: Seen) -> tuple[str, str, str]:
    """Reference, candidate and instruction of a request."""
    content = seen.body["messages"][-1]["content"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    assert content[-1]["type"] == "image_url" and len(urls) == 2
    text = "\n".join(part["text"] for part in content if part["type"] == "text")
    (line,) = [line for line in text.splitlines() if line.startswith("Instruction: ")]
    return image_of(urls[0]), image_of(urls[1]), line.removeprefix("Instruction: ")


def first_token(alternatives: Distribution, finish: str = "length") -> dict[str, Any]:
    """A chat completion whose first token has these alternatives, the first of which is drawn."""
    listed = [
        {"token": token, "logprob": math.log(p) if p else -9999.0, "bytes": list(token.encode())}
        for token, p in alternatives
    ]
    answer = choice(alternatives[0][0], finish)
    answer["choices"][0]["logprobs"] = {"content": [listed[0] | {"top_logprobs": listed}], "refusal": None}
    return answer


def judging(verdict: Callable[[str, str, str], Distribution]) -> Callable[[Seen, int], Reply]:
    """A script that answers by reference, candidate and instruction."""
    return lambda seen, before: (200, first_token(verdict(*pair_of(seen))), {})


def targets() -> Mapping[str, list[str]]:
    """The targets of each labelled query by its instruction."""
    queries = pl.DataFrame(tables.read("index", "toy", "queries.parquet")).filter(pl.col("split") == "val")
    return dict(queries.select("instruction", "target_ids").iter_rows())


def oracle() -> Callable[[str, str, str], Distribution]:
    """A judge that knows the targets."""
    known = targets()

    def verdict(reference: str, candidate: str, instruction: str) -> Distribution:
        p = 0.97 if candidate in known.get(instruction, []) else 0.03
        return [(" Yes", p), ("No", 1 - p)] if p > 0.5 else [("no", 1 - p), ("yes", p)]

    return verdict


def write_verdicts(toy: Workspace, top: int, yes: Any, name: str = "second") -> pl.DataFrame:
    """The table of verdicts as another program may write it, with `yes` by row number; the parameters must be there."""
    images = pl.DataFrame(tables.read("index", "toy", "images.parquet"))
    pairs = stage.candidates("toy", "tiny", top, images)
    values = [yes(number) for number in range(pairs.height)]
    status = ["no answer" if value is None else "ok" for value in values]
    made = pairs.with_columns(yes=pl.Series(values, dtype=pl.Float32), status=pl.Series(status, dtype=pl.String))
    with tables.output(
        "verdicts",
        "toy",
        "tiny",
        {"judge": {"model": "m", "code": 1}, "top": top, "from": provenance.digests({"scores": None}, "toy", "tiny")},
        name,
    ) as out:
        out.shards(made.to_arrow(), VERDICTS)
    return made


def make_report(settings: Params) -> None:
    """The report of the run, with captions and edits that name nothing."""
    write_captions({name: [f"a plain picture {name}"] for name in IDS})
    write_edits()
    report("toy", "tiny", settings)


def bytes_of(folder: Path, *names: str) -> dict[str, bytes]:
    """The bytes of files below a folder."""
    return {name: (folder / name).read_bytes() for name in names}
