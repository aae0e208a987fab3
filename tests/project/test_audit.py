"""`make audit`: every pin is checked, findings are listed, and a service without data is not a clean result."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tools import audit
from tools.audit import CANARY, FILES, NOT_RUN, Pin

KNOWN = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["9.9"]}


class Service:
    """Answers as pip-audit does: vulnerabilities of one release and of the canary, or no data at all."""

    def __init__(self, bad: str = "", canary: bool = True, reach: bool = True) -> None:
        self.bad, self.canary, self.reach = bad, canary, reach
        self.calls: list[tuple[str, int]] = []

    def __call__(self, pins: Iterable[Pin], service: str, limit: float) -> list[dict[str, Any]]:
        releases = list(pins)
        self.calls.append((service, len(releases)))
        if not self.reach:
            raise audit.NotRun("out of reach")
        return [self.entry(*release) for release in releases]

    def entry(self, name: str, version: str) -> dict[str, Any]:
        if not self.canary:
            return {"name": name, "skip_reason": "not found"}
        known = [KNOWN] if name == self.bad or (name, version) == CANARY else []
        return {"name": name, "version": version, "vulns": known}


def test_every_pin_is_listed_whatever_its_marker(tmp_path: Path) -> None:
    file = tmp_path / "some.txt"
    file.write_text(
        "numpy==2.3.5 ; python_full_version < '3.13' \\\n    --hash=sha256:aa\n    # via torch\n"
        "numpy==2.4.6 ; python_full_version >= '3.13'\nPyWin32==312 ; sys_platform == 'win32'\n"
        "moto[server]==5.2.5 \\\n    --hash=sha256:bb\n"
    )
    assert audit.pins([file, file]) == [
        ("moto", "5.2.5"), ("numpy", "2.3.5"), ("numpy", "2.4.6"), ("pywin32", "312")
    ]  # fmt: skip
    lines = [line for file in FILES for line in file.read_text(encoding="utf-8").splitlines()]
    pinned = {line.split()[0] for line in lines if line[:1].isalnum()}
    assert len(audit.pins(FILES)) == len(pinned) > 300


def test_nothing_known(capsys: pytest.CaptureFixture[str]) -> None:
    service = Service()
    assert audit.main([], service) == 0
    assert capsys.readouterr().out.startswith("audit: no known vulnerability in ")
    assert service.calls == [("pypi", 1), ("pypi", len(audit.pins(FILES)))]


def test_a_finding_fails_the_audit_and_only_warns_in_lint(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main([], Service(bad="torch")) == 1
    assert capsys.readouterr().out == "audit: torch 2.13.0: PYSEC-1, CVE-1; fixed in 9.9\n"
    assert audit.main(["--warn"], Service(bad="torch")) == 0
    assert capsys.readouterr().out == "audit: warning: 1 known vulnerabilities in torch 2.13.0; make audit lists them\n"


def test_an_accepted_finding_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "ACCEPTED", {"CVE-1": "does not apply"})
    assert audit.main([], Service(bad="torch")) == 0


@pytest.mark.parametrize("service", [Service(canary=False), Service(reach=False)])
def test_a_service_without_data_is_not_a_clean_result(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main([], service) == NOT_RUN
    printed = capsys.readouterr().out
    assert printed.startswith("audit: could not run: pypi: ") and "; osv: " in printed and printed.count("\n") == 1
    assert audit.main(["--warn"], service) == 0


def test_the_real_pip_audit_answers_or_fails_with_one_line() -> None:
    """The real tool, on a release that no index has: with or without a network it must not end in a traceback."""
    try:
        (entry,) = audit.run_pip_audit([("cvsi-no-such-package", "0.0.1")], "pypi", 60)
        assert "skip_reason" in entry
    except audit.NotRun as reason:
        assert "\n" not in str(reason)


def test_the_time_limit_ends_it() -> None:
    with pytest.raises(audit.NotRun, match="timed out"):
        audit.run_pip_audit([CANARY], "pypi", 0.01)
