"""One file of a hub's repository to the hub's cache on this disk: continued where it stopped, and verified.

The cache has the layout that `huggingface_hub` describes (blobs, snapshots, refs), so that transformers, vLLM and
open_clip find the files. `huggingface_hub` 2.4 itself deletes what it has of a file when it is stopped, and compares
sizes but no digests. Xet, its other transport, is not used: only plain HTTP can continue at a byte and needs no second
server, and the hub serves each file up to 50 GB by it, too.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cvsi.core.atomic import flush
from cvsi.core.errors import CvsiError, cause
from cvsi.models.hub import COMMIT, HubError, HubFile, Listing, Passing, Patience, check_status, stream

if TYPE_CHECKING:
    from httpx2 import Response

READ_BYTES = 1 << 20
LARGEST = 50 * 10**9  # bytes that the hub serves by plain HTTP

Progress = Callable[[int], None]  # takes the bytes that arrived, negative for those that are discarded


class WrongDigest(HubError):
    """A file whose bytes are not those that the hub lists."""


class Snapshot:
    """A repository at one commit in the cache."""

    def __init__(self, listing: Listing, cache: Path) -> None:
        """Name its folders; nothing is written yet."""
        self.listing = listing
        name = "models--" + listing.repository.replace("/", "--")
        self.folder, self.locks = cache / name, cache / ".locks" / name
        self.path = self.folder / "snapshots" / listing.commit

    def pointer(self, file: HubFile) -> Path:
        """Where libraries look for a file."""
        return self.path / file.name

    def blob(self, file: HubFile) -> Path:
        """Where its bytes are."""
        return self.folder / "blobs" / file.digest

    def partial(self, file: HubFile) -> Path:
        """Where the bytes are that have arrived so far; `hf cache prune` knows the name."""
        return self.folder / "blobs" / f"{file.digest}.incomplete"

    def arrived(self, file: HubFile) -> int:
        """How many bytes of a file need not be asked for."""
        here = self.here(file)
        return file.size if here else min(_size(self.partial(file)), file.size)

    def here(self, file: HubFile) -> Path | None:
        """The file's bytes on this disk, if they have the right size; the digest is not compared."""
        places = (self.pointer(file), self.blob(file))
        return next((place for place in places if place.is_file() and place.stat().st_size == file.size), None)

    def verified(self, file: HubFile) -> bool:
        """Whether a file is in place with the right digest; one with another digest is deleted."""
        here = self.here(file)
        if here is None:
            return False
        if digest_of(here, file) == file.digest:
            if not self.pointer(file).is_file():
                with one_line(self.folder):
                    self._point(file)
            return True
        with one_line(self.folder):
            self.pointer(file).unlink(missing_ok=True)
            self.blob(file).unlink(missing_ok=True)
        return False

    def fetch(self, file: HubFile, progress: Progress) -> None:
        """Bring a file's missing bytes, verify it and put it in place; another process that does so is waited for.

        Raises WrongDigest, with the file deleted, HubError where the server refuses or ends too early, and CvsiError
        where the cache cannot be written.
        """
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        where = f"{self.listing.repository}: {file.name}"
        if file.size > LARGEST:
            raise HubError(f"{where}: {file.size / 1e9:.0f} GB, more than the hub serves by HTTP; use hf download")
        with one_line(self.folder):
            for folder in (self.blob(file).parent, self.locks):
                folder.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(self.locks / f"{file.digest}.lock"):
                if self.here(file) is None:  # else another process was faster
                    self._transfer(file, where, progress)
                    self._accept(file, where)
                self._point(file)

    def finish(self) -> None:
        """Note which commit the wanted revision is, once its files are here, so that it is found without the hub."""
        revision = self.listing.revision or "main"
        if COMMIT.fullmatch(revision):
            return
        ref = self.folder / "refs" / revision
        with one_line(self.folder):
            if ref.is_file() and ref.read_text(encoding="utf-8") == self.listing.commit:
                return
            ref.parent.mkdir(parents=True, exist_ok=True)
            new = ref.with_name(f"{ref.name}.{uuid.uuid4().hex[:8]}.tmp")
            new.write_text(self.listing.commit, encoding="utf-8")
            new.replace(ref)

    def _transfer(self, file: HubFile, where: str, progress: Progress) -> None:
        """Append to the partial file until it has the listed size."""
        import httpx2

        partial, patience = self.partial(file), Patience(where)
        if _size(partial) > file.size:
            partial.unlink()
        partial.touch()
        most = _size(partial)
        while _size(partial) < file.size:
            try:
                self._receive(file, where, progress)
                failure = Passing("the server ended early")
            except Passing as error:
                failure = error
            except (httpx2.ReadError, httpx2.RemoteProtocolError):
                failure = Passing(f"the connection broke off at {_size(partial):,} of {file.size:,} bytes")
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                failure = Passing(f"the connection failed ({cause(error)})")
            if _size(partial) == file.size:
                return
            if _size(partial) > most:
                most, patience.failures = _size(partial), 0
            patience.wait(failure)

    def _receive(self, file: HubFile, where: str, progress: Progress) -> None:
        """One request for the bytes that are missing, as far as they come."""
        from huggingface_hub import hf_hub_url

        listing, partial = self.listing, self.partial(file)
        have = _size(partial)
        url = hf_hub_url(listing.repository, file.name, revision=listing.commit)
        with stream(url, {"Range": f"bytes={have}-"} if have else {}) as response:
            _check_length(response, file, where)
            if response.status_code == 416:  # this server has less than the partial file
                progress(-have)
                os.truncate(partial, 0)
                raise Passing("the server refuses to continue the file")
            check_status(response, listing.repository, file.name)
            self._check_commit(response, where)
            if not _continues(response, have):  # the server cannot continue, so the file begins anew
                progress(-have)
                os.truncate(partial, 0)
                if response.status_code == 206:
                    raise Passing("the server sends another part of the file than was asked for")
                have = 0
            with partial.open("ab" if have else "wb") as out:
                for chunk in response.iter_bytes():  # pieces of a fixed size would be lost in a break
                    have += len(chunk)
                    if have > file.size:
                        break
                    out.write(chunk)
                    progress(len(chunk))
        if have > file.size:
            partial.unlink()
            raise HubError(
                f"{where}: the server sends more than the {file.size:,} bytes it lists; deleted, try it again"
            )

    def _check_commit(self, response: "Response", where: str) -> None:
        """Raise HubError where the server says that the file is of another commit."""
        for answer in (*response.history, response):
            commit = answer.headers.get("X-Repo-Commit", self.listing.commit)
            if commit != self.listing.commit:
                raise HubError(f"{where}: commit {self.listing.commit} asked, but the server sends {commit[:60]!r}")

    def _accept(self, file: HubFile, where: str) -> None:
        """Compare the digest; a right file becomes a blob, a wrong one is deleted."""
        partial = self.partial(file)
        got = digest_of(partial, file)
        if got != file.digest:
            partial.unlink()
            kind = "SHA-256" if len(file.digest) == 64 else "git SHA-1"
            raise WrongDigest(
                f"{where}: wrong {kind}, expected {file.digest}, got {got}; deleted from the cache: run it again, and "
                "do not use this server if it happens again"
            )
        flush(partial)
        partial.replace(self.blob(file))

    def _point(self, file: HubFile) -> None:
        """Put a verified blob where libraries look for it, as a relative link, or as a copy on a disk without links."""
        pointer, blob = self.pointer(file), self.blob(file)
        if not blob.is_file():  # a cache without links, where the file itself is at its place
            return
        pointer.parent.mkdir(parents=True, exist_ok=True)
        new = pointer.with_name(f".{uuid.uuid4().hex[:12]}.tmp")
        try:
            new.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:
            shutil.copyfile(blob, new)
        new.replace(pointer)
        # huggingface_hub notes here that a file does not exist, and then does not look for it.
        (self.folder / ".no_exist" / self.listing.commit / file.name).unlink(missing_ok=True)


def digest_of(path: Path, file: HubFile) -> str:
    """The digest of a file's bytes, of the kind that the hub lists for it."""
    total = hashlib.sha256() if len(file.digest) == 64 else hashlib.sha1(usedforsecurity=False)
    if len(file.digest) == 40:
        total.update(f"blob {file.size}\0".encode())
    with path.open("rb") as handle:
        while data := handle.read(READ_BYTES):
            total.update(data)
    return total.hexdigest()


def _check_length(response: "Response", file: HubFile, where: str) -> None:
    """Raise HubError where an answer says that the whole file is not as long as listed."""
    headers = response.headers
    length = headers.get("Content-Range", "").rpartition("/")[2]
    if response.status_code == 200 and "Content-Encoding" not in headers:
        length = headers.get("Content-Length", "")
    if response.status_code in (200, 206, 416) and length.isascii() and length.isdigit() and int(length) != file.size:
        raise HubError(f"{where}: the server sends {int(length):,} bytes, but lists {file.size:,}; not downloaded")


def _continues(response: "Response", have: int) -> bool:
    """Whether an answer is a part of the file that begins at the byte that was asked for."""
    encoding = response.headers.get("Content-Encoding", "identity")
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
    return response.status_code == 206 and encoding == "identity" and start == str(have)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@contextmanager
def one_line(folder: Path) -> Iterator[None]:
    """Turn an error of the disk below a folder into one line that says what to do."""
    try:
        yield
    except OSError as error:
        raise CvsiError(
            f"{error.filename or folder}: the hub's cache cannot be read or written ({error.strerror or error}); free "
            "space, or set HF_HUB_CACHE to a folder that you may write to; what arrived is kept"
        ) from None
