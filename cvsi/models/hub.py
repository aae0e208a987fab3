"""A model hub's answers to the files of one repository at one commit: names, sizes and digests, all of it untrusted.

The requests are made here and not by `huggingface_hub`, because that (2.4) neither bounds an answer nor continues a
file after its process ended. Its settings (`HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`) and addresses are used.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

from pydantic import BaseModel, Field, ValidationError

from cvsi.core.console import info
from cvsi.core.errors import CvsiError, cause
from cvsi.models.server_errors import retry_after

if TYPE_CHECKING:
    from httpx2 import Client, Response

TOKEN = "HF_TOKEN"
RETRIES = 6
FIRST_PAUSE = 0.2  # seconds; doubled from retry to retry, so that a file fails after 13 seconds without a new byte
LONGEST_RETRY_AFTER = 600.0  # seconds that a server may ask to wait
CONNECT_SECONDS, READ_SECONDS, LISTING_SECONDS = 5.0, 30.0, 15.0
LISTING_BYTES = 32 << 20
MOST_REDIRECTS = 10
PASSING = (408, 425, 429)  # besides 5xx
COMMIT = re.compile(r"[0-9a-f]{40}")
PART = re.compile(r"[0-9a-f]{7,39}")
SHA256 = re.compile(r"[0-9a-f]{64}")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
LONGEST_NAME = 200  # bytes of one part of a path

Size = Annotated[int, Field(ge=0, lt=1 << 50, strict=True)]


class HubError(CvsiError):
    """One repository, or one of its files, cannot be had; others may."""


class Unreachable(CvsiError):
    """The hub does not answer, so no repository can be had."""


class Passing(Exception):
    """A failure that may be over at the next try: what happened, and the seconds that the server asks to wait."""

    def __init__(self, reason: str, seconds: float = 0.0) -> None:
        """Keep both."""
        super().__init__(reason)
        self.reason, self.seconds = reason, seconds


class _Lfs(BaseModel):
    sha256: str
    size: Size


class _Sibling(BaseModel):
    rfilename: str
    size: Size | None = None
    blobId: str | None = None
    lfs: _Lfs | None = None


class _Info(BaseModel):
    sha: str
    siblings: list[_Sibling]


@dataclass(frozen=True)
class HubFile:
    """One file: its name in the repository, its bytes, and their digest.

    The digest is the SHA-256 (64 digits) of a large file, or the SHA-1 (40 digits) that git gives a small one. The
    hub's cache names the file by it.
    """

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """A repository at a commit; `revision` is that of params.yaml. `files` are checked when they are chosen."""

    repository: str
    revision: str | None
    commit: str
    files: Mapping[str, _Sibling] = field(repr=False)

    def __contains__(self, name: object) -> bool:
        """Whether the repository has a file of this name."""
        return name in self.files

    def file(self, name: str) -> HubFile:
        """A file by its name; raises HubError for a name that leads out of the cache, and without size or digest."""
        where = f"{self.repository}: the file {name[:LONGEST_NAME]!r}"
        sibling = self.files.get(name)
        if sibling is None:
            raise HubError(f"{where} is named by its index, but is not in the repository; take another revision")
        parts = PurePosixPath(name).parts
        plain = name == "/".join(parts) and not name.startswith("/") and not CONTROL.search(name)
        if not plain or any(part in (".", "..") or len(part.encode()) > LONGEST_NAME for part in parts):
            raise HubError(f"{where} has a name that cannot be kept in the cache; nothing of it was written")
        size, digest = (sibling.lfs.size, sibling.lfs.sha256) if sibling.lfs else (sibling.size, sibling.blobId or "")
        if size is None or not (SHA256 if sibling.lfs else COMMIT).fullmatch(digest):
            raise HubError(f"{where} is listed without a size or a digest, so it cannot be verified; not downloaded")
        return HubFile(name, size, digest)


class Patience:
    """Pauses between tries, longer from one to the next; a new byte makes them short again."""

    def __init__(self, what: str) -> None:
        """Name what is tried."""
        self.what, self.failures = what, 0

    def wait(self, failure: Passing) -> None:
        """Print the failure and pause; raises HubError after too many in a row, and for too long a pause."""
        if self.failures == RETRIES:
            raise HubError(f"{self.what}: {failure.reason}, {RETRIES + 1} times in a row; run it again to continue")
        if failure.seconds > LONGEST_RETRY_AFTER:
            raise HubError(f"{self.what}: {failure.reason}, retry after {failure.seconds:.0f} s; run it again then")
        pause = max(FIRST_PAUSE * 2**self.failures, failure.seconds)
        self.failures += 1
        info(f"{self.what}: {failure.reason}; next try in {pause:.1f} s")
        time.sleep(pause)


def endpoint() -> str:
    """The hub's address."""
    from huggingface_hub import constants  # half a second of imports, needed only for a download

    return constants.ENDPOINT


def address() -> str:
    """The hub's address for people, without a user's name and password."""
    scheme, separator, rest = endpoint().partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" or "(HF_ENDPOINT is empty)"


def token() -> str | None:
    """The access token of the environment; raises CvsiError, without it, where it cannot be sent."""
    value = os.environ.get(TOKEN, "").strip()
    if not value.isascii() or not value.isprintable() or " " in value:
        raise CvsiError(
            f"{TOKEN}: not an access token (blanks, or characters that are not ASCII); correct it, or unset it"
        )
    return value or None


@contextmanager
def stream(url: str, headers: Mapping[str, str], read_seconds: float = READ_SECONDS) -> Iterator["Response"]:
    """A GET request's answer, not read yet. The token is sent to the hub's own origin alone, also after a redirect."""
    import httpx2

    sent = {"Accept-Encoding": "identity", **headers}  # a compressed file could not be continued at a byte
    if value := token():
        sent["Authorization"] = f"Bearer {value}"
    timeout = httpx2.Timeout(read_seconds, connect=CONNECT_SECONDS)
    with _client().stream("GET", url, headers=sent, timeout=timeout) as response:
        yield response


@cache
def _client() -> "Client":
    import httpx2

    from cvsi import __version__

    return httpx2.Client(
        headers={"User-Agent": f"cvsi/{__version__}"}, follow_redirects=True, max_redirects=MOST_REDIRECTS
    )


def check_status(response: "Response", repository: str, what: str) -> None:
    """Raise Passing for an answer that may be another one later, and HubError for one that will not."""
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    if status in PASSING or status >= 500:
        raise Passing(f"the server answers {status}", retry_after(response.headers))
    if status in (200, 206):
        return
    page = f"{address()}/{repository}"
    if status in (401, 403):
        known = f"{TOKEN} gives no access to it" if token() else f"{TOKEN} is not set"
        raise HubError(
            f"{repository}: access refused ({status}): it is gated, private or does not exist, and {known}; accept its "
            f"terms on {page} and set {TOKEN} to a token of that account, or correct the name"
        )
    if status == 404 and code == "EntryNotFound":
        raise HubError(f"{repository}: {what} is not there (404); take another revision")
    if status == 404 and code == "RevisionNotFound":
        raise HubError(f"{repository}: {what}: no such revision (404); correct `revision` in params.yaml")
    if status == 404:
        raise HubError(f"{repository}: {what}: no such repository or revision (404) at {address()}; correct its name")
    raise HubError(f"{repository}: {what}: unexpected answer {status} of {address()}; is HF_ENDPOINT a model hub?")


def listing(repository: str, revision: str | None) -> Listing:
    """The files of a repository at a revision (None: its main one).

    Raises HubError where there are none for this user, or where the answer contradicts the revision, and Unreachable
    where no hub answers.
    """
    _check_names(repository, revision)
    url = f"{endpoint()}/api/models/{repository}/revision/{quote(revision or 'main', safe='')}?blobs=true"
    what = f"revision {revision}" if revision else "its main revision"
    content = _read(url, repository, what)
    try:
        answer = _Info.model_validate_json(content)
    except (ValidationError, RecursionError):
        raise HubError(f"{repository}: {address()} does not answer as a model hub; check HF_ENDPOINT") from None
    if not COMMIT.fullmatch(answer.sha):
        raise HubError(f"{repository}: the server names no commit ({answer.sha[:60]!r}); nothing was downloaded")
    fixed = revision and (COMMIT.fullmatch(revision) or PART.fullmatch(revision))
    if fixed and not answer.sha.startswith(revision or ""):
        raise HubError(
            f"{repository}: revision {revision} asked, but the server answers with {answer.sha}; not downloaded"
        )
    return Listing(repository, revision, answer.sha, {sibling.rfilename: sibling for sibling in answer.siblings})


def _check_names(repository: str, revision: str | None) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise HubError(
            f"{repository}: not a name of a repository ({cause(error)}); correct it in params.yaml"
        ) from None
    parts = PurePosixPath(revision or "main").parts
    if revision is not None and (
        revision != "/".join(parts) or ".." in parts or revision.startswith("/") or CONTROL.search(revision)
    ):
        raise HubError(f"{repository}: {revision!r} is not a revision; correct it in params.yaml")


def _read(url: str, repository: str, what: str) -> bytes:
    """The whole of a short answer; tried again where the server is busy, at once an error where there is none."""
    import httpx2

    patience = Patience(f"{repository}: {what}")
    while True:
        try:
            with stream(url, {}, LISTING_SECONDS) as response:
                check_status(response, repository, what)
                content = bytearray()
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > LISTING_BYTES:
                        raise HubError(f"{repository}: its list of files is over {LISTING_BYTES >> 20} MiB; not read")
                return bytes(content)
        except Passing as failure:
            patience.wait(failure)
        except (httpx2.ReadError, httpx2.RemoteProtocolError) as error:
            patience.wait(Passing(f"the connection broke off ({cause(error)})"))
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise unreachable(error) from None


def unreachable(error: Any) -> Unreachable:
    """The error for a hub that does not answer."""
    return Unreachable(
        f"{address()}: the hub cannot be reached ({cause(error)}); check the network, a proxy and HF_ENDPOINT, or "
        "copy the models into the hub's cache from another machine"
    )
