"""Files that are whole or absent: atomic writes, JSON with a schema, output folders.

Also the one place where a Python file of the user's is run.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from isthmus.errors import InputError

T = TypeVar("T")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, then rename it: readers see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def to_json(value: object, *, schema: str) -> str:
    """Return a frozen dataclass as JSON text, its schema first."""
    fields = TypeAdapter(type(value)).dump_python(value, mode="json")
    return json.dumps({"schema": schema, **fields}, indent=1)


def write_json(path: Path, value: object, *, schema: str) -> None:
    """Write a frozen dataclass as a JSON file that names its schema."""
    write_bytes(path, (to_json(value, schema=schema) + "\n").encode())


def from_json(text: str | bytes, kind: type[T], *, schema: str, where: str) -> T:
    """Read and validate what `to_json` wrote.

    Args:
        text: The JSON.
        kind: The dataclass that it holds.
        schema: The one version that is understood.
        where: Names the source in error messages.

    Returns:
        The dataclass.

    Raises:
        InputError: Not JSON, another schema, or a field that does not fit.
    """
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}); expected {schema}") from error
    found = fields.pop("schema", None) if isinstance(fields, dict) else None
    if found != schema:
        raise InputError(f"{where}: found schema {found!r}, expected {schema!r}; make it anew")
    try:
        return TypeAdapter(kind).validate_python(fields, strict=False)
    except ValidationError as error:
        raise InputError(f"{where}: {first_problem(error)}") from error


def read_json(path: Path, kind: type[T], *, schema: str) -> T:
    """Read and validate a file that `write_json` wrote."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return from_json(text, kind, schema=schema, where=str(path))


def first_problem(error: ValidationError) -> str:
    """Return a validation's first problem as one line: key, what is wrong, what was found."""
    problem: Any = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"]) or "top level"
    return f"{key}: {problem['msg']}, found {str(problem['input'])[:60]!r}"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_folder(path: Path, *, marker: str) -> Iterator[Path]:
    """Fill a folder under a temporary name, then put it in place as a whole.

    Args:
        path: Where the folder shall stand. An older one of the same kind is replaced.
        marker: The file by which a folder of this kind is known, e.g. ``"bundle.json"``.

    Yields:
        The temporary folder to write into.

    Raises:
        InputError: Something else stands at ``path``.
    """
    check_ours(path, marker=marker)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    temporary.chmod(0o755)
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_ours(path: Path, *, marker: str) -> None:
    """Raise unless ``path`` is free, an empty folder, or a folder that holds ``marker``."""
    if path.is_dir() and (not any(path.iterdir()) or (path / marker).is_file()):
        return
    if path.exists():
        raise InputError(
            f"{path}: exists and holds no {marker}, so it is not ours to replace; "
            "name another --out or remove it"
        )


def load_function(path: Path, name: str) -> Callable[[], Any]:
    """Run a Python file of the user's and return one of its functions.

    Args:
        path: A trusted local file; modules beside it can be imported by it.
        name: The function.

    Returns:
        The function, not yet called.

    Raises:
        InputError: No such file or function, or the file failed when it ran.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected path/to/file.py:function")
    spec = importlib.util.spec_from_file_location(f"isthmus_user_{sha256(path)[:12]}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises
        raise InputError(f"{path}: failed when run ({type(error).__name__}: {error})") from error
    finally:
        sys.path.remove(str(path.parent))
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{path}: no function {name!r}; expected path/to/file.py:function")
    return function
