"""A query and its results to one HTML page that contains its pictures and needs nothing else."""

from pathlib import Path
from typing import Any

import jinja2
import polars as pl

from cvsi.core import tables
from cvsi.core.atomic import atomic_file
from cvsi.core.errors import CvsiError
from cvsi.evaluation.report.thumbnails import Box, address, pictures, thumbnail
from cvsi.explorer.images import NewImage
from cvsi.explorer.requests import Answer, Request


def write(target: Path, run: str, dataset: str, root: Path, request: Request, answer: Answer) -> None:
    """Write the page; raises CvsiError where it cannot be written. A file that is gone has no picture."""
    wanted = [result.image_id for result in answer.results] + [request.image_id]
    images = pl.DataFrame(tables.read("index", dataset, "images.parquet")).filter(pl.col("image_id").is_in(wanted))
    shown = pictures(root, images, _picture)
    reference = _own_picture(request.image) if request.image else shown.get(request.image_id, "")
    text = _template().render(run=run, request=request, answer=answer, pictures=shown, reference=reference)
    try:
        with atomic_file(target) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CvsiError(f"{target}: {error.strerror or error}; name another file with --html") from None


def _picture(path: Path, digest: str, side: int, crop: Box | None = None) -> str:
    """A thumbnail as a `data:` address; empty where the file is gone or changed, which a page of results survives."""
    try:
        return thumbnail(path, digest, side, crop)
    except (CvsiError, OSError):
        return ""


def _own_picture(data: bytes) -> str:
    return NewImage.of(data).use(address)


def _template() -> Any:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cvsi.explorer", ""), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("results.html")
