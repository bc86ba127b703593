"""Why a run failed: logs of errors that the tests raise, and messages of errors that they cannot.

A separate process raises the errors, in a package in the folder of a run's sources. They are
recorded twice: as Python prints them (as in the run's manifest), and as IPython does with its
colors, within papermill's output.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelkit.diagnosis import diagnose as module
from kernelkit.diagnosis.diagnose import PRINTED_LINES, Diagnosis, Origin, diagnose_folder
from kernelkit.diagnosis.documents import RunReport, SentBundle
from kernelkit.diagnosis.rules import RULES, FailureCause
from kernelkit.errors import ConfigError

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Document = Mapping[str, Any]


def diagnose(
    log: str, manifest: Document | None = None, bundle: Document | None = None, **options: Any
) -> Diagnosis | None:
    """The same function, with the content of the two files."""
    return module.diagnose(
        log,
        manifest=RunReport.parse(json.dumps(manifest)) if manifest else None,
        bundle=SentBundle.parse(json.dumps(bundle)) if bundle else None,
        **options,
    )


SOURCES = "kernelkit-0123456789ab"
MOD = """\
import multiprocessing
from concurrent.futures import ProcessPoolExecutor


def boom(x):
    raise ValueError(f"bad {x}")


def chained(x):
    try:
        boom(x)
    except ValueError as fault:
        raise RuntimeError("not\\nto be") from fault


def handled(x):
    try:
        {}["key"]
    except KeyError:
        boom(x)


def recurse(n):
    return recurse(n + 1)


def pool():
    with multiprocessing.get_context("fork").Pool(1) as workers:
        workers.map(handled, [1])


def futures():
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as workers:
        list(workers.map(boom, [1]))


def library():
    import json
    json.loads("{")


def group():
    faults = []
    for function in (chained, boom):
        try:
            function(1)
        except Exception as fault:
            faults.append(fault)
    raise ExceptionGroup("many", faults)


def many():
    raise ValueError("x" * 100 + "\\n" + "y" * 5_000)


def loader():
    from torch.utils.data import DataLoader, Dataset

    class Pictures(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, number):
            return handled(number)

    list(DataLoader(Pictures(), num_workers=1))


def child():
    import subprocess
    import sys
    code = "from pkg.mod import chained; chained(3)"
    subprocess.run([sys.executable, "-c", code], check=True)


def logged():
    import traceback
    try:
        boom("and survived")
    except ValueError:
        traceback.print_exc()
    raise OSError(28, "No space left on device")
"""
LINES = {
    name: number
    for number, line in enumerate(MOD.splitlines(), 1)
    for name in re.findall(r"^def (\w+)", line)
}
CASES = {
    name: f"from pkg.mod import {name}\n{name}({'1' if name in ('chained', 'recurse') else ''})"
    for name in (
        *("chained", "recurse", "pool", "futures", "library", "group", "many"),
        *("loader", "child", "logged"),
    )
} | {"syntax": "import pkg.broken", "cell_syntax": "x = = 2", "absent": "import pkg.nowhere"}

RECORDER = r"""
import contextlib, io, json, os, subprocess, sys, tempfile, traceback
sys.path.insert(0, sys.argv[1])
os.environ["PYTHONPATH"] = sys.argv[1]
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
shell.run_line_magic("colors", "Neutral")
taken = []
shell._showtraceback = lambda etype, evalue, stb: taken.append("\n".join(stb))  # as ipykernel
recorded = {}
for name, code in json.loads(sys.argv[2]).items():
    taken.clear()
    with tempfile.TemporaryFile("w+") as stderr:
        kept = os.dup(2)
        os.dup2(stderr.fileno(), 2)
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
        result = shell.run_cell(code, store_history=True)
        os.dup2(kept, 2)
        stderr.seek(0)
        printed = stderr.read()
    fault = result.error_before_exec or result.error_in_exec
    plain = "".join(traceback.format_exception(fault))
    recorded[name] = {"plain": plain, "ipython": "".join(taken), "printed": printed,
                      "error": f"{type(fault).__name__}: {fault}", "cell": result.execution_count}
print(json.dumps(recorded))
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Each case as printed: plain, by IPython, and the stderr before it."""
    sources = tmp_path_factory.mktemp("tmp") / SOURCES
    (sources / "pkg").mkdir(parents=True)
    (sources / "pkg" / "__init__.py").touch()
    (sources / "pkg" / "mod.py").write_text(MOD)
    (sources / "pkg" / "broken.py").write_text("y = 1\nx = = 2\n")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RECORDER, str(sources), json.dumps(CASES)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def papermill(case: dict[str, Any]) -> str:
    """The log of a failing cell, as papermill writes it (here with colors)."""
    rule = "-" * 75
    head = f'Exception encountered at "In [{case["cell"]}]":'
    text = f"papermill.exceptions.PapermillExecutionError: \n{rule}\n{head}\n{case['ipython']}\n\n"
    outer = 'Traceback (most recent call last):\n  File "/x/papermill/execute.py", line 1, in run\n'
    return f"epoch 1\n{case['printed']}{outer}{text}"


def pieces(text: str) -> str:
    """As Kaggle serves a log."""
    entries = [
        {"stream_name": "stderr", "time": number / 10, "data": line}
        for number, line in enumerate(text.splitlines(keepends=True))
    ]
    return "[" + "\n,".join(json.dumps(entry) for entry in entries) + "]\n"


def manifest(case: dict[str, Any]) -> dict[str, Any]:
    return {"status": "failed", "error": case["error"], "traceback": case["plain"]}


def places(diagnosis: Diagnosis) -> list[str]:
    """The project's frames."""
    return [f"{f.place}:{f.line}" for f in diagnosis.frames if f.origin == Origin.PROJECT]


def at(name: str, offset: int) -> str:
    return f"pkg/mod.py:{LINES[name] + offset}"


EXPECTED = {
    "chained": ("RuntimeError: not\nto be", [at("chained", 4)]),
    "recurse": ("RecursionError: maximum recursion depth exceeded", [at("recurse", 1)]),
    "pool": ("ValueError: bad 1", [at("handled", 4), at("boom", 1)]),
    "futures": ("ValueError: bad 1", [at("boom", 1)]),
    "library": ("JSONDecodeError: Expecting property name", [at("library", 2)]),
    "group": ("RuntimeError: not\nto be", [at("group", 4), at("chained", 4)]),
    "many": ("ValueError: xxx", [at("many", 1)]),
    "loader": (
        "ValueError: bad 0",
        [f"pkg/mod.py:{LINES['loader'] + 8}", at("handled", 4), at("boom", 1)],
    ),
    "child": ("RuntimeError: not\nto be", [at("chained", 4)]),
    "logged": ("OSError: [Errno 28] No space left on device", [at("logged", 6)]),
    "syntax": ("SyntaxError: invalid syntax", ["pkg/broken.py:2"]),
    "cell_syntax": ("SyntaxError: invalid syntax", []),
    "absent": ("ModuleNotFoundError: No module named 'pkg.nowhere'", []),
}


@pytest.mark.parametrize("form", ["papermill", "kaggle", "doubled", "manifest", "both"])
@pytest.mark.parametrize("name", CASES)
def test_a_traceback_shows_the_repositorys_lines(
    recorded: dict[str, dict[str, Any]], name: str, form: str
) -> None:
    case = recorded[name]
    log = papermill(case)
    found = {
        "papermill": lambda: diagnose(log),
        "kaggle": lambda: diagnose(pieces(log)),
        "doubled": lambda: diagnose(log.replace("\n", "\n\n")),
        "manifest": lambda: diagnose(case["printed"], manifest=manifest(case)),
        "both": lambda: diagnose(pieces(log), manifest=manifest(case)),
    }[form]()
    assert found is not None
    error, lines = EXPECTED[name]
    shown = re.sub(r"^json\.decoder\.", "", found.error)
    assert shown.startswith(error if form != "doubled" else error.partition("\n")[0])
    assert places(found) == lines
    assert "\x1b" not in json.dumps(asdict(found), ensure_ascii=False)
    if lines:
        assert found.innermost is not None
        source = (MOD if name != "syntax" else "y = 1\nx = = 2\n").splitlines()
        assert found.innermost.source == source[(found.innermost.line or 0) - 1].strip()


def test_notes_and_causes_of_an_error_are_shown(recorded: dict[str, dict[str, Any]]) -> None:
    def notes(name: str) -> str:
        by_log, by_manifest = (
            diagnose(papermill(recorded[name])),
            diagnose("", manifest=manifest(recorded[name])),
        )
        assert by_log
        assert by_manifest
        assert len(by_log.notes) == len(by_manifest.notes)
        return "\n".join(by_log.notes)

    assert notes("chained") == f"raised from: ValueError: bad 1, at {at('boom', 1)}"
    assert f"while handling: KeyError: 'key', at {at('handled', 2)}" in notes("pool")
    assert f"the main process ended: ValueError: bad 1, at {at('pool', 2)}" in notes("pool")
    assert "Caught ValueError in DataLoader worker process 0." in notes("loader")
    assert "part of: ExceptionGroup: many (2 sub-exceptions)" in notes("group")
    assert f"also in the group: ValueError: bad 1, at {at('boom', 1)}" in notes("group")
    assert notes("logged") == ""


def test_library_and_recursive_frames_are_folded(
    recorded: dict[str, dict[str, Any]],
) -> None:
    for report in (None, manifest(recorded["recurse"])):
        found = diagnose(papermill(recorded["recurse"]), manifest=report)
        assert found
        assert found.frames[-1].times > 900
    found = diagnose(papermill(recorded["library"]))
    assert found
    cell, own, library = found.frames
    assert (cell.origin, cell.place) == (Origin.CELL, f"cell [{recorded['library']['cell']}]")
    assert own.function == "library"
    assert (library.origin, library.place, library.times) == (Origin.LIBRARY, "json", 3)


def test_the_last_part_of_a_manifest_in_the_log_is_enough(
    recorded: dict[str, dict[str, Any]],
) -> None:
    cut = manifest(recorded["loader"])
    cut["traceback"] = cut["traceback"][-700:]
    line = "kernelkit-manifest " + json.dumps(cut)
    found = diagnose(f"epoch 1\n{line}\n")
    assert found
    assert places(found)[-1] == at("boom", 1)
    assert found.error == "ValueError: bad 0"


OLD = f"""\
papermill.exceptions.PapermillExecutionError:
---------------------------------------------------------------------------
Exception encountered at "In [10]":
---------------------------------------------------------------------------
ValueError                                Traceback (most recent call last)
/tmp/ipykernel_17/3800226621.py in <cell line: 1>()
----> 1 result = kernelkit_run.call('pkg.main:run', parameters)

/tmp/{SOURCES}/kernelkit_runtime.py in call(self, entry, parameters)
    145         os.chdir(self.working_dir)
--> 146         return getattr(module, function)(**parameters)

/tmp/{SOURCES}/pkg/main.py in run(epochs)
      6     for epoch in range(epochs):
----> 7         step(epoch)

/usr/local/lib/python3.12/dist-packages/torch/nn/modules/module.py in _call(self, *args)
   1738     def f(x):
-> 1739         return x

ValueError: bad
"""  # IPython 7.34, which Colab's image has


@pytest.mark.parametrize(
    "cell",
    [
        "/tmp/ipykernel_17/3800226621.py in <cell line: 1>()",
        "<ipython-input-10-0123456789ab> in <module>",
        "Input In [10], in <cell line: 1>()",
        "Cell In [10], line 1",
        "Cell In[10], line 1, in f()",
    ],
)
def test_cell_names_of_every_ipython_version_are_recognized(cell: str) -> None:
    old = OLD.replace("/tmp/ipykernel_17/3800226621.py in <cell line: 1>()", cell)
    found = diagnose(old)
    assert found
    assert [frame.place for frame in found.frames] == [
        "the run cell",
        "kernelkit_runtime",
        "pkg/main.py",
        "torch",
    ]
    assert found.innermost
    assert (found.innermost.line, found.innermost.source) == (7, "step(epoch)")
    unnamed = diagnose(old.replace("kernelkit_run.call", "call"))
    assert unnamed
    assert unnamed.frames[0].place == "cell [10]"


@pytest.mark.parametrize(
    "folder", ["/tmp", "/var/folders/ab/cd/T", "~/tmp", "/tmp/pytest-of-x/kernelkit-scratch"]
)
def test_the_folder_of_the_sources_does_not_matter(folder: str) -> None:
    for root, path in ((".", "pkg/a b.py"), ("src", "src/pkg/a b.py")):
        text = (
            f'Traceback (most recent call last):\n  File "{folder}/{SOURCES}/pkg/a b.py", line 3,'
            " in f\n    g()\nValueError: bad\n"
        )
        found = diagnose(text, bundle={"roots": {"pkg": root}})
        assert found
        assert found.innermost
        assert found.innermost.address == f"{path}:3"


def test_a_file_that_has_changed_is_noted(tmp_path: Path) -> None:
    own = tmp_path / "src" / "pkg" / "mod.py"
    own.parent.mkdir(parents=True)
    own.write_text(MOD)
    digest = hashlib.sha256(MOD.encode()).hexdigest()
    bundle = {"files": [{"path": "pkg/mod.py", "sha256": digest}], "roots": {"pkg": "src"}}
    text = (
        f'Traceback (most recent call last):\n  File "/tmp/{SOURCES}/pkg/mod.py", line 3, in f\n'
        "    g()\nValueError: bad\n"
    )

    def notes() -> tuple[str, ...]:
        found = diagnose(text, bundle=bundle, project=tmp_path)
        assert found
        return found.notes

    assert notes() == ()
    own.write_text(MOD + "\n")
    assert notes() == ("src/pkg/mod.py has changed since the run: its lines may have moved",)
    own.unlink()
    assert notes() == ("src/pkg/mod.py is no longer in the project",)


TORCHRUN = f"""\
[rank0]: Traceback (most recent call last):
[rank0]:   File "/tmp/{SOURCES}/pkg/train.py", line 9, in main
[rank0]:     step()
[rank0]: ValueError: bad
E1122 18:52:24 11833 torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: 1)
Traceback (most recent call last):
  File "/usr/local/lib/python3.12/dist-packages/torch/distributed/launcher/api.py", line 317, in go
    raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
pkg.train FAILED
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  exitcode  : 1 (pid: 11875)
  error_file: <N/A>
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
============================================================
"""
RECORD = f"""\
  traceback : Traceback (most recent call last):
    File "/tmp/{SOURCES}/pkg/train.py", line 9, in main
      step()
  ValueError: bad

============================================================
"""
CALLED = f"""\
Exception encountered at "In [10]":
CalledProcessError                        Traceback (most recent call last)
File /tmp/{SOURCES}/pkg/main.py:30, in run()
---> 30 subprocess.run(["torchrun"], check=True)

CalledProcessError: Command '['torchrun']' returned non-zero exit status 1.
"""


def test_a_failure_under_torchrun_is_found() -> None:
    no_rank = TORCHRUN[TORCHRUN.index("E1122") :]
    recorded = no_rank[: no_rank.index("  traceback :")] + RECORD
    for text in (TORCHRUN, recorded):
        found = diagnose(text + CALLED)
        assert found
        assert found.error == "ValueError: bad"
        assert places(found) == ["pkg/train.py:9"]
        assert "CalledProcessError" in found.notes[0]
    found = diagnose(no_rank + CALLED)
    assert found
    assert places(found) == ["pkg/main.py:30"]


SPAWN = f"""\
ProcessRaisedException                    Traceback (most recent call last)
File /tmp/{SOURCES}/pkg/main.py:40, in run()
---> 40 mp.spawn(step, nprocs=1)

ProcessRaisedException:

-- Process 0 terminated with the following error:
Traceback (most recent call last):
  File "/usr/lib/python3.12/dist-packages/torch/multiprocessing/spawn.py", line 95, in _wrap
    fn(i, *args)
  File "/tmp/{SOURCES}/pkg/train.py", line 9, in step
    work()
ValueError: bad
"""


def test_a_failure_in_a_spawned_process_is_found() -> None:
    found = diagnose(SPAWN)
    assert found
    assert (found.error, places(found)) == ("ValueError: bad", ["pkg/train.py:9"])
    assert found.notes[0].endswith(", at pkg/main.py:40")


def test_a_killed_kernel_is_distinguished_from_a_crash() -> None:
    survived = "Traceback (most recent call last):\nValueError: logged\n"
    log = f"{survived}epoch 3\nKernel died while waiting for execute reply.\n"
    log += (
        "Traceback (most recent call last):\n"
        '  File "/x/nbclient/client.py", line 1009, in async_execute_cell\n'
        '    raise DeadKernelError("Kernel died")\n'
        "nbclient.exceptions.DeadKernelError: Kernel died\n"
    )
    found = diagnose(log, manifest={"parameters": {"batch_size": 32}})
    assert found
    assert (found.cause, found.frames) == (FailureCause.DIED, ())
    assert found.last_lines[-1] == "epoch 3"
    crash = (
        "Fatal Python error: Segmentation fault\n\n"
        'Thread 0x00007f (most recent call first):\n  File "/x/threading.py", line 1 in wait\n\n'
        "Current thread 0x00008f (most recent call first):\n"
        '  File "/x/dist-packages/torch/a.py", line 2 in g\n'
        f'  File "/tmp/{SOURCES}/pkg/main.py", line 7 in run\n\n'
    )
    found = diagnose(log.replace("epoch 3\n", crash))
    assert found
    assert found.cause == FailureCause.CRASH
    assert [frame.place for frame in found.frames] == ["pkg/main.py", "torch"]


@pytest.mark.parametrize(
    ("printed", "cause"),
    [
        ("Max retries exceeded with url: /a\nepoch 1\nepoch 2\n", FailureCause.DIED),
        ("Segmentation fault (core dumped)\n", FailureCause.CRASH),
        ("Killed\n", FailureCause.DIED),
        ("usage: train.py [-h]\ntrain.py: error: argument --a: bad\n", FailureCause.USAGE),
        (
            "terminate called after throwing an instance of 'c10'\n  what():  no\n",
            FailureCause.CRASH,
        ),
        ("terminate called\n  what():  CUDA error: out of memory\n", FailureCause.GPU_MEMORY),
    ],
)
def test_only_the_last_lines_before_a_dead_kernel_count(printed: str, cause: FailureCause) -> None:
    """os._exit, abort() and a lack of memory all look like this."""
    dead = "Traceback (most recent call last):\nnbclient.exceptions.DeadKernelError: Kernel died\n"
    found = diagnose(f"{printed}{dead}")
    assert found
    assert (found.cause, found.last_lines) == (cause, tuple(printed.splitlines()))


def test_a_run_that_did_not_fail_has_no_diagnosis() -> None:
    survived = "Traceback (most recent call last):\nValueError: logged\nepoch 2\n"
    assert diagnose("epoch 1\nepoch 2\n") is None
    assert diagnose("") is None
    assert diagnose(survived, manifest={"status": "complete"}) is None
    found = diagnose(survived)
    assert found
    assert found.notes == ("the log continues after this: the run may have survived it",)


def test_a_stopped_run_is_recognized_by_kaggles_message() -> None:
    survived = "Traceback (most recent call last):\nValueError: logged\nepoch 2\n"
    words = "Your notebook exceeded the time limit of 43200 seconds."
    found = diagnose(survived, failure=words, manifest={"parameters": {"epochs": 20}})
    assert found
    assert (found.cause, found.error) == (FailureCause.TIMED_OUT, words)
    assert "--set epochs=10" in found.next_step
    assert found.last_lines[-1] == "epoch 2"
    found = diagnose("epoch 1\nepoch 2\n", failure="Kaggle says error")
    assert found
    assert found.cause == FailureCause.UNKNOWN
    assert found.last_lines == ("epoch 1", "epoch 2")


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (
            "Your notebook was stopped because it exceeded the max allowed execution duration.",
            FailureCause.TIMED_OUT,
        ),
        ("Your notebook hit a timeout", FailureCause.TIMED_OUT),
        ("Notebook Timeout", FailureCause.TIMED_OUT),
        ("The notebook exceeded the allowed runtime of 9 hours", FailureCause.TIMED_OUT),
        ("Your notebook reached its maximum run time.", FailureCause.TIMED_OUT),
        ("TimeoutError: the server did not answer", FailureCause.UNKNOWN),
        ("requests.exceptions.ReadTimeout: read timed out", FailureCause.UNKNOWN),
        ("Kaggle says cancel_acknowledged", FailureCause.UNKNOWN),
    ],
)
def test_only_kaggles_own_words_mean_a_time_out(words: str, cause: FailureCause) -> None:
    kernel = {"session_timeout_seconds": 5400}
    found = diagnose("epoch 1\n", failure=words, bundle={"kernel": kernel})
    assert found
    assert (found.cause, found.error) == (cause, words)
    assert ("kernel_sources" in found.next_step) == (cause == FailureCause.TIMED_OUT)
    assert ("5400" in found.next_step) == (cause == FailureCause.TIMED_OUT)


def test_the_manifest_of_another_run_is_ignored() -> None:
    digest, other = "a" * 64, "b" * 64
    failed = {"status": "failed", "error": "ValueError: bad", "traceback": "", "digest": digest}
    assert diagnose("", manifest=failed, bundle={"digest": digest})
    assert diagnose("", manifest=failed, bundle={"digest": other}) is None
    bundle = {"digest": other, "roots": {"pkg": "src"}}
    log = f"kernelkit digest {digest}\n{OLD.replace('/tmp/ipykernel', 'x')}"
    found = diagnose(log, bundle=bundle)
    assert found
    assert found.innermost
    assert found.innermost.place == "pkg/main.py"


FACTS: dict[str, Any] = {
    "parameters": {"batch_size": 32, "num_workers": 4, "epochs": 20},
    "kernel": {"competition_sources": ["given"], "enable_internet": False},
    "files": [{"path": "pkg/mod.py", "sha256": ""}],
}

# Messages as torch, Python, requests and other libraries print them.
TABLE = [
    (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total "
        "capacity of 14.74 GiB of which 1.06 GiB is free.",
        *(FailureCause.GPU_MEMORY, "--set batch_size=16"),
    ),
    ("RuntimeError: CUDA error: out of memory", FailureCause.GPU_MEMORY, "batch_size"),
    (
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        *(FailureCause.GPU_MEMORY, "batch_size"),
    ),
    ("RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED", FailureCause.GPU_MEMORY, "batch_size"),
    (
        "RuntimeError: [enforce fail at alloc_cpu.cpp:116] err == 0. DefaultCPUAllocator: can't "
        "allocate memory: you tried to allocate 400000000000 bytes. Error code 12",
        *(FailureCause.HOST_MEMORY, "batch_size"),
    ),
    ("MemoryError", FailureCause.HOST_MEMORY, "30 GB"),
    (
        "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.28 TiB for an array with "
        "shape (1000000, 1000000) and data type float64",
        *(FailureCause.HOST_MEMORY, "30 GB"),
    ),
    ("RuntimeError: DataLoader worker (pid 77) is killed by signal: Killed. ", "out of memory", ""),
    (
        "RuntimeError: DataLoader worker (pid 7) is killed by signal: Segmentation fault. ",
        *(FailureCause.CRASH, ""),
    ),
    ("nbclient.exceptions.DeadKernelError: Kernel died", FailureCause.DIED, "30 GB"),
    (
        "subprocess.CalledProcessError: Command 'a' returned non-zero exit status 139.",
        *(FailureCause.CRASH, ""),
    ),
    (
        "subprocess.CalledProcessError: Command '['x']' died with <Signals.SIGKILL: 9>.",
        *(FailureCause.HOST_MEMORY, ""),
    ),
    (
        "subprocess.CalledProcessError: Command 'x' returned non-zero exit status 137.",
        *(FailureCause.HOST_MEMORY, ""),
    ),
    (
        "RuntimeError: DataLoader worker (pid 77) is killed by signal: Bus error. It is possible "
        "that dataloader's workers are out of shared memory. Please try to raise your shared "
        "memory limit.",
        *(FailureCause.HOST_MEMORY, "num_workers=0"),
    ),
    (
        "OSError: [Errno 28] No space left on device: 'a.pt'",
        FailureCause.DISK_FULL,
        "kaggle://temp",
    ),
    (
        "RuntimeError: [enforce fail at inline_container.cc:626] . unexpected pos 64 vs 0",
        *(FailureCause.DISK_FULL, "20 GB"),
    ),
    (
        "kernelkit_runtime.RuntimeFault: kaggle://input/letters/a: no folder has that name. Is "
        "'letters' among the kernel's sources, and were its rules accepted?",
        *(FailureCause.MISSING_INPUT, "Add letters to competition_sources or dataset_sources"),
    ),
    (
        "RuntimeFault: kaggle://input/given: no folder has that name. Is",
        *(FailureCause.MISSING_INPUT, "given is declared: check that"),
    ),
    (
        "FileNotFoundError: [Errno 2] No such file or directory: "
        "'/kaggle/input/competitions/salt/train.csv'",
        *(FailureCause.MISSING_INPUT, "Add salt to"),
    ),
    (
        "FileNotFoundError: [Errno 2] No such file or directory: '/kaggle/input/salt/train.csv'",
        *(FailureCause.MISSING_INPUT, "Add salt to"),
    ),
    (
        "FileNotFoundError: [Errno 2] No such file: '/kaggle/input/datasets/ann/given/x'",
        *(FailureCause.MISSING_INPUT, "given is declared"),
    ),
    ("FileNotFoundError: [Errno 2] No such file or directory: 'a'", FailureCause.OTHER, "rehearse"),
    (
        "urllib.error.URLError: <urlopen error [Errno -3] Temporary failure in name resolution>",
        *(FailureCause.NO_INTERNET, "enable_internet = true"),
    ),
    (
        "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='x.org', port=443): Max "
        "retries exceeded with url: / (Caused by NameResolutionError(\"Failed to resolve 'x.org'"
        '"))',
        *(FailureCause.NO_INTERNET, "as a dataset"),
    ),
    (
        "OSError: [Errno 101] Network is unreachable",
        FailureCause.NO_INTERNET,
        "enable_internet = true",
    ),
    ("ModuleNotFoundError: No module named 'timm'", FailureCause.MISSING_MODULE, "no timm"),
    (
        "ModuleNotFoundError: No module named 'pkg.new'",
        FailureCause.MISSING_MODULE,
        "belongs to the package",
    ),
    (
        "ImportError: cannot import name 'new' from 'pkg.mod' (/tmp/x/pkg/mod.py)",
        *(FailureCause.MISSING_MODULE, "belongs to the package"),
    ),
    (
        "ImportError: cannot import name 'Mapping' from 'collections' (/usr/lib/collections.py)",
        *(FailureCause.MISSING_MODULE, "differs from yours"),
    ),
    (
        "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the "
        "device",
        *(FailureCause.WRONG_GPU, "NvidiaTeslaT4"),
    ),
    (
        "RuntimeFault: This kernel asks for NvidiaTeslaT4 and the run has no GPU. On Kaggle: is",
        *(FailureCause.WRONG_GPU, "kernelkit doctor"),
    ),
    (
        "RuntimeFault: This kernel asks for a GPU; the run has Tesla P100-PCIE-16GB, and torch "
        "2.10.0+cu128 cannot compute there: CUDA error: out of memory. Set another machine_shape.",
        *(FailureCause.WRONG_GPU, "NvidiaTeslaT4"),
    ),
    (
        "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an "
        "NVIDIA GPU",
        *(FailureCause.WRONG_GPU, "enable_gpu = true"),
    ),
    ("AssertionError: Torch not compiled with CUDA enabled", FailureCause.WRONG_GPU, "enable_gpu"),
    (
        "nbclient.exceptions.CellTimeoutError: A cell timed out while it was being executed, after "
        "60 seconds.",
        *(FailureCause.TIMED_OUT, "--set epochs=10"),
    ),
    (
        "Stalled: nothing was printed and no file changed for 30 minutes (stall_minutes)",
        *(FailureCause.STALLED, "stall_minutes"),
    ),
    (
        "RuntimeFault: The sources on disk are not those of the package:\n  pkg/mod.py: is missing",
        *(FailureCause.OWN_CHECK, "kernelkit push"),
    ),
    (
        "RuntimeFault: The run ended without its declared outputs: a.zip. Found in /kaggle/working",
        *(FailureCause.OWN_CHECK, "`outputs`"),
    ),
    (
        "RuntimeFault: The wheels of this notebook are not here. Publish them again: `kernelkit "
        "wheels`, and push again. kaggle://input/a-wheels: no folder has that name. Is 'a-wheels'",
        *(FailureCause.OWN_CHECK, "`kernelkit wheels`"),
    ),
    (
        "RuntimeFault: The dataset a-wheels does not have the wheels of this notebook: "
        "x-1-py3-none-any.whl is missing. Nothing was installed.",
        *(FailureCause.OWN_CHECK, "`kernelkit wheels`"),
    ),
    (
        "RuntimeFault: x-1-cp312-cp312-any.whl does not fit Python 3.13.1 on Linux x86_64: the "
        "wheels were chosen for Python 3.12.",
        *(FailureCause.OWN_CHECK, "`kernelkit wheels --upgrade`"),
    ),
    (
        "RuntimeFault: kaggle://x: this run has no folder 'x'",
        FailureCause.OWN_CHECK,
        "Follow the message",
    ),
    (
        "RuntimeFault: pip could not install a==77:\nERROR: No matching distribution found for a",
        *(FailureCause.OWN_CHECK, "Correct `pip` in [tool.kernelkit]"),
    ),
    (
        "RuntimeFault: pip could not install a:\nWARNING: Retrying (Retry(total=0)) after "
        "connection broken by 'NewConnectionError('Failed to establish a new connection: [Errno "
        "-2] Name or service not known')': /simple/a/\nERROR: No matching distribution found for a",
        *(FailureCause.NO_INTERNET, "enable_internet = true"),
    ),
    (
        "SystemExit: no images in the folder",
        *(FailureCause.EXIT, "ended itself"),
    ),
    (
        "subprocess.CalledProcessError: train.py: error: unrecognized arguments: --epoch 3",
        *(FailureCause.USAGE, "`arguments`"),
    ),
    ("RuntimeError: CUDA error: device-side assert triggered", FailureCause.OTHER, "on a CPU"),
    ("RuntimeError: asked to fail", FailureCause.OTHER, "rehearse"),
    ("pkg.errors.BadShape: 3 has a bad shape", FailureCause.OTHER, "rehearse"),
]


@pytest.mark.parametrize(("error", "cause", "step"), TABLE, ids=[row[0][:60] for row in TABLE])
def test_each_failure_has_its_cause_and_next_step(error: str, cause: str, step: str) -> None:
    printed = f"Traceback (most recent call last):\n{error}\n"
    failed = {"status": "failed", "error": error, "traceback": printed}
    for found in (diagnose(printed, bundle=FACTS), diagnose("", manifest=failed, bundle=FACTS)):
        assert found
        assert found.cause == cause
        assert step in found.next_step
        assert "{" not in found.next_step


RUNNER = """
import json, sys, traceback
sys.argv = ["train.py", *json.loads(sys.argv[2])]
sys.path.insert(0, {folder!r})
try:
    import program
    program.run()
except BaseException as error:
    sys.stdout.flush()
    print("kernelkit-manifest " + json.dumps({{
        "status": "failed", "error": f"{{type(error).__name__}}: {{error}}",
        "traceback": traceback.format_exc(), "parameters": {{"epochs": 1}}}}))
"""
"""Runs `program.run` as the notebook does, and ends with the line that the runtime prints."""

BEGINNING = (
    "kernelkit digest 0\nhardware: {}\n3 files, each with the sha256 of the package\nepochs = 1\n"
)
PAPERMILL_SAYS = """\
/x/IPython/core/interactiveshell.py:3831: UserWarning: To exit: use 'exit', 'quit', or Ctrl-D.
  warn("To exit: use 'exit', 'quit', or Ctrl-D.", stacklevel=1)
papermill.exceptions.PapermillExecutionError:
---------------------------------------------------------------------------
Exception encountered at "In [8]":
An exception has occurred, use %tb to see the full traceback.

SystemExit: 1
"""

ARGPARSE = """
import argparse
def run():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--data", choices=["a", "b"], default="a")
    parser.parse_args()
"""
CLICK = """
import click
@click.command()
@click.option("--epochs", type=int, required=True)
def run(epochs):
    pass
"""
TYPER = "import typer\ndef main(epochs: int):\n    pass\ndef run():\n    typer.run(main)\n"

ENDINGS = {
    "stderr": (
        "import sys\ndef run():\n    print('no folder conf', file=sys.stderr)\n    sys.exit(1)\n",
        *([], FailureCause.EXIT, "no folder conf"),
    ),
    "logging": (
        "import logging\ndef run():\n    logging.error('no GPU %s', 3)\n    raise SystemExit(7)\n",
        *([], FailureCause.EXIT, "ERROR:root:no GPU 3"),
    ),
    "quit": (
        "def run():\n    print('nothing to do')\n    quit(5)\n",
        *([], FailureCause.EXIT, "nothing to do"),
    ),
    "handled": (
        "import sys, traceback\ndef run():\n    try:\n        open('/no/such')\n"
        "    except OSError:\n        traceback.print_exc()\n        sys.exit(3)\n",
        *([], FailureCause.EXIT, "FileNotFoundError: [Errno 2] No such file or directory"),
    ),
    "memory": (
        "import sys\ndef run():\n    sys.stderr.write('CUDA out of memory. Tried 2 GiB\\n')\n"
        "    sys.exit(1)\n",
        *([], FailureCause.GPU_MEMORY, "CUDA out of memory"),
    ),
    "argparse-missing": (ARGPARSE, [], FailureCause.USAGE, "required: --epochs"),
    "argparse-unknown": (
        *(ARGPARSE, ["--epochs", "1", "--epoch2", "3"], FailureCause.USAGE, "unrecognized"),
    ),
    "argparse-type": (ARGPARSE, ["--epochs", "x"], FailureCause.USAGE, "invalid int value"),
    "argparse-choice": (
        *(ARGPARSE, ["--epochs", "1", "--data", "c"], FailureCause.USAGE, "invalid choice"),
    ),
    "jupyter": (
        *(ARGPARSE, ["--epochs", "1", "-f", "/x/kernel-1.json"], FailureCause.USAGE, "kernel-1"),
    ),
    "click-missing": (CLICK, [], FailureCause.USAGE, "Missing option"),
    "click-unknown": (CLICK, ["--epoch2"], FailureCause.USAGE, "No such option"),
    "click-type": (CLICK, ["--epochs", "x"], FailureCause.USAGE, "'x' is not a valid integer"),
    "typer-missing": (TYPER, [], FailureCause.USAGE, "Missing argument"),
    "typer-type": (TYPER, ["x"], FailureCause.USAGE, "Invalid value for"),
    "child": (
        "import subprocess, sys\ndef run():\n    program = 'print(\"no rows\"); exit(4)'\n"
        "    subprocess.run([sys.executable, '-c', program], check=True)\n",
        *([], FailureCause.OTHER, "no rows"),
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_what_a_program_printed_before_it_ended_is_shown(tmp_path: Path, name: str) -> None:
    code, arguments, cause, printed = ENDINGS[name]
    (tmp_path / "program.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-c", RUNNER.format(folder=str(tmp_path)), "-", json.dumps(arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"},
    )
    error = "CalledProcessError: exit 4" if name == "child" else "SystemExit: 1"
    log = BEGINNING + done.stdout + PAPERMILL_SAYS.replace("SystemExit: 1", error)
    text = log.replace("kernelkit-manifest", "something-else")  # a notebook without kernelkit
    for found in (diagnose(log), diagnose(text, failure="Kaggle says error")):
        assert found
        assert printed in "\n".join(found.last_lines)
        assert printed in found.summary
        assert not [line for line in found.last_lines if "To exit" in line or "%tb" in line]
    found = diagnose(log)
    assert found
    assert found.cause == cause
    assert "epochs = 1" not in found.last_lines
    assert ("Jupyter" in found.next_step) == (name == "jupyter")


def test_a_wheel_that_a_rehearsal_left_out_explains_a_missing_module() -> None:
    error = "ModuleNotFoundError: No module named 'leaf'"
    failed = {"status": "failed", "traceback": f"Traceback (most recent call last):\n{error}"}
    said = "rehearsal: leaf-1-cp312-cp312-any.whl does not fit Python 3.11.7 on Linux x86_64: …\n"
    found = diagnose(BEGINNING + said, manifest=failed)
    assert found
    assert "do not fit it: leaf-1-cp312-cp312-any.whl" in found.next_step
    plain = diagnose(BEGINNING, manifest=failed)
    assert plain
    assert "run `kernelkit wheels`" in plain.next_step


def test_a_message_at_the_exit_is_the_error_itself() -> None:
    failed = {
        "status": "failed",
        "traceback": "Traceback (most recent call last):\nSystemExit: no data",
    }
    found = diagnose(f"{BEGINNING}reading\n{PAPERMILL_SAYS}", manifest=failed)
    assert found
    assert (found.error, found.last_lines) == ("SystemExit: no data", ())


def test_an_early_end_with_success_shows_what_was_printed() -> None:
    missing = "RuntimeFault: The run ended without its declared outputs: out.txt"
    failed: dict[str, Any] = {"status": "failed", "parameters": {"epochs": 1}}
    failed["traceback"] = f"Traceback (most recent call last):\n{missing}"
    log = f"{BEGINNING}no new data\nthe entry ended with sys.exit()\n"
    found = diagnose(log, manifest=failed)
    assert found
    assert found.cause == FailureCause.OWN_CHECK
    assert found.last_lines == ("no new data", "the entry ended with sys.exit()")


def test_the_last_lines_are_few_and_plain() -> None:
    failed = {"status": "failed", "traceback": "Traceback (most recent call last):\nSystemExit: 1"}
    many = "".join(f"\x1b[31mstep {n}\x1b[0m\r" for n in range(99)) + "\n" + "x" * 9_999 + "\n"
    found = diagnose(many * 50 + PAPERMILL_SAYS, manifest=failed)
    assert found
    assert len(found.last_lines) == PRINTED_LINES
    assert max(map(len, found.last_lines)) <= 1_000
    assert found.last_lines[0] == "step 98"


def test_every_cause_has_an_error_in_the_table() -> None:
    shown = {row[1] for row in TABLE} | {FailureCause.CRASH, FailureCause.UNKNOWN}
    assert shown == set(FailureCause)
    assert {rule.cause for rule in RULES} <= shown


def test_an_error_has_the_cause_of_its_original_exception() -> None:
    link = "\n\nThe above exception was the direct cause of the following exception:\n\n"
    first = "Traceback (most recent call last):\nMemoryError\n"
    last = "Traceback (most recent call last):\nRuntimeError: training failed\n"
    found = diagnose(first + link + last)
    assert found
    assert (found.cause, found.error) == (FailureCause.HOST_MEMORY, "RuntimeError: training failed")
    handling = "\n\nDuring handling of the above exception, another exception occurred:\n\n"
    fallback = diagnose(first.replace("MemoryError", "ImportError: no module") + handling + last)
    assert fallback
    assert fallback.cause == FailureCause.OTHER


FRAGMENTS = [
    *OLD.splitlines(),
    *TORCHRUN.splitlines(),
    *CALLED.splitlines(),
    *RECORD.splitlines(),
    "  + Exception Group Traceback (most recent call last):",
    "  | ExceptionGroup: many (2 sub-exceptions)",
    "  +-+---------------- 1 ----------------",
    "    +------------------------------------",
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
    "Original Traceback (most recent call last):",
    "Traceback (most recent call last):",
    '"""',
    "Fatal Python error: Segmentation fault",
    "Current thread 0x0 (most recent call first):",
    "  [Previous line repeated 99999999999 more times]",
    'kernelkit-manifest {"status": "failed", "traceback": 3, "parameters": [1]}',
    "DeadKernelError: Kernel died",
    "-- Process 0 terminated with the following error:",
    "",
]
texts = st.one_of(
    st.text(),
    st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=40))).map("\n".join),
)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
manifests = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("digest", "error", "files", "kernel", "parameters", "roots", "status", "traceback"),
        documents | st.just("failed") | texts,
    ),
)
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@settings(max_examples=100, deadline=2000)
@given(log=texts, manifest=manifests, bundle=manifests, failure=texts)
def test_no_text_makes_diagnose_crash(
    log: str, manifest: dict[str, Any], bundle: dict[str, Any], failure: str
) -> None:
    for text in (log, pieces(log)):
        found = diagnose(
            text, manifest=manifest, bundle=bundle, project=Path("nowhere"), failure=failure
        )
        if found:
            assert not any(CONTROLS.search(line) for line in (found.error, *found.notes))


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[" * 3_000_000,
        "\x1b]" * 3_000_000,
        "[" * 2_000_000,
        '{"data":' * 500_000,
        "a" * 20_000_000,
        "\n" * 10_000_000,
        "\r" * 10_000_000,
        ("Traceback (most recent call last):\nValueError: x\n\nDuring handling of the above "
         "exception, another exception occurred:\n\n") * 10_000,
        "  + Exception Group Traceback (most recent call last):\n" + ("+-" * 490 + " x\n") * 20_000,
        ("  + Exception Group Traceback (most recent call last):\n"
         "  +-+---------------- 1 ----------------\n    | ValueError: a\n") * 10_000,
        "x Traceback (most recent call last)\n" + ("File " + ":1" * 490 + "z\n") * 20_000,
        "Traceback (most recent call last):\n" + (("RuntimeError: the run has , and torch x " * 24)
         + "\n") * 100,
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_no_text_takes_too_long(text: str) -> None:
    started = time.perf_counter()
    diagnose(text)
    assert time.perf_counter() - started < 10  # each takes less than one second on a free machine


@pytest.fixture
def failing(plain: Path) -> Path:
    """A project that fails in a worker process after it has logged another error."""
    path = plain / "parcel" / "main.py"
    text = path.read_text()
    body = '        raise RuntimeError("asked to fail")\n'
    assert body in text
    crash = "        letters.count_in_worker()\n"
    path.write_text(text.replace(body, crash))
    with (plain / "parcel" / "letters.py").open("a") as stream:
        stream.write(
            "\n\ndef count_in_worker():\n"
            "    import logging\n"
            "    import multiprocessing\n"
            "    try:\n"
            "        int('x')\n"
            "    except ValueError:\n"
            "        logging.exception('survived')\n"
            "    with multiprocessing.get_context('fork').Pool(1) as pool:\n"
            "        pool.map(count, [1])\n"
            "\n\ndef count(x):\n"
            "    raise MemoryError(f'no room for {x}')\n"
        )
    return plain


@pytest.mark.slow
def test_every_command_diagnoses_a_failing_run(failing: Path, cli: Cli, local_kaggle: str) -> None:
    project = failing / "pyproject.toml"
    text = project.read_text().replace("plain-parcel", "diagnosed-run")
    project.write_text(text.replace("Plain parcel", "diagnosed run"))
    endpoint = {"KERNELKIT_ENDPOINT": local_kaggle}
    source = (failing / "parcel" / "letters.py").read_text().splitlines()
    place = f"parcel/letters.py:{len(source)}"
    cli("push", "--profile", "failing", cwd=failing, env=endpoint)
    watched = cli("watch", cwd=failing, env=endpoint, expect=6).stderr
    assert f"out of memory, at {place} in count: raise MemoryError" in watched
    pulled = cli("pull", "--json", cwd=failing, env=endpoint, expect=6)
    document = json.loads(pulled.stdout)
    assert f"out of memory, at {place} in count" in document["error"]
    assert document["diagnosis"]["cause"] == "out of memory"
    assert pulled.stderr == ""
    by_project = cli("diagnose", cwd=failing).stdout
    assert by_project.startswith("out of memory\nMemoryError: no room for 1\n")
    assert f"{place} in count" in by_project
    assert "next:  Keep less in memory" in by_project
    folder = failing / "runs" / "diagnosed-run" / "v1"
    (failing / "parcel" / "letters.py").write_text("")
    by_log = json.loads(cli("diagnose", folder / "diagnosed-run.log", "--json", cwd=failing).stdout)
    assert by_log["frames"][-1]["place"] == "parcel/letters.py"
    assert (
        "parcel/letters.py has changed since the run: its lines may have moved" in by_log["notes"]
    )


@pytest.mark.slow
def test_a_killed_run_is_diagnosed(failing: Path, cli: Cli) -> None:
    path = failing / "parcel" / "main.py"
    # What a process prints right before it is killed may not reach the log, here as on Kaggle.
    end = "print('nearly done', flush=True); time.sleep(3); os.kill(0, 9)"
    text = path.read_text().replace("letters.count_in_worker()", end)
    path.write_text(text.replace("import json\n", "import json\nimport os\nimport time\n"))
    inputs = Path(__file__).parent.parent / "samples" / "inputs"
    shown = cli(
        "rehearse", "--profile", "failing", "--inputs", inputs, cwd=failing, expect=6
    ).stderr
    assert "If the memory ran out" in shown
    folder = failing / "build" / "rehearsal" / "plain-parcel" / "v1"
    found = diagnose_folder(folder)
    assert found
    assert found.last_lines[-1] == "nearly done"
    assert "The run printed last:" in shown


def test_a_complete_run_has_no_diagnosis(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text('{"slug": "a"}')
    (tmp_path / "run.json").write_text('{"state": "complete"}')
    (tmp_path / "a.log").write_text("Traceback (most recent call last):\nValueError: survived\n")
    assert cli("diagnose", tmp_path).stdout == "found no failure here\n"
    assert json.loads(cli("diagnose", tmp_path, "--json").stdout) == {"cause": None}


def test_a_log_can_be_a_file_or_stdin(cli: Cli, tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(
        b"\xff\x1b[31m" + OLD.encode().replace(b"ValueError: bad", b"E: \x1b]0;t\x07b\x08")
    )
    shown = cli("diagnose", log).stdout
    assert "E: b�" in shown
    assert "\x1b" not in shown
    piped = subprocess.run(
        [sys.executable, "-m", "kernelkit", "diagnose", "-"],
        input=log.read_bytes(),
        capture_output=True,
        check=True,
    )
    own_name = re.compile(r"[^\s`]+ -m kernelkit")  # advice names the command as it was called
    assert own_name.sub("kernelkit", piped.stdout.decode()) == own_name.sub("kernelkit", shown)
    with pytest.raises(ConfigError, match="has no log"):
        diagnose_folder(tmp_path / "nowhere")
