"""A pack to rows of the store: all of it is checked before any is added, and what the store has stays as it is."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from cvsi.commands import pack_format, pack_match
from cvsi.commands.pack_format import SCHEMAS, Kind, Pack
from cvsi.core.console import complain, count, say
from cvsi.core.params import Params
from cvsi.store.rows import Shelf


@dataclass
class Tally:
    """Rows of a kind: added, there before and equal, there before with other content."""

    added: int = 0
    same: int = 0
    other: int = 0


def unpack(folder: Path, params: Params) -> None:
    """Add a pack's rows to the store, and say how many, and which datasets of params.yaml find them.

    Raises CvsiError for a pack that is damaged, not well-formed, or of a later version; then nothing was added.
    """
    pack = pack_format.open_pack(folder)
    pack.check()
    kinds = pack.manifest.kinds
    say(f"{folder}: {' and '.join(kinds)} of {pack.manifest.dataset}, whole (manifest SHA-256 {pack.sum})")
    if strangers := pack.strangers():
        complain(f"{folder}: {count(strangers, 'file')} that the manifest does not name, not opened")
    for kind in kinds:
        tally = add(pack, kind, params.store)
        say(f"{kind}: {count(tally.added, 'row')} added, {tally.same:,} were there (recipe {kinds[kind].recipe[:12]})")
        if tally.other:
            complain(f"{kind}: {count(tally.other, 'row')} in the store differ from the pack's; the store's stay")
    for who, terms in pack.manifest.terms.items():
        say(f"terms of {who}: {terms}")
    _fit(pack, params)


def add(pack: Pack, kind: Kind, store: str) -> Tally:
    """Add the rows of a kind that the store lacks, a file at a time; stopped and run again it goes on."""
    shelf, tally = Shelf(store, kind, pack.recipe(kind), SCHEMAS[kind]), Tally()
    for table in pack.parts(kind):
        keys = pl.Series("key", table["key"])
        shelf.mend(keys)
        lost = shelf.missing(keys)
        known = pl.DataFrame(table).filter(~keys.is_in(lost.implode()))
        stored = pl.DataFrame(shelf.take(known["key"]))
        same = sum(ours == theirs for ours, theirs in zip(stored.iter_rows(), known.iter_rows(), strict=True))
        tally.added, tally.same, tally.other = (
            tally.added + lost.len(), tally.same + same, tally.other + known.height - same,
        )  # fmt: skip
        if lost.len():
            fresh = pl.DataFrame(table).filter(keys.is_in(lost.implode()))
            shelf.add(fresh.to_arrow().cast(SCHEMAS[kind]))
    return tally


def _fit(pack: Pack, params: Params) -> None:
    """Say what each dataset finds; models that are not here first, since they decide where it looks."""
    own, others = pack_match.datasets(pack.manifest.dataset, params)
    kinds = [(kind, pack.recipe(kind), part.model) for kind, part in pack.manifest.kinds.items()]
    asked = [(*each, name) for name in own for each in kinds]
    for told in dict.fromkeys(pack_match.stand_in(*each, params) for each in asked):
        if told:
            say(told)
    asked += [(*each, name) for name in others for each in kinds if pack_match.fits(each[0], each[1], name, params)]
    for each in asked:
        say(pack_match.line(*each, params))
