"""Every named weighting judged on the labelled splits from the same vectors: table, bars with intervals, aspects."""

from collections.abc import Mapping
from typing import Any

from cvsi.core.console import say
from cvsi.core.params import Fusion
from cvsi.evaluation.fusion import needs, weightings
from cvsi.evaluation.scores import Judge, Judged

Table = dict[str, dict[str, dict[str, float]]]


def judge_all(judge: Judge, fusion: Fusion) -> dict[str, Judged]:
    """Rank and judge all weightings that the vectors allow; one that needs a missing part is left out, and said."""
    judged = {}
    for name, weighting in weightings(fusion).items():
        if name == "cvsi" or (judge.labelled and judge.can(weighting)):
            judged[name] = judge.judge(weighting)
        elif judge.labelled:
            say(f"weighting {name} left out: the query vectors lack a part of {', '.join(needs(weighting.query))}")
    return judged


def table(judged: Mapping[str, Judged]) -> Table:
    """`{split: {weighting: {metric: percent}}}`."""
    splits = next(iter(judged.values())).summary
    return {split: {name: outcome.summary[split] for name, outcome in judged.items()} for split in splits}


def bars(rows: Mapping[str, Mapping[str, float]], metric: str) -> list[dict[str, Any]]:
    """One bar a weighting in percent of the widest: value, and low and high of the interval."""
    widest = max(max(values[f"{metric} high"] for values in rows.values()), 1e-9)
    scale = 100 / widest
    return [
        {
            "name": name,
            "value": values[metric],
            "width": values[metric] * scale,
            "low": values[f"{metric} low"] * scale,
            "high": values[f"{metric} high"] * scale,
        }
        for name, values in rows.items()
    ]


def by_aspect(rows: Mapping[str, Mapping[str, float]], metric: str) -> dict[str, list[float]]:
    """`{aspect: [percent of each weighting]}`."""
    names = [name.removeprefix(f"{metric}/") for name in next(iter(rows.values())) if name.startswith(f"{metric}/")]
    return {aspect: [values[f"{metric}/{aspect}"] for values in rows.values()] for aspect in names}
