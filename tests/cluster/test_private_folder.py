"""Where Ray writes on a machine that others use too."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tuner.cluster import private_folder as folders
from tuner.cluster.private_folder import private_folder
from tuner.errors import RequestError

ROOT = Path(__file__).parents[2]


def test_nobody_else_may_enter_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    with private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "session").mkdir()
        (folder / "session" / "log").touch()
        with private_folder() as other:
            assert folder != other
            assert folder.exists()  # another search's, which runs
    assert not folder.exists()
    assert not other.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_path_too_long_for_sockets_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with private_folder() as folder:
        assert folder.parent == Path("/tmp")
    monkeypatch.setenv("RAY_TMPDIR", "/var/tmp")
    with private_folder() as folder:
        assert folder.parent == Path("/var/tmp")


def test_what_a_killed_search_left_goes_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/var/tmp")
    code = (
        "import os, signal\n"
        "from tuner.cluster.private_folder import private_folder\n"
        "with private_folder() as folder:\n"
        "    print(folder, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    left = Path(killed.stdout.strip())
    assert left.is_dir()
    with private_folder():
        assert not left.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_second_user_of_the_machine_has_a_folder_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    with private_folder() as first:
        child = os.fork()
        if child == 0:  # another user, in this process's modules: its files may be root's alone
            status = 1
            try:
                os.setuid(65534)
                with private_folder() as second:
                    (second / "session").mkdir()
                    status = 0 if first != second and not os.access(first, os.R_OK | os.X_OK) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert first.exists()


def test_no_folder_that_can_be_written_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_parents", lambda: iter([Path("/proc/nowhere"), Path("/proc")]))
    words = "Ray cannot be started here: .*/proc/nowhere: No such file.*set RAY_TMPDIR"
    with pytest.raises(RequestError, match=words), private_folder():
        pass


def test_a_named_folder_that_is_not_there_is_replaced_by_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nowhere")
    with private_folder() as folder:
        assert folder.parent == Path("/tmp")
