"""The gallery vectors of a run, kept in memory in the numbers' own type, or read from disk where they are too many."""

from collections.abc import Iterator, Sequence
from threading import Lock

import numpy as np
import pyarrow as pa

from cvsi.evaluation.vectors import RunVectors, fuse

KEPT_BYTES = 800 << 20  # of vectors; a larger gallery is read from disk each time


class KeptGallery:
    """The gallery vectors of a run, in order, in tables of at most 4,096 rows."""

    def __init__(self, inputs: RunVectors) -> None:
        """Read nothing yet."""
        self.inputs = inputs
        self.size, self.where = inputs.gallery.size, inputs.gallery_path
        self._lock, self._read = Lock(), False
        self._tables: list[pa.Table] | None = None

    def shards(self) -> Iterator[pa.Table]:
        """The tables, one after the other; raises CvsiError for damaged files and ids that are not the index's."""
        kept = self.load()
        yield from kept if kept is not None else self.inputs.gallery.shards(self.inputs.backbone)

    def fused(self, sides: Sequence[tuple[dict[str, float], bool]]) -> Iterator[list[np.ndarray]]:
        """For each table one matrix [m, d] float32 per side: weights of columns, and whether to unit length."""
        for shard in self.shards():
            yield [fuse(shard, weights, self.where, unit) for weights, unit in sides]

    def rows(self, positions: np.ndarray) -> pa.Table:
        """The vectors at some positions [n], in their order."""
        order = np.argsort(positions, kind="stable")
        taken, start, begin = list[pa.Table](), 0, 0
        for shard in self.shards():
            end = begin + int(np.searchsorted(positions[order[begin:]], start + shard.num_rows))
            if end > begin or not taken:  # the first one gives the columns, also where nothing is wanted
                taken.append(shard.take(pa.array(positions[order[begin:end]] - start, pa.int64())))
            start, begin = start + shard.num_rows, end
            if begin == len(positions):
                break
        return pa.concat_tables(taken).take(pa.array(np.argsort(order, kind="stable")))

    def load(self) -> list[pa.Table] | None:
        """The tables, read once; None where they are too many to be kept."""
        with self._lock:
            if not self._read:
                self._tables, self._read = self._read_all(), True
            return self._tables

    def _read_all(self) -> list[pa.Table] | None:
        kept, size = list[pa.Table](), 0
        for shard in self.inputs.gallery.shards(self.inputs.backbone):
            size += shard.nbytes
            if size > KEPT_BYTES:
                return None
            kept.append(shard)
        pa.default_memory_pool().release_unused()  # what reading took beside the vectors
        return kept
