"""Sizes of the differences from the published code, on the demo's outputs and on random vectors of real shapes.

Run `python -m benchmarks.differences` after `dvc repro`, in the folder with `cache` and `demo`; it writes nothing. The
figures are in docs/benchmarks.md. `Places` are the first 100 of each query.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import typer
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.transforms import functional  # type: ignore[import-untyped]

from benchmarks.measure import say as show
from cvsi.core import images, params, tables
from cvsi.core.vector_columns import matrix_of
from cvsi.models.clip import template
from cvsi.models.clip_encoder import Encoder
from cvsi.pipeline.components import EDITED, IMAGE, SOURCE
from cvsi.pipeline.embeddings import Embeddings
from cvsi.pipeline.vectors import gallery_jobs, gallery_rows, query_jobs, query_rows

PLACES, PICTURES = 100, 200
SHAPES = {"CIRR val": (2297, 4181), "CIRR test1": (2315, 4148), "FashionIQ toptee": (5373, 1961)}
WIDTHS = {"ViT-B/32": 512, "ViT-L/14": 768, "ViT-bigG/14": 1280}
QUERY, GALLERY = (0.6, 0.4), (0.8, 0.2)


def say(what: str, size: str) -> None:
    """Print one size."""
    show(f"{what}: {size}")


def first(scores: Tensor) -> Tensor:
    """The first places of each query, equal scores in the gallery's order."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :PLACES]


def moved(before: Tensor, after: Tensor) -> str:
    """How many places and first ranks have another image."""
    places = int((before != after).sum())
    ranks = int((before[:, 0] != after[:, 0]).sum())
    return f"{places:,} of {before.numel():,} places, {ranks:,} of {len(before):,} first ranks"


def random_shapes() -> None:
    """float16 gallery vectors, on unit vectors that share a part, as those of CLIP do (cosines around 0.5)."""
    for backbone, width in WIDTHS.items():
        for dataset, (gallery, queries) in SHAPES.items():
            random = torch.Generator().manual_seed(1)
            shared = normalize(torch.randn(width, generator=random), dim=0)

            def vectors(rows: int) -> Tensor:
                drawn = normalize(torch.randn(rows, width, generator=random), dim=1)  # noqa: B023
                return normalize(drawn + shared, dim=1)  # noqa: B023

            parts = [vectors(gallery), vectors(gallery)]
            query = QUERY[0] * vectors(queries) + QUERY[1] * vectors(queries)
            exact, rounded = (
                query @ (GALLERY[0] * form[0] + GALLERY[1] * form[1]).T
                for form in (parts, [part.half().float() for part in parts])
            )
            say(f"float16, random, {dataset}, {backbone}", moved(first(exact), first(rounded)))


def demo() -> None:
    """The differences that the demo's stored rows show."""
    settings = params.load()
    gallery_store = Embeddings(*(job.rows() for job in gallery_jobs("demo", "tiny", settings)))
    query_store = Embeddings(*(job.rows() for job in query_jobs("demo", "tiny", settings)))
    pictures, queries = gallery_rows("demo"), query_rows("demo")
    parts = [torch.from_numpy(part.vectors(pictures, gallery_store)) for part in (IMAGE, SOURCE)]
    exact, half = (
        GALLERY[0] * form[0] + GALLERY[1] * form[1] for form in (parts, [part.half().float() for part in parts])
    )
    edited = torch.from_numpy(EDITED.vectors(queries, query_store))
    pseudo = torch.from_numpy(matrix_of(tables.whole("query_vectors", "demo", "tiny"), "pseudo", "query_vectors"))
    query = QUERY[0] * edited + QUERY[1] * pseudo
    say("float16, demo", moved(first(query @ exact.T), first(query @ half.T)))
    _ties(query @ exact.T)
    _empty_addition(settings, queries, query_store, edited, half)
    _pictures(settings, query @ half.T, half)


def _ties(scores: Tensor) -> None:
    """Equal neighbours among the first places, of the scores and of `1 - score`, which the published code sorts."""
    for name, values in (("scores", scores), ("1 - scores", 1 - scores)):
        ordered = values.sort(dim=1, descending=name == "scores").values[:, : PLACES + 1]
        equal = ordered[:, 1:] == ordered[:, :-1]
        say(f"ties, demo, {name}", f"{int(equal.sum()):,} of {equal.numel():,} neighbours, "
            f"{int(equal.any(dim=1).sum())} of {len(scores)} queries")  # fmt: skip
    before, after = first(scores), (1 - scores).argsort(dim=1)[:, :PLACES]
    say("ties, demo, the order of 1 - scores, unstable", moved(before, after))


def _empty_addition(
    settings: params.Params, queries: pl.DataFrame, store: Embeddings, edited: Tensor, gallery: Tensor
) -> None:
    """The sentence without objects added: without its second half, and with it empty."""
    encoder = Encoder(settings.backbone("tiny"), settings.compute)
    empty = int((queries["added"] == "").sum())
    say("nothing added, demo", f"{empty} of {queries.height} queries")
    references = torch.from_numpy(store.images(queries["digest"]).copy())
    forms = [
        [template(text, "") for text in queries["instruction"]],
        [f"a photo of $ that {text}. And the photo should have ." for text in queries["instruction"]],
    ]
    vectors = [encoder.text_vectors(encoder.tokens(form), references) for form in forms]
    cosine = (vectors[0] * vectors[1]).sum(dim=1)
    say(
        "nothing added, demo, all queries",
        f"cosine {float(cosine.mean()):.3f} on average, {float(cosine.min()):.3f} least",
    )
    orders = [first((QUERY[0] * edited + QUERY[1] * pseudo) @ gallery.T) for pseudo in vectors]
    say("nothing added, demo, all queries", moved(*orders))


def _pictures(settings: params.Params, scores: Tensor, gallery: Tensor) -> None:
    """The same pictures in other modes: the vector here against that of the published order of steps."""
    encoder = Encoder(settings.backbone("tiny"), settings.compute)
    root = Path(settings.dataset("demo").root)
    paths = [root / path for path in gallery_rows("demo")["path"][:PICTURES]]
    for name in ("palette", "palette with transparency", "alpha", "CMYK", "EXIF: turned by 90 degrees", "RGB"):
        files = [_variant(name, Image.open(path).convert("RGB")) for path in paths]
        ours = torch.stack([encoder.prepare(images.decode(data)) for data in files])
        theirs = torch.stack([_published(Image.open(io.BytesIO(data)), encoder) for data in files])
        both = [
            normalize(
                torch.cat(
                    [
                        encoder.image_embeddings(list(batch))
                        for batch in torch.tensor_split(pixels, -(-len(files) // 32))
                    ]
                ),
                dim=1,
            )
            for pixels in (ours, theirs)
        ]
        cosine = (both[0] * both[1]).sum(dim=1)
        say(
            f"{name}, demo, {len(files)} pictures",
            f"cosine {float(cosine.mean()):.4f} on average, {float(cosine.min()):.4f} least",
        )


def _variant(name: str, image: Image.Image) -> bytes:
    """A picture, widened to three to two, as a file of another kind."""
    image = image.resize((96, 64))
    stream = io.BytesIO()
    options: dict[str, Any] = {}
    if name.startswith("palette"):
        image = image.quantize(64)
        options = {"transparency": 0} if "transparency" in name else {}
    elif name == "alpha":
        mask = Image.linear_gradient("L").resize(image.size)
        image.putalpha(mask)
    elif name == "CMYK":
        image = image.convert("CMYK")
    elif name.startswith("EXIF"):
        exif = Image.Exif()
        exif[images.ORIENTATION] = 6
        options = {"exif": exif}
    image.save(stream, "TIFF" if name == "CMYK" else "PNG", **options)
    return stream.getvalue()


def _published(image: Image.Image, encoder: Encoder) -> Tensor:
    """The published order: pad and resize in the file's own mode, then RGB; no turning by EXIF."""
    width, height = image.size
    if max(width, height) / min(width, height) >= 1.25:
        scaled = max(width, height) / 1.25
        across, down = max(int((scaled - width) / 2), 0), max(int((scaled - height) / 2), 0)
        image = functional.pad(image, [across, down, across, down], 0, "constant")
    side = encoder.model.visual.image_size[0]
    image = functional.resize(image, side, functional.InterpolationMode.BICUBIC)
    image = functional.center_crop(image, [side, side]).convert("RGB")
    cfg = encoder.model.visual.preprocess_cfg
    return functional.normalize(functional.to_tensor(image), cfg["mean"], cfg["std"])  # type: ignore[no-any-return]


def dollars(folder: Path) -> None:
    """Instructions with a `$` of their own, in the benchmarks' annotation files."""
    for benchmark in ("CIRCO", "CIRR", "FASHIONIQ"):
        found = total = 0
        for file in sorted((folder / benchmark).rglob("*.json")):
            content = json.loads(file.read_text(encoding="utf-8"))
            for entry in content if isinstance(content, list) and content and isinstance(content[0], dict) else []:
                texts = entry.get("captions") or [entry.get("caption") or entry.get("relative_caption") or ""]
                total, found = total + 1, found + any("$" in text for text in texts)
        say(f"$ in {benchmark}", f"{found} of {total:,} queries")


def main(annotations: str = "") -> None:
    """Print all sizes; `annotations` is a folder with the benchmarks' own files."""
    if annotations:
        dollars(Path(annotations))
    demo()
    random_shapes()


if __name__ == "__main__":
    torch.manual_seed(0)
    np.random.seed(0)
    typer.run(main)
