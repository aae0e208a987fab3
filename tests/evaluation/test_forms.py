"""Every built-in score form and part against its formula in plain numpy, float64, and all methods in one pass.

1,000 queries and 5,000 images with near-ties, duplicates, empty roles and zero vectors.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cvsi.core.errors import CvsiError
from cvsi.core.params import Params
from cvsi.core.vector_columns import column
from cvsi.evaluation import methods
from cvsi.evaluation.fusion import Fusion, read_fusion
from cvsi.evaluation.parts import with_parts
from cvsi.evaluation.queries import NamedImages
from cvsi.evaluation.ranking import block_rows, rank, rank_targets
from cvsi.evaluation.vectors import RunVectors, fuse, fuse_queries
from tests.conftest import project_params

QUERIES, IMAGES, WIDTH = 1000, 5000, 24
COLUMNS = ("edited", "source", "reference", "instruction", "pseudo", "target", "desired", "preserve", "forbidden")
Vectors = dict[str, np.ndarray]
Matrix = np.ndarray


@cache
def vectors() -> tuple[Vectors, Vectors]:
    """Query and gallery columns, float32: unit vectors, some of them zero, some equal, some nearly equal."""
    random = np.random.default_rng(3)
    queries = {name: unit(random.normal(size=(QUERIES, WIDTH))) for name in COLUMNS}
    for number, name in enumerate(("target", "desired", "preserve", "forbidden", "edited", "source", "reference")):
        queries[name][number::11] = 0
    queries["source"][5::50] = queries["edited"][5::50]
    queries["reference"][7::90] = -queries["instruction"][7::90]
    images = {name: unit(random.normal(size=(IMAGES, WIDTH))) for name in ("image", "caption")}
    for matrix in images.values():
        matrix[1::40] = matrix[3]
        matrix[2::40] = matrix[4] * (1 + 1e-7)
        matrix[::1000] = 0
    return (
        {name: matrix.astype(np.float32) for name, matrix in queries.items()},
        {name: matrix.astype(np.float32) for name, matrix in images.items()},
    )


def unit(matrix: Matrix) -> Matrix:
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(np.divide(matrix, length, out=np.zeros_like(matrix), where=length > 0))


def cosines(left: Matrix, right: Matrix) -> Matrix:
    return np.asarray(unit(left) @ unit(right).T)


def adast(q: Vectors, g: Vectors, margin: float) -> Matrix:
    """With a loop per query for the proxy: nothing is shared with the code under test."""
    proxies = []
    for x, e, s in zip(q["reference"], q["edited"], q["source"], strict=True):
        d, y = e - s, (e / np.linalg.norm(e) if e.any() else e) - 0.25 * x
        below = (d @ y) * (x @ d) - (x @ y) * (d @ d)
        a = ((x @ y) * (x @ d) - (d @ y) * (x @ x)) / below if below < 0 else 1.0
        proxies.append(x + a * d)
    e, s, p = (cosines(one, g["image"]) for one in (q["edited"], q["source"], np.array(proxies)))
    return np.asarray(e + e * np.where(e - s + margin >= 0, 4.0, 0.0) * p)


def soft(q: Vectors, g: Vectors) -> Matrix:
    b, r, p = (cosines(q[name], g["image"]) for name in ("edited", "desired", "forbidden"))
    r[~q["desired"].any(axis=1)], p[~q["forbidden"].any(axis=1)] = 1, 0
    return np.asarray(b * (r + 1 - p) / 2)


def seize(q: Vectors, g: Vectors, neg: float, pos: float) -> Matrix:
    a, b = (cosines(q[name], g["image"]) for name in ("edited", "source"))
    return np.asarray(a + neg * np.minimum(a - b, 0) + pos * np.maximum(a - b, 0))


def product(q: Vectors, g: Vectors, low: tuple[float, float] = (0.0, 0.0)) -> Matrix:
    left, right = (cosines(q[name], g["image"]) for name in ("reference", "instruction"))
    left, right = (np.maximum((s - m) / abs(m), 0) if m else s for s, m in zip((left, right), low, strict=True))
    return np.asarray(left * right - 0.1 * (left + right) ** 2)


def sdr(q: Vectors, g: Vectors, a: float, b: float) -> Matrix:
    anchored = unit((1 - a) * q["target"] + a * q["reference"])
    return np.asarray(((1 + b) * anchored - b * q["target"] + b * q["instruction"]) @ g["image"].T)


def roles(q: Vectors, g: Vectors) -> Matrix:
    empty = ~q["preserve"].any(axis=1, keepdims=True)
    kept = np.where(empty, q["reference"], (q["preserve"] + q["reference"]) / 2)
    # where the reference is zero, too, the mean is over what is there
    kept = np.where(~q["reference"].any(axis=1, keepdims=True), q["preserve"], kept)
    fused = q["target"] + 0.5 * q["desired"] + 0.5 * kept - 0.25 * q["forbidden"]
    return np.asarray(fused @ g["image"].T)


METHODS: dict[tuple[str, str], Callable[[Vectors, Vectors], Matrix]] = {
    ("adast", "circo"): lambda q, g: adast(q, g, 0.0),
    ("adast", "cirr"): lambda q, g: adast(q, g, 0.1),
    ("soft", "circo"): soft,
    ("seize", "circo"): lambda q, g: seize(q, g, 2.1, 0.13),
    ("seize", "cirr"): lambda q, g: seize(q, g, 1.0, 0.22),
    ("product", "circo"): product,
    ("sdr", "circo"): lambda q, g: sdr(q, g, 0.15, 0.35),
    ("sdr", "cirr"): lambda q, g: sdr(q, g, 0.05, 0.5),
    ("sdr", "fashioniq"): lambda q, g: sdr(q, g, 0.2, 0.4),
    ("osrcir", "folder"): lambda q, g: np.asarray(q["target"] @ g["image"].T),
    ("roles", "circo"): roles,
    ("cvsi", "fashioniq"): lambda q, g: np.asarray(
        (0.2 * q["edited"] + 0.6 * q["pseudo"] + 0.2 * q["reference"]) @ (0.9 * g["image"] + 0.1 * g["caption"]).T
    ),
}


def table(columns: Vectors) -> pa.Table:
    return pa.table({name: column(matrix) for name, matrix in columns.items()})


def named() -> NamedImages:
    random = np.random.default_rng(5)
    targets = random.integers(0, IMAGES, (QUERIES, 3))
    pairs = np.stack([np.arange(0, QUERIES, 3), random.integers(0, IMAGES, len(range(0, QUERIES, 3)))], axis=1)
    return NamedImages(pairs, random.integers(0, IMAGES, (QUERIES, 5)), targets)


def shards(fusion: Fusion) -> Iterator[list[np.ndarray]]:
    whole = table(vectors()[1])
    for start in range(0, IMAGES, 1777):
        part = whole.slice(start, 1777)
        yield [fuse(part, form.gallery, "here", form.unit) for form in fusion.forms.values()]


def check(fusion: Fusion, expected: Matrix) -> None:
    """Scores to 1e-5, and the order wherever the expected scores differ by more; equal images score equally."""
    ranking = rank(fuse_queries(table(vectors()[0]), fusion, "here"), shards(fusion), named(), 100, fusion.scorer)
    expected = expected.copy()
    pairs = named().excluded
    expected[pairs[:, 0], pairs[:, 1]] = -np.inf
    picked = np.take_along_axis(expected, ranking.positions, axis=1)
    assert ranking.scores == pytest.approx(picked, abs=1e-5)
    best = -np.sort(np.partition(-expected, 100, axis=1)[:, :100], axis=1)
    assert picked == pytest.approx(best, abs=2e-5)  # no image of another score is in its place
    ties = ranking.scores[:, 1:] == ranking.scores[:, :-1]
    assert ties.any() and (ranking.positions[:, 1:] > ranking.positions[:, :-1])[ties].all()


@pytest.mark.parametrize(("name", "dataset_format"), METHODS)
def test_a_method_is_its_formula(name: str, dataset_format: str) -> None:
    queries, images = ({key: matrix.astype(np.float64) for key, matrix in side.items()} for side in vectors())
    fusion = methods.methods(Params.model_validate(project_params()))[name].fusion(dataset_format)
    check(fusion, METHODS[name, dataset_format](queries, images))


def form(**query: float) -> dict[str, Any]:
    return {"query": query, "gallery": {"image": 1.0}, "unit": True}


@pytest.mark.parametrize("low", [(-0.3, 0.2), (0.0, -0.1), (0.1, 0.0)])
def test_product_with_lows(low: tuple[float, float]) -> None:
    queries, images = ({key: matrix.astype(np.float64) for key, matrix in side.items()} for side in vectors())
    forms = {"left": form(reference=1.0), "right": form(instruction=1.0)}
    fusion = read_fusion({"forms": forms, "score": {"kind": "product", "low": list(low), "harris": 0.1}}, "here")
    left, right = (cosines(queries[name], images["image"]) for name in ("reference", "instruction"))
    scale = 1 / min(abs(number) for number in low if number)
    expected = product(queries, images, low)
    ranking = rank(fuse_queries(table(vectors()[0]), fusion, "here"), shards(fusion), named(), 20, fusion.scorer)
    assert ranking.scores == pytest.approx(np.take_along_axis(expected, ranking.positions, axis=1), abs=1e-5 * scale**2)
    assert left.shape == right.shape == expected.shape


def test_soft_with_a_scale_below_one_mixes_the_base_score() -> None:
    queries, images = ({key: matrix.astype(np.float64) for key, matrix in side.items()} for side in vectors())
    forms = {"base": form(edited=1.0), "desired": form(desired=1.0), "forbidden": form(forbidden=1.0)}
    fusion = read_fusion({"forms": forms, "score": {"kind": "soft", "scale": 0.2}}, "here")
    base = cosines(queries["edited"], images["image"])
    check(fusion, 0.8 * base + 0.2 * soft(queries, images))


def part(**block: Any) -> np.ndarray:
    fusion = read_fusion({"parts": {"made": block}, "query": {"made": 1.0}, "gallery": {"image": 1.0}}, "here")
    (matrix,) = fuse_queries(table(vectors()[0]), fusion, "here")
    return matrix


def test_slerp_is_the_arc_and_the_unit_sum_where_there_is_none() -> None:
    queries = {key: matrix.astype(np.float64) for key, matrix in vectors()[0].items()}
    start, end = unit(queries["reference"]), unit(queries["instruction"])
    angle = np.arccos(np.clip((start * end).sum(axis=1, keepdims=True), -1, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        arc = (np.sin(0.7 * angle) * start + np.sin(0.3 * angle) * end) / np.sin(angle)
    expected = np.where(np.sin(angle) < 1e-6, unit(np.round(start + end, 6)), arc)
    made = part(slerp={"from": {"reference": 2.5}, "to": "instruction", "at": 0.3})
    assert made == pytest.approx(expected, abs=1e-5) and not made[7].any()  # opposite ends: the unit sum is zero
    assert np.linalg.norm(made[start.any(axis=1)], axis=1)[0] == pytest.approx(1, abs=1e-6)


def test_unit_and_mean() -> None:
    queries = {key: matrix.astype(np.float64) for key, matrix in vectors()[0].items()}
    expected = unit(0.85 * queries["target"] + 0.15 * queries["reference"])
    assert part(unit={"target": 0.85, "reference": 0.15}) == pytest.approx(expected, abs=1e-6)
    present = {name: queries[name].any(axis=1, keepdims=True) for name in ("preserve", "desired")}
    total = 3 * queries["preserve"] + queries["desired"]
    number = 3 * present["preserve"] + 1 * present["desired"]
    expected = np.where(number > 0, total / np.maximum(number, 1), 0)
    assert part(mean={"preserve": 3, "desired": 1}) == pytest.approx(expected, abs=1e-6)


def test_a_part_of_parts() -> None:
    block = {
        "parts": {
            "first": {"unit": {"edited": 1.0, "source": -1.0}}, "second": {"unit": {"first": 1.0, "pseudo": 1.0}},
        },
        "query": {"second": 1.0, "first": 0.5}, "gallery": {"image": 1.0},
    }  # fmt: skip
    fusion = read_fusion(block, "here")
    assert fusion.query_columns == ("edited", "source", "pseudo") and fusion.weights is None
    queries = {key: matrix.astype(np.float64) for key, matrix in vectors()[0].items()}
    first = unit(queries["edited"] - queries["source"])
    (made,) = fuse_queries(table(vectors()[0]), fusion, "here")
    assert made == pytest.approx(unit(first + queries["pseudo"]) + 0.5 * first, abs=1e-6)
    assert fusion.recipe()["parts"] == block["parts"]
    assert fusion.describe() == (
        "0.5 first + 1 second, on 1 image, with first = unit(1 edited + -1 source), second = unit(1 first + 1 pseudo)"
    )


def test_parts_keep_the_rows_of_a_sliced_table() -> None:
    whole = table(vectors()[0])
    block = read_fusion(
        {"parts": {"made": {"unit": {"edited": 1.0}}}, "query": {"made": 1}, "gallery": {"image": 1}}, "x"
    )
    every = with_parts(whole, block.parts, "here")["made"].combine_chunks().flatten().to_numpy().reshape(QUERIES, -1)
    some = with_parts(whole.slice(100, 7), block.parts, "here")["made"].combine_chunks().flatten().to_numpy()
    assert np.array_equal(some.reshape(7, -1), every[100:107])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"parts": {"p": {}}}, "parts.p: must have exactly one of unit, mean, shift, slerp (got none)"),
        ({"parts": {"p": {"unit": {"edited": 1}, "mean": {"edited": 1}}}}, "parts.p: must have exactly one of"),
        ({"parts": {"p": {"unit": {}}}}, "parts.p: unit needs at least one weight"),
        ({"parts": {"p": {"unit": {"edited": "x"}}}}, "parts.p.unit.edited: "),
        ({"parts": {"p": {"turn": {"edited": 1}}}}, "parts.p.turn: unknown key"),
        ({"parts": {"p": {"unit": {"p": 1}}}}, "parts.p: uses 'p', which is computed later"),
        (
            {"parts": {"p": {"unit": {"q": 1}}, "q": {"unit": {"edited": 1}}}},
            "parts.p: uses 'q', which is computed later",
        ),
        ({"parts": {"p": {"slerp": {"from": "edited", "to": "source", "at": 2}}}}, "parts.p.slerp.at: "),
        ({"parts": {"p": {"shift": {"from": "edited", "along": "source"}}}}, "parts.p.shift.toward: key is missing"),
        ({"parts": []}, "parts: "),
        ({"parts": {"p": {"unit": {"edited": 1}}}, "gallery": {"p": 1}}, "gallery: 'p' is a part of the query"),
    ],
)
def test_bad_parts_are_one_line(change: dict[str, Any], line: str) -> None:
    with pytest.raises(CvsiError) as error:
        read_fusion({"query": {"edited": 1.0}, "gallery": {"image": 1.0}} | change, "datasets.toy.fusion")
    assert str(error.value).startswith(f"params.yaml: datasets.toy.fusion.{line}") and "\n" not in str(error.value)


class InMemory(RunVectors):
    """Vectors of this test in place of files."""

    @property
    def query_path(self) -> str:
        """For messages."""
        return "here"

    def _fused_gallery(self, sides: Any, width: int) -> Iterator[list[np.ndarray]]:
        whole = table(vectors()[1])
        for start in range(0, IMAGES, 1777):
            yield [fuse(whole.slice(start, 1777), weights, "here", unit) for weights, unit in sides]


def test_one_pass_over_all_methods_gives_the_bits_of_a_pass_for_each() -> None:
    params = Params.model_validate(project_params())
    fusions = methods.table(params, "circo")
    del fusions["composed"]  # a column of other backbones
    assert len(fusions) == 14
    queries = table(vectors()[0])
    together = InMemory(None, "tiny", queries, pa.schema([])).fused_together(list(fusions.values()))  # type: ignore[arg-type]
    assert len(together.linear) < sum(len(fusion.forms) for fusion in fusions.values())  # some are shared
    outcomes = rank_targets(together.linear, together.scored, together.gallery, named())
    for (name, fusion), (ranks, groups) in zip(fusions.items(), outcomes, strict=True):
        alone = rank(fuse_queries(queries, fusion, "here"), shards(fusion), named(), 100, fusion.scorer)
        assert np.array_equal(ranks, alone.target_ranks), name
        assert np.array_equal(groups, alone.group_scores), name


def test_blocks_are_smaller_where_many_methods_share_the_memory() -> None:
    assert block_rows(220, 14) == 4096 and block_rows(4181, 14) == 1024 and block_rows(10**6, 14) == 512
