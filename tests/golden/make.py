"""Drawn pictures and invented rows to the golden test's data; run once, from commit 67f3d76, never by a test.

    python -m tests.golden.make    (in the repository's root, whose demo/weights the recipes name)

The pictures and CIRCO's annotations are a small demo world. Three pictures were overwritten by copies of others (two of
right answers among them), one was cut short and one was removed. The annotations in CIRR's layout name the same
pictures. File facts are what the stage `index` stored. All other rows are invented and do not fit the pictures: their
numbers are such that no step from row to artifact rounds, whatever the order of its additions and whatever the CPU.

- A text vector's numbers are multiples of 1/16, not 0 in 32 places at most, and their squares sum to 1.
- An image vector has one place that is not 0, and it is 1, 2 or 4; so the weightings of the report with weights that
  are not dyadic have one product a score, which needs no sum.
- An image has four captions (some of CIRR's have two or none), so that means are exact.
- The fusions have dyadic weights.

The edited texts and pseudo tokens of some labelled queries point to the target, so that metrics lie between 0 and 100.
Each kind has its rows in two files, of which the second has another value for a row of the first: the first counts.
There are 124 images, since a ranking keeps 100 and a submission wants 50; query 5 of val is dropped with its reference.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from itertools import product
from math import isqrt
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import yaml

from tests.golden import library
from tests.golden.workspace import (
    BACKBONE,
    DATA,
    DATASETS,
    NUMBERS,
    columns,
    lay_out,
    load,
    pinned_files,
    run,
    run_stages,
    sha256,
    store_files,
)

WIDTH = 128  # of the tiny backbone
USED = 32  # places of a vector that are not 0
UNIT = 16  # a text vector's numbers are multiples of 1 / UNIT
WORLD = {"seed": 5, "gallery": 124, "val": 13, "test": 6}
DIRECTIONS = 24  # places that image vectors point along: with two signs, 48 vectors for 124 images
LOST, CUT = 5, 7  # the places of the val queries whose reference is missing, and whose last target is cut short
POOL = [
    f"a {size} {colour} {thing}"
    for size, colour, thing in product(("small", "big"), ("red", "blue", "green"), ("hat", "boat", "house", "cat"))
]
COCO = Path("golden/COCO2017_unlabeled/annotations/image_info_unlabeled2017.json")
PICTURES = Path("golden/COCO2017_unlabeled/unlabeled2017")


def main() -> None:
    """Make the data and the expected digests anew."""
    for name in (*DATASETS, "images", "store", "expected"):
        shutil.rmtree(DATA / name, ignore_errors=True)
    pictures()
    cirr()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        lay_out(workspace)
        for dataset in DATASETS:
            run(workspace, "index", dataset)
        write_rows(workspace)
        run_stages(workspace)
        keep(workspace)


def pictures() -> None:
    """Draw the world, move its pictures to `images`, and spoil some."""
    library.draw_world(DATA / "golden", **WORLD)
    (DATA / PICTURES).rename(DATA / "images")
    files = sorted((DATA / "images").iterdir())
    queries = load(DATA / "golden/annotations/val.json")
    named = {image for query in queries for image in (query["reference_img_id"], *query["gt_img_ids"])}
    spare = [file for file in files if int(file.stem) not in named]
    for query, copy in zip((queries[0], queries[3]), spare, strict=False):
        shutil.copyfile(picture(query["target_img_id"]), copy)  # it stands before the target in the gallery
        assert int(copy.stem) < query["target_img_id"]
    shutil.copyfile(spare[-2], spare[-1])
    picture(queries[LOST]["reference_img_id"]).unlink()
    cut = picture(queries[CUT]["gt_img_ids"][-1])
    assert len(queries[CUT]["gt_img_ids"]) > 1
    cut.write_bytes(cut.read_bytes()[:200])


def picture(number: int) -> Path:
    """The file of an image."""
    return DATA / "images" / f"{number:012d}.png"


def cirr() -> None:
    """Write annotations in CIRR's layout over the same pictures: most in `dev`, a third in `test1`."""
    random = Random("cirr")
    queries = {split: load(DATA / f"golden/annotations/{split}.json") for split in ("val", "test")}
    gone = {queries["val"][LOST]["reference_img_id"], queries["val"][CUT]["gt_img_ids"][-1]}
    labelled = {image for query in queries["val"] for image in (query["reference_img_id"], query["target_img_id"])}
    hidden = {query["reference_img_id"] for query in queries["test"]}
    numbers = [image["id"] for image in load(DATA / COCO)["images"] if image["id"] not in gone]
    of: dict[str, list[int]] = {"val": [], "test1": []}
    for place, number in enumerate(numbers):
        of["test1" if number in hidden or (number not in labelled and place % 3 == 0) else "val"].append(number)
    folders = {"val": "dev", "test1": "test1"}
    root = DATA / "golden-cirr/cirr"
    for split, source in (("val", "val"), ("test1", "test")):
        folder = folders[split]
        paths = {f"{folder}-{number}-0-img1": f"./{folder}/{number:012d}.png" for number in of[split]}
        write(root / f"image_splits/split.rc2.{split}.json", paths)
        rows = []
        for query in queries[source]:
            if query["reference_img_id"] in gone or query.get("target_img_id") in gone:
                continue
            first = [query["reference_img_id"], *([query["target_img_id"]] if split == "val" else [])]
            others = random.sample([number for number in of[split] if number not in first], 6 - len(first))
            members = [f"{folder}-{number}-0-img1" for number in random.sample(first + others, 6)]
            row = {
                "pairid": 100 + query["id"],
                "reference": f"{folder}-{first[0]}-0-img1",
                "caption": f"Same, but it {query['relative_caption']}",
                "img_set": {"id": query["id"], "members": members},
            }
            rows.append(row | ({"target_hard": f"{folder}-{first[1]}-0-img1"} if split == "val" else {}))
        write(root / f"captions/cap.rc2.{split}.json", rows)


def write_rows(workspace: Path) -> None:
    """Fill the workspace's store with all that the stages look for."""
    params = yaml.safe_load((DATA / "params.yaml").read_text(encoding="utf-8"))
    texts: dict[str, list[float]] = {}
    pseudos: dict[str, list[float]] = {}
    images: dict[str, list[float]] = {}
    for name in DATASETS:
        dataset = params["datasets"][name]
        place = workspace / "cache" / name / "index"
        listed, queries = (pl.read_parquet(place / f"{table}.parquet") for table in ("images", "queries"))
        files: dict[str, str] = dict(listed.select("image_id", "digest").iter_rows())
        images |= {digest: image_vector(digest) for digest in files.values()}
        captions = {digest: captions_of(name, digest) for digest in files.values()}
        if name == "golden-cirr":
            references = {files[image] for image in queries["reference_id"]}
            spare = [digest for digest in captions if digest not in references]
            captions |= {spare[3]: captions[spare[3]][:2], spare[8]: []}
        rows: list[dict[str, Any]] = [{"key": digest, "captions": lines} for digest, lines in captions.items()]
        save(workspace, "captions", library.caption_recipe(dataset["captioner"], "cpu"), rows)
        edits = {}
        for place_of, query in enumerate(queries.iter_rows(named=True)):
            reference, lines = files[query["reference_id"]], captions[files[query["reference_id"]]]
            edit = edit_of(place_of, dataset["editor"].get("mode", "joint"), lines, query["instruction"])
            edits[edit["key"]] = edit
            target = images[files[query["target_ids"][0]]] if query["target_ids"] else None
            pull = (0, 4, 5, 8)[place_of % 4] if target else 0
            for text in edit["edited"]:
                texts[text] = text_vector(text, target, pull if text not in lines else 0)
            sentence = library.sentence(query["instruction"], edit["added"])
            key = library.pseudo_key(reference, sentence)
            pseudos[key] = text_vector(key, target, (0, 3, 5)[place_of % 3])
            texts[query["instruction"]] = text_vector(query["instruction"])
        texts |= {text: text_vector(text) for lines in captions.values() for text in lines}
        prompts = library.prompt_texts(dataset["prompts"])
        save(workspace, "edits", library.edit_recipe(dataset["editor"], prompts, "cpu"), list(edits.values()))
    tiny = params["backbones"][BACKBONE]
    keyed = {library.text_key(text): vector for text, vector in texts.items()}
    for kind, vectors in (("image", images), ("text", keyed), ("pseudo", pseudos)):
        rows = [{"key": key, "vector": vector} for key, vector in vectors.items()]
        save(workspace, f"{kind}_vectors", library.vector_recipe(tiny, kind), rows)


def save(workspace: Path, kind: str, recipe: library.Recipe, rows: list[dict[str, Any]]) -> None:
    """Store rows in two files; the second repeats the first one's first key with the values of another row."""
    half = len(rows) // 2
    store = workspace / "cache" / "store"
    library.append(store, kind, recipe, rows[:half], WIDTH)
    library.append(store, kind, recipe, [rows[-1] | {"key": rows[0]["key"]}, *rows[half:]], WIDTH)


def captions_of(name: str, digest: str) -> list[str]:
    """Four captions of an image, of few texts in all; those of CIRR's captioner have one text of their own."""
    random = Random(f"{name} captions {digest}")
    lines = random.sample(POOL, 4)
    return lines if name == "golden" else [*lines[:3], f"{lines[3]} and nothing else"]


def edit_of(place: int, mode: str, captions: list[str], instruction: str) -> dict[str, Any]:
    """The row of a query's edit, from answers of which some are of no use."""
    number = len(captions) if mode == "each" else 1
    objects = Random(f"added {instruction}").choice(POOL)
    answers: list[str | None] = [f"{captions[at]} that {instruction}" for at in range(number)]
    added: str | None = f" {objects}\n\nImage Content: a cat"
    if place % 9 == 1:
        answers[0] = "Instruction: none\x1b[2J"
    if place % 9 == 3:
        added = "one\x1b[2J\ntwo"
    if place % 9 == 5:
        answers, added = [""] * number, ""
    if place % 9 == 7:
        answers[-1] = None
    if place % 9 == 8:
        answers[0] = f' "{answers[0]}"\n\nInstruction: more'
    return library.edit_row(library.edit_key(captions, instruction), mode, captions, answers, added)


def image_vector(digest: str) -> list[float]:
    """A projected, un-normalised image vector: one number that is not 0."""
    random = Random(f"image {digest}")
    vector = [0.0] * WIDTH
    vector[random.randrange(DIRECTIONS)] = float(random.choice((1, 2, 4)) * random.choice((-1, 1)))
    return vector


def text_vector(text: str, target: list[float] | None = None, pull: int = 0) -> list[float]:
    """A unit vector of multiples of 1 / UNIT, with `pull` of them toward a target's image vector."""
    random = Random(f"text {text}")
    numbers = [0] * WIDTH
    pull = pull if target else 0
    if target and pull:
        place = next(place for place, value in enumerate(target) if value)
        numbers[place] = pull if target[place] > 0 else -pull
    free = [place for place in range(USED) if not numbers[place]]
    random.shuffle(free)
    rest = UNIT**2 - pull**2
    while rest:
        size = min(random.choice((2, 3, 4, 5)) if len(free) > 8 else isqrt(rest), isqrt(rest))
        numbers[free.pop()] = size * random.choice((-1, 1))
        rest -= size**2
    assert sum(number**2 for number in numbers) == UNIT**2
    return [number / UNIT for number in numbers]


def keep(workspace: Path) -> None:
    """Keep the store's rows, the digests of the pinned outputs, and the text of those that are small."""
    cache = workspace / "cache"
    for name in store_files(cache / "store"):
        copy(cache / "store" / name, DATA / "store" / name)
    expected: dict[str, dict[str, Any]] = {}
    for file in pinned_files(workspace):
        name = file.relative_to(workspace).as_posix()
        expected[name] = {"sha256": sha256(file)}
        if file.suffix == ".parquet":
            expected[name]["columns"] = columns(file)
        else:
            copy(file, DATA / "expected" / name)
    for dataset in DATASETS:
        copy(cache / dataset / BACKBONE / NUMBERS, DATA / "expected/cache" / dataset / BACKBONE / NUMBERS)
    write(DATA / "expected.json", expected)


def copy(source: Path, target: Path) -> None:
    """Copy a file, and make the folders above it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def write(file: Path, content: Mapping[str, Any] | Iterable[Any]) -> None:
    """Write JSON, and make the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
