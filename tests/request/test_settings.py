"""Settings files stay with the run that they were named for."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from search_spaces import identity
from tuner.request.command_line import parse
from tuner.request.config import SearchConfig
from tuner.request.config_file import keep
from tuner.run_dir.store import open_run_dir
from tuner.study.claim import facts

SPACE = "learning_rate: {low: 1e-6, high: 3e-5, log: true}\n"


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SearchConfig:
    """A search that was submitted: its files stand in the job's working directory."""
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path / "job")
    Path("1-space.yaml").write_text(SPACE)
    Path("0-ds.json").write_text("{}")
    return SearchConfig(search_space="1-space.yaml", arguments={"deepspeed": "0-ds.json", "train_data": ["rows.jsonl"]})


@pytest.mark.parametrize("kind", ["path", "url"])
def test_a_run_is_resumed_where_its_settings_files_are_not(
    named: SearchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    store = open_run_dir(f"{'file://' if kind == 'url' else ''}{tmp_path}/run")
    store.local.mkdir(exist_ok=True)
    written = keep(named, store.local)
    (store.local / "config.yaml").write_text(yaml.safe_dump(written.to_dict()))
    store.push()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resumed = parse(["--resume", store.url])
    assert Path(str(resumed.search_space)).read_text() == SPACE
    assert Path(resumed.arguments["deepspeed"]).read_text() == "{}"
    assert identity(str(resumed.search_space)) == identity(str(tmp_path / "job/1-space.yaml"))
    here = open_run_dir(store.url).local
    assert keep(resumed, here) == written.replace(resume=store.url)
    assert len(list((here / "settings").iterdir())) == 2


def test_an_edited_search_space_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    dataset = SimpleNamespace(hash="0" * 16, rows=120)
    for name, file in (("space.yaml", Path("space.yaml")), ("own_space:space", Path("own_space.py"))):
        file.write_text("a: {choices: [1]}")
        before = facts(SearchConfig(search_space=name), dataset)  # type: ignore[arg-type]
        file.write_text("a: {choices: [1, 2]}")
        after = facts(SearchConfig(search_space=name), dataset)  # type: ignore[arg-type]
        assert {key for key in before if before[key] != after[key]} == {"search_space"}
    assert identity("m3") == "m3"
    with pytest.raises(FileNotFoundError):
        identity("none.yaml")


def test_a_copy_that_a_full_disk_cut_short_is_made_anew(named: SearchConfig, tmp_path: Path) -> None:
    """It was written in place: an empty file stayed under the name of the whole one."""
    written = keep(named, tmp_path)
    (tmp_path / str(written.search_space)).write_text("")
    assert keep(named, tmp_path) == written
    assert (tmp_path / str(written.search_space)).read_text() == SPACE
    assert sorted(path.name for path in (tmp_path / "settings").iterdir() if path.name.startswith(".")) == []
