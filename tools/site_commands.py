"""Makes the page of all commands from typer's own description of `cvsi`: what `cvsi COMMAND --help` prints."""

import re
import subprocess
import sys

INTRODUCTION = """\
# Commands

`make docs` makes this page from the command line itself; `cvsi COMMAND --help` prints the same.

"""
DESCRIBE = ("-m", "typer", "cvsi.commands.main", "utils", "docs", "--name", "cvsi")


def page() -> str:
    """The page as Markdown, one section per command; raises CalledProcessError where typer cannot describe it."""
    text = subprocess.run([sys.executable, *DESCRIBE], check=True, capture_output=True, text=True).stdout
    first = text.index("## `")  # before it: typer's list of commands with their help cut off
    return INTRODUCTION + simplified(text[first:])


def simplified(text: str) -> str:
    """Typer's Markdown with one style of blocks, and without the option that every command has."""
    text = text.replace("```console\n$ ", "```text\n").replace("* `--help`: Show this message and exit.\n", "")
    text = re.sub(r"\*\*Options\*\*:\n+(?=## |\Z)", "", text)  # of a command that has no other
    return re.sub(r"^## `(.*)`$", r"## \1", text, flags=re.M)
