from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernelkit.bundle.image import Snapshot, snapshot
from kernelkit.bundle.requirements import (
    LOCK_NAME,
    InstallOrigin,
    WheelLock,
    needed_by,
    plan_installation,
)
from kernelkit.errors import ConfigError

IMAGE = Snapshot(
    complete=False,
    python="3.12",
    distributions={"numpy": "2.0.2", "requests": None, "jinja2": "3.1.6"},
    absent=frozenset(),
    modules={},
)


def lock(*wheels: tuple[str, tuple[str, ...]], python: str = "3.12") -> WheelLock:
    """A lock with wheels: the name of the file, and what it requires."""
    entries = [{"file": f, "sha256": "0" * 64, "size": 1, "requires": r} for f, r in wheels]
    document = {"schema": 1, "dataset": "demo-wheels", "python": python, "wheels": entries}
    return WheelLock.model_validate_json(json.dumps(document))


@pytest.mark.parametrize(
    ("requirement", "downloaded"),
    [
        *[
            (text, False)
            for text in ("numpy", "Numpy>=2", "torch>=2.0,<3", "x ; sys_platform == 'win32'")
        ],
        *[(text, True) for text in ("numpy<2", "torch==1.0", "six-unheard-of", "jinja2[i18n]")],
        ("numpy @ https://example.com/numpy.whl", True),
    ],
)
def test_what_the_image_has_in_a_fitting_version_is_not_downloaded(
    requirement: str, downloaded: bool
) -> None:
    plan = plan_installation([requirement], snapshot(), internet=True)
    assert plan.downloads == [requirement] * downloaded


@pytest.mark.parametrize(
    ("requirement", "online", "offline"),
    [
        ("numpy>=2", InstallOrigin.IMAGE, InstallOrigin.IMAGE),
        ("numpy<2", InstallOrigin.INDEX, InstallOrigin.NOWHERE),
        ("new @ git+https://example.com/new.git", InstallOrigin.ADDRESS, InstallOrigin.NOWHERE),
        ("requests", InstallOrigin.IMAGE, InstallOrigin.IMAGE),
        ("requests>=2.31", InstallOrigin.UNDECIDED, InstallOrigin.UNDECIDED),
        ("jinja2[i18n]", InstallOrigin.UNDECIDED, InstallOrigin.UNDECIDED),
        ("jinja2[i18n]<3", InstallOrigin.INDEX, InstallOrigin.NOWHERE),
        ("emoji2", InstallOrigin.INDEX, InstallOrigin.NOWHERE),
        (
            "emoji2; python_version < '3.12'",
            InstallOrigin.OTHER_PLATFORM,
            InstallOrigin.OTHER_PLATFORM,
        ),
        ("emoji2; platform_machine == 'x86_64'", InstallOrigin.INDEX, InstallOrigin.NOWHERE),
    ],
)
def test_where_a_requirement_comes_from(
    requirement: str, online: InstallOrigin, offline: InstallOrigin
) -> None:
    for internet, origin in ((True, online), (False, offline)):
        (planned,) = plan_installation([requirement], IMAGE, internet=internet).requirements
        assert planned.origin is origin
    assert planned.replaces is False


def test_wheels_are_followed_through_what_they_require() -> None:
    wheels = lock(
        ("pkg_a-1.5-py3-none-any.whl", ("pkg-b>=2", "numpy<2", "requests", "pkg-c")),
        ("pkg_b-2.1-py3-none-any.whl", ("pkg-a",)),
        ("numpy-1.26.4-cp312-cp312-manylinux_2_17_x86_64.whl", ()),
        ("unused-1-py3-none-any.whl", ()),
    )
    plan = plan_installation(["Pkg.A~=1.0"], IMAGE, internet=False, lock=wheels)
    assert [wheel.name for wheel in plan.wheels] == ["pkg-a", "pkg-b", "numpy"]
    assert plan.install == ("pkg-a~=1.0", "pkg-b>=2", "numpy<2", "pkg-a")
    assert [one.name for one in plan.requirements if one.replaces] == ["numpy"]
    (missing,) = plan.at(InstallOrigin.NOWHERE)
    assert (missing.name, missing.required_by) == ("pkg-c", "pkg-a")
    assert missing.reason == f"{LOCK_NAME} has no wheel of it"


@pytest.mark.parametrize(
    ("requirement", "reason"),
    [
        ("pkg-a==2", f"{LOCK_NAME} has pkg-a 1.5"),
        ("pkg-a[more]", f"{LOCK_NAME} has pkg-a 1.5"),
        ("pkg-b", f"{LOCK_NAME} has no wheel of it"),
    ],
)
def test_a_lock_that_no_longer_fits_is_noticed(requirement: str, reason: str) -> None:
    wheels = lock(("pkg_a-1.5-py3-none-any.whl", ()))
    (planned,) = plan_installation([requirement], IMAGE, internet=False, lock=wheels).requirements
    assert (planned.origin, planned.reason) == (InstallOrigin.NOWHERE, reason)


def test_wheels_for_another_python_do_not_count() -> None:
    wheels = lock(("pkg_a-1.5-py3-none-any.whl", ()), python="3.11")
    plan = plan_installation(["pkg-a"], IMAGE, internet=False, lock=wheels)
    assert not plan.wheels
    assert "for Python 3.11, and the image has 3.12" in plan.requirements[0].reason


def test_an_address_becomes_a_version() -> None:
    """The run has no internet to read the address."""
    wheels = lock(("pkg_a-1.5-py3-none-any.whl", ()))
    text = "pkg-a @ https://example.com/pkg_a-1.5-py3-none-any.whl"
    assert plan_installation([text], IMAGE, internet=False, lock=wheels).install == ("pkg-a==1.5",)


def test_only_what_applies_in_the_image_is_needed() -> None:
    requires = [
        "a>=1",
        "b; python_version < '3.12'",
        "c; extra == 'more'",
        "d; extra == 'other'",
        "e; platform_system == 'Linux' and extra == 'more'",
    ]
    assert list(needed_by(requires, ["more"], IMAGE)) == ["a>=1", "c", "e"]
    assert list(needed_by(requires, [], IMAGE)) == ["a>=1"]


WHEEL = {"file": "a-1-py3-none-any.whl", "sha256": "0" * 64, "size": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wheels": [{"file": "../x-1-py3-none-any.whl", "sha256": "0" * 64, "size": 1}]}, "file"),
        ({"wheels": [{"file": "x-1-py3-none-any.whl", "sha256": "zz", "size": 1}]}, "sha256"),
        ({"dataset": "Not A Slug"}, "dataset"),
        ({"schema": 2}, "schema"),
        ({"wheels": [{**WHEEL, "requires": ["not one!"]}]}, r"wheels\.0\.requires\.0"),
        ({"wheels": [{**WHEEL, "size": -1}]}, r"wheels\.0\.size"),
        ({"wheels": [WHEEL, WHEEL]}, "has 2 wheels of a"),
    ],
)
def test_a_damaged_lock_names_its_key(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    document = {"schema": 1, "dataset": "demo-wheels", "python": "3.12", "wheels": [], **change}
    (tmp_path / LOCK_NAME).write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=f"{LOCK_NAME}.*{words}"):
        WheelLock.read(tmp_path)
    assert WheelLock.read(tmp_path.parent) is None
