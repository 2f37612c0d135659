"""Where rows are read from: JSON Lines, JSON arrays, compressed files, Parquet, and folders that `datasets` saved."""

import bz2
import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trainables.files import sha256
from tuner.data.findings import Findings
from tuner.data.rows import FIELDS, Fault

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
NO_SUCH_DATA = "no such file or folder; check --train_data"
_READ = "JSON Lines and JSON arrays (also as .gz, .bz2 or .xz), Parquet and folders of datasets.save_to_disk are read"
_UNPACK: Mapping[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_PARQUET = ".parquet"
_BEIR = ("corpus.jsonl", "queries.jsonl")
_NO_ROWS = (
    "a BEIR folder, whose corpus and queries are no training rows: give it to --eval_data, and a file or folder "
    "of rows with query, pos and neg to --train_data"
)
_SAVED, _SAVED_SPLITS = "dataset_info.json", "dataset_dict.json"
_BOM, _WIDE_BOMS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_OF_OTHER_SYSTEMS = ("__MACOSX", "Thumbs.db", "desktop.ini")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One value of `--train_data`: a file, or a folder whose files are datasets of their own."""

    name: str
    """Last part of the path, whose `no_in_batch_neg` suffix means something to FlagEmbedding."""

    files: tuple[Path, ...]
    """The file itself (or the folder that `datasets` saved), or the folder's data files sorted by name."""

    is_folder: bool

    @property
    def stem(self) -> str:
        """The name without what tells the format."""
        return self.name if self.is_folder else stem_of(Path(self.name))

    @property
    def no_in_batch_neg(self) -> bool:
        """Whether FlagEmbedding leaves the in-batch negatives out for this source."""
        return self.stem.endswith("no_in_batch_neg")


def stem_of(path: Path) -> str:
    """Returns a file's name without the extensions that tell its format and compression."""
    inner = path.with_suffix("") if path.suffix.lower() in _UNPACK else path
    return inner.stem if _format(path) else path.name


def find_source(path: Path, findings: Findings) -> Source | None:
    """Lists the files behind one value of `--train_data`; what is passed over is told."""
    if not _exists(path):
        findings.add(str(path), None, Fault("no such path", NO_SUCH_DATA))
    elif (path / _SAVED_SPLITS).is_file():
        return _find_train_split(path, findings)
    elif (path / _SAVED).is_file():
        return Source(name=path.resolve().name, files=(path,), is_folder=False)
    elif path.is_dir() and all((path / name).is_file() for name in _BEIR):
        findings.add(str(path), None, Fault("a BEIR folder", _NO_ROWS))
    elif path.is_dir():
        return _find_folder(path, findings)
    elif _format(path):
        return Source(name=path.name, files=(path,), is_folder=False)
    else:
        fault = Fault("other extension", f"extension {path.suffix!r} is not read: {_READ}; convert or rename it")
        findings.add(str(path), None, fault)
    return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is longer than the file system's may be
        return False


def _find_train_split(folder: Path, findings: Findings) -> Source | None:
    """A saved `DatasetDict`: its split ``train``."""
    splits = sorted(entry.name for entry in folder.iterdir() if (entry / _SAVED).is_file())
    if "train" not in splits:
        fault = Fault(
            "no train split", f"a saved DatasetDict needs a split 'train', but has {splits}; name one of them"
        )
        findings.add(str(folder), None, fault)
        return None
    for other in splits:
        if other != "train":
            fault = Fault("skipped split", "skipped: of a saved DatasetDict, only the split 'train' is training data")
            findings.add(str(folder / other), None, fault, fatal=False)
    return Source(name=folder.resolve().name, files=(folder / "train",), is_folder=False)


def _find_folder(folder: Path, findings: Findings) -> Source | None:
    seen = [entry for entry in folder.iterdir() if not _is_of_other_systems(entry)]
    entries = sorted(seen, key=lambda entry: entry.name)
    files = tuple(entry for entry in entries if entry.is_file() and _format(entry))
    for entry in (entry for entry in entries if entry not in files):
        fault = Fault("skipped in a folder", f"skipped: only the folder's own data files are training data ({_READ})")
        findings.add(str(entry), None, fault, fatal=False)
    if not files:
        findings.add(str(folder), None, Fault("empty folder", f"the folder holds no data file; {_READ}"))
        return None
    return Source(name=folder.resolve().name, files=files, is_folder=True)


def _is_of_other_systems(entry: Path) -> bool:
    """Hidden files, macOS's ``._`` files among them."""
    return entry.name.startswith(".") or entry.name in _OF_OTHER_SYSTEMS


def _format(path: Path) -> str:
    """Returns the extension that tells how the content is read; empty where it is not."""
    suffix = path.suffix.lower()
    inner = path.with_suffix("").suffix.lower() if suffix in _UNPACK else suffix
    return inner if inner in (*JSON_SUFFIXES, *(() if suffix in _UNPACK else (_PARQUET,))) else ""


def content_hash(path: Path) -> str:
    """Returns the SHA-256 of a file's content, or of a folder's files in the order of their names."""
    if path.is_file():
        return sha256(path)
    parts = [(part.name, content_hash(part)) for part in sorted(path.iterdir()) if part.is_file()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Reads a file, or a folder that `datasets` saved, row by row.

    Args:
        path: JSON Lines (blank lines and a byte order mark are passed over), one JSON array or an object with one list
            of rows, either of them compressed, Parquet, or a folder made by ``datasets.Dataset.save_to_disk``.

    Yields:
        The line's number from 1 (elsewhere than in JSON Lines: the row's), and the decoded value or a `Fault`.
    """
    try:
        if path.is_dir():
            yield from _read_saved(path)
        elif _format(path) == _PARQUET:
            yield from _read_parquet(path)
        else:
            yield from _read_json(path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        yield 1, Fault("unreadable", f"cannot be read ({' '.join(str(error).split())}); is the file whole?")


def _open(path: Path) -> IO[bytes]:
    return _UNPACK[path.suffix.lower()](path) if path.suffix.lower() in _UNPACK else path.open("rb")


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    begun = False
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(_BOM).strip()
            if not content:
                continue
            if not begun and (whole := _read_as_one(path, content)) is not None:
                yield from whole
                return
            begun = True
            yield number, _decode(content)


def _read_as_one(path: Path, start: bytes) -> list[tuple[int, Any]] | None:
    """Returns the rows of a file that is one JSON value, begun by `start`; None where it is JSON Lines."""
    if start.startswith(_WIDE_BOMS):
        return [(1, Fault("UTF-8", "not UTF-8 but UTF-16; save the file as UTF-8"))]
    opens_array = start.startswith(b"[")
    if not opens_array and not (start.startswith(b"{") and _may_hold_rows(_decode(start))):
        return None
    with _open(path) as file:
        content = _decode(file.read().removeprefix(_BOM).strip())
    if isinstance(content, Fault) and not opens_array:
        return None  # several lines, or broken ones
    rows = _only_list(content) if isinstance(content, dict) else content
    return list(enumerate(rows, start=1)) if isinstance(rows, list) else [(1, rows)]


def _may_hold_rows(first_line: Any) -> bool:
    """Whether the line is no row: it is cut off, or holds a list of rows."""
    return isinstance(first_line, Fault) or _only_list(first_line) is not first_line


def _only_list(value: dict[str, Any]) -> Any:
    """The rows of ``{"data": [...]}``; a row that stands on several lines is itself."""
    lists = [rows for rows in value.values() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
    return lists[0] if len(lists) == 1 and "query" not in value else value


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        batches = file.iter_batches(columns=[name for name in file.schema_arrow.names if name in FIELDS])
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from enumerate(rows, start=1)
    except ArrowException as error:
        yield 1, Fault("Parquet", f"not readable as Parquet ({' '.join(str(error).split())})")


def _read_saved(folder: Path) -> Iterator[tuple[int, Any]]:
    from datasets import load_from_disk

    try:
        saved = load_from_disk(str(folder)).with_format(None)
    except (ValueError, TypeError, KeyError, OSError) as error:
        yield 1, Fault("saved dataset", f"not readable by datasets.load_from_disk ({' '.join(str(error).split())})")
        return
    yield from enumerate(saved, start=1)


def _decode(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Fault("UTF-8", f"not valid UTF-8 (byte {content[error.start]:#04x} at position {error.start + 1})")
    except json.JSONDecodeError as error:
        return Fault("JSON", f"not valid JSON ({error.msg} at column {error.colno}); a row is one object on one line")
    except (ValueError, RecursionError) as error:
        return Fault("JSON", f"not readable as JSON ({error})")
