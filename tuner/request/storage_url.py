"""Storage URLs as users write them: their files, and their passwords, which are shown nowhere."""

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from tuner.errors import RequestError
from tuner.run_dir.names import STUDY_FILE

PASSWORD_VARIABLE = "TUNER_STORAGE"
"""Environment variable with the whole storage URL, for a resumed search: its config.yaml has no password."""
HIDDEN = "***"
_SECRET_OPTION = re.compile(r"([?&][^=&]*(?:passw(?:or)?d|pwd|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)


def absolute(url: str) -> str:
    """Returns a storage URL that names the same file from any directory."""
    file = file_of(url)
    if file is None or Path(file).is_absolute():
        return url
    here = str(Path.cwd()) if is_journal(url) else in_url(Path.cwd())
    return f"{url.removesuffix(file)}{here}/{Path(file)}"


def whole(url: str | None, run_dir: Path) -> str:
    """Returns the URL with its password; None stands for RUN/study.db."""
    return f"sqlite:///{in_url((run_dir / STUDY_FILE).resolve())}" if url is None else with_password(url)


def in_url(path: Path) -> str:
    """Returns a path as it is written in a URL: what would end it there, or be decoded, is quoted."""
    return quote(str(path), safe="/:@ ~")


def path_of(url: str) -> Path | None:
    """The file that a URL names; None: a server, or memory."""
    file = file_of(url)
    if file is None or is_journal(url):
        return None if file is None else Path(file)
    return Path(unquote(file.partition("?")[0]))


def keeps_nothing(url: str) -> bool:
    """Whether what is stored there is gone with the process that stored it."""
    scheme, _, rest = url.partition("://")
    database, _, options = rest.partition("?")
    if is_journal(url) or scheme.partition("+")[0] not in ("sqlite", "duckdb"):
        return False
    return (
        database in ("", "/")
        or ":memory:" in unquote(database)
        or re.search("mode=memory|vfs=memdb", options) is not None
    )


def is_journal(url: str) -> bool:
    """Whether it is the path of a file for Optuna's JournalStorage."""
    return url.endswith((".journal", ".log")) and "://" not in url


def file_of(url: str) -> str | None:
    """The file that a URL names, with the URL's options; None: a server, or memory."""
    if is_journal(url):
        return url
    scheme, _, file = url.partition(":///")
    return file if scheme.startswith("sqlite") and file and not file.startswith((":", "file:")) else None


def redacted(url: str) -> str:
    """Returns a storage URL without its password, which may stand before the host or among the options."""
    scheme, separator, rest = url.partition("://") if "://" in url or is_journal(url) else ("", "", url)
    credentials, at, host = rest.rpartition("@")
    shown = f"{scheme}{separator}{credentials.split(':')[0]}:{HIDDEN}@{host}" if at and ":" in credentials else url
    return _SECRET_OPTION.sub(rf"\1{HIDDEN}", shown)


def with_password(url: str) -> str:
    """Returns a URL whose password is hidden as the environment has it, any other as it is.

    Raises:
        RequestError: The environment has none.
    """
    if HIDDEN not in url:
        return url
    if PASSWORD_VARIABLE not in os.environ:
        raise RequestError(
            [
                f"--storage {url}: the password is written nowhere; give the whole URL again with --storage, "
                f"or in the environment variable {PASSWORD_VARIABLE}"
            ]
        )
    return os.environ[PASSWORD_VARIABLE]
