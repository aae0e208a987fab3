"""The entry point of environments installed before the command line moved to `cvsi.commands`."""

from cvsi.commands.main import main

__all__ = ["main"]
