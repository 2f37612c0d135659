import subprocess
import sys
import threading
from pathlib import Path

from tuner.run_dir.mirror import alone_on_this_machine

HOLDER = """
import sys, time
from pathlib import Path
from tuner.run_dir.mirror import alone_on_this_machine
with alone_on_this_machine(Path(sys.argv[1]), "pulling"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_of_a_machine_is_alone_and_a_killed_one_is_in_nobodys_way(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    came = threading.Event()

    def come() -> None:
        with alone_on_this_machine(tmp_path, "pulling"):
            came.set()

    thread = threading.Thread(target=come, daemon=True)
    thread.start()
    assert not came.wait(0.3)
    holder.kill()
    holder.wait()
    assert came.wait(10)
    thread.join(10)
