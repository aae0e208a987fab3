"""The preflight `cvsi check`: what is missing and where to get it, what a run would compute, on what terms.

Seconds, not minutes: nothing is loaded, downloaded or computed.
"""

from rich import box
from rich.console import Console
from rich.table import Table

from cvsi.commands import forecast, requirements
from cvsi.core.console import count
from cvsi.core.params import Params, used_datasets


def report(params: Params, console: Console) -> int:
    """Print the preflight of the active datasets and the runs; how many things are missing."""
    found = requirements.look(params)
    used = f"datasets {', '.join(used_datasets(params))}; runs {', '.join(params.runs) or 'none'}"
    for line in (used, *forecast.memory(params), forecast.disk(params, found), *found.notes):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    table = Table("of", "what", "to compute", "time", title="to do", box=box.SIMPLE_HEAD, title_justify="left")
    for task in forecast.tasks(params, found):
        table.add_row(*forecast.words(task))
    console.print(table)
    if found.terms:
        terms = {", ".join(dict.fromkeys(names)): text for text, names in found.terms.items()}
        _print(console, "terms of use", terms)
    if found.missing:
        _print(console, f"missing: {count(len(found.missing), 'thing')}", found.missing)
    else:
        console.print("Nothing is missing.")
    return len(found.missing)


def _print(console: Console, title: str, lines: dict[str, str]) -> None:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", show_header=False)
    for name, text in lines.items():
        table.add_row(name, text)
    console.print(table)
