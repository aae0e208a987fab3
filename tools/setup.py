"""Creates `.venv` from the pinned, hashed requirement files; does nothing if it is up to date.

Runs on any Python 3, so that on an old version it can end with a clear error line.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST = (3, 11)
NEWER = ("python3.13", "python3.12", "python3.11")
NEEDED_GB = 8
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOG = VENV / "setup.log"
HINTS = (
    ("No space left on device", f"the disk is full; free {NEEDED_GB} GB and run the command again"),
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


def main():
    """Create or update the environment; exits with one line if that fails."""
    if sys.version_info < OLDEST:
        newer = next(filter(None, map(usable, NEWER)), None)
        if newer is None:
            fail("Python {}.{} is too old; install Python 3.11 or newer".format(*sys.version_info[:2]))
        sys.exit(subprocess.call([newer, __file__]))
    requirements = ROOT / "requirements" / ("cuda.txt" if has_gpu() else "cpu.txt")
    stamp_file, stamp = VENV / "installed.txt", fingerprint(requirements)
    if stamp_file.exists() and stamp_file.read_text(encoding="utf-8") == stamp:
        return
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < NEEDED_GB:
        fail(f"{free:.1f} GB free on this disk, the packages need {NEEDED_GB}; free some and run again")
    info(f"installing {requirements.relative_to(ROOT)} into .venv (about 6 GB; takes minutes, once)")
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


def usable(name):
    """The path of the Python with this name if it can be started, or None."""
    path = shutil.which(name)
    works = path and subprocess.call([path, "-c", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    return path if works else None


def has_gpu():
    """Whether nvidia-smi lists a GPU."""
    tool = shutil.which("nvidia-smi")
    return bool(tool) and subprocess.call([tool, "-L"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0


def fingerprint(requirements):
    """A digest of everything that the environment depends on, as one line."""
    parts = [requirements.read_bytes(), (ROOT / "pyproject.toml").read_bytes(), str(ROOT).encode()]
    return "{} {}\n".format(requirements.name, hashlib.sha256(b"\0".join(parts)).hexdigest())


def step(command):
    """Run a command with its output in the log; on failure, exit with one line that gives advice."""
    with LOG.open("a", encoding="utf-8") as log:
        code = subprocess.call(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    if code:
        text = LOG.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        hint = next((hint for pattern, hint in HINTS if pattern in text), lines[-1] if lines else "no output")
        fail(f"{hint} (details: {LOG.relative_to(ROOT)})")


def info(text):
    """Print one line and flush it."""
    sys.stdout.write(f"setup: {text}\n")
    sys.stdout.flush()


def fail(text):
    """Print one line to standard error and exit with 1."""
    sys.stderr.write(f"setup: {text}\n")
    sys.exit(1)


if __name__ == "__main__":
    main()
