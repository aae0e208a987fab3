"""The data beside this file to a workspace that holds them as a project would, and its outputs to digests.

A row of a file's facts has the file's modification time in its key, so every image gets the time that the store knows.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.imports import ROOT

DATA = Path(__file__).resolve().parent / "data"
MODIFIED = 1_700_000_000_000_000_000  # ns
DATASETS = ("golden", "golden-cirr")
BACKBONE = "tiny"
OF_DATASET = ("index", "captions", "edits")
OF_RUN = ("gallery_vectors", "query_vectors", "scores", "report")
SHARDED = ("captions", "edits", "tiny/gallery_vectors", "tiny/query_vectors")
NUMBERS = "report/weightings.json"  # compared by its numbers
# Every output whose bytes are pinned, below `cache/<dataset>/`.
PINNED = (
    "index/images.parquet",
    "index/queries.parquet",
    "index/dropped*.parquet",
    *(f"{place}/*.parquet" for place in SHARDED),
    "tiny/scores/rankings.parquet",
    "tiny/scores/group_rankings.parquet",
    "tiny/scores/metrics.json",
    "tiny/scores/submissions/*.json",
)


def lay_out(place: Path) -> None:
    """Make a workspace of this empty folder: parameters, both datasets with their images, the models, and the store."""
    shutil.copy(DATA / "params.yaml", place / "params.yaml")
    for dataset in DATASETS:
        shutil.copytree(DATA / dataset, place / "data" / dataset)
    for path in image_paths():
        source, target = DATA / "images" / path.name, place / "data" / path
        if source.exists():  # one is missing, as `missing_images: drop` allows
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            os.utime(target, ns=(MODIFIED, MODIFIED))
    (place / "demo").symlink_to(ROOT / "demo")
    if (DATA / "store").is_dir():
        shutil.copytree(DATA / "store", place / "cache" / "store")


def image_paths() -> list[Path]:
    """Where the annotations say that images lie, below `data/`."""
    listed = load(DATA / "golden/COCO2017_unlabeled/annotations/image_info_unlabeled2017.json")["images"]
    paths = [Path("golden/COCO2017_unlabeled/unlabeled2017", image["file_name"]) for image in listed]
    for file in sorted((DATA / "golden-cirr/cirr/image_splits").glob("*.json")):
        paths += [Path("golden-cirr", path) for path in load(file).values()]
    return paths


def run_stages(place: Path) -> None:
    """Run every stage of both datasets, which are at work at the same time, as a team's are on one store."""
    with ThreadPoolExecutor(len(DATASETS)) as pool:
        list(pool.map(lambda dataset: _chain(place, dataset), DATASETS))


def _chain(place: Path, dataset: str) -> None:
    for stage in OF_DATASET:
        run(place, stage, dataset)
    for stage in OF_RUN:
        run(place, stage, dataset, BACKBONE)


def run(place: Path, stage: str, *arguments: str) -> None:
    """Run a stage of this checkout as a command in the workspace, to its good end."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "stages" / f"{stage}.py"), *arguments],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
        text=True,
        capture_output=True,
        timeout=300,  # where rows are missing, a model is loaded
    )
    assert done.returncode == 0, f"{stage}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"


def pinned_files(place: Path) -> list[Path]:
    """The outputs whose bytes are pinned, in order."""
    places = [place / "cache" / dataset for dataset in DATASETS]
    return [file for where in places for pattern in PINNED for file in sorted(where.glob(pattern))]


def store_files(store: Path) -> dict[str, str]:
    """The digest of every file of a store by name; its lock and its remembered indexes, which are no rows, left out."""
    files = [file for file in sorted(store.rglob("*")) if file.is_file() and file.name != ".lock"]
    names = {file.relative_to(store).as_posix(): file for file in files}
    return {name: sha256(file) for name, file in names.items() if not name.startswith("index/")}


def sha256(file: Path) -> str:
    """The digest of a file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def columns(file: Path) -> dict[str, str]:
    """The digest of each column's values by name, which says what differs where a table's bytes do."""
    table = pq.read_table(file, partitioning=None)
    return {
        name: hashlib.sha256(json.dumps(table[name].to_pylist()).encode()).hexdigest() for name in table.schema.names
    }


def load(file: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))
