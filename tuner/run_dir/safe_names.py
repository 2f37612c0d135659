"""Names that come from elsewhere, a listing, a bucket or a result, and where they may lead: below one folder.

Whoever can write to a bucket can write such names. What they name is written, read and removed on this machine.
"""

from pathlib import Path

from trainables.names import CURVES
from tuner.errors import RequestError
from tuner.run_dir.names import TRIALS

_PASSED_OVER = (".tmp", ".lock", ".db-journal", ".db-wal", ".db-shm")


class UnsafeNameError(RequestError):
    """A name from a listing, a bucket or a result would lead out of the folder that it belongs in."""


def safe_name(name: object, source: str) -> str:
    """Returns `name` where it is one that stays below a folder, in whatever folder it is looked up.

    Args:
        name: Names of folders and a file with ``/`` between them.
        source: Where it stands, for the error.

    Raises:
        UnsafeNameError: It is absolute, or has an empty part, ``.``, ``..``, a backslash or a control character.
    """
    if not isinstance(name, str) or {"", ".", ".."} & set(name.split("/")) or any(map(_is_unfit, name)):
        raise UnsafeNameError(
            [
                f"{source}: a name there must be relative, without empty parts, '.', '..', backslashes and control "
                f"characters, but one is {_shown(name)}; whoever can write there may have put it there: nothing was "
                "done with it"
            ]
        )
    return name


def inside(root: Path, name: object, source: str) -> Path:
    """Returns `root` / `name` for a name that comes from elsewhere.

    Args:
        root: The folder that it belongs in.
        name: As for `safe_name`.
        source: Where it stands, for the error.

    Raises:
        UnsafeNameError: As `safe_name` does, or a link on the way leads out of `root`.
    """
    path = root / safe_name(name, source)
    if not path.resolve().is_relative_to(root.resolve()):
        raise UnsafeNameError([f"{source}: {_shown(name)} must lie in {root}, but a link leads it to {path.resolve()}"])
    return path


def is_passed_over(name: str) -> bool:
    """Whether a file or folder of that name is unfinished or this machine's own, and never brought to storage."""
    return name.startswith(".") or name.endswith(_PASSED_OVER)


def part_of(path: str) -> str:
    """Returns the part of a run directory that `path` (relative to it) lies in: ``trials/0007``, or the first folder.

    The curves of a trial are a part of their own, ``tensorboard/0007``.
    """
    names = Path(path).parts
    return "/".join(names[:2]) if names[0] in (TRIALS, CURVES) else names[0]


def _is_unfit(character: str) -> bool:
    return character == "\\" or ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0


def _shown(name: object) -> str:
    text = ascii(name)
    return text if len(text) <= 200 else f"{text[:200]}..."
