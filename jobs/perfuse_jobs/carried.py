"""What of the user's own goes with a job: recipe and campaign files, with those that they name, and modules of networks and recipes."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from perfuse import storage
from perfuse.errors import PerfuseError
from perfuse.recipes.loading import FILES
from perfuse.written import parsed

FOLDER = "files"
"""Where a job's folder holds the user's files."""
NAMING = ("base", "recipe")
"""Keys of files that name other files."""
OBJECT = re.compile(r"\b([A-Za-z_][\w.]*):[A-Za-z_]")
"""module:Class or module:function, wherever it stands."""


def carried(words: Sequence[str]) -> tuple[list[str], dict[str, Path]]:
    """A job's words with the user's own files as they lie in its folder, and what is to be laid there, by place.

    Own modules are those in the current folder or one that PYTHONPATH names; installed ones are the nodes' own. A module goes
    with all of its package. Raises PerfuseError for a file that is not here, or that names another by an absolute path.
    """
    texts: dict[Path, str] = {}
    named = [_local_file(word) for word in words]
    for path in filter(None, named):
        _read(path, texts)
    root = os.path.commonpath([path.parent for path in texts]) if texts else ""
    places = {path: f"{FOLDER}/{path.relative_to(root).as_posix()}" for path in texts}
    sent = [
        word if path is None else "".join([*word.rpartition("=")[:2], places[path]])
        for word, path in zip(words, named, strict=True)
    ]
    own = {place: path for path, place in places.items()}
    for text in (*words, *texts.values()):
        for found in filter(None, map(_module, OBJECT.findall(text))):
            own[found.name] = found
    return sent, own


def _local_file(word: str) -> Path | None:
    """The recipe or campaign file on this machine that a word names; None where it names none, or one that only nodes may see."""
    name = word.rpartition("=")[2]
    if not name.lower().endswith(FILES) or storage.is_remote(name):
        return None
    path = storage.local_path(name)
    if path.is_file():
        return Path(os.path.normpath(path.absolute()))
    if path.is_absolute():
        return None
    raise PerfuseError(f"{name} is not here, so it cannot go with the job. Name a file on this machine, or a URL.")


def _read(path: Path, texts: dict[Path, str]) -> None:
    """Add the text of a file and of those that it names."""
    if path in texts:
        return
    try:
        texts[path] = path.read_text()
        names = list(_names(parsed(texts[path])))
    except (OSError, ValueError) as error:
        raise PerfuseError(f"{path} cannot be read: {error}.") from error
    for name in names:
        if storage.is_remote(name):
            continue
        other = Path(storage.beside(str(path), name))
        if Path(name).is_absolute() or not other.is_file():
            raise PerfuseError(
                f"{path} names {name}, which cannot go with the job. Name a file by its path from this one, or by a URL."
            )
        _read(other, texts)


def _names(values: Any) -> Iterator[str]:
    if isinstance(values, list):
        for value in values:
            yield from _names(value)
    if isinstance(values, dict):
        for key, value in values.items():
            if key in NAMING and isinstance(value, str) and value.lower().endswith(FILES):
                yield value
            yield from _names(value)


def _module(name: str) -> Path | None:
    """The file or package folder to send for a module of the user's own; None where it is not one."""
    first, *_ = parts = name.split(".")
    for folder in (Path.cwd(), *map(Path, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))):
        path = folder.joinpath(*parts)
        if path.with_name(f"{path.name}.py").is_file() or (path / "__init__.py").is_file():
            return folder / first if (folder / first).is_dir() else folder / f"{first}.py"
    return None
