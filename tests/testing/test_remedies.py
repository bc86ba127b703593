"""The advice about tests that differ: which kind of difference it takes them for."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from kernelkit.testing.remedies import DifferingTest, PackagePlaces, remedy

STAGE = Path("/tmp/kernelkit-x/b/project")
BOTH = frozenset({"package", "notebook"})


def places(project: Path, home: str, *carried: str) -> PackagePlaces:
    return PackagePlaces(project, (PurePosixPath(home),), frozenset(map(PurePosixPath, carried)))


def differing(report: str, file: str = "tests/test_a.py") -> DifferingTest:
    return DifferingTest(f"{file}::test_it", BOTH, report)


@pytest.mark.parametrize(
    ("home", "carried", "report", "named"),
    [
        ("src/pkg", "src/pkg/a.py", f"E  OSError: bad file: {STAGE}/src/pkg/a.py", "src/pkg/a.py"),
        ("pkg", "pkg/a.py", "python: can't open file 'pkg/a.py': [Errno 2]", "pkg/a.py"),
        ("pkg", "pkg/a.py", "E  FileNotFoundError: No such file or directory: 'pkg'", "pkg"),
        (
            "tool.py",
            "tool.py",
            "E  FileNotFoundError: No such file or directory: 'tool.py'",
            "tool.py",
        ),
        ("lib/pkg", "lib/pkg/a.py", "E  assert ['lib/pkg/a.py'] == []", "lib/pkg/a.py"),
    ],
)
def test_a_report_can_name_the_package(
    tmp_path: Path, home: str, carried: str, report: str, named: str
) -> None:
    advice = remedy([differing(report)], places(tmp_path, home, carried), STAGE)
    assert "by its path" in advice
    assert f"{named} is carried" in advice
    assert "outside the package" not in advice


@pytest.mark.parametrize(
    "report",
    [
        f"E  FileNotFoundError: No such file or directory: '{STAGE}/settings.json'",
        "E  ModuleNotFoundError: No module named 'helpers'",
        "E  AssertionError: assert 1 == 2",
        "/tmp/kernelkit-x/n/tmp/kernelkit-abc/pkg/a.py:3: OSError",  # where the notebook wrote it
        "kernelkit_written/pkg/tests/test_a.py:3: OSError",
        "E  assert 'mypkg/a.py' == 'x'",
    ],
)
def test_other_reports_are_about_files_outside(tmp_path: Path, report: str) -> None:
    (tmp_path / "tests").mkdir()
    test = "from pathlib import Path\n\n\ndef test_other():\n    Path('pkg').stat()\n"
    (tmp_path / "tests" / "test_a.py").write_text(test)
    advice = remedy([differing(report)], places(tmp_path, "pkg", "pkg/a.py"), STAGE)
    assert "files outside the package" in advice
    assert "by its path" not in advice


def test_a_file_that_is_not_carried_is_said_so(tmp_path: Path) -> None:
    report = f"E  FileNotFoundError: No such file or directory: '{STAGE}/pkg/data.bin'"
    advice = remedy([differing(report)], places(tmp_path, "pkg", "pkg/a.py"), STAGE)
    assert "pkg/data.bin is not carried: add it to `include`" in advice


def test_each_kind_is_mentioned(tmp_path: Path) -> None:
    found = [
        differing("E  FileNotFoundError: No such file or directory: 'pkg/a.py'", "tests/test_b.py"),
        differing("E  FileNotFoundError: No such file or directory: 'settings'", "tests/test_c.py"),
        DifferingTest("tests/test_d.py::test_it[run-1700000001]", frozenset({"package"})),
        DifferingTest("tests/test_d.py::test_it[run-1700000044]", frozenset({"notebook"})),
        DifferingTest("tests/test_d.py::test_it[<object at 0x7fa1>]", frozenset({"package"})),
        DifferingTest("tests/test_d.py::test_it[<object at 0x55b2c>]", frozenset({"notebook"})),
    ]
    advice = remedy(found, places(tmp_path, "pkg", "pkg/a.py"), STAGE)
    for words in ("by its path", "names of 4 tests change", "files outside the package"):
        assert words in advice


def test_a_missing_parameter_is_no_changing_name(tmp_path: Path) -> None:
    found = [
        DifferingTest("tests/test_d.py::test_it[letters]", frozenset({"package"})),
        DifferingTest("tests/test_d.py::test_it[numbers]", frozenset({"notebook"})),
    ]
    advice = remedy(found, places(tmp_path, "pkg", "pkg/a.py"), STAGE)
    assert "change from run to run" not in advice
