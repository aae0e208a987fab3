"""The verdicts of a dataset's reranks to rows of a pack: tokens with their probabilities, by the key of a pair.

The table of a rerank has the probability of yes alone, so the rows are those of the store. Reranks whose judges have
the same recipe share their rows; a pack has those of one judge.
"""

from pathlib import Path
from typing import Any

import polars as pl

from cvsi.core import paths, tables
from cvsi.core.console import count, warn
from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params
from cvsi.core.schema import STORED_VERDICTS
from cvsi.pipeline.verdicts import VerdictJob, verdict_job, verdicts
from cvsi.store.rows import RowStore

KEYS = ["query_id", "split", "image_id", "rank"]


def chosen(name: str, params: Params, rerank: str) -> list[str]:
    """The reranks of a dataset whose verdicts are packed: those with an output, or the one that is named.

    Raises CvsiError where their judges have different recipes, since a pack has the verdicts of one.
    """
    if rerank:
        if params.rerank(rerank).run.dataset != name:
            raise CvsiError(f"--rerank {rerank}: a rerank of {params.rerank(rerank).run.dataset}, not of {name}")
        return [rerank]
    names = [one for one in params.reranks_of(name) if _folder(one, params).is_dir()]
    recipes = {digest(recipe(one, params)): one for one in reversed(names)}
    if len(recipes) > 1:
        raise CvsiError(
            f"{name}: the judges of its reranks differ ({', '.join(sorted(recipes.values()))}), and a pack has the "
            "verdicts of one; name one with --rerank"
        )
    return names


def recipe(rerank: str, params: Params) -> dict[str, Any]:
    """The recipe of a rerank's judge, as its output has it; raises CvsiError where there is none."""
    folder = _folder(rerank, params)
    if not folder.is_dir():
        raise CvsiError(
            f"{folder}: no such folder; run the stage verdicts first (dvc repro), or pack other rows with --only"
        )
    judge = tables.provenance(folder).get("judge")
    if not isinstance(judge, dict) or not judge:
        raise CvsiError(
            f"{folder}: no judge in its {tables.PROVENANCE}, so the recipe of these rows is unknown; run dvc repro"
        )
    return judge


def rows_of(reranks: list[str], judge: dict[str, Any], params: Params) -> pl.DataFrame:
    """The stored verdicts of some reranks, each once, by key; pairs without one are left out, with a warning.

    A failure that may pass is in no store, so a clone that unpacks the rows sends these pairs again. Raises CvsiError
    where an output is older than the index or the rankings, and where the store has none of the rows.
    """
    rows, pairs = list[pl.DataFrame](), 0
    for rerank in reranks:
        of_rerank, number = _rows(rerank, judge, params)
        rows.append(of_rerank)
        pairs += number
    every = pl.concat(rows).unique("key", maintain_order=True)
    if pairs and not every.height:
        raise CvsiError(
            f"{params.store}: none of the verdicts of {', '.join(reranks)}; only the store has what a pack contains of "
            "them, so pack where they were computed"
        )
    return every.sort("key")


def _rows(rerank: str, judge: dict[str, Any], params: Params) -> tuple[pl.DataFrame, int]:
    """The stored rows of one rerank, and its number of pairs."""
    job, folder = verdict_job(rerank, params), _folder(rerank, params)
    table = pl.DataFrame(tables.whole("verdicts", job.dataset, job.backbone, rerank))
    pairs = job.candidates()
    old = CvsiError(f"{folder}: not made from the present index and rankings; run dvc repro first")
    if not pairs.select(KEYS).equals(table.select(KEYS)):
        raise old
    store = RowStore(Path(params.store), job.kind, judge, STORED_VERDICTS)
    missing = store.missing(pairs["key"])
    there = ~pairs["key"].is_in(missing.implode())
    stored = pl.DataFrame(store.get(pairs["key"].filter(there)))
    if not verdicts(stored, _answers(judge, job)).equals(table.select("yes", "status").filter(there)):
        raise old
    if missing.len() and stored.height:
        number = count(int((~there).sum()), "verdict")
        warn(f"{folder}: {number} of {pairs.height:,} not in the store, so not in the pack; failed pairs are never")
    return stored.unique("key", maintain_order=True), pairs.height


def _answers(judge: dict[str, Any], job: VerdictJob) -> tuple[str, str]:
    """The two answers of the recipe; those of params.yaml may be others meanwhile."""
    words = judge.get("answers")
    return (words["positive"], words["negative"]) if isinstance(words, dict) else job.settings.answers


def _folder(rerank: str, params: Params) -> Path:
    run = params.rerank(rerank).run
    return paths.folder("verdicts", run.dataset, run.backbone, rerank)
