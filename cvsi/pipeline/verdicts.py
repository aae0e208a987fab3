"""The first images of a run's rankings to verdicts: the table `verdicts`, one row per query and candidate.

The candidates of a query are the first images of its ranking, then the members of its group that are not among them.
Each distinct pair of images with its instruction is judged once. The store keeps what the judge's first token could
have been, with probabilities; the table is computed from that.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import polars as pl
import pyarrow as pa

from cvsi.core import parquet, paths, provenance, tables
from cvsi.core.console import count, info, warn
from cvsi.core.devices import device_kind, precision
from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.params import PATH, Params
from cvsi.core.schema import QUERIES, RANKINGS, STORED_VERDICTS, VERDICTS, images_schema
from cvsi.core.statuses import counts
from cvsi.models.editor import FAILED, FILTERED, REFUSED, TOO_LONG, Answer, Unfinished
from cvsi.models.engines import judge_engine, judge_of
from cvsi.models.judge import ROUNDING, Judge, JudgeSettings, Question, Verdict, normalised
from cvsi.pipeline.image_loader import ImageLoader
from cvsi.pipeline.prompting import few_shot
from cvsi.pipeline.stored_answers import LONGEST_FINISH, storable
from cvsi.store.jobs import BlockWorker, Interrupted, RowJob, Words
from cvsi.store.kinds import CODE_VERSIONS
from cvsi.store.missing import compute_missing
from cvsi.store.rows import Store

PLACEHOLDER = re.compile(r"\{(reference|instruction|candidate|yes|no)\}")
ON_CANVAS = {"reference": "the picture on the left", "candidate": "the picture on the right"}
SYSTEM = "System:"
LONGEST_TOKEN = 200  # characters of a token that are stored
LAST = 1 << 20  # the order of a group's members is after all ranks
KEY = ["split", "query_id"]
CROPS = ("reference_crop", "candidate_crop")  # where images are parts of files


class Texts(NamedTuple):
    """The texts of a question: before the reference image, between both images, and of the system message if any."""

    before: str
    between: str
    system: str


@dataclass(frozen=True)
class VerdictJob(RowJob):
    """The verdicts of a rerank, by the digests of both images and the instruction; `prompt` is the question's text."""

    kind: ClassVar[str] = "verdicts"
    words: ClassVar[Words] = Words("pair", "to judge", "judged")

    dataset: str
    backbone: str
    root: Path
    settings: JudgeSettings
    prompt: str
    top: int

    @property
    def schema(self) -> pa.Schema:
        """`key`, the reported `tokens` with their `logprobs`, and `finish`."""
        return STORED_VERDICTS

    @property
    def block_rows(self) -> int:
        """As many pairs as the engine gets at once."""
        return self.compute.verdict_batch

    @property
    def workers(self) -> int:
        """One, where the engine spreads over GPUs by itself."""
        return 1 if judge_engine(self.settings).one_worker else self.compute.workers

    @property
    def memory_advice(self) -> str:
        """The parameters of vLLM's memory."""
        return "compute.gpu_memory or the judge's image_size"

    def recipe(self) -> dict[str, Any]:
        """The judge's own recipe, the question's text and the version of this code; `top` decides no verdict."""
        engine, on = judge_engine(self.settings), device_kind(self.compute)
        facts = engine.recipe(self.settings, precision(self.settings.precision, on), self.store)
        return facts | {"prompt": self.prompt, "code": CODE_VERSIONS[self.kind]}

    def wanted(self) -> pl.DataFrame:
        """Every pair: `key`, digests and paths of both images, and `instruction`.

        The pairs of one reference image are together, and those of one instruction among them: their prompts begin
        alike.
        """
        pairs = self.candidates().with_row_index("number")
        first = pl.col("number").min().over("reference", "instruction")
        ordered = pairs.sort(pl.col("number").min().over("reference"), first, "number")
        columns = ["key", "reference", "reference_path", "candidate", "candidate_path", "instruction"]
        return ordered.select(*columns, *(name for name in CROPS if name in ordered.columns))

    def candidates(self) -> pl.DataFrame:
        """A row per query and candidate, in the order of the table, with what is needed to judge it."""
        images = _images(self.dataset)
        pairs = candidates(self.dataset, self.backbone, self.top, images)
        for role, column in (("reference", "reference_id"), ("candidate", "image_id")):
            renamed = {role: "digest", f"{role}_path": "path"}
            renamed |= {f"{role}_crop": "crop"} if "crop" in images.columns else {}
            files = images.select(pl.col("image_id").alias(column), **renamed)
            pairs = pairs.join(files, on=column, how="left", maintain_order="left")
            if pairs[role].has_nulls():
                image = pairs.filter(pl.col(role).is_null())[column][0]
                raise CvsiError(f"{_index(self.dataset)}/images.parquet: no image {image!r}; run dvc repro")
        inputs = pairs.select("reference", "candidate", "instruction").iter_rows()
        return pairs.with_columns(key=pl.Series([digest(*row) for row in inputs], dtype=pl.String))

    def permanent(self, rows: pa.Table) -> pa.Table:
        """The rows without a failure that may pass."""
        return rows.filter((~pl.Series(rows["finish"]).str.starts_with(FAILED)).to_arrow())

    def load(self, worker: int) -> BlockWorker:
        """Load the judge; each image of a block is read and prepared once."""
        judge = judge_engine(self.settings).load(self.settings, self.compute, worker)
        # An engine that is given all pairs at once, or a server, leaves these cores free meanwhile.
        ahead = judge_engine(self.settings).one_worker

        def prefetch(block: pl.DataFrame) -> tuple[pl.DataFrame, ImageLoader[Any]]:
            images = pl.concat([_images_of(block, role) for role in ("reference", "candidate")])
            images = images.unique("key", keep="first", maintain_order=True)
            return block, ImageLoader(self.root, images, self.compute.image_batch, judge.prepare, ahead)

        return BlockWorker(lambda ready: self._judge(judge, *ready), prefetch)

    def _judge(self, judge: Judge[Any], block: pl.DataFrame, images: ImageLoader[Any]) -> pa.Table:
        """The rows of a block; raises Interrupted with the complete ones where the judge stops early."""
        prepared: dict[str, Any] = {}
        for batch, digests in images.batches():
            prepared |= zip(digests, batch, strict=True)
        questions = []
        for reference, candidate, text in block.select("reference", "candidate", "instruction").iter_rows():
            texts = question_texts(self.prompt, text, self.settings)
            both = prepared[reference], prepared[candidate]
            questions.append(Question(texts.before, both[0], texts.between, both[1], texts.system))
        keys = block["key"].to_list()
        try:
            return _rows(keys, judge.verdicts(questions))
        except Unfinished as end:
            raise Interrupted(_rows(keys, end.answers)) from end.__cause__


def _images_of(block: pl.DataFrame, role: str) -> pl.DataFrame:
    """The images of one role of a block's pairs, as rows to load."""
    crop = {"crop": f"{role}_crop"} if f"{role}_crop" in block.columns else {}
    return block.select(key=role, path=f"{role}_path", **crop)


def verdict_job(name: str, params: Params) -> VerdictJob:
    """The job of a rerank's verdicts; raises CvsiError for a judge's block or a prompt that is wrong."""
    rerank = params.rerank(name)
    settings = judge_of(rerank, name)
    prompt, root = check_prompt(settings), Path(params.dataset(rerank.run.dataset).root)
    run, store = (rerank.run.dataset, rerank.run.backbone), Store(Path(params.store))
    return VerdictJob(params.compute, store, *run, root, settings, prompt, rerank.top)


def write(name: str, params: Params) -> None:
    """Write `cache/<dataset>/<backbone>/verdicts/<name>` from the rankings of the rerank's run.

    Without candidates the table is empty, and no model is identified or loaded.
    """
    job = verdict_job(name, params)
    pairs = job.candidates()
    facts = {"top": job.top, "from": provenance.digests({"scores": None}, job.dataset, job.backbone)}
    if not pairs.height:
        info("no pairs to judge")
        with tables.output("verdicts", job.dataset, job.backbone, facts, name) as out:
            out.shards(VERDICTS.empty_table(), VERDICTS)
        return
    rows, statuses, again = compute_missing(job), list[pl.Series](), 0
    with tables.output("verdicts", job.dataset, job.backbone, {"judge": rows.recipe} | facts, name) as out:
        for part in pairs.iter_slices(parquet.SHARD_ROWS):
            stored = pl.DataFrame(rows.get(part["key"]))
            table = pl.concat([part, verdicts(stored, job.settings.answers)], how="horizontal")
            out.shard(table.to_arrow(), VERDICTS)
            statuses.append(table["status"])
            again += stored.filter(pl.col("finish").str.starts_with(FAILED)).height
    _print(name, pl.concat(statuses), again, params.dataset(job.dataset).fallback_limit)


def candidates(dataset: str, backbone: str, top: int, images: pl.DataFrame) -> pl.DataFrame:
    """The candidates of every query in the order of the table: `query_id`, `split`, `image_id`, `rank`, and the query.

    The first `top` images by rank, then the members of the group that may be ranked and are not among these, with rank
    0. Raises CvsiError for rankings of queries that the index does not have.
    """
    where = str(_index(dataset) / "queries.parquet")
    queries = pl.DataFrame(parquet.fit(tables.read("index", dataset, "queries.parquet"), QUERIES, where))
    queries = queries.with_row_index("row")
    path = paths.folder("scores", dataset, backbone) / "rankings.parquet"
    rankings = pl.DataFrame(parquet.fit(parquet.read_file(path), RANKINGS, str(path)))
    ranked = rankings.filter(pl.col("rank") <= top).join(queries, on=KEY, how="left", maintain_order="left")
    if ranked["row"].has_nulls():
        raise CvsiError(f"{path}: rankings of other queries than the index has; run the stage scores again (dvc repro)")
    ranked = ranked.with_columns(order=pl.col("rank").cast(pl.Int64))
    members = queries.with_columns(image_id="group_ids").explode("image_id").drop_nulls("image_id")
    members = members.filter(~pl.col("image_id").is_in("exclude_ids")).unique(["row", "image_id"], maintain_order=True)
    members = members.join(images.filter("in_gallery"), on="image_id", how="semi", maintain_order="left")
    members = members.join(ranked, on=["row", "image_id"], how="anti", maintain_order="left")
    members = members.with_columns(rank=pl.lit(0, pl.Int32), order=pl.int_range(pl.len()) + LAST)
    columns = ["query_id", "split", "image_id", "rank", "reference_id", "instruction", "row", "order"]
    return pl.concat([ranked.select(columns), members.select(columns)]).sort("row", "order").drop("row", "order")


def verdicts(stored: pl.DataFrame, answers: Sequence[str]) -> pl.DataFrame:
    """`yes` and `status` of stored rows, in order.

    `yes` is the probability of the tokens whose text, stripped and in lower case, is the positive answer, over that of
    both answers; null where neither is among the reported tokens, or where the number of one is no probability.
    """
    token = pl.col("tokens").str.strip_chars().str.to_lowercase()
    logprob = pl.col("logprobs").cast(pl.Float64)
    valid = (logprob <= ROUNDING) & logprob.is_not_nan()
    probability = pl.when(valid).then(logprob.clip(upper_bound=0).exp()).otherwise(0.0)
    rows = stored.with_row_index("row")
    sums = (
        rows.select("row", "tokens", "logprobs")
        .explode("tokens", "logprobs")
        .group_by("row")
        .agg(
            positive=probability.filter(token == normalised(answers[0])).sum(),
            negative=probability.filter(token == normalised(answers[1])).sum(),
            valid=valid.filter(token.is_in([normalised(answer) for answer in answers])).all(),
        )
    )
    both = pl.col("positive") + pl.col("negative")
    shares = rows.select("row", "finish").join(sums, on="row", how="left", maintain_order="left")
    shares = shares.select("finish", share=pl.when((both > 0) & pl.col("valid")).then(pl.col("positive") / both))
    reason = shares.select("share", status=_status(pl.col("finish"), pl.col("share")))
    ok = pl.col("status") == "ok"
    return reason.select(yes=pl.when(ok).then("share").cast(pl.Float32), status="status")


def check_prompt(settings: JudgeSettings) -> str:
    """The text of a judge's prompt; raises CvsiError where there is none of that name, or it is no judge's."""
    prompt = few_shot(settings.prompt)
    question_texts(prompt, "", settings)
    return prompt


def question_texts(prompt: str, instruction: str, settings: JudgeSettings) -> Texts:
    """A prompt's texts around the images, its placeholders replaced; raises CvsiError for a prompt that is wrong.

    On a canvas there is one text, and the images are named by their side. A first paragraph that begins with `System:`
    is the system message.
    """
    names = PLACEHOLDER.findall(prompt)
    once = all(names.count(name) == 1 for name in ("reference", "instruction", "candidate"))
    if not once or not prompt.rstrip().endswith("{candidate}"):
        raise CvsiError(
            f"{PATH}: prompt '{settings.prompt}' is none for a judge: {{reference}}, {{instruction}} and {{candidate}} "
            "must each be in it once, {candidate} at its end"
        )
    words = dict(zip(("yes", "no"), settings.answers, strict=True)) | {"instruction": " ".join(instruction.split())}
    first, _, rest = prompt.partition("\n\n") if prompt.startswith(SYSTEM) else ("", "", prompt)
    if "{reference}" not in rest or "{candidate}" not in rest:
        raise CvsiError(f"{PATH}: prompt '{settings.prompt}' is none for a judge: an image is in its system message")
    system = _filled(first.removeprefix(SYSTEM), words).strip()
    if settings.images == "canvas":
        return Texts(_filled(rest, words | ON_CANVAS).strip(), "", system)
    before, between = rest.split("{reference}")
    between = between.rstrip().removesuffix("{candidate}")
    return Texts(_filled(before, words).strip(), _filled(between, words).strip(), system)


def _filled(text: str, words: Mapping[str, str]) -> str:
    """A text with its placeholders replaced, all at once: an instruction may contain what looks like one."""
    return PLACEHOLDER.sub(lambda match: words[match[1]], text)


def _status(finish: pl.Expr, share: pl.Expr) -> pl.Expr:
    """The status of each row from its finish reason, and from whether an answer was among the reported tokens."""
    return (
        pl.when(finish.str.starts_with(FAILED))
        .then("no answer: " + finish.str.strip_prefix(FAILED))
        .when(finish.str.starts_with(REFUSED))
        .then(finish)
        .when(finish == FILTERED)
        .then(pl.lit("refused: content filter"))
        .when(finish == TOO_LONG)
        .then(pl.lit(TOO_LONG))
        .when(share.is_null())
        .then(pl.lit("no answer"))
        .otherwise(pl.lit("ok"))
    )


def _rows(keys: Sequence[str], answers: Sequence[Answer | None]) -> pa.Table:
    """The stored rows of the pairs whose answers are there."""
    rows = [
        {
            "key": key,
            "tokens": [storable(token[:LONGEST_TOKEN]) for token in answer.tokens]
            if isinstance(answer, Verdict)
            else [],
            "logprobs": answer.logprobs if isinstance(answer, Verdict) else [],
            "finish": storable(answer.finish)[:LONGEST_FINISH],
        }
        for key, answer in zip(keys, answers, strict=True)
        if answer is not None
    ]
    return pa.Table.from_pylist(rows, STORED_VERDICTS)


def _print(name: str, statuses: pl.Series, again: int, limit: float) -> None:
    """Print how many verdicts have each status, and how many pairs have none."""
    numbers = counts(statuses)
    info("verdicts: " + ", ".join(f"{number:,} {status}" for status, number in numbers.items()))
    if again:
        warn(
            f"{count(again, 'pair')} got no verdict because of failures that may pass; to send them again: "
            f"dvc repro --force --single-item verdicts@{name}"
        )
    if failed := len(statuses) - numbers.get("ok", 0):
        reasons = statuses.filter(statuses != "ok").value_counts(name="n").sort("n", "status", descending=[True, False])
        warn(
            f"{failed:,} of {count(len(statuses), 'pair')} without a verdict, which take the mean of their query; most "
            f"frequent: {reasons['status'][0]} ({reasons['n'][0]:,})",
            red=failed > limit * len(statuses),
        )


def _images(dataset: str) -> pl.DataFrame:
    where = _index(dataset) / "images.parquet"
    table = tables.read("index", dataset, where.name)
    return pl.DataFrame(parquet.fit(table, images_schema(table.column_names), str(where)))


def _index(dataset: str) -> Path:
    return paths.folder("index", dataset)
