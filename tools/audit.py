"""Holds the pinned requirements against known vulnerabilities, with pip-audit; `make audit` runs it.

All pins are asked about, those for another Python or machine too: pip-audit itself leaves out lines whose marker is not
true here. A release known to be vulnerable goes along, since a service that does not answer for it answers for nothing:
behind a mirror of the package index, pip-audit finds no package and calls that no vulnerability.

Exit: 0 nothing known, 1 something found, 3 it could not run. With --warn it is a line and always 0.
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
FOUND, NOT_RUN = 1, 3
LONG, SHORT = 900.0, 20.0  # seconds; the second where it only warns

# Findings that are looked at and left, by any of their ids, with the reason.
ACCEPTED: dict[str, str] = {
    "CVE-2025-69872": "diskcache reads pickles from DVC's cache folders: whoever can write there runs code; no "
    "release mends it. Where several people use one machine, give each a DVC site_cache_dir of their own",
}

Pin = tuple[str, str]
Ask = Callable[[Iterable[Pin], str, float], list[dict[str, Any]]]


class NotRun(Exception):
    """The audit could not be made; the text says why."""


@dataclass(frozen=True)
class Finding:
    """A known vulnerability of a pinned release, and the releases that mend it."""

    name: str
    version: str
    ids: tuple[str, ...]
    mended_by: tuple[str, ...]

    def line(self) -> str:
        """The finding for people."""
        advice = f"mended by {', '.join(self.mended_by)}" if self.mended_by else "no release mends it"
        return f"{self.name} {self.version}: {', '.join(self.ids)}; {advice}"


def pins(files: Iterable[Path]) -> list[Pin]:
    """Every (name, version) that the requirement files pin, whatever the marker, each once."""
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return sorted({(found[1].lower(), found[2]) for line in lines if (found := PIN.match(line))})


def audit(pinned: list[Pin], ask: Ask, limit: float) -> list[Finding]:
    """What is known against these releases, what was accepted left out; raises NotRun where no service answers."""
    until, reasons = time.monotonic() + limit, []
    for service in SERVICES:
        try:
            if not _findings(ask([CANARY], service, until - time.monotonic())):
                raise NotRun("it knows nothing of a release that is vulnerable")
            entries = ask(pinned, service, until - time.monotonic())
        except NotRun as reason:
            reasons.append(f"{service}: {reason}")
            continue
        unknown = [entry for entry in entries if "skip_reason" in entry]
        if len(entries) < len(pinned) or len(unknown) > len(pinned) // 10:
            reasons.append(f"{service}: it knows {len(entries) - len(unknown)} of {len(pinned)} releases")
            continue
        return [finding for finding in _findings(entries) if not set(finding.ids) & set(ACCEPTED)]
    raise NotRun("; ".join(reasons))


def run_pip_audit(asked: Iterable[Pin], service: str, limit: float) -> list[dict[str, Any]]:
    """pip-audit's answer for these releases, an entry each; raises NotRun where it has none."""
    with tempfile.TemporaryDirectory() as folder:
        packages = "".join(f'[[packages]]\nname = "{name}"\nversion = "{version}"\n' for name, version in asked)
        Path(folder, "pylock.toml").write_text(f'lock-version = "1.0"\ncreated-by = "cvsi"\n{packages}', "utf-8")
        command = [sys.executable, "-m", "pip_audit", "--locked", folder, "-s", service, "-f", "json", "--desc", "off"]
        try:
            done = subprocess.run(
                [*command, "--aliases", "on", "--progress-spinner", "off", "--timeout", "10"],
                capture_output=True, text=True, timeout=max(limit, 0.1),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise NotRun("no answer in time") from None
    try:
        return list(json.loads(done.stdout)["dependencies"])
    except (ValueError, KeyError, TypeError):
        said = " ".join((done.stderr.strip().splitlines() or ["no answer"])[-1].split())
        raise NotRun(f"out of reach ({said[:160]})") from None


def _findings(entries: Iterable[dict[str, Any]]) -> list[Finding]:
    return [
        Finding(
            entry["name"], entry["version"],
            tuple(dict.fromkeys([known["id"], *known.get("aliases", ())])), tuple(known["fix_versions"]),
        )
        for entry in entries
        for known in entry.get("vulns", ())
    ]  # fmt: skip


def main(arguments: list[str], ask: Ask = run_pip_audit) -> int:
    """Audit the requirement files and say what was found; the exit code."""
    parser = argparse.ArgumentParser(description="Hold the pinned requirements against known vulnerabilities.")
    parser.add_argument("--warn", action="store_true", help="one line, 20 seconds at most, never an error")
    warn = parser.parse_args(arguments).warn
    pinned = pins(FILES)
    try:
        found = audit(pinned, ask, SHORT if warn else LONG)
    except NotRun as reason:
        _say(f"not made: {reason}")
        return 0 if warn else NOT_RUN
    if not found:
        _say(f"nothing known against {len(pinned)} pinned releases")
        return 0
    if warn:
        _say(f"warning: {len(found)} known vulnerabilities in {_names(found)}; make audit lists them")
        return 0
    for finding in found:
        _say(finding.line())
    return FOUND


def _names(found: Iterable[Finding]) -> str:
    return ", ".join(dict.fromkeys(f"{finding.name} {finding.version}" for finding in found))


def _say(text: str) -> None:
    sys.stdout.write(f"audit: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
