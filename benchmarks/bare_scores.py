"""The least that ranking needs, as one script: read shards, fuse, multiply, keep the best 100; `FOLDER` is an argument.

It checks nothing, looks no id up, and leaves ties as they fall: the floor for the stage scores.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch


def matrix(table: object, name: str) -> torch.Tensor:
    """A column of fixed-size lists as float32."""
    lists = table[name].combine_chunks()  # type: ignore[index]
    return torch.from_numpy(lists.flatten().to_numpy().copy()).float().reshape(len(lists), -1)


def main(folder: Path) -> None:
    """Rank the workspace's dataset `big`, and write positions and scores beside it."""
    cache = folder / "cache" / "big" / "tiny"
    queries = pq.read_table(cache / "query_vectors")
    left = 0.6 * matrix(queries, "edited") + 0.4 * matrix(queries, "pseudo")
    best, positions, start = torch.empty(len(left), 0), torch.empty(len(left), 0, dtype=torch.int64), 0
    for file in sorted((cache / "gallery_vectors").glob("*.parquet")):
        shard = pq.read_table(file, columns=["image", "caption"])
        right = 0.8 * matrix(shard, "image") + 0.2 * matrix(shard, "caption")
        scores = torch.cat([best, left @ right.T], dim=1)
        here = torch.arange(start, start + len(right)).expand(len(left), -1)
        best, chosen = scores.topk(min(100, scores.shape[1]), dim=1)
        positions, start = torch.cat([positions, here], dim=1).gather(1, chosen), start + len(right)
    np.savez(folder / "bare.npz", best.numpy(), positions.numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
