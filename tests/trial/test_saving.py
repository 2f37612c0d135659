"""States are saved beside the training, as often as pays, and one that could not be written leaves the one before."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.fake import METRIC
from trainables.config import TrialConfig
from trainables.failures import failure_kind
from trainables.memory import host_copies
from trainables.memory.host_copies import HostCopies
from trainables.trial import states as states_module
from trainables.trial.saving import Saving
from trainables.trial.states import States

CONFIG = TrialConfig(name="0007", directory="", arguments={}, eval_data="eval", metric=METRIC, rungs=(1.0,))

KILLED = """
import os, signal, sys, time, torch
from pathlib import Path
from tests.trial.test_saving import CONFIG
from trainables.trial import states
from trainables.trial.saving import Saving

class SlowFile(states._HashingFile):
    def write(self, part):
        print("writing", flush=True)
        time.sleep(0.02)
        return super().write(part)

with Saving(states.States(Path(sys.argv[1]), CONFIG)) as saving:
    saving.save(10, lambda _: {"weights.pt": torch.full((1000,), 10)}, now=True)
    states._HashingFile = SlowFile
    saving.save(20, lambda _: {f"{part}.pt": torch.full((1000,), 20) for part in range(200)}, now=False)
    time.sleep(60)
"""


class FakeDisk:
    """Writes take time that only a fake clock knows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.seconds, self.writes = 0.0, 0.0, 0
        self.error: OSError | None = None
        monkeypatch.setattr(states_module, "_save", self._save)

    def clock(self) -> float:
        return self.now

    def _save(self, path: Path, content: Any, _: Any) -> str:
        self.now += self.seconds
        path.write_bytes(b"half")
        if self.error is not None:
            raise self.error
        path.write_text(str(content))
        self.writes += 1
        return states_module._hash(path)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FakeDisk:
    return FakeDisk(monkeypatch)


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def save(saving: Saving, step: int, *, now: bool = True) -> None:
    saving.save(step, lambda _: {"weights.pt": step}, now=now)


def test_a_fast_disk_is_written_to_every_30_seconds(tmp_path: Path, disk: FakeDisk) -> None:
    disk.seconds = 1.0
    with Saving(States(tmp_path, CONFIG), disk.clock) as saving:
        disk.now = 29.0
        assert not saving.is_due
        disk.now = 30.0
        assert saving.is_due
        save(saving, 10)  # until 31
        disk.now = 60.9
        assert not saving.is_due
        disk.now = 61.0
        assert saving.is_due


def test_a_slow_disk_is_written_to_a_twentieth_of_the_time(tmp_path: Path, disk: FakeDisk) -> None:
    """54 s, which 6.8 GB take at 125 MB/s: 18 minutes lie between two saves, and a faster one shortens the next."""
    disk.seconds = 54.0
    with Saving(States(tmp_path, CONFIG), disk.clock) as saving:
        disk.now = 30.0
        save(saving, 10)  # until 84
        disk.now = 84 + 20 * 54 - 0.5
        assert not saving.is_due
        disk.now = 84 + 20 * 54
        assert saving.is_due
        disk.seconds = 2.0
        save(saving, 20)
        disk.now += 40.0
        assert saving.is_due


def test_a_day_of_training_spends_a_twentieth_on_saving(tmp_path: Path, disk: FakeDisk) -> None:
    """Steps of a second, a look at each: 40 s of each 840 s are saving."""
    disk.seconds = 40.0
    with Saving(States(tmp_path, CONFIG), disk.clock) as saving:
        while disk.now < 86_400:
            disk.now += 1.0
            if saving.is_due:
                save(saving, int(disk.now))
    assert disk.writes == pytest.approx(86_400 / 840, abs=1)


def test_before_a_pause_a_state_is_saved_that_spares_five_times_what_it_takes(tmp_path: Path, disk: FakeDisk) -> None:
    disk.seconds = 4.0
    with Saving(States(tmp_path, CONFIG), disk.clock) as saving:
        disk.now = 4.9
        assert not saving.is_worth_a_pause
        disk.now = 5.0
        assert saving.is_worth_a_pause
        save(saving, 10)  # until 9
        disk.now = 28.9
        assert not saving.is_worth_a_pause
        disk.now = 29.0
        assert saving.is_worth_a_pause


def test_a_state_before_a_pause_that_cannot_be_written_is_done_without(
    tmp_path: Path, disk: FakeDisk, caplog: pytest.LogCaptureFixture
) -> None:
    """The rung is in metrics.jsonl by then: ended by a full disk, the trial would train up to it again."""
    with Saving(States(tmp_path, CONFIG)) as saving:
        disk.error = OSError("No space left on device")
        save(saving, 10, now=False)
        saving.finish()
        assert "could not be written: No space left on device" in caplog.text
        disk.error = None
        save(saving, 20)
    assert saved(tmp_path) == ["000000020"]


def test_what_a_container_keeps_of_files_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1000 bytes 900 are in use, 300 of them by files that are kept in case they are read again."""
    for name, text in (("max", "1000"), ("current", "900"), ("stat", "anon 600\ninactive_file 300\nactive_file 7\n")):
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    monkeypatch.setattr(host_copies, "_CONTROL_GROUP", tmp_path)
    assert host_copies.host_room() == 400
    (tmp_path / "memory.stat").unlink()
    assert host_copies.host_room() == 100


def test_what_is_asked_for_is_saved_at_any_time(tmp_path: Path, disk: FakeDisk) -> None:
    disk.seconds = 54.0
    with Saving(States(tmp_path, CONFIG), disk.clock) as saving:
        save(saving, 10)
        assert not saving.is_due
        save(saving, 11)
        assert saved(tmp_path) == ["000000010", "000000011"]


@contextmanager
def held_write(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Yields what says that a write has begun, and what lets it end."""
    begun, end, real = threading.Event(), threading.Event(), states_module._save

    def write(*arguments: Any) -> str:
        begun.set()
        assert end.wait(10)
        return real(*arguments)

    monkeypatch.setattr(states_module, "_save", write)
    yield begun, end
    end.set()


def test_training_goes_on_while_a_state_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        Saving(States(tmp_path, CONFIG), clock=lambda: 1e9) as saving,
        held_write(monkeypatch) as (begun, end),
    ):
        save(saving, 10, now=False)
        assert begun.wait(10)
        assert not saving.is_due
        assert saved(tmp_path) == [".10.tmp"]
        end.set()
        save(saving, 11)
        assert saved(tmp_path) == ["000000010", "000000011"]


def test_a_trial_that_ends_does_not_wait_for_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held_write(monkeypatch) as (begun, end):
        with Saving(States(tmp_path, CONFIG)) as saving:
            save(saving, 10, now=False)
            assert begun.wait(10)
            threading.Timer(0.1, end.set).start()
        assert saved(tmp_path) == []


def test_a_trial_that_fails_waits_for_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken up from there."""
    with held_write(monkeypatch) as (begun, end):
        saving = Saving(States(tmp_path, CONFIG))
        save(saving, 10, now=False)
        assert begun.wait(10)
        threading.Timer(0.1, end.set).start()
        saving.__exit__(MemoryError, MemoryError(), None)
        assert saved(tmp_path) == ["000000010"]


def test_a_full_disk_leaves_the_state_before_and_is_told_of(tmp_path: Path, disk: FakeDisk) -> None:
    states = States(tmp_path, CONFIG)
    saving = Saving(states, disk.clock)
    save(saving, 10)
    disk.error = OSError(errno.ENOSPC, "No space left on device")
    save(saving, 20, now=False)
    with pytest.raises(OSError, match="No space") as raised:
        save(saving, 30)
    assert failure_kind(raised.value) == "disk_full"
    assert saved(tmp_path) == ["000000010"]
    assert states.newest() == tmp_path / "000000010"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_torch_writing_to_a_full_disk_ends_in_an_error(tmp_path: Path) -> None:
    """Whatever torch's own writer makes of an exception in its file."""
    states = States(tmp_path, CONFIG)
    states.save(10, lambda _: {"weights.pt": torch.zeros(1000)})

    def capture(folder: Path) -> dict[str, Any]:
        (folder / "weights.pt").symlink_to("/dev/full")
        return {"weights.pt": torch.zeros(1_000_000)}

    with pytest.raises(OSError, match="No space"):
        states.save(20, capture)
    assert saved(tmp_path) == ["000000010"]


def test_a_kill_in_the_middle_leaves_the_state_before(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(50):
            assert child.stdout.readline() == "writing\n"
        child.kill()
    assert child.returncode == -signal.SIGKILL
    assert saved(tmp_path) == [".20.tmp", "000000010"]
    assert len(saved(tmp_path / ".20.tmp")) > 1
    newest = States(tmp_path, CONFIG).newest()
    assert newest == tmp_path / "000000010"
    assert torch.load(newest / "weights.pt").equal(torch.full((1000,), 10))


def test_a_state_of_another_version_is_not_used(tmp_path: Path) -> None:
    states = States(tmp_path, CONFIG)
    states.save(10, lambda _: {"weights.pt": torch.zeros(3)})
    manifest = tmp_path / "000000010" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 2, ', ""))
    assert states.newest() is None


def test_what_is_written_is_the_state_of_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training changes its tensors in place while they are written."""
    weights, copies = torch.zeros(5), HostCopies()
    with Saving(States(tmp_path, CONFIG)) as saving, held_write(monkeypatch) as (begun, end):
        saving.save(10, lambda _: copies.of({"weights.pt": {"state": [weights]}}), now=False)
        assert begun.wait(10)
        weights += 1
        end.set()
        saving.save(20, lambda _: copies.of({"weights.pt": {"state": [weights]}}), now=True)
    found = [torch.load(tmp_path / f"0000000{step}" / "weights.pt")["state"][0] for step in (10, 20)]
    assert [float(tensor.sum()) for tensor in found] == [0.0, 5.0]


def test_no_copy_is_made_where_the_host_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """4,000 bytes want 8,000; memory that is there already is used again."""
    room = 7_999.0
    monkeypatch.setattr(host_copies, "host_room", lambda: room)
    copies, value = HostCopies(), {"weights": torch.ones(1000)}
    assert copies.of(value) is None
    room = 8_000.0
    copied = copies.of(value)
    assert copied["weights"].equal(value["weights"])
    room = 0.0
    assert copies.of(value)["weights"].data_ptr() == copied["weights"].data_ptr()
