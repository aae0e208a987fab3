"""Values that run code when they are unpickled: what a checkpoint from a stranger may contain."""

from pathlib import Path


class CreatesFile:
    """A value whose pickle creates a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.file,))
