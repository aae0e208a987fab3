"""Creates `.venv` from the pinned, hashed requirement files; does nothing if it is up to date.

Runs on any Python 3, so that on an old version it can end with a clear error line.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn, Sequence, Tuple  # noqa: UP035  (any Python 3 must read this file)

Versions = Tuple[Tuple[int, int], ...]  # noqa: UP006

# The Pythons for which every package of a requirement file has wheels (tests/project/test_requirements.py), and the
# GiB that it takes when installed, measured with du on Linux. cuda-python 12.6.2.post1 has wheels up to Python 3.12.
PYTHONS = {
    "cpu.txt": ((3, 11), (3, 12), (3, 13), (3, 14)),
    "cuda.txt": ((3, 11), (3, 12)),
}
SIZES = {"cpu.txt": 6.8, "cuda.txt": 8.9}
SPARE = 1.5  # while it is installed
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOG = VENV / "setup.log"
HINTS = (
    ("No space left on device", "the disk is full; free some of it and run the command again"),
    (
        "invalid peer certificate",
        "the package index's certificate is not trusted here; set SSL_CERT_FILE to your system's",
    ),
    ("Failed to fetch", "no network: the package index cannot be reached; connect and run the command again"),
    ("error sending request", "no network: the package index cannot be reached; connect and run the command again"),
    ("NewConnectionError", "no network: the package index cannot be reached; connect and run the command again"),
    ("No matching distribution", "no network: the package index cannot be reached; connect and run the command again"),
    ("ensurepip", "this Python has no venv module; install your system's python3-venv package"),
)


def main() -> None:
    """Create or update the environment; exits with one line if that fails."""
    requirements = ROOT / "requirements" / ("cuda.txt" if has_gpu() else "cpu.txt")
    fitting, size = PYTHONS[requirements.name], SIZES[requirements.name]
    check_git()
    stamp_file, stamp = VENV / "installed.txt", fingerprint(requirements)
    if stamp_file.exists() and stamp_file.read_text(encoding="utf-8") == stamp:
        return
    if tuple(sys.version_info[:2]) not in fitting:
        hand_over(requirements.name, fitting)
    free, needed = shutil.disk_usage(ROOT).free / float(1 << 30), size + SPARE
    if free < needed:
        fail(f"{free:.1f} GiB free on this disk, the packages need {needed:.1f}; free some and run again")
    info(f"installing requirements/{requirements.name} into .venv ({size} GiB; takes minutes, once)")
    if VENV.exists() and version(VENV / "bin" / "python") not in fitting:
        shutil.rmtree(VENV)  # made by a Python that does not fit, or by one that is gone
    VENV.mkdir(exist_ok=True)
    LOG.write_text("", encoding="utf-8")
    python = VENV / "bin" / "python"
    if not python.exists():
        step([sys.executable, "-m", "venv", str(VENV)])
    uv = [str(python), "-m", "uv", "pip"]
    if subprocess.call([str(python), "-c", "import uv"], stderr=subprocess.DEVNULL):
        step([str(python), "-m", "pip", "install", "--require-hashes", "--no-deps", "-r", "requirements/uv.txt"])
    step([*uv, "sync", "--python", str(python), "--require-hashes", str(requirements)])
    step([*uv, "install", "--python", str(python), "--no-deps", "--no-build-isolation", "-e", "."])
    stamp_file.write_text(stamp, encoding="utf-8")
    info("done")


def check_git() -> None:
    """Print what to do where the project is in no git repository: dvc then ends with a line that does not say it."""
    above = [ROOT, *ROOT.parents]
    if (ROOT / "dvc.yaml").exists() and not any((folder / ".git").exists() for folder in above):
        settings = [ROOT / ".dvc" / name for name in ("config", "config.local")]
        if not any(file.exists() and "no_scm = true" in file.read_text(encoding="utf-8") for file in settings):
            info("no git repository here, and dvc needs one: run git init, or: dvc config core.no_scm true")


def hand_over(file: str, fitting: Versions) -> None:
    """Go on in the first Python on PATH that fits; without one, exit with a line that names those that would."""
    for wanted in fitting:
        path = shutil.which("python{}.{}".format(*wanted))
        if path and version(path) == wanted:
            sys.exit(subprocess.call([path, __file__]))
    names = ["{}.{}".format(*wanted) for wanted in fitting]
    fail(
        "requirements/{} needs Python {} or {}; this is Python {}.{}, and none of those is on PATH; install one".format(
            file, ", ".join(names[:-1]), names[-1], *sys.version_info[:2]
        )
    )


def version(python: object) -> object:
    """The version of a Python as (major, minor), or None if it cannot be started."""
    command = [str(python), "-c", "import sys; print(*sys.version_info[:2])"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return None
    return tuple(map(int, done.stdout.split())) if done.returncode == 0 else None


def has_gpu() -> bool:
    """Whether nvidia-smi lists a GPU."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.call([tool, "-L"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0


def fingerprint(requirements: Path) -> str:
    """A digest of everything that the environment depends on, as one line."""
    parts = [requirements.read_bytes(), (ROOT / "pyproject.toml").read_bytes(), str(ROOT).encode()]
    return "{} {}\n".format(requirements.name, hashlib.sha256(b"\0".join(parts)).hexdigest())


def step(command: Sequence[str]) -> None:
    """Run a command with its output in the log; on failure, exit with one line that gives advice."""
    with LOG.open("a", encoding="utf-8") as log:
        code = subprocess.call(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    if code:
        text = LOG.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        hint = next((hint for pattern, hint in HINTS if pattern in text), lines[-1] if lines else "no output")
        fail(f"{hint} (details: {LOG.relative_to(ROOT)})")


def info(text: str) -> None:
    """Print one line and flush it."""
    sys.stdout.write(f"setup: {text}\n")
    sys.stdout.flush()


def fail(text: str) -> NoReturn:
    """Print one line to standard error and exit with 1."""
    sys.stderr.write(f"setup: {text}\n")
    sys.exit(1)


if __name__ == "__main__":
    main()
