"""The base model, found before anything expensive starts."""

import os
from pathlib import Path

from tuner.data.inputs import local_copy
from tuner.errors import RequestError

_NOT_NEEDED = ["flax_model.msgpack", "rust_model.ot", "tf_model.h5", "onnx/*", "openvino/*", "imgs/*"]


def find_model(
    name: str, *, cache_dir: str | None = None, token: str | None = None, flag: str = "--model_name_or_path"
) -> str:
    """Returns the local folder of the model `name`, downloaded from the hub if it is not there yet.

    Args:
        name: A folder, or a repository of the Hugging Face hub.
        cache_dir: Where the hub's files are kept. None: the hub client's own default.
        token: For repositories that need one.
        flag: The option that names it.

    Raises:
        RequestError: It is no model folder, and the hub has none of that name or cannot be reached.
    """
    folder = Path(name)
    if (folder / "snapshots").is_dir():
        folder = _snapshot(folder, flag)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise RequestError([f"{flag} {name}: a model folder has a config.json, but this one does not"])
        return str(folder.resolve())
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise RequestError([f"{flag} {name}: there is no such folder"])
    return _download(name, cache_dir or os.getenv("HF_HUB_CACHE"), token, flag)


def _snapshot(folder: Path, flag: str) -> Path:
    """The model in a folder of the hub's cache (``models--BAAI--bge-m3``): the one that its ref names, or the only one.

    Raises:
        RequestError: It holds several, and no ref tells which.
    """
    snapshots = sorted(entry for entry in (folder / "snapshots").iterdir() if entry.is_dir())
    ref = folder / "refs" / "main"
    named = folder / "snapshots" / ref.read_text("utf-8").strip() if ref.is_file() else None
    if named in snapshots:
        return Path(named)
    if len(snapshots) == 1:
        return snapshots[0]
    choices = ", ".join(map(str, snapshots)) or "none"
    raise RequestError([f"{flag} {folder}: name one of its snapshots ({choices})"])


def model_here(
    name: str, *, cache_dir: str | None = None, token: str | None = None, flag: str = "--model_name_or_path"
) -> str:
    """Returns `find_model`'s folder on this machine of a model that may also be named by a URL (``s3://...``)."""
    return find_model(local_copy(name), cache_dir=cache_dir, token=token, flag=flag)


def _download(name: str, cache_dir: str | None, token: str | None, flag: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    remedy = f"pass {flag} a local folder, or set HF_ENDPOINT to a mirror you can reach"
    try:
        return snapshot_download(name, cache_dir=cache_dir, token=token, ignore_patterns=_NOT_NEEDED)
    except (RepositoryNotFoundError, HFValidationError):
        why = "the hub has no such model (or it needs --token)"
    except PermissionError as error:
        why, remedy = f"{error.filename or cache_dir} cannot be written", "give --cache_dir a folder of yours"
    except Exception as error:  # the hub client lets errors of several HTTP libraries through
        why = f"the model hub cannot be reached ({type(error).__name__})"
    raise RequestError([f"{flag} {name}: {why}; {remedy}"])
