"""Checks the pinned requirements for known vulnerabilities with pip-audit; `make audit` runs it.

All pins are checked, also those for another Python version or platform; pip-audit itself skips lines whose marker does
not apply here. The canary, a release with a known vulnerability, tests each service first: behind a mirror of the
package index, pip-audit finds no package and reports that as no vulnerability.

Exit codes: 0 no known vulnerability, 1 vulnerabilities, 3 the audit could not run. With --warn: one line, always 0.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FILES = (ROOT / "requirements" / "cpu.txt", ROOT / "requirements" / "cuda.txt")
PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)")
CANARY = ("jinja2", "2.11.2")  # CVE-2020-28493
SERVICES = ("pypi", "osv")
VULNERABLE, NOT_RUN = 1, 3  # exit codes
TIMEOUT, WARN_TIMEOUT = 900.0, 20.0  # seconds; the second with --warn

# Reviewed and accepted vulnerabilities by any of their ids, with the reason.
ACCEPTED: dict[str, str] = {
    "CVE-2025-69872": "diskcache reads pickles from DVC's cache folders: anyone with write access there can run code. "
    "No release fixes it. If several people use one machine, give each a separate DVC site_cache_dir",
}

Pin = tuple[str, str]
Query = Callable[[Iterable[Pin], str, float], list[dict[str, Any]]]


class NotRun(Exception):
    """The audit could not run; the text is the reason."""


@dataclass(frozen=True)
class Finding:
    """A known vulnerability of a pinned release, and the releases that fix it."""

    name: str
    version: str
    ids: tuple[str, ...]
    fixed_in: tuple[str, ...]

    def line(self) -> str:
        """The finding as one line of text."""
        fix = f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "no release fixes it"
        return f"{self.name} {self.version}: {', '.join(self.ids)}; {fix}"


def pins(files: Iterable[Path]) -> list[Pin]:
    """Every distinct (name, version) that the requirement files pin, regardless of markers."""
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return sorted({(match[1].lower(), match[2]) for line in lines if (match := PIN.match(line))})


def audit(pinned: list[Pin], query: Query, limit: float) -> list[Finding]:
    """The known vulnerabilities of these releases, except accepted ones; raises NotRun if no service is usable."""
    deadline, reasons = time.monotonic() + limit, []
    for service in SERVICES:
        try:
            if not _findings(query([CANARY], service, deadline - time.monotonic())):
                raise NotRun("it does not report the known vulnerability of the canary release")
            entries = query(pinned, service, deadline - time.monotonic())
        except NotRun as reason:
            reasons.append(f"{service}: {reason}")
            continue
        unknown = [entry for entry in entries if "skip_reason" in entry]
        if len(entries) < len(pinned) or len(unknown) > len(pinned) // 10:
            reasons.append(f"{service}: it has data on only {len(entries) - len(unknown)} of {len(pinned)} releases")
            continue
        return [finding for finding in _findings(entries) if not set(finding.ids) & set(ACCEPTED)]
    raise NotRun("; ".join(reasons))


def run_pip_audit(releases: Iterable[Pin], service: str, limit: float) -> list[dict[str, Any]]:
    """pip-audit's result for these releases, one entry per release; raises NotRun if there is none."""
    with tempfile.TemporaryDirectory() as folder:
        packages = "".join(f'[[packages]]\nname = "{name}"\nversion = "{version}"\n' for name, version in releases)
        Path(folder, "pylock.toml").write_text(f'lock-version = "1.0"\ncreated-by = "cvsi"\n{packages}', "utf-8")
        command = [sys.executable, "-m", "pip_audit", "--locked", folder, "-s", service, "-f", "json", "--desc", "off"]
        try:
            done = subprocess.run(
                [*command, "--aliases", "on", "--progress-spinner", "off", "--timeout", "10"],
                capture_output=True, text=True, timeout=max(limit, 0.1),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise NotRun("timed out") from None
    try:
        return list(json.loads(done.stdout)["dependencies"])
    except (ValueError, KeyError, TypeError):
        error = " ".join((done.stderr.strip().splitlines() or ["no output"])[-1].split())
        raise NotRun(f"cannot be reached ({error[:160]})") from None


def _findings(entries: Iterable[dict[str, Any]]) -> list[Finding]:
    return [
        Finding(
            entry["name"], entry["version"],
            tuple(dict.fromkeys([known["id"], *known.get("aliases", ())])), tuple(known["fix_versions"]),
        )
        for entry in entries
        for known in entry.get("vulns", ())
    ]  # fmt: skip


def main(arguments: list[str], query: Query = run_pip_audit) -> int:
    """Audit the requirement files and print the result; returns the exit code."""
    parser = argparse.ArgumentParser(description="Check the pinned requirements for known vulnerabilities.")
    parser.add_argument("--warn", action="store_true", help="one line, at most 20 seconds, always exit code 0")
    warn = parser.parse_args(arguments).warn
    pinned = pins(FILES)
    try:
        findings = audit(pinned, query, WARN_TIMEOUT if warn else TIMEOUT)
    except NotRun as reason:
        _print(f"could not run: {reason}")
        return 0 if warn else NOT_RUN
    if not findings:
        _print(f"no known vulnerability in {len(pinned)} pinned releases")
        return 0
    if warn:
        _print(f"warning: {len(findings)} known vulnerabilities in {_names(findings)}; make audit lists them")
        return 0
    for finding in findings:
        _print(finding.line())
    return VULNERABLE


def _names(findings: Iterable[Finding]) -> str:
    return ", ".join(dict.fromkeys(f"{finding.name} {finding.version}" for finding in findings))


def _print(text: str) -> None:
    sys.stdout.write(f"audit: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
