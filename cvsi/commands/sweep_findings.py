"""What a sweep's figures are worth, as lines, a table and YAML for a terminal of 80 columns or more."""

import shlex
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from cvsi.commands.layout import Table
from cvsi.commands.sweep_grid import Split, Sweep
from cvsi.commands.sweep_noise import Halves, Mean, Noise
from cvsi.core.console import count, plain
from cvsi.evaluation import OWN

WIDTH = 80
INDENT = " " * 4  # of a dataset's keys in params.yaml


def findings(sweep: Sweep, dataset: str) -> Iterator[Table | str]:
    """For each split its noise band, the choice by halves, and the best weights to paste into params.yaml."""
    main = sweep.protocol.main
    for name, split in sweep.splits.items():
        shown, rows = plain(name), sweep.frame.filter(split=name)
        if split.noise is not None:
            own = rows.filter(sweep.is_own)[main].first()
            rank = int((rows[main] > own).sum()) + 1 if sweep.own else 0
            yield _paragraph(f"{shown}: {noise_text(split, split.noise, rank, sweep.own, sweep.noun)}")
        if split.halves is not None:
            yield _halves_table(shown, sweep, split, split.halves)
            yield _paragraph(halves_text(split.halves, sweep.own))
        if split.why:
            yield _paragraph(f"{shown}: {split.why}.")
        form = sweep.components.form_of(rows.row(0, named=True))
        yield f"The best on {shown}, to paste in place of the fusion of datasets.{dataset}, or by command:\n"
        yield to_paste(form)
        yield f"{set_command(dataset, form)}\n"


def noise_text(split: Split, noise: Noise, rank: int, own_name: str = OWN, noun: str = "weighting") -> str:
    """How many weightings cannot be told from the best one, and how far the dataset's own, of that rank, is from it."""
    number, own = len(split.table), split.own
    line = (
        f"{noise.within.sum():,} of {count(number, noun)} cannot be told from the best at 95% "
        f"(paired bootstrap over {_queries(split, noise)})."
    )
    if own is None:
        return line
    if own == noise.best:
        return f"{line} {own_name} is the best."
    words = "is one of them" if noise.within[own] else "is not one of them"
    mean = Mean(*(float(values[own]) for values in (noise.difference, noise.low, noise.high)))
    return f"{line} {own_name}, number {rank:,}, {words}: {_difference(mean)} against the best."


def halves_text(halves: Halves, own_name: str = OWN) -> str:
    """The honest figure beside the optimistic one, and what the choice gains over the dataset's own weighting."""
    gain = f" Honest less {own_name}: {_difference(halves.gain)}." if halves.gain is not None else ""
    optimism = halves.optimistic.value - halves.honest.value
    return (
        f"Honest, on the queries that did not choose: {_mean(halves.honest)}. "
        f"Optimistic, the best on the queries that chose it: {_mean(halves.optimistic)}, {optimism:+.2f}.{gain}"
    )


def to_paste(form: dict[str, Any]) -> str:
    """A block `fusion` with the indentation of a dataset's keys; mappings without others in them take one line each."""
    text: str = yaml.safe_dump({"fusion": form}, default_flow_style=None, sort_keys=False, width=2**31)
    return textwrap.indent(text, INDENT)


def set_command(dataset: str, form: dict[str, Any]) -> str:
    """The command that writes these weights into params.yaml."""
    return f"cvsi set {shlex.quote(f'datasets.{dataset}.fusion')} {shlex.quote(flow(form))}"


def flow(value: object) -> str:
    """A value as YAML in one line."""
    # YAML's own floats: Python's 1e-05 is a text in YAML 1.1.
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=2**31).strip()


def _queries(split: Split, noise: Noise) -> str:
    if noise.queries == split.queries:
        return count(noise.queries, "query")
    return f"{noise.queries:,} of {count(split.queries, 'query')}: those that count under every weighting"


def _halves_table(name: str, sweep: Sweep, split: Split, halves: Halves) -> Table:
    components, noun = sweep.components, "weights" if sweep.noun == "weighting" else "numbers"
    pair = (halves.first, halves.second)
    sizes = " and ".join(f"{half.queries:,}" for half in pair)
    table = Table(f"{name}, halves of {sizes} queries: chosen on one, reported on the other")
    table.texts("chosen on", key=True).texts(noun).figures("there", "on the other")
    for label, half in zip("AB", pair, strict=True):
        words = components.words(dict(zip(components.names, split.table[half.chosen].tolist(), strict=True)))
        table.add_row(f"half {label}", words, f"{half.here:.2f}", f"{half.other:.2f}")
    return table


def _mean(mean: Mean) -> str:
    return f"{mean.value:.2f} ({mean.low:.2f} to {mean.high:.2f})"


def _difference(mean: Mean) -> str:
    return f"{mean.value:+.2f} ({mean.low:+.2f} to {mean.high:+.2f})"


def _paragraph(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"
