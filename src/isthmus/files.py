"""Files that are whole or absent: atomic writes, JSON with a schema, output folders.

Also the one place where a Python file of the user's is run.
"""

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from isthmus.errors import InputError, IsthmusError


class Written(Protocol):
    """A frozen dataclass that is written as JSON; it names the version of its fields."""

    SCHEMA: str


T = TypeVar("T", bound=Written)
_ROOM = "make room for it or name another place"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a file under a temporary name, then rename it: readers see all of it or nothing.

    Args:
        path: Where; folders around it are made.
        data: What it shall hold.
        mode: Who may read and write it, less what the umask forbids.

    Raises:
        InputError: It cannot be written there; nothing has changed.
    """
    with refusing(path, "cannot be written", _ROOM):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            Path(temporary).chmod(mode & ~umask)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def refusing(path: object, problem: str, remedy: str) -> Iterator[None]:
    """Turn the system's refusal into an `InputError` of one line that names the user's path."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: {problem} ({error.strerror or error}); {remedy}") from error


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    """Return what writes and reads a dataclass; to make it takes far longer than to use it."""
    return TypeAdapter(kind)


def to_json(value: Written) -> str:
    """Return a frozen dataclass as JSON text, its schema first; null for what is not finite."""
    fields = _adapter(type(value)).dump_python(value, mode="json")
    fields = {"schema": value.SCHEMA, **fields}
    try:
        return json.dumps(fields, indent=1, allow_nan=False)
    except ValueError:  # such as the time that a device takes for what it cannot do
        finite = json.loads(json.dumps(fields), parse_constant=lambda word: None)
        return json.dumps(finite, indent=1)


def write_json(path: Path, value: Written) -> None:
    """Write a frozen dataclass as a JSON file that names its schema."""
    write_bytes(path, (to_json(value) + "\n").encode())


def from_json(text: str | bytes, kind: type[T], *, where: str) -> T:
    """Read and validate what `to_json` wrote.

    Args:
        text: The JSON.
        kind: The dataclass that it holds, of the one version that is understood.
        where: Names the source in error messages.

    Returns:
        The dataclass.

    Raises:
        InputError: Not JSON, another schema, or a field that does not fit.
    """
    try:
        fields = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}); expected {kind.SCHEMA}") from error
    found = fields.pop("schema", None) if isinstance(fields, dict) else None
    if found != kind.SCHEMA:
        raise InputError(
            f"{where}: found schema {found!r}, expected {kind.SCHEMA!r}; make it anew"
        )
    try:
        return _adapter(kind).validate_python(fields, strict=False)
    except ValidationError as error:
        raise InputError(f"{where}: {first_problem(error)}") from error


def _refuse(word: str) -> None:
    raise ValueError(f"found {word}, expected a number")


def read_json(path: Path, kind: type[T]) -> T:
    """Read and validate a file that `write_json` wrote."""
    with refusing(path, "cannot be read", f"expected a file of {kind.SCHEMA}"):
        text = path.read_bytes()
    return from_json(text, kind, where=str(path))


def first_problem(error: ValidationError) -> str:
    """Return a validation's first problem as one line: key, what is wrong, what was found.

    A message of ours says itself what was found.
    """
    problem: Any = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"]) or "top level"
    message, found = str(problem["msg"]), repr(str(problem["input"])[:60])
    match problem["type"]:
        case "value_error":
            return f"{key}: {problem['ctx']['error']}"
        case "missing":
            return f"{key}: found nothing, expected a value"
        case "string_pattern_mismatch":
            return f"{key}: found {found}, expected up to 64 letters, digits, '.', '_' and '-'"
        case "too_short":
            return f"{key}: found {found}, expected at least {problem['ctx']['min_length']} in it"
    if message.startswith(should := "Input should be "):
        return f"{key}: found {found}, expected {message.removeprefix(should)}"
    return f"{key}: {message}, found {found}"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_folder(path: Path, *, files: Sequence[str]) -> Iterator[Path]:
    """Fill a folder under a temporary name, then put it in place as a whole.

    Args:
        path: Where the folder shall stand. An older one of the same kind is replaced.
        files: As for `check_ours`.

    Yields:
        The temporary folder to write into.

    Raises:
        InputError: Something else stands at ``path``, or no folder can be made there; what was
            there is as it was.
    """
    check_ours(path, files=files)
    with refusing(path, "cannot be made", _ROOM):
        path.parent.mkdir(parents=True, exist_ok=True)
        workspace = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    new, old = workspace / "new", workspace / "old"
    try:
        with as_if_at(path, new):
            new.mkdir()
            yield new
        check_ours(path, files=files)
        with refusing(path, "cannot be made", _ROOM):
            if path.exists():
                path.rename(old)
            new.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(workspace)


@contextmanager
def as_if_at(path: Path, temporary: Path) -> Iterator[None]:
    """Let errors name the path that the user knows, not the temporary one that stands for it.

    Raises:
        InputError: In place of the system's refusal to write there.
    """
    try:
        yield
    except IsthmusError as error:
        error.args = tuple(str(arg).replace(str(temporary), str(path)) for arg in error.args)
        raise
    except OSError as error:
        if error.errno in _FULL or Path(str(error.filename)).is_relative_to(temporary):
            with refusing(path, "cannot be written", _ROOM):
                raise
        raise


def check_ours(path: Path, *, files: Sequence[str]) -> None:
    """Raise unless a folder can be made at a path without loss of anything of the user's.

    Args:
        path: Must be free, an empty folder, or a folder of one kind and nothing else.
        files: What a folder of this kind may hold: paths with forward slashes, in which ``*``
            stands for any one name. The first is the JSON file, of a schema of ours, by which
            the kind is known.

    Raises:
        InputError: Something else is there; names it.
    """
    check_writable(path)
    if path.is_symlink():
        raise InputError(f"{path}: is a symbolic link, not ours to replace; name another --out")
    if Path.cwd().is_relative_to(path.resolve()):
        raise InputError(
            f"{path}: is the current folder or one around it; name a new folder with --out"
        )
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{path}: is a file, not ours to replace; name another --out")
    if not any(path.iterdir()):
        return
    if not _has_our_schema(path / files[0]):
        raise InputError(
            f"{path}: exists and holds no {files[0]} of ours, so it is not ours to replace; "
            "name another --out or remove it"
        )
    for found in path.rglob("*"):
        if not _may_hold(found, found.relative_to(path), files):
            raise InputError(
                f"{path}: holds {found.relative_to(path).as_posix()}, which is not ours to "
                "replace; name another --out or move it away"
            )


def check_writable(path: Path) -> None:
    """Raise unless something can be made beside a path, or in the nearest folder around it."""
    with refusing(path, "cannot be made", "name another --out"):
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}."):
            pass


def check_our_file(path: Path) -> None:
    """Raise unless a JSON file of ours may be written at a path: it is free, or holds one."""
    check_writable(path)
    if path.exists() and not _has_our_schema(path):
        raise InputError(f"{path}: exists and is no JSON of ours to replace; name another --out")


def _has_our_schema(marker: Path) -> bool:
    try:
        fields = json.loads(marker.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and str(fields.get("schema")).startswith("isthmus.")


def _may_hold(found: Path, name: Path, files: Sequence[str]) -> bool:
    """Return whether a file is one of ``files``, or a folder leads to one."""
    if found.is_symlink():
        return False
    if found.is_dir():
        files = [str(parent) for file in files for parent in PurePosixPath(file).parents]
    return is_one_of(name, files)


def is_one_of(name: PurePath, files: Sequence[str]) -> bool:
    """Return whether a path has one of these names, in which ``*`` stands for any one name."""
    return any(len(PurePath(file).parts) == len(name.parts) and name.match(file) for file in files)


def call_function(path: Path, name: str, kind: type[Any], expected: str) -> Any:
    """Run a Python file of the user's and call one of its functions.

    Args:
        path: A trusted local file; modules beside it can be imported by it.
        name: The function, which takes nothing.
        kind: What it has to return.
        expected: The same in words.

    Returns:
        What it returns.

    Raises:
        InputError: No such file or function, it returns something else, or one of them failed;
            says in which line.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected path/to/file.py:function")
    spec = importlib.util.spec_from_file_location(f"isthmus_user_{sha256(path)[:12]}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _forget_namesakes(path.parent)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
        function = getattr(module, name, None)
        if not callable(function):
            raise InputError(f"{path}: no function {name!r}; expected path/to/file.py:function")
        made = function()
        if not isinstance(made, kind):
            found = type(made).__name__
            raise InputError(f"{path}:{name}: returned {found}, expected {expected}")
        return made
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's file raises
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename) == path.absolute()]
        where = f"line {own[-1].lineno}, " if own else ""
        problem = f"{where}{type(error).__name__}: {error}"
        raise InputError(f"{path}: {name} failed when run ({problem})") from error
    finally:
        sys.path.remove(str(path.parent))


_folders: set[Path] = set()  # beside whose files modules may have been imported


def _forget_namesakes(folder: Path) -> None:
    """Let a file of the user's import what lies beside it, not what lay beside another file."""
    _folders.add(folder)
    others = _folders - {folder}
    for name, module in list(sys.modules.items()):
        facts = getattr(module, "__dict__", {})
        files = (*facts.get("__path__", ()), facts.get("__file__"))
        parents = Path(files[0] or "").parents
        top, depth = name.partition(".")[0], name.count(".")
        beside = parents[depth] if depth < len(parents) else None
        if beside in others and any((folder / each).exists() for each in (top, f"{top}.py")):
            del sys.modules[name]
