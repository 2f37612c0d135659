"""``python -m tuner.search --submit ADDRESS ...``: the same search as a job of a Ray cluster, followed from here.

The job is the cluster's: once it is submitted, this process only shows what it prints.
"""

import asyncio
import importlib.util
import itertools
import logging
import re
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, RequestError
from tuner.request.command_line import parse
from tuner.request.config import LOCAL_PATHS, LOCATIONS, SECRETS, SearchConfig
from tuner.request.storage_url import HIDDEN, PASSWORD_VARIABLE, redacted
from tuner.run_dir.object_storage import is_url

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

PACKAGES = ("tuner", "search_spaces", "trainables")
SETTINGS = (".yaml", ".yml", ".json", ".py")
"""Files named on the command line that are sent along; data sets and models are not."""
DRIVER_RESOURCES = {"node:__internal_head__": 0.001}
"""Keeps the driver, and so the study, on the head: workers may be spot machines."""

_SETTINGS_BYTES = 1 << 20
_PATHS = {*LOCATIONS, *LOCAL_PATHS, "config", "config_name", "tokenizer_name"}
"""Flags whose values are paths, where there is something at them."""
_RECONNECT_SECONDS = 300
_FUNCTION = re.compile(r"([A-Za-z_][\w.]*):\w+")


def submit(address: str, argv: Sequence[str]) -> int:
    """Submits a search to the cluster at `address` and prints its log until it ends.

    Sent are this version of the program, and the small settings files that `argv` names. Every other path in `argv` is
    made absolute and has to mean the same on the cluster.

    Args:
        address: The cluster's dashboard, such as http://127.0.0.1:8265.
        argv: The search's command line, with or without ``--submit``.

    Returns:
        The exit code of the search; 143 when it was stopped, 130 when following it ended first (it goes on).

    Raises:
        RequestError: The run directory would be lost with the job, a secret would be shown, or no cluster answers.
    """
    arguments = _without(argv, "--submit")
    _check(arguments)
    client = _connect(address)
    submission_id = f"m3-tuner-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            client.submit_job(
                entrypoint=entrypoint(arguments, Path(folder)),
                submission_id=submission_id,
                runtime_env=runtime_environment(Path(folder)),
                entrypoint_resources=DRIVER_RESOURCES,
            )
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
            raise RequestError([f"The Ray cluster at {address} did not take the job: {error}"]) from error
    again = f"ray job logs --address {address} --follow {submission_id}"
    print(f"Submitted as {submission_id}. It goes on when this ends; to see it again: {again}", flush=True)
    try:
        return _follow(client, submission_id)
    except (KeyboardInterrupt, ConnectionError) as ending:
        print(f"\nNo longer following ({ending or 'interrupted'}), but the search goes on: {again}")
        return EXIT_INTERRUPTED


def entrypoint(arguments: Sequence[str], folder: Path) -> str:
    """Returns the job's command line, and copies the settings files that `arguments` name into `folder` for it."""
    staged, named = [], ""
    for argument in arguments:
        flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        named = flag or named
        if named[2:].replace("-", "_") in _PATHS or Path(value).suffix in SETTINGS:
            value = _staged(value, folder)
        staged.append(f"{flag}{equals}{value}")
    here = ["--address", "auto", "--submit", "none"]  # a file that is sent along may name where to submit
    return shlex.join(["python", "-m", "tuner.search", *here, *staged])


def runtime_environment(working_dir: Path) -> dict[str, Any]:
    """Returns Ray's runtime environment of the job: `working_dir` and this program's own packages, nothing else."""
    found = (importlib.util.find_spec(name) for name in PACKAGES)
    folders = [spec.submodule_search_locations[0] for spec in found if spec and spec.submodule_search_locations]
    return {"working_dir": str(working_dir), "py_modules": folders, "excludes": ["**/__pycache__"]}


def _without(argv: Sequence[str], flag: str) -> list[str]:
    kept = [argument for argument in argv if not argument.startswith(f"{flag}=")]
    if flag in kept:
        at = kept.index(flag)
        del kept[at : at + 2]
    return kept


def _value(arguments: Sequence[str], flag: str) -> str | None:
    for argument, following in itertools.pairwise([*arguments, ""]):
        name, equals, value = argument.partition("=")
        if name.startswith("--") and name[2:].replace("-", "_") == flag[2:]:
            return value if equals else following
    return None


def _check(arguments: Sequence[str]) -> None:
    config = parse(_without(arguments, "--resume"))  # what is resumed holds no secret, and may be out of reach here
    resumed = _value(arguments, "--resume") or config.resume
    run_dir = resumed or config.run_dir or config.arguments.get("output_dir") or ""
    problems = []
    if not (is_url(run_dir) or Path(run_dir).is_absolute()):
        problems.append(
            "--submit needs a --run_dir (or --resume) that outlives the job: s3://bucket/prefix, or the absolute path "
            f"of a disk that the cluster's machines share, but got {run_dir or 'none'}"
        )
    problems += [problem for _, problem in _secrets(config)]
    if problems:
        raise RequestError(problems)


def refuse_shown_secrets(config: SearchConfig, argv: Sequence[str]) -> None:
    """Refuses a command line with a secret in it where a Ray cluster is used: Ray shows whole command lines.

    Args:
        config: What `argv` asks for.
        argv: The command line of this process; what a file named there holds is not shown.

    Raises:
        RequestError: A token or a password is in it.
    """
    shown = [problem for secret, problem in _secrets(config) if any(secret in argument for argument in argv)]
    if not shown:
        return
    from tuner.cluster.connection import address_of

    if address_of(config):
        raise RequestError(shown)


def _secrets(config: SearchConfig) -> Iterator[tuple[str, str]]:
    """Yields each secret of `config`, and why it cannot stand in a command line that a dashboard shows."""
    for name in SECRETS:
        if value := config.arguments.get(name):
            remedy = "set HF_TOKEN where Ray is started instead"
            yield str(value), f"--{name} would be shown by the cluster's dashboard; {remedy}"
    storage = config.storage or ""
    if redacted(storage) != storage:
        yield (
            storage,
            f"--storage {redacted(storage)} has a password, which the cluster's dashboard would show; "
            f"write {HIDDEN} in its place, and set {PASSWORD_VARIABLE} to the whole URL where Ray is started",
        )


def _connect(address: str) -> "JobSubmissionClient":
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        remedy = "set RAY_AUTH_MODE=token, and have the cluster's token in ~/.ray/auth_token"
        raise RequestError([f"The Ray cluster at {address} asks for a token; {remedy}"]) from error
    except (ConnectionError, RuntimeError) as error:
        remedy = "start it, or keep `ray dashboard cluster.yaml` running"
        raise RequestError([f"No Ray cluster answers at {address}: {error}; {remedy}"]) from error


def _staged(value: str, folder: Path) -> str:
    """Returns what to write for `value` in the job's command line; a settings file is copied into `folder`."""
    function = _FUNCTION.fullmatch(value)
    path = Path(function[1].replace(".", "/") + ".py" if function else value)
    if not value or not path.exists():
        return value
    if path.suffix not in SETTINGS or path.stat().st_size > _SETTINGS_BYTES:
        return str(path.absolute())
    target = folder / (path if function else f"{sum(1 for _ in folder.iterdir())}-{path.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)
    return value if function else target.name


class _Log:
    """The job's log as shown so far: Ray sends it from its beginning at each connection."""

    def __init__(self) -> None:
        self.shown = 0

    async def show(self, client: "JobSubmissionClient", submission_id: str) -> None:
        received = 0
        async for text in client.tail_job_logs(submission_id):
            new = text[max(self.shown - received, 0) :]
            received += len(text)
            self.shown = max(self.shown, received)
            print(new, end="", flush=True)


def _follow(client: "JobSubmissionClient", submission_id: str) -> int:
    from aiohttp import ClientError

    log, answered = _Log(), time.monotonic()
    while True:
        try:
            asyncio.run(log.show(client, submission_id))
            details = client.get_job_info(submission_id)
            if details.status.is_terminal():
                return _exit_code(details)
            answered = time.monotonic()
        except (OSError, RuntimeError, ClientError) as error:
            if time.monotonic() - answered > _RECONNECT_SECONDS:
                raise ConnectionError(f"no answer for {_RECONNECT_SECONDS} s: {error}") from error
        time.sleep(1)


def _exit_code(details: "JobDetails") -> int:
    if details.status == "STOPPED":
        return EXIT_TERMINATED
    if details.driver_exit_code is None:  # the driver never ran
        print(details.message)
        return 1
    return int(details.driver_exit_code)
