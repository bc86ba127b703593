from __future__ import annotations

import importlib.metadata
import json
import runpy
from pathlib import Path

import pytest

from kernelkit.bundle.image import (
    Presence,
    Snapshot,
    compare,
    read_snapshot,
    snapshot,
)

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "image" / "image_snapshot"
PLACES = ("pkg/a.py:1",)

IMAGE = Snapshot(
    complete=False,
    python="3.12",
    distributions={
        "numpy": importlib.metadata.version("numpy") + "+cu128",
        "pandas": "1.0",
        "scikit-learn": None,
    },
    absent=frozenset({"no-such"}),
    modules={"sklearn": "scikit-learn"},
)


@pytest.mark.parametrize(
    ("module", "pip", "complete", "presence"),
    [
        ("numpy", [], False, Presence.PRESENT),
        ("pandas", [], False, Presence.OTHER_VERSION),
        ("sklearn", [], False, Presence.PRESENT),
        ("no_such", [], False, Presence.ABSENT),
        ("never_heard_of", [], False, Presence.UNKNOWN),
        ("never_heard_of", [], True, Presence.ABSENT),
        ("no_such", ["No.Such[all]>=1"], False, Presence.BY_PIP),
        ("no_such", ["called-otherwise"], False, Presence.BY_PIP),
        ("no_such", ["numpy==2"], False, Presence.ABSENT),
        ("no_such", ["called-otherwise; sys_platform=='win32'"], False, Presence.ABSENT),
        ("numpy", ["numpy==2"], False, Presence.BY_PIP),
    ],
)
def test_imports_are_compared_with_the_image(
    module: str, pip: list[str], complete: bool, presence: Presence
) -> None:
    image = Snapshot(complete, IMAGE.python, IMAGE.distributions, IMAGE.absent, IMAGE.modules)
    (finding,) = compare({module: PLACES}, pip, image)
    assert finding.presence is presence
    assert finding.places == PLACES


def test_a_requirement_provides_only_its_own_distribution() -> None:
    findings = compare({"numpy": PLACES, "no_such": PLACES}, ["numpy==2"], IMAGE)
    assert [f.presence for f in findings] == [Presence.BY_PIP, Presence.ABSENT]


def test_the_built_in_snapshot_knows_the_workloads_imports() -> None:
    image = snapshot()
    assert image.distributions["torch"] == "2.10.0"
    assert image.modules["cv2"] == "opencv-python"
    assert not image.absent & image.distributions.keys()


def test_the_example_makes_a_readable_snapshot(tmp_path: Path) -> None:
    """Here the snapshot is of this machine; in a run on Kaggle, of Kaggle's image."""
    runpy.run_path(str(EXAMPLE / "__init__.py"))["run"](str(tmp_path))
    image = read_snapshot(json.loads((tmp_path / "image.json").read_text(encoding="utf-8")))
    assert image.complete
    assert image.distributions["numpy"] == importlib.metadata.version("numpy")
    assert image.modules["sklearn"] == "scikit-learn"
    (finding,) = compare({"sklearn": PLACES}, [], image)
    assert finding.presence is Presence.PRESENT
