"""Fixtures of the tests of the whole project."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.answers import EDITOR, serve


@pytest.fixture(scope="session")
def server_editor() -> Iterator[dict[str, Any]]:
    """An editor's block in params.yaml whose server answers by a rule: a stage with it loads no language model."""
    with serve() as address:
        yield EDITOR | {"address": address}
