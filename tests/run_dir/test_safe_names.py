"""Names from a bucket, a listing or a result lead nowhere but into the folder that they belong in."""

import hashlib
import json
from pathlib import Path

import pytest

import tuner
from tests.support.report_fixtures import build_run
from tests.support.storage_fixtures import NewMachine, contents, write
from tuner.errors import RequestError
from tuner.report import page
from tuner.report.command import main
from tuner.run_dir.safe_names import UnsafeNameError, inside, safe_name
from tuner.run_dir.store import open_run_dir, run_folder, trial_folder

BAD = [
    "",
    ".",
    "..",
    "/etc/passwd",
    "a/../b",
    "../a",
    "a//b",
    "a/",
    "./a",
    "a/.",
    "a\\b",
    "..\\a",
    "a\0b",
    "a\nb",
    None,
    7,
]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_leads_elsewhere_is_refused(name: object, tmp_path: Path) -> None:
    with pytest.raises(UnsafeNameError, match="a bucket: a name there must be relative"):
        safe_name(name, "a bucket")
    with pytest.raises(UnsafeNameError):
        inside(tmp_path, name, "a bucket")


@pytest.mark.parametrize("name", ["a", "trials/0007/checkpoint/model.safetensors", "..a/b..", "数据　一", "a b'c"])
def test_other_names_are_taken(name: str, tmp_path: Path) -> None:
    assert inside(tmp_path, name, "a bucket") == tmp_path / name


def test_a_link_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/data").symlink_to(tmp_path / "home")
    with pytest.raises(UnsafeNameError, match="a link leads it to"):
        inside(tmp_path / "run", "data/new", "a bucket")
    (tmp_path / "linked").symlink_to(tmp_path / "run")
    assert inside(tmp_path / "linked", "trials/0001", "a bucket") == tmp_path / "linked/trials/0001"


class Bucket:
    """Storage that someone else can write to, a home, and a reader with an empty disk."""

    def __init__(self, folder: Path) -> None:
        self.run, self.url = folder / "bucket/run", f"file://{folder}/bucket/run"
        self.home = folder / "home"
        self.home.mkdir()
        (self.home / ".bashrc").write_text("# mine\n")
        self.run.mkdir(parents=True)

    def put(self, key: str, content: bytes) -> None:
        (self.run / key).parent.mkdir(parents=True, exist_ok=True)
        (self.run / key).write_bytes(content)

    def list(self, part: str, *entries: tuple[str, str], content: bytes = b"echo pwned\n") -> None:
        """Writes a listing of paths and keys, whose objects all have the same content."""
        facts = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "mtime_ns": 1}
        listing = [{"path": path, "key": key, **facts} for path, key in entries]
        self.put(f"listings/{part}.json", json.dumps(listing).encode())
        for _, key in entries:
            if ".." not in key and not key.startswith("/"):
                self.put(key, content)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Bucket(tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        "data/../../../../../home/.bashrc",
        "data/../../../../../home/.config/autostart/new",
        "/etc/cron.d/new",
        "best/model",
        "data/.hidden",
        ".listings/data.json",
        "data//x",
        "data/x\\y",
    ],
)
def test_a_listing_whose_paths_leave_its_part_is_refused(path: str, bucket: Bucket, tmp_path: Path) -> None:
    bucket.list("data", ("data/ok", "data/20261126T000000-0000/ok"), (path, "data/20261126T000000-0000/x"))
    with pytest.raises(UnsafeNameError):
        open_run_dir(bucket.url).pull()
    assert [file for file in (tmp_path / "cache").rglob("*") if file.is_file()] == []
    assert [file.name for file in bucket.home.iterdir()] == [".bashrc"]


def test_reading_someone_s_run_writes_and_deletes_nothing_else(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    target = "data/../../../../../home/.bashrc"
    bucket.list("data", (target, "data/20261126T000000-0000/x"))
    assert main([bucket.url]) == 2
    assert "listings/data.json: a name there must be relative" in capsys.readouterr().err
    with pytest.raises(UnsafeNameError):
        tuner.load(bucket.url)
    assert (bucket.home / ".bashrc").read_text() == "# mine\n"

    bucket.list("data", ("data/ok", "data/20261126T000000-0000/x"))
    store = open_run_dir(bucket.url)
    store.pull()
    seen = store.local / ".listings/data.json"
    seen.write_text(seen.read_text().replace("data/ok", target))  # as an earlier version wrote it
    bucket.list("data")
    with pytest.raises(UnsafeNameError):
        store.pull()
    assert (bucket.home / ".bashrc").read_text() == "# mine\n"


@pytest.mark.parametrize(
    "key", ["x", "../other-run.txt", "data/../../other-run.txt", "leases/a.json", "/etc/passwd", "data/link/.bashrc"]
)
def test_a_listing_whose_objects_lie_elsewhere_deletes_none_of_them(key: str, bucket: Bucket) -> None:
    (bucket.run.parent / "other-run.txt").write_text("of another run")
    (bucket.run / "data").mkdir()
    (bucket.run / "data/link").symlink_to(bucket.home)
    (bucket.run / "listings").mkdir()
    entry = {"path": "data/ok", "key": key, "size": 7, "sha256": "", "mtime_ns": 1}
    (bucket.run / "listings/data.json").write_text(json.dumps([entry]))
    store = open_run_dir(bucket.url)

    def remove_and_tidy() -> None:
        store.remove(["data/ok"])
        store.tidy()

    with store.held():
        with pytest.raises(UnsafeNameError):
            store.pull()
        with pytest.raises(UnsafeNameError):
            remove_and_tidy()
    assert (bucket.run.parent / "other-run.txt").exists()
    assert (bucket.home / ".bashrc").read_text() == "# mine\n"


@pytest.mark.parametrize("content", [b"{", b"[1]", b"7", b'[{"path": "data/x"}]', b"\xff", b"[" * 100_000])
def test_what_is_no_listing_is_said(content: bytes, bucket: Bucket) -> None:
    bucket.put("listings/data.json", content)
    with pytest.raises(RequestError, match=r"listings/data\.json is no listing of files; delete it"):
        open_run_dir(bucket.url).pull()


@pytest.mark.parametrize("part", ["trials/.hidden", "leases", "replaced", "trials", "trials/0001/x", ".driver", "a\\b"])
def test_a_listing_of_what_is_no_part_is_refused(part: str, bucket: Bucket) -> None:
    bucket.list(part)
    with pytest.raises(UnsafeNameError):
        open_run_dir(bucket.url).pull()


def test_keys_of_s3_with_dots_are_refused(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3 = pytest.importorskip("boto3")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    client = boto3.client("s3", endpoint_url=s3, region_name="us-east-1")
    for key in ("listings/data.json", "listings/../../../evil.json"):
        client.put_object(Bucket="bucket", Key=f"dotted/{key}", Body=b"[]")
    with pytest.raises(RequestError):
        open_run_dir(f"s3://bucket/dotted?endpoint_override={s3}").pull()
    assert [file.name for file in tmp_path.rglob("*.json")] == []


@pytest.mark.parametrize("folder", ["../../outside", "..", "/etc", "", None, ["0007"]])
@pytest.mark.parametrize("model", ["best", "recommended"])
def test_a_result_names_no_folder_elsewhere(folder: object, model: str, bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(UnsafeNameError, match=r"result\.json"):
        trial_folder(tmp_path, folder)
    result = json.dumps({model: {"folder": folder, "trial": 7}}).encode()
    bucket.list("result.json", ("result.json", "result.json/20261126T000000-0000/result.json"), content=result)
    with pytest.raises(RequestError, match=r"result\.json"):
        tuner.load(bucket.url)


def test_a_checkpoint_is_no_folder_elsewhere(tmp_path: Path) -> None:
    run = build_run(tmp_path / "runs/first")
    (tmp_path / "outside/checkpoint").mkdir(parents=True)
    result = json.loads((run / "result.json").read_text())
    result["best"]["folder"] = "../../outside"
    (run / "result.json").write_text(json.dumps(result))
    with pytest.raises(UnsafeNameError, match=r"result\.json"):
        print(tuner.load(run).checkpoint)


def test_what_is_read_is_what_was_found_and_not_every_trial(new_machine: NewMachine) -> None:
    store = new_machine()
    write(store, config_dot_yaml="a: 1", data__manifest_dot_json="{}", best__model="w")
    for trial in ("0001", "0002", "0003", "0004", "0007-seed1"):
        write(store, **{f"trials__{trial}__checkpoint__model": "w", f"trials__{trial}__resume__50__optimizer": "o"})
    named = {"best": {"folder": "0007-seed1", "trial": 2}, "recommended": {"folder": "0003", "trial": 3}}
    (store.local / "result.json").write_text(json.dumps(named))
    store.push()
    new_machine()
    found = run_folder(store.url)
    assert {path.name for path in (found / "trials").iterdir()} == {"0002", "0003", "0007-seed1"}
    found = run_folder(store.url, trial=4)
    assert {path.name for path in (found / "trials").iterdir()} == {"0002", "0003", "0004", "0007-seed1"}
    new_machine()
    report = run_folder(store.url, page.READ)
    assert contents(open_run_dir(store.url)).keys() == {"config.yaml", "data/manifest.json", "result.json"}
    assert not list(report.rglob("optimizer"))
