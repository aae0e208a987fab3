"""A pack to rows of the store: the whole pack is checked before a row is added, and stored rows are not replaced."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from cvsi.commands import pack_format, pack_match
from cvsi.commands.pack_format import RAW, SCHEMAS, Kind, Pack, users
from cvsi.core.console import count, info, warn
from cvsi.core.params import PATH, Params
from cvsi.store.rows import Store


@dataclass
class ImportCounts:
    """Numbers of rows of a kind: added, already stored and equal, already stored with other content."""

    added: int = 0
    same: int = 0
    other: int = 0


def unpack(folder: Path, params: Params) -> None:
    """Add a pack's rows to the store; prints how many, and which datasets of params.yaml use them.

    Raises CvsiError for a pack that is damaged, not well-formed, or of a later version; then nothing was added.
    """
    pack = pack_format.open_pack(folder)
    pack.check()
    kinds = pack.manifest.kinds
    info(f"{folder}: {' and '.join(kinds)} of {pack.manifest.dataset}, complete (manifest SHA-256 {pack.sum})")
    if unlisted := pack.unlisted_files():
        warn(f"{folder}: {count(unlisted, 'file')} that the manifest does not name, not opened")
    for kind in kinds:
        counts = add(pack, kind, Store(Path(params.store)))
        recipe = kinds[kind].recipe[:12]
        info(f"{kind}: {count(counts.added, 'row')} added, {counts.same:,} already stored (recipe {recipe})")
        if counts.other:
            warn(f"{kind}: {count(counts.other, 'row')} in the store differ from the pack's; the store's are kept")
    for who, terms in pack.manifest.terms.items():
        info(f"terms of {who}: {terms}")
    _match(pack, params)


def add(pack: Pack, kind: Kind, store: Store) -> ImportCounts:
    """Add the rows of a kind that are missing in the store, file by file; a stopped run can be repeated."""
    rows, counts = store.rows(kind, pack.recipe(kind), SCHEMAS[kind]), ImportCounts()
    for table in pack.parts(kind):
        keys = pl.Series("key", table["key"])
        rows.quarantine_corrupt(keys)
        missing = rows.missing(keys)
        known = pl.DataFrame(table).filter(~keys.is_in(missing.implode()))
        raw = RAW[kind]
        stored, known = pl.DataFrame(rows.get(known["key"])).select(raw), known.select(raw)
        same = sum(ours == theirs for ours, theirs in zip(stored.iter_rows(), known.iter_rows(), strict=True))
        counts.added += missing.len()
        counts.same += same
        counts.other += known.height - same
        if missing.len():
            fresh = pl.DataFrame(table).filter(keys.is_in(missing.implode()))
            rows.append(fresh.to_arrow().cast(SCHEMAS[kind]))
    return counts


def _match(pack: Pack, params: Params) -> None:
    """Print which rows each dataset uses; missing models first, since they decide the recipes."""
    own, others = pack_match.datasets(pack.manifest.dataset, params)
    kinds = [(kind, pack.recipe(kind), part.model) for kind, part in pack.manifest.kinds.items()]
    if "verdicts" in pack.manifest.kinds and not any(users("verdicts", name, params) for name in own):
        info(f"verdicts not used: {PATH} has no rerank of {' or '.join(own)}")
    pairs = [(*each, user) for name in own for each in kinds for user in users(each[0], name, params)]
    for line in dict.fromkeys(pack_match.alias_weights(*each, params) for each in pairs):
        if line:
            info(line)
    pairs += [
        (*each, user)
        for name in others
        for each in kinds
        for user in users(each[0], name, params)
        if pack_match.fits(each[0], each[1], user, params)
    ]
    for each in pairs:
        info(pack_match.line(*each, params))
