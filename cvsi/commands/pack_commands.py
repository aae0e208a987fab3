"""The commands `cvsi pack` and `cvsi unpack`: published captions and edits, out of this project and into it."""

from pathlib import Path

import typer

from cvsi.core import params
from cvsi.core.errors import CvsiError


def pack(
    dataset: str = typer.Argument(help="A dataset whose captions and edits are there, demo say."),
    out: str = typer.Argument(help="The folder to write; it must not be there yet."),
    only: str = typer.Option("", help="captions or edits, where not both are to be packed."),
) -> None:
    """Bundle a dataset's captions and edits, with recipes and a card for readers, into a folder to publish."""
    from cvsi.commands.pack import write

    if only not in ("", "captions", "edits"):
        raise CvsiError(f"--only {only}: there are captions and edits; give one of them, or leave it out for both")
    write(dataset, Path(out), params.load(), [only] if only else ("captions", "edits"))  # type: ignore[list-item]


def unpack(folder: str = typer.Argument(help="A folder that cvsi pack wrote.")) -> None:
    """Check a pack and add its rows to the store; say which datasets find them, and what to set where they do not."""
    from cvsi.commands.unpack import unpack as add

    add(Path(folder), params.load())


def register(app: typer.Typer) -> None:
    """Add both to the command line."""
    app.command()(pack)
    app.command()(unpack)
