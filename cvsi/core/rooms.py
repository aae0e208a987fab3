"""Room in memory that threads share: who needs some waits until there is enough, however many threads there are."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class Room:
    """So many bytes; `taken` waits for its share. What needs more than there are gets all of them, alone."""

    def __init__(self, size: int) -> None:
        """A room of `size` bytes, all free."""
        self.size = self._free = size
        self._changed = Condition()

    @contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Hold this many bytes of it while the block runs."""
        amount = min(amount, self.size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()
