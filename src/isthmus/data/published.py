"""Data sets that others publish: where their files are looked for, and how they are fetched."""

import fcntl
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from isthmus.errors import InputError
from isthmus.progress import Report, silent

T = TypeVar("T")

ENVIRONMENT = "ISTHMUS_DATA"
MIB = 1 << 20
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A file as its publisher offers it.

    Attributes:
        url: Where.
        md5: Its checksum, as the publisher or the data set's usual readers state it.
        num_bytes: Its size.
    """

    url: str
    md5: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Search:
    """Where published files are looked for, and whether missing ones may be fetched.

    Attributes:
        data_dir: The folder; ``$ISTHMUS_DATA`` where it is None.
        download: Whether to fetch what is missing, into this folder.
        progress: Told of every mebibyte that is fetched.
    """

    data_dir: Path | None = None
    _: KW_ONLY
    download: bool = False
    progress: Report = silent


def obtain(
    name: str,
    search: Search,
    *,
    find: Callable[[Path], T | None],
    looked_for: str,
    published: Mapping[str, Published],
    publisher: str,
) -> T:
    """Return what ``find`` finds in the data folder, where allowed after a download.

    Args:
        name: The data set, for errors.
        search: Where, and whether to fetch.
        find: Looks into a folder; None means that something is missing.
        looked_for: What ``find`` looks for, in words.
        published: The files to fetch, by their place in the folder.
        publisher: The address at which people get them.

    Returns:
        What was found.

    Raises:
        InputError: No folder is named, the files are not there, or they could not be fetched.
    """
    named = search.data_dir or os.environ.get(ENVIRONMENT)
    if not named:
        raise InputError(
            f"data {name}: nowhere to look; name a folder by --data-dir or ${ENVIRONMENT}"
        )
    folder = Path(named)
    found = find(folder)
    if found is None and search.download:
        for place, file in published.items():
            if not (folder / place).is_file():
                fetch(file, folder / place, progress=search.progress)
        found = find(folder)
    if found is None:
        raise InputError(
            f"data {name}: not in {folder}{'' if folder.is_dir() else ' (no such folder)'}; "
            f"looked for {looked_for}; add --download, or put there what {publisher} has"
        )
    return found


def fetch(file: Published, target: Path, *, progress: Report = silent) -> None:
    """Download a file, going on where an earlier attempt stopped.

    What has arrived stands in ``NAME.partial`` beside the target, and is renamed once its
    checksum is right.

    Args:
        file: What to fetch.
        target: Where it shall stand.
        progress: Told of every mebibyte.

    Raises:
        InputError: The server cannot be reached, stopped early (what arrived is kept), or sent
            something else (nothing is kept).
    """
    partial = target.with_name(f"{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("a+b") as out:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            num_bytes = _transfer(file, out, f"download {target.name}, MiB", progress)
            if num_bytes < file.num_bytes:
                raise InputError(
                    f"{file.url}: ended after {num_bytes:,} of {file.num_bytes:,} bytes; "
                    "run the same again to go on from there"
                )
            out.seek(0)
            md5 = hashlib.file_digest(out, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            if num_bytes > file.num_bytes or md5 != file.md5:
                partial.unlink()
                raise InputError(
                    f"{file.url}: not the published file (checksum {md5}, expected {file.md5}, "
                    f"of {file.num_bytes:,} bytes); nothing is kept, try again"
                )
            partial.replace(target)
    except BlockingIOError as error:
        raise InputError(f"{partial}: another process is fetching it; wait for it") from error
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()
        reason = error.reason if isinstance(error, URLError) else error
        raise InputError(
            f"{file.url}: not fetched ({reason}); run the same again to go on, "
            f"or put the file at {target}"
        ) from error


def _transfer(file: Published, out: BinaryIO, step: str, progress: Report) -> int:
    """Append what is missing, at most one byte more than published; return the size reached."""
    done = out.seek(0, os.SEEK_END)
    if done >= file.num_bytes:
        return done
    request = Request(file.url, headers={"Range": f"bytes={done}-"} if done else {})
    with urlopen(request, timeout=TIMEOUT_S) as answer:
        if answer.status != HTTPStatus.PARTIAL_CONTENT:  # all of it comes, whatever was asked
            done = 0
            out.truncate(0)
        while chunk := answer.read(min(MIB, file.num_bytes + 1 - done)):
            out.write(chunk)
            done += len(chunk)
            total = -(-file.num_bytes // MIB)
            progress(step, min(-(-done // MIB), total), total)
    return done
