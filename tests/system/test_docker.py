"""The image of docs/Dockerfile: what goes in, and, where Docker runs, that it builds and searches."""

import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docs/Dockerfile").read_text("utf-8")
CPU = "https://download.pytorch.org/whl/cpu"


def _docker(*arguments: str, seconds: float) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["docker", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
    )


def test_only_what_pip_installs_goes_in() -> None:
    copied = {name for names in re.findall(r"^COPY \S+ (.+) \S+$", DOCKERFILE, re.MULTILINE) for name in names.split()}
    ignored = (ROOT / "docs/Dockerfile.dockerignore").read_text().split()
    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


def test_the_manifest_for_kubernetes_builds_this_image_on_the_ray_that_it_names() -> None:
    text = (ROOT / "docs/rayjob.yaml").read_text("utf-8")
    job = next(iter(yaml.safe_load_all(text)))
    version = job["spec"]["rayClusterSpec"]["rayVersion"]
    image = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    assert f"docker build -f docs/Dockerfile --build-arg BASE=rayproject/ray:{version}-py312-gpu -t {image} ." in text
    assert f"BASE=rayproject/ray:{version}-py312-gpu" in DOCKERFILE


@pytest.fixture
def image() -> Iterator[str]:
    """The image, built for CPUs; it is removed in the end."""
    if shutil.which("docker") is None:
        pytest.skip("there is no docker command here")
    if _docker("info", seconds=60).returncode:
        pytest.skip("no Docker daemon answers here")
    base = re.search(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert base is not None
    if _docker("pull", base[1], seconds=900).returncode:
        pytest.skip(f"{base[1]} cannot be pulled here")
    tag = f"m3-tuner-test:{uuid.uuid4().hex[:8]}"
    built = _docker("build", "-f", "docs/Dockerfile", "-t", tag, "--build-arg", f"TORCH_INDEX={CPU}", ".", seconds=2400)
    assert built.returncode == 0, built.stderr[-3000:]
    yield tag
    _docker("image", "rm", "--force", tag, seconds=120)


@pytest.mark.slow
@pytest.mark.timeout(4200)
def test_the_image_builds_and_searches(image: str) -> None:
    assert _docker("run", "--rm", image, "--version", seconds=60).stdout.startswith("m3-tuner ")
    assert "usage: tuner VERB" in _docker("run", "--rm", image, seconds=60).stdout
    flags = ("search", "--num_trials", "2", "--finalists", "0", "--run_dir", "run")
    searched = _docker("run", "--rm", "--shm-size", "2g", image, *flags, seconds=900)
    assert searched.returncode == 0, searched.stdout[-3000:] + searched.stderr[-3000:]
    assert re.search(r"^verdict +(fine-tune|keep the base model)$", searched.stdout, re.MULTILINE)
