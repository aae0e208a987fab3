"""A reader that is added to a dataset under DVC: what runs again, what is not computed again, and going back."""

import json

import polars as pl
import pytest

from tests.conftest import Workspace, repro
from tests.vision_server import Reply, Seen, choice, serving

ROLES = {"target": 1, "desired": 3, "preserve": 3, "forbidden": 3}


def reading(seen: Seen, before: int) -> Reply:
    return 200, choice(json.dumps({role: [f"a {seen.colour} {role} shape"] for role in ROLES})), {}


@pytest.mark.slow
@pytest.mark.xdist_group("project")
def test_a_reader_added_later_reruns_what_uses_it_and_computes_only_readings(project: Workspace) -> None:
    with_the_demos_own = project.bytes_below("demo")
    original = project.params(compute={"device": "cpu", "requests": 4})["datasets"]
    project.params(datasets__demo__reader=None)
    repro(project)
    before = project.bytes_below("demo/edits", "demo/tiny/query_vectors")
    assert set(pl.read_parquet(project.path / "cache/demo/edits/*.parquet").columns).isdisjoint(ROLES)
    with serving(reading) as server:
        block = {"engine": "server", "address": server.address, "model": "m", "roles": ROLES}
        project.params(datasets__demo__reader=block)
        ran, printed = repro(project)
        assert ran == ["edits", "query_vectors", "scores", "report"], printed
        assert "32 queries: 32 in the store, 0 to edit" in printed and "readings: 32 ok" in printed
        assert len(server.seen) == 32  # each pair of image and instruction occurs once
        methods = json.loads((project.path / "cache/demo/tiny/report/weightings.json").read_text())["splits"]["val"]
        assert {"soft", "osrcir", "sdr", "roles"} <= set(methods)
        status = pl.read_parquet(project.path / "cache/demo/edits/*.parquet")["reader_status"]
        assert set(status) == {"ok"}
        assert repro(project)[0] == []
    project.params(datasets__demo__reader=None)
    repro(project)
    assert project.bytes_below("demo/edits", "demo/tiny/query_vectors") == before
    project.params(datasets=original)
    repro(project)
    assert project.bytes_below("demo") == with_the_demos_own
