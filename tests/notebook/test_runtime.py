"""The runtime module without a notebook; test_workflow.py runs whole notebooks."""

from __future__ import annotations

import ast
import asyncio
import collections
import csv
import datetime
import hashlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
from IPython.core.interactiveshell import InteractiveShell

from kernelkit.bundle.bundle import SourceFile
from kernelkit.notebook import runtime
from kernelkit.notebook.cells import module_cell
from kernelkit.notebook.runtime import NotebookRun, RuntimeFault

BUNDLE: dict[str, Any] = {
    "digest": "d" * 64,
    "wants_gpu": False,
    "kernel": {"machine_shape": ""},
    "files": [],
    "outputs": ["out.csv"],
    "third_party": ["not_installed", "pytest"],
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NotebookRun:
    for name in ("input", "working", "temp"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"KAGGLE_{name.upper()}_DIR", str(tmp_path / name))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.chdir(tmp_path)  # a call changes to the working folder and stays there
    return NotebookRun(BUNDLE, tmp_path / "src")


@pytest.mark.parametrize(
    "mount",
    ["competitions/salt", "datasets/ann/salt", "notebooks/ann/salt", "salt", "odd/deep/salt"],
)
def test_an_input_is_found_in_every_mount_layout(run: NotebookRun, mount: str) -> None:
    assert run.input_dir is not None
    folder = run.input_dir / mount
    folder.mkdir(parents=True)
    (run.input_dir / "competitions" / "other").mkdir(parents=True)
    found = run.resolve({"a": "kaggle://input/salt", "b": ["kaggle://input/salt/x/y.csv"], "c": 3})
    assert found == {"a": str(folder), "b": [str(folder / "x" / "y.csv")], "c": 3}


def test_the_new_mount_layout_takes_precedence(run: NotebookRun) -> None:
    assert run.input_dir is not None
    for mount in ("salt", "competitions/salt"):
        (run.input_dir / mount).mkdir(parents=True)
    assert run.resolve({"a": "kaggle://input/salt"})["a"].endswith("competitions/salt")


def test_a_missing_input_error_lists_the_mounted_inputs(run: NotebookRun) -> None:
    assert run.input_dir is not None
    (run.input_dir / "competitions" / "pepper").mkdir(parents=True)
    with pytest.raises(RuntimeFault, match="no folder has that name") as caught:
        run.resolve({"a": "kaggle://input/salt"})
    assert "pepper/" in str(caught.value)


def test_two_inputs_with_the_same_name_are_an_error(run: NotebookRun) -> None:
    assert run.input_dir is not None
    for owner in ("ann", "bob"):
        (run.input_dir / "datasets" / owner / "salt").mkdir(parents=True)
    with pytest.raises(RuntimeFault, match="2 folders have that name"):
        run.resolve({"a": "kaggle://input/salt"})


def test_kaggle_addresses_are_resolved_and_invalid_ones_rejected(run: NotebookRun) -> None:
    given = {"a": "kaggle://working", "b": "kaggle://temp/x", "c": "https://x", "d": {"e": True}}
    found = run.resolve(given)
    assert found["a"] == str(run.working_dir)
    assert found["b"] == str(run.temp_dir / "x")  # type: ignore[operator]
    assert (found["c"], found["d"]) == ("https://x", {"e": True})
    with pytest.raises(RuntimeFault, match="no folder 'output'"):
        run.resolve({"a": "kaggle://output"})


def test_outside_kaggle_the_error_names_the_next_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KAGGLE_INPUT_DIR", raising=False)
    if Path("/kaggle/input").is_dir():
        pytest.skip("this machine has a /kaggle/input of its own")
    with pytest.raises(RuntimeFault, match="KAGGLE_INPUT_DIR"):
        NotebookRun(BUNDLE, tmp_path).resolve({"a": "kaggle://input/salt"})


def test_the_manifest_describes_a_csv_by_rows_and_ids(run: NotebookRun) -> None:
    with (run.working_dir / "out.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["id", "x"], ["b", "1 2"], ["a", ""]])
    manifest = run.finish()
    (output,) = manifest["outputs"]
    content = (run.working_dir / "out.csv").read_bytes()
    assert output == {
        "path": "out.csv",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "rows": 2,
        "ids_sha256": hashlib.sha256(b"b\na\n").hexdigest(),
    }
    assert manifest["status"] == "complete"
    assert set(manifest["versions"]) == {"python", "pytest"}
    assert json.loads((run.working_dir / "run-manifest.json").read_text()) == manifest


class Broken:
    def __repr__(self) -> str:
        raise ValueError("no repr")


class Odd(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class Point(NamedTuple):
    x: object
    y: object


def itself() -> list[object]:
    made: list[object] = [1]
    made.append({"me": made})
    return made


def strictly(path: Path) -> Any:
    """The content of a JSON file, in which NaN and lone surrogates are errors."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    document = json.loads(path.read_text(), parse_constant=refuse)
    json.dumps(document, ensure_ascii=False).encode()
    return document


EDITED: list[tuple[Any, object]] = [
    ({0: 1.0, "other": 2.0}, {"0": 1.0, "other": 2.0}),
    ({(3, 3): 1, None: 2, True: 3}, {"(3, 3)": 1, "null": 2, "true": 3}),
    ({0: "a", "0": "b"}, [[0, "a"], ["0", "b"]]),
    ({frozenset({1}): {2.5: [Path("/x")]}}, {"frozenset({1})": {"2.5": ["/x"]}}),
    (float("nan"), "nan"),
    ([1, float("inf"), -float("inf")], [1, "inf", "-inf"]),
    ({float("nan"): 1}, {"nan": 1}),
    ({3, 1, 2}, [1, 2, 3]),
    ({"b", 1}, ["b", 1]),
    (b"\xff", "b'\\xff'"),
    (datetime.date(2026, 11, 27), "2026-11-27"),
    (datetime.datetime(2026, 11, 27, 1, 2), "2026-11-27 01:02:00"),
    (numpy.float32(0.5), 0.5),
    (numpy.float64("nan"), "nan"),
    (numpy.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
    (numpy.array([numpy.nan]), ["nan"]),
    (10**400, hex(10**400)),
    (10**5000, hex(10**5000)),
    (2**70, 2**70),
    ("\udc80 text", "\\udc80 text"),
    ({"\ud800": "\ud800"}, {"\\ud800": "\\ud800"}),
    (Broken(), "<Broken: ValueError in its repr>"),
    ({Broken(): 1}, {"<Broken: ValueError in its repr>": 1}),
    (itself(), [1, {"me": "…"}]),
    (1 + 2j, "(1+2j)"),
    (range(3), "range(0, 3)"),
    (collections.deque([1]), [1]),
    (collections.OrderedDict(a=1), {"a": 1}),
    (Point(1, "a"), [1, "a"]),
]


@pytest.mark.parametrize("number", range(len(EDITED)))
def test_any_edited_parameter_leaves_a_valid_manifest(run: NotebookRun, number: int) -> None:
    value, recorded = EDITED[number]
    (run.working_dir / "out.csv").touch()
    assert run.resolve({"a": value})["a"] is value
    run.finish()
    found = strictly(run.working_dir / "run-manifest.json")["parameters"]
    assert found == {"a": recorded}


def test_a_huge_parameter_does_not_fill_the_manifest(run: NotebookRun) -> None:
    (run.working_dir / "out.csv").touch()
    deep: Any = 0
    for _ in range(5000):
        deep = [deep]
    run.resolve({"a": list(range(10**6)), "b": "x" * 10**7, "c": numpy.zeros(10**7), "d": deep})
    run.finish()
    assert (run.working_dir / "run-manifest.json").stat().st_size < 500_000
    assert strictly(run.working_dir / "run-manifest.json")["status"] == "complete"


def test_the_manifest_has_the_parameters_from_before_the_run(run: NotebookRun) -> None:
    (run.working_dir / "out.csv").touch()
    parameters: Any = run.resolve({"a": {"b": [1]}})
    parameters["a"]["b"].append(2)  # as an entry may do
    assert run.finish()["parameters"] == {"a": {"b": [1]}}


def test_addresses_are_resolved_in_every_container(run: NotebookRun) -> None:
    address, path = "kaggle://working/x", str(run.working_dir / "x")
    cyclic: list[Any] = [address]
    cyclic.append(cyclic)
    given = {
        "a": (address, 1),
        "b": {address, "z"},
        "c": frozenset({address}),
        "d": {"k": ({"deep": [address]},)},
        "e": {address: 1},
        "f": Point(address, 2),
        "g": collections.OrderedDict(x=address),
        "h": collections.defaultdict(list, x=[address]),
        "i": collections.deque([address], maxlen=3),
        "j": Path(address),
        "k": cyclic,
    }
    found: Any = run.resolve(given)
    assert found["a"] == (path, 1)
    assert (found["b"], found["c"]) == ({path, "z"}, frozenset({path}))
    assert (found["d"], found["e"]) == ({"k": ({"deep": [path]},)}, {path: 1})
    assert found["f"] == Point(path, 2)
    assert (type(found["g"]), found["h"]["new"]) == (collections.OrderedDict, [])
    assert found["h"]["x"] == [path]
    assert found["i"].maxlen == 3
    assert found["j"] == run.working_dir / "x"
    assert found["k"][0] == path
    assert "kaggle:" not in str({k: v for k, v in found.items() if k != "k"})


@pytest.fixture
def shell(run: NotebookRun) -> Iterator[InteractiveShell]:
    """A notebook's shell in which the run has registered itself."""
    made = InteractiveShell.instance()
    made.user_ns["run"] = NotebookRun(run.bundle, run.source_dir)
    made.user_ns["Odd"] = Odd
    yield made
    InteractiveShell.clear_instance()


@pytest.mark.filterwarnings("ignore:To exit")
@pytest.mark.parametrize(
    ("cell", "error"),
    [
        ("raise Odd", "Odd: (its text cannot be read)"),
        ("raise ValueError('\\ud800 \\x1b[31m')", "ValueError: \\ud800 \x1b[31m"),
        ("raise ValueError(float('nan'))", "ValueError: nan"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt: "),
        ("raise ExceptionGroup('many', [ValueError(1)])", "ExceptionGroup: many (1 sub-exception)"),
        ("x = (", ("_IncompleteInputError: ", "SyntaxError: ")),
        ("raise ValueError('x' * 10**6)", "ValueError: " + "x" * (10**5 - 12) + "…"),
        ("run.resolve({'a': 'kaggle://input/none'})", "RuntimeFault: kaggle://input/none: "),
    ],
)
def test_every_failing_cell_leaves_a_valid_manifest(
    run: NotebookRun,
    shell: InteractiveShell,
    capsys: pytest.CaptureFixture[str],
    cell: str,
    error: str | tuple[str, ...],
) -> None:
    shell.user_ns["run"].resolve({"a": {(1, 2): float("nan")}})
    shell.run_cell(cell)
    manifest = strictly(run.working_dir / "run-manifest.json")
    assert manifest["status"] == "failed"
    assert manifest["error"].startswith(error)
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("kernelkit-man")
    ]
    assert json.loads(line.partition(" ")[2])["digest"] == manifest["digest"]


def test_a_failed_run_whose_manifest_cannot_be_written_prints_it(
    run: NotebookRun, shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.working_dir / "run-manifest.partial").mkdir()
    shell.run_cell("1 / 0")
    assert "kernelkit-manifest {" in capsys.readouterr().out


def test_a_missing_output_is_a_failure(run: NotebookRun) -> None:
    (run.working_dir / "other.txt").touch()
    with pytest.raises(RuntimeFault, match=r"out\.csv") as caught:
        run.finish()
    assert "other.txt" in str(caught.value)


FILES = [
    "a.csv",
    "b.csv",
    "model[1].pth",
    "ckpt/1.pt",
    "ckpt/deep/2.pt",
    "logs/x/y.txt",
    "logs/z.md",
]


@pytest.mark.parametrize(
    ("declared", "files"),
    [
        (["*.csv"], ["a.csv", "b.csv"]),
        (["ckpt/"], ["ckpt/1.pt", "ckpt/deep/2.pt"]),
        (["ckpt"], ["ckpt/1.pt", "ckpt/deep/2.pt"]),
        (["ckpt/*"], ["ckpt/1.pt", "ckpt/deep/2.pt"]),
        (["*/1.pt"], ["ckpt/1.pt"]),
        (["logs/**/*.txt", "logs/**"], ["logs/x/y.txt", "logs/z.md"]),
        (["**/*.txt"], ["logs/x/y.txt"]),
        (["?.csv", "a.csv"], ["a.csv", "b.csv"]),
        (["[!a].csv"], ["b.csv"]),
        (["model[1].pth"], ["model[1].pth"]),
        (["**"], sorted(FILES)),
    ],
)
def test_a_declared_output_may_be_a_folder_or_a_pattern(
    run: NotebookRun, declared: list[str], files: list[str]
) -> None:
    for name in [*FILES, "run-manifest.json", "__notebook__.ipynb", "__results___files/x.png"]:
        (run.working_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run.working_dir / name).write_text(name)
    (run.working_dir / "empty").mkdir()
    (run.working_dir / "ckpt" / "last.pt").symlink_to("1.pt")
    again = NotebookRun({**BUNDLE, "outputs": declared}, run.source_dir)
    found = again.finish()["outputs"]
    assert sorted(output["path"] for output in found) == files
    for output in found:
        assert output["sha256"] == hashlib.sha256(output["path"].encode()).hexdigest()
        assert output["size"] == len(output["path"])


def test_a_link_is_an_output_only_by_its_own_name(run: NotebookRun) -> None:
    (run.working_dir / "ckpt").mkdir()
    (run.working_dir / "ckpt" / "1.pt").write_text("weights")
    (run.working_dir / "last.pt").symlink_to("ckpt/1.pt")
    again = NotebookRun({**BUNDLE, "outputs": ["last.pt", "**/*.pt", "ckpt"]}, run.source_dir)
    assert [output["path"] for output in again.finish()["outputs"]] == ["last.pt", "ckpt/1.pt"]


@pytest.mark.parametrize("declared", ["*.png", "empty/", "empty", "a.csv/", "logs/**/*.pt"])
def test_a_folder_without_a_file_and_a_pattern_without_a_match_are_missing(
    run: NotebookRun, declared: str
) -> None:
    (run.working_dir / "empty" / "deep").mkdir(parents=True)
    (run.working_dir / "a.csv").touch()
    strict = NotebookRun({**BUNDLE, "outputs": ["a.csv", declared]}, run.source_dir)
    with pytest.raises(RuntimeFault, match="without its declared outputs") as caught:
        strict.finish()
    assert f"outputs: {declared}." in str(caught.value)


def test_changed_sources_stop_the_run(run: NotebookRun) -> None:
    bundle = {
        **BUNDLE,
        "files": [
            {"path": "a.py", "sha256": hashlib.sha256(b"a").hexdigest()},
            {"path": "b.py", "sha256": hashlib.sha256(b"b").hexdigest()},
            {"path": "c.py", "sha256": hashlib.sha256(b"c").hexdigest()},
        ],
    }
    strict = NotebookRun(bundle, run.source_dir)
    strict.write_source("a.py", b"a")
    strict.write_source("b.py", b"edited")
    with pytest.raises(RuntimeFault) as caught:
        strict.check_sources()
    assert "b.py: has different content" in str(caught.value)
    assert "c.py: is missing" in str(caught.value)
    assert "a.py" not in str(caught.value)
    assert str(run.source_dir) not in sys.path


def carrying(run: NotebookRun, *paths: str) -> NotebookRun:
    """A run whose notebook has written these modules."""
    files = [{"path": path, "sha256": hashlib.sha256(b"").hexdigest()} for path in paths]
    for path in paths:
        (run.source_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (run.source_dir / path).touch()
    return NotebookRun({**run.bundle, "files": files}, run.source_dir)


def test_another_copy_of_the_package_is_rejected(run: NotebookRun) -> None:
    run = carrying(run, "colorsys.py")
    with pytest.raises(RuntimeFault, match="colorsys came from"):
        run.call("colorsys:rgb_to_hsv", {"r": 0, "g": 0, "b": 0})


def test_an_already_imported_copy_is_replaced(run: NotebookRun) -> None:
    """Jupyter itself may have imported a package that the notebook carries."""
    import tabnanny

    run = carrying(run, "tabnanny.py")
    (run.source_dir / "tabnanny.py").write_text("def check():\n    return 'mine'\n")
    content = (run.source_dir / "tabnanny.py").read_bytes()
    run.bundle["files"][0]["sha256"] = hashlib.sha256(content).hexdigest()
    run.check_sources()
    try:
        assert run.call("tabnanny:check", {}) == "mine"
    finally:
        sys.modules["tabnanny"] = tabnanny


def test_executable_files_stay_executable(run: NotebookRun) -> None:
    run = carrying(run, "pkg/tool.sh")
    run.bundle["files"][0]["executable"] = True
    run.check_sources()
    assert os.access(run.source_dir / "pkg" / "tool.sh", os.X_OK)


def test_the_wrong_copy_is_rejected_before_it_runs(
    run: NotebookRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    import colorsys

    ran: list[bool] = []
    monkeypatch.setattr(colorsys, "rgb_to_hsv", lambda: ran.append(True))
    with pytest.raises(RuntimeFault, match="colorsys came from"):
        carrying(run, "colorsys.py").call("colorsys:rgb_to_hsv", {})
    assert not ran


def test_an_error_of_the_entry_is_raised_unchanged(
    run: NotebookRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = carrying(run, "colorsys.py", "breaks.py")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    source = "def go():\n    import colorsys\n    raise ValueError('mine')\n"
    (run.source_dir / "breaks.py").write_text(source)
    monkeypatch.setattr(
        sys, "path", [*sys.path, str(run.source_dir)]
    )  # the other copy comes first on sys.path
    with pytest.raises(ValueError, match="mine"):
        run.call("breaks:go", {})


@pytest.mark.slow
def test_a_failed_pip_install_names_the_requirement(run: NotebookRun) -> None:
    run.pip_install(["pytest"])  # already installed: nothing is downloaded
    with pytest.raises(RuntimeFault, match=r"pip could not install \./no-such-folder"):
        run.pip_install(["./no-such-folder"])


def test_a_failed_download_by_pip_reports_one_retry(
    run: NotebookRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "2")
    with pytest.raises(RuntimeFault, match="No matching distribution") as raised:
        run.pip_install(["no-such-package-anywhere==1"])
    assert str(raised.value).count("Retrying") == 1
    assert "Failed to establish a new connection" in str(raised.value)


ARGUMENTS = """
import argparse, multiprocessing, sys
EARLY = argparse.ArgumentParser().parse_args()

def child(queue):
    queue.put(sys.argv[1:])

def go():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=1)
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    process = multiprocessing.get_context("spawn").Process(target=child, args=(queue,))
    process.start()
    inherited = queue.get()
    process.join()
    try:
        first = sys.argv[1]
    except IndexError:
        first = None
    return parser.parse_args().epochs, first, inherited, sys.argv[0]
"""


def test_the_entry_does_not_see_the_arguments_of_jupyter(
    run: NotebookRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.syspath_prepend(str(run.source_dir))
    monkeypatch.setenv("PYTHONPATH", str(run.source_dir))
    run.source_dir.mkdir()
    path = run.source_dir / "reads_arguments.py"
    path.write_text(ARGUMENTS)
    assert run.call("reads_arguments:go", {}) == (1, None, [], str(path))


@pytest.mark.parametrize(
    "start",
    [
        "return asyncio.run(answer())",
        "return asyncio.get_event_loop().run_until_complete(answer())",
        "asyncio.run(answer())\n    raise SystemExit",
    ],
)
def test_the_entry_may_start_an_event_loop(
    run: NotebookRun, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    run.source_dir.mkdir()
    monkeypatch.syspath_prepend(str(run.source_dir))
    monkeypatch.chdir(run.source_dir)
    name = f"waits_{abs(hash(start))}"
    (run.source_dir / f"{name}.py").write_text(
        f"import asyncio\nasync def answer():\n    await asyncio.sleep(0)\n    return 42\n"
        f"def go():\n    {start}\n"
    )

    async def cell() -> object:  # Jupyter runs a cell inside its own loop
        result = run.call(f"{name}:go", {})
        await asyncio.sleep(0)  # which goes on behind it
        return result

    assert asyncio.run(cell()) == (42 if start.startswith("return") else None)


@pytest.mark.parametrize(("code", "good"), [("", True), ("0", True), ("1", False), ("'x'", False)])
def test_sys_exit_without_an_error_is_a_success(
    run: NotebookRun, monkeypatch: pytest.MonkeyPatch, code: str, good: bool
) -> None:
    run.source_dir.mkdir()
    monkeypatch.syspath_prepend(str(run.source_dir))
    monkeypatch.chdir(run.source_dir)
    name = f"leaves_{abs(hash(code))}"
    (run.source_dir / f"{name}.py").write_text(f"import sys\ndef go():\n    sys.exit({code})\n")
    if good:
        assert run.call(f"{name}:go", {}) is None
    else:
        with pytest.raises(SystemExit):
            run.call(f"{name}:go", {})


@pytest.mark.parametrize(
    ("end", "code"),
    [("sys.exit()", 0), ("sys.exit(3)", 3), ("sys.exit('no')", 1), ("return", 0), ("1 / 0", 1)],
)
def test_a_forked_child_ends_where_the_program_ends_in_it(
    run: NotebookRun, monkeypatch: pytest.MonkeyPatch, end: str, code: int
) -> None:
    run.source_dir.mkdir()
    monkeypatch.syspath_prepend(str(run.source_dir))
    monkeypatch.chdir(run.source_dir)
    name, own = f"forks_{abs(hash(end))}", os.getpid()
    (run.source_dir / f"{name}.py").write_text(
        "import os, sys\ndef go():\n    child = os.fork()\n    if child == 0:\n"
        f"        {end}\n    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
    )
    try:
        assert run.call(f"{name}:go", {}) == code
    finally:
        if os.getpid() != own:  # else the child would go on with the tests
            os._exit(77)


def test_a_missing_gpu_stops_the_run_with_a_clear_error(
    run: NotebookRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # no nvidia-smi, whatever this machine has
    asking = NotebookRun(
        {**BUNDLE, "wants_gpu": True, "kernel": {"machine_shape": "NvidiaTeslaT4"}}, "src"
    )
    with pytest.raises(RuntimeFault, match="asks for NvidiaTeslaT4 and the run has no GPU"):
        asking.check_hardware()
    assert run.check_hardware()["gpus"] == []


RUNTIME_FILES = sorted(Path(runtime.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", RUNTIME_FILES, ids=lambda path: path.name)
def test_a_writefile_cell_carries_each_module_of_the_runtime_exactly(path: Path) -> None:
    cell = module_cell(SourceFile(f"kernelkit_runtime/{path.name}", path.read_bytes(), module=None))
    assert cell.form == "writefile"


def test_the_runtime_imports_only_the_standard_library() -> None:
    """At module level. Functions may import modules that are optional or part of the run."""
    for path in RUNTIME_FILES:
        body = ast.parse(path.read_text()).body
        names = [
            alias.name for node in body if isinstance(node, ast.Import) for alias in node.names
        ] + [
            str(node.module) for node in body if isinstance(node, ast.ImportFrom) and not node.level
        ]
        assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names, path
