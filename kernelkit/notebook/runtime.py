"""Runs inside the notebook: finds inputs, checks hardware, calls the entry, writes the manifest.

The notebook carries this file as the module `kernelkit_runtime`. It uses only the standard library,
and all it knows about the build is the manifest (`bundle.json`) that the notebook embeds. Any cell
that fails leaves a run manifest with the error.
"""

from __future__ import annotations

import ast
import base64
import collections
import contextlib
import copy
import csv
import datetime
import hashlib
import importlib
import importlib.metadata
import io
import itertools
import json
import math
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Any, NotRequired, TypeAlias, TypedDict

RUN_MANIFEST_NAME = "run-manifest.json"
MANIFEST_MARK = "kernelkit-manifest "
"""The beginning of the one log line that holds the manifest of a failed run."""

NOT_OUTPUTS = frozenset(
    {RUN_MANIFEST_NAME, "run-manifest.partial", "__notebook__.ipynb", "__notebook_source__.ipynb"}
    | {"__results__.html", "__results___files", "__output__.json", "__script__.py", "custom.css"}
)
"""What kernelkit and Kaggle write into the working folder."""

SEARCH_DEPTH = 4  # /kaggle/input/competitions/<slug>/<folder of the archive>/
TREE_LINES = 60  # enough to show what is mounted, and short enough for a log
MANIFEST_LINE_CHARACTERS = 6000  # of a traceback: its end matters most
MAX_OUTPUTS_SHOWN = 100
MAX_RESULTS = 20  # tables and images shown in the notebook
MAX_IMAGE_BYTES = 1_000_000  # a larger one would bloat the executed notebook
PIP_CHARACTERS = 2000  # of its output: the end has the reason
NVIDIA_SMI_TIMEOUT_SECONDS = 30
CHUNK_BYTES = 1 << 20
CELL_CHARACTERS = 1 << 28  # of a csv: masks as run lengths take megabytes; Python allows 131,072

MAX_RECORDED = 5000  # values of one parameter in the manifest
MAX_CHARACTERS = 100_000  # of a text in the manifest
MAX_SHOWN = 1000  # characters of what has no form in JSON
MAX_DEPTH = 50
MAX_BITS = 1024  # of a number in the manifest: many programs read JSON numbers as doubles
MAX_ARRAY_BYTES = 8000

_CONTAINERS = (dict, list, tuple, set, frozenset, collections.deque)

Parameter: TypeAlias = "str | int | float | bool | list[Parameter] | dict[str, Parameter] | None"
"""A JSON value."""


class RuntimeFault(Exception):
    """The run cannot continue; the message has the reason and the next step."""


class Hardware(TypedDict, total=False):
    """What the run's machine has."""

    machine: str
    cpus: int | None
    gpus: list[str]
    gpu_checked: bool


class KernelDocument(TypedDict):
    """The settings of the kernel that a run checks."""

    machine_shape: str | None


class FileDocument(TypedDict, total=False):
    """One file that the notebook carries; `executable` is absent where it is false."""

    path: str
    sha256: str
    executable: bool


class OptionDocument(TypedDict):
    """How a script takes one parameter."""

    name: str
    flag: str
    form: str
    off: str


class CommandDocument(TypedDict, total=False):
    """How a script is started: by its path, or by its module as `python -m` does."""

    path: str
    module: str
    arguments: str
    options: Sequence[OptionDocument]


class _StartDocument(TypedDict, total=False):
    """What only scripts and projects with files next to the packages have."""

    command: CommandDocument
    import_folders: Sequence[str]
    working_files: Sequence[str]


class DistributionDocument(TypedDict):
    """The metadata of the project's own distribution."""

    folder: str
    files: Mapping[str, str]


class BundleDocument(_StartDocument):
    """What a run reads in the embedded manifest; `push_id` is absent if kernelkit did not push."""

    digest: str
    push_id: NotRequired[str]
    distribution: NotRequired[DistributionDocument]
    wants_gpu: bool
    outputs: Sequence[str]
    kernel: KernelDocument
    files: Sequence[FileDocument]
    third_party: Sequence[str]


class OutputDocument(TypedDict, total=False):
    """One output in run-manifest.json; the last two keys describe a csv."""

    path: str
    size: int
    sha256: str | None
    rows: int | None
    ids_sha256: str | None


class RunManifestDocument(TypedDict):
    """What run-manifest.json holds."""

    schema: int
    digest: str
    push_id: str | None
    status: str
    error: str | None
    traceback: str | None
    parameters: Mapping[str, Parameter]
    outputs: list[OutputDocument]
    versions: dict[str, str]
    hardware: Hardware
    started: str
    seconds: float


class NotebookRun:
    """One run of a kernel, from its first cell to its last.

    `bundle` is the embedded manifest. `source_dir` is the folder where the notebook writes the
    sources; it becomes the first entry of `sys.path`.
    """

    def __init__(self, bundle: BundleDocument, source_dir: str | Path) -> None:
        self.bundle = bundle
        self.source_dir = Path(source_dir)
        self.input_dir = _folder("KAGGLE_INPUT_DIR", "/kaggle/input")
        self.working_dir = _folder("KAGGLE_WORKING_DIR", "/kaggle/working") or Path.cwd()
        self.temp_dir = _folder("KAGGLE_TEMP_DIR", "/kaggle/temp") or Path(tempfile.gettempdir())
        self.hardware: Hardware = {}
        self.parameters: Mapping[str, Parameter] = {}
        self._recorded: dict[str, Parameter] = {}
        self._started = time.time()
        if push_id := bundle.get("push_id"):  # two pushes may have the same digest
            print("kernelkit push", push_id, flush=True)
        self._register_cells()

    def check_hardware(self) -> Hardware:
        """The machine's hardware; a requested GPU must really compute.

        Raises:
            RuntimeFault: the kernel requests a GPU, and there is none or it cannot compute.
        """
        session = re.search(r"\d+$", os.environ.get("KAGGLE_CONTAINER_NAME", ""))
        if session:  # Kaggle cancels a run by this number, and shows it nowhere else
            print("kernelkit session", session[0], flush=True)
        self.hardware = {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "gpus": _nvidia_gpus(),
            "gpu_checked": False,
        }
        kernel = self.bundle["kernel"]
        if self.bundle["wants_gpu"]:
            asked = kernel["machine_shape"] or "a GPU"
            if not self.hardware["gpus"]:
                raise RuntimeFault(
                    f"This kernel asks for {asked} and the run has no GPU. On Kaggle: is the "
                    "account verified by phone, and is there GPU quota left? For a run on a CPU "
                    "set enable_gpu = false and machine_shape = ''."
                )
            self.hardware["gpu_checked"] = _compute_on_gpu(asked, self.hardware["gpus"])
        print("hardware:", json.dumps(self.hardware, sort_keys=True))
        return self.hardware

    def write_source(self, path: str, content: bytes) -> None:
        """Write one file of the package that a `%%writefile` cell would not write exactly."""
        target = self.source_dir / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        print(f"Writing {target}")

    def unpack(self, archive: str) -> None:
        """Write the files that are carried compressed: a .tar.xz in base64."""
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(archive)), mode="r:xz") as tar:
            tar.extractall(self.source_dir, filter="data")
            print(f"Writing {len(tar.getnames())} files to {self.source_dir}")

    def pip_install(self, requirements: list[str]) -> None:
        """Install the project's own requirements.

        Raises:
            RuntimeFault: pip fails; the message holds its output.
        """
        command = [sys.executable, "-m", "pip", "install", "--quiet", *requirements]
        environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            retries = [line for line in lines if line.startswith("WARNING: Retrying ")]
            lines = [*retries[-1:], *(line for line in lines if line not in retries)]
            output = "\n".join(lines)[-PIP_CHARACTERS:]
            raise RuntimeFault(f"pip could not install {', '.join(requirements)}:\n{output}")
        importlib.invalidate_caches()
        print(f"installed {', '.join(requirements)}")

    def check_sources(self) -> None:
        """Compare every source on disk with the manifest, and make all of them importable.

        Raises:
            RuntimeFault: a file is missing or differs.
        """
        wrong = [
            f"{file['path']}: {'is missing' if found is None else 'has different content'}"
            for file in self.bundle["files"]
            if (found := _sha256(self.source_dir / file["path"])) != file["sha256"]
        ]
        if wrong:
            raise RuntimeFault(
                "The sources on disk are not those of the package:\n  "
                + "\n  ".join(wrong)
                + "\nWas a cell edited or skipped? Edit the package and render it again."
            )
        for file in self.bundle["files"]:
            if file.get("executable"):
                (self.source_dir / file["path"]).chmod(0o755)
        folders = [str(self.source_dir / f) for f in self.bundle.get("import_folders", [""])]
        sys.path[:0] = [folder for folder in folders if folder not in sys.path]
        if "distribution" in self.bundle:
            _install_metadata(self.bundle["distribution"], Path(folders[0]))
        # The kernel may have imported its own copy of a package that is carried here.
        for name in self._foreign_modules():
            del sys.modules[name]
        # Spawned workers and `python -m` do not inherit sys.path.
        inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        missing = [folder for folder in folders if folder not in inherited]
        if missing:
            os.environ["PYTHONPATH"] = os.pathsep.join([*missing, *inherited])
        importlib.invalidate_caches()
        print(f"{len(self.bundle['files'])} files, each with the sha256 of the package")

    def resolve(self, parameters: Mapping[str, Parameter]) -> Mapping[str, Parameter]:
        """The parameters, with every `kaggle://` address replaced by a path of this run.

        `kaggle://input/<slug>` is looked up in the mounts of 2026, then in the older ones, then by
        a bounded search. `kaggle://working` and `kaggle://temp` are the folders of that name.

        Raises:
            RuntimeFault: an input is missing; the message lists what is mounted.
        """
        self._recorded = {name: recorded(value) for name, value in parameters.items()}
        self.parameters = {name: self._resolve(value) for name, value in parameters.items()}
        # Now, because the entry may change the values while it runs.
        self._recorded = {name: recorded(value) for name, value in self.parameters.items()}
        for name, value in self.parameters.items():
            print(f"{name} = {_shown(value)}")
        return self.parameters

    def call(self, entry: str, parameters: Mapping[str, Parameter]) -> object:
        """Import "package.module:function" from the sources and call it with the parameters.

        `sys.exit(0)`, with which many programs end, is a success.

        Raises:
            RuntimeFault: another copy of one of the packages was imported.
        """
        command = self.bundle.get("command")
        module_name, _, function = entry.partition(":")
        result = None
        with self._files_in_working_folder(), _no_running_loop():
            try:
                if command is not None:
                    self._run_program(command, parameters)
                else:
                    sys.argv = [self._file_of(module_name)]  # Jupyter's arguments are not its own
                    module = importlib.import_module(module_name)
                    self._require_own_copies()  # before the run spends hours on the wrong code
                    os.chdir(self.working_dir)
                    result = getattr(module, function)(**parameters)
            except SystemExit as end:
                if end.code not in (None, 0):
                    raise
                print("the entry ended with sys.exit()", flush=True)
        self._require_own_copies()  # modules that the run imported later count too
        return result

    def _run_program(self, command: CommandDocument, parameters: Mapping[str, Parameter]) -> None:
        """Run a script as `python script.py` does, or a module as `python -m` does."""
        words = command_line(parameters, command["arguments"], command.get("options", ()))
        os.chdir(self.working_dir)
        if "path" in command:
            script = self.source_dir / command["path"]
            print("$ python", shlex.join([command["path"], *words]), flush=True)
            sys.argv = [str(script), *words]
            runpy.run_path(str(script), run_name="__main__")
        else:
            print("$ python -m", shlex.join([command["module"], *words]), flush=True)
            sys.argv = [self._file_of(command["module"]), *words]
            runpy.run_module(command["module"], run_name="__main__", alter_sys=True)

    def _file_of(self, module: str) -> str:
        """The file that holds a module of the package."""
        inside = module.replace(".", "/")
        for folder in self.bundle.get("import_folders", [""]):
            for name in (f"{inside}.py", f"{inside}/__main__.py", f"{inside}/__init__.py"):
                path = self.source_dir / folder / name
                if path.is_file():
                    return str(path)
        return str(self.source_dir / f"{inside}.py")

    @contextlib.contextmanager
    def _files_in_working_folder(self) -> Iterator[None]:
        """While the entry runs, the working folder has the files that a program opens by name.

        Unchanged ones are removed afterwards, because Kaggle keeps every file there as an output.
        """
        copies = []
        for name in self.bundle.get("working_files", ()):
            target = self.working_dir / name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.source_dir / name, target)
                copies.append(name)
        try:
            yield
        finally:
            for name in copies:
                target = self.working_dir / name
                if _sha256(target) == _sha256(self.source_dir / name):
                    target.unlink()
                for folder in PurePath(name).parents[:-1]:
                    with contextlib.suppress(OSError):  # it holds other files
                        (self.working_dir / folder).rmdir()

    def show_results(self) -> None:
        """Show each table (Markdown) and image (PNG) in the working folder."""
        from IPython.display import Image, Markdown, display

        found = [path for path in sorted(self.working_dir.rglob("*")) if path.is_file()]
        results = [path for path in found if path.suffix in (".md", ".png")]
        for path in results[:MAX_RESULTS]:
            if path.suffix == ".md":
                display(Markdown(path.read_text(encoding="utf-8", errors="replace")))
            elif path.stat().st_size <= MAX_IMAGE_BYTES:
                display(Image(path.read_bytes()))
        if len(results) > MAX_RESULTS:
            print(f"… and {len(results) - MAX_RESULTS} more tables and images")

    def finish(self) -> RunManifestDocument:
        """Write the manifest of a complete run.

        Raises:
            RuntimeFault: a declared output is missing.
        """
        missing = [name for name, files in self._outputs().items() if not files]
        if missing:
            raise RuntimeFault(
                f"The run ended without its declared outputs: {', '.join(missing)}. Found in "
                f"{self.working_dir}:\n{_tree(self.working_dir)}"
            )
        manifest = self._manifest("complete", None)
        self._save(manifest)
        for output in manifest["outputs"][:MAX_OUTPUTS_SHOWN]:
            print(f"{str(output['sha256'])[:12]}  {output['size']:>12,} B  {output['path']}")
        if len(manifest["outputs"]) > MAX_OUTPUTS_SHOWN:
            print(f"… and {len(manifest['outputs']) - MAX_OUTPUTS_SHOWN} more outputs")
        return manifest

    def _resolve(self, value: Any, above: tuple[int, ...] = ()) -> Any:
        """The value with its addresses replaced, also in containers; without any, the same object.

        A user may have put anything into the parameters cell.
        """
        if isinstance(value, str):
            return self._path_of(value) if value.startswith("kaggle://") else value
        if isinstance(value, PurePath):  # Path() makes one slash of two
            text = str(value)
            is_address = text.startswith("kaggle:/")
            return type(value)(self._path_of(f"kaggle://{text[8:]}")) if is_address else value
        if not isinstance(value, _CONTAINERS) or id(value) in above or len(above) > MAX_DEPTH:
            return value
        above = (*above, id(value))
        if isinstance(value, dict):
            old = [part for item in value.items() for part in item]
        else:
            old = list(value)
        new = [self._resolve(part, above) for part in old]
        if all(part is before for part, before in zip(new, old, strict=True)):
            return value
        if isinstance(value, tuple | frozenset):
            return value._make(new) if hasattr(value, "_make") else type(value)(new)
        made: Any = copy.copy(value)  # of the same class, with its other attributes
        made.clear()
        if isinstance(value, dict):
            new = list(zip(new[::2], new[1::2], strict=True))
        (made.update if isinstance(value, dict | set) else made.extend)(new)
        return made

    def _path_of(self, address: str) -> str:
        place, _, rest = address.removeprefix("kaggle://").partition("/")
        if place == "input":
            return str(self._find_input(rest))
        folder = {"working": self.working_dir, "temp": self.temp_dir}.get(place)
        if folder is None:
            raise RuntimeFault(f"{address}: this run has no folder {place!r}")
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder / rest)

    def _find_input(self, address: str) -> Path:
        if self.input_dir is None:
            raise RuntimeFault(
                f"kaggle://input/{address}: this machine has no /kaggle/input. Outside Kaggle give "
                "the parameter a path, or name the folder of inputs in KAGGLE_INPUT_DIR."
            )
        slug, _, rest = address.partition("/")
        found = sorted(set(self._mounts(slug)))
        if len(found) == 1:
            return found[0] / rest
        reason = f"{len(found)} folders have that name" if found else "no folder has that name"
        raise RuntimeFault(
            f"kaggle://input/{address}: {reason}. Is {slug!r} among the kernel's sources, and were "
            f"its rules accepted? Found in {self.input_dir}:\n{_tree(self.input_dir)}"
        )

    def _mounts(self, slug: str) -> list[Path]:
        assert self.input_dir is not None
        base = self.input_dir
        patterns = [
            f"competitions/{slug}",
            f"datasets/*/{slug}",
            f"notebooks/*/{slug}",
            f"models/*/{slug}",
            slug,
            *("/".join(["*"] * depth + [slug]) for depth in range(1, SEARCH_DEPTH)),
        ]
        for pattern in patterns:
            found = [path for path in base.glob(pattern) if path.is_dir()]
            if found:
                return found
        return []

    def _require_own_copies(self) -> None:
        for name in self._foreign_modules():
            origin = sys.modules[name].__file__
            raise RuntimeFault(f"{name} came from {origin}, not from {self.source_dir}")

    def _foreign_modules(self) -> list[str]:
        """Loaded modules of the packages that were not imported from the carried sources."""
        files = [file["path"] for file in self.bundle["files"] if file["path"].endswith(".py")]
        folders = [
            f"{folder}/" if folder else "" for folder in self.bundle.get("import_folders", [""])
        ]
        paths = [path[len(f) :] for path in files for f in folders if path.startswith(f)]
        modules = {path[:-3].removesuffix("/__init__").replace("/", ".") for path in paths}
        packages = {p[:-12].replace("/", ".") for p in paths if p.endswith("/__init__.py")}
        source_dir = self.source_dir.resolve()
        found = []
        for name, module in sorted(sys.modules.items()):
            origin = getattr(module, "__file__", None)
            parents = (name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1))
            own = name in modules or not packages.isdisjoint(parents)
            if own and origin and not Path(origin).resolve().is_relative_to(source_dir):
                found.append(name)
        return found

    def _register_cells(self) -> None:
        """Register for the end of every cell, so that any failing cell leaves a manifest."""
        try:
            from IPython.core.getipython import get_ipython
        except ImportError:  # without a notebook, in a test or a script
            return
        shell = get_ipython()
        if shell is not None:
            shell.events.register("post_run_cell", self._cell_ended)

    def _cell_ended(self, result: Any) -> None:
        error = result.error_before_exec or result.error_in_exec
        if error is None:
            return
        manifest = self._manifest("failed", error)
        try:
            self._save(manifest)
        except OSError as problem:  # such as a full disk: the log still has the manifest
            print(f"{RUN_MANIFEST_NAME} cannot be written: {problem}")
        ends = {
            "error": str(manifest["error"])[-MANIFEST_LINE_CHARACTERS:],
            "traceback": str(manifest["traceback"])[-MANIFEST_LINE_CHARACTERS:],
        }
        line = json.dumps({**manifest, **ends}, sort_keys=True, allow_nan=False)
        print(MANIFEST_MARK + line, flush=True)

    def _manifest(self, status: str, error: BaseException | None) -> RunManifestDocument:
        """What run-manifest.json holds; all of it has a form in JSON.

        Raises:
            RuntimeFault: the run is complete, and an output of it cannot be read.
        """
        outputs = []
        for name in self._existing_outputs():
            try:
                outputs.append(_describe(self.working_dir, name))
            except OSError as problem:
                if status == "complete":
                    raise RuntimeFault(f"the output {name} cannot be read: {problem}") from problem
        return {
            "schema": 1,
            "digest": self.bundle["digest"],
            "push_id": self.bundle.get("push_id"),
            "status": status,
            "error": None if error is None else _error_text(error),
            "traceback": None if error is None else _traceback_text(error),
            "parameters": self._recorded,
            "outputs": outputs,
            "versions": _versions(self.bundle["third_party"]),
            "hardware": self.hardware,
            "started": _timestamp(self._started),
            "seconds": round(time.time() - self._started, 3),
        }

    def _save(self, manifest: RunManifestDocument) -> None:
        target = self.working_dir / RUN_MANIFEST_NAME
        partial = target.with_suffix(".partial")
        text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)
        partial.write_text(text + "\n", encoding="ascii")
        partial.replace(target)

    def _existing_outputs(self) -> list[str]:
        """Each file once, although several declared outputs may stand for it."""
        return list(dict.fromkeys(file for files in self._outputs().values() for file in files))

    def _outputs(self) -> dict[str, list[str]]:
        """Declared output → the files that it stands for: one, all of a folder, or a pattern's."""
        files = _files_below(self.working_dir)
        found = {}
        for name in self.bundle["outputs"]:
            is_file = not name.endswith("/") and (self.working_dir / name).is_file()
            found[name] = [name] if is_file else [f for f in files if _stands_for(name, f)]
        return found


Run = NotebookRun  # as the template 30-hardware of kernelkit 0.1.0 calls it


@contextlib.contextmanager
def _no_running_loop() -> Iterator[None]:
    """Hide Jupyter's event loop: `asyncio.run` refuses to start where another one runs."""
    asyncio = sys.modules.get("asyncio")
    running = asyncio._get_running_loop() if asyncio is not None else None
    if asyncio is None or running is None:
        yield
        return
    own = asyncio.new_event_loop()
    asyncio._set_running_loop(None)
    asyncio.set_event_loop(own)
    try:
        yield
    finally:
        own.close()
        asyncio.set_event_loop(running)
        asyncio._set_running_loop(running)


def command_line(
    parameters: Mapping[str, Parameter], arguments: str, options: Sequence[OptionDocument] = ()
) -> list[str]:
    """The words behind a script's name that give it the parameters; None gives no word.

    `arguments` is the form: "--key value", "--key=value" or "key=value". `options` describes the
    parameters that the source of the script declares, which go before the form.

    Raises:
        RuntimeFault: an option that is on or off has another value.
    """
    declared = {option["name"]: option for option in options}
    first: list[str] = []
    words: list[str] = []
    for name, value in parameters.items():
        option = declared.get(name)
        if value is None or (option is not None and _is_positional(option)):
            continue
        if arguments == "key=value":
            words += _hydra_words(name, value)
        elif option is None:
            words += _plain_words(name, value, arguments)
        elif option["form"] == "subcommand":
            first.append(_word(value))
        else:
            words += _declared_words(option, value, arguments)
    positional = [parameters.get(option["name"]) for option in options if _is_positional(option)]
    last = [word for value in positional if value is not None for word in _items(value)]
    # Without `--` an option of several words would take the positional ones, too.
    several = any(option["form"] == "list" and option["flag"] for option in options)
    marked = any(word.startswith("-") for word in last)
    return [*first, *words, *(["--"] if last and (marked or several) else []), *last]


def _is_positional(option: OptionDocument) -> bool:
    return not option["flag"] and option["form"] in ("value", "list")


def _declared_words(option: OptionDocument, value: Parameter, arguments: str) -> list[str]:
    flag, form = option["flag"], option["form"]
    if form == "switch":
        if not isinstance(value, bool):
            raise RuntimeFault(
                f"{option['name']} = {value!r}: {flag or option['off']} is on or off"
            )
        word = flag if value else option["off"]
        return [word] if word else []
    if form == "count":
        return [flag] * int(value) if isinstance(value, int) else [flag]
    if form == "truth":  # bool("False") is true
        return [f"{flag}={value if value else ''}"]
    if form == "literal":
        return [f"{flag}={_literal(value)}"]
    if form == "list":
        return [flag, *_items(value)]
    if form == "repeated":
        return [word for item in _items(value) for word in _pair(flag, item, arguments)]
    return _pair(flag, _word(value), arguments)


def _plain_words(name: str, value: Parameter, arguments: str) -> list[str]:
    """An option that the source does not declare."""
    flag = f"--{name}"
    if arguments == "--key=value":
        return [f"{flag}={value if isinstance(value, str) else repr(value)}"]
    if isinstance(value, bool):
        return [flag] if value else []
    if isinstance(value, list):
        return [flag, *_items(value)]
    return _pair(flag, _word(value), arguments)


def _pair(flag: str, word: str, arguments: str) -> list[str]:
    """Two words, or one where the value could be read as another option."""
    joined = arguments == "--key=value" or (word.startswith("-") and flag.startswith("--"))
    return [f"{flag}={word}"] if joined else [flag, word]


def _items(value: Parameter) -> list[str]:
    """The items of a list, or the only value, as words."""
    return [_word(item) for item in (value if isinstance(value, list) else [value])]


def _word(value: Parameter) -> str:
    """Text as it is, lists and tables as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, list | dict) else repr(value)


def _literal(value: Parameter) -> str:
    """A text that fire reads back as the same value."""
    if not isinstance(value, str) or not re.fullmatch(r"[\w./-]+", value):
        return repr(value)  # fire reads `[a,b]` as a list, and drops what follows a `#`
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
    return repr(value)


def _hydra_words(key: str, value: Parameter) -> list[str]:
    if isinstance(value, dict) and value:
        return [word for k, v in value.items() for word in _hydra_words(f"{key}.{k}", v)]
    return [f"{key}={_hydra_value(value)}"]


def _hydra_value(value: Parameter) -> str:
    """By the grammar of Hydra's overrides."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{','.join(map(_hydra_value, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{_hydra_value(v)}" for k, v in value.items()) + "}"
    if not isinstance(value, str):
        return repr(value)
    is_plain = re.fullmatch(r"[A-Za-z_./][\w./-]*", value)
    if is_plain and value.lower() not in ("true", "false", "null", "nan", "inf"):
        return value
    quoted = re.sub(r"(\\*)'", lambda found: 2 * found[1] + "\\'", value)
    trailing = len(quoted) - len(quoted.rstrip("\\"))
    return f"'{quoted}{trailing * chr(92)}'"


def _install_metadata(distribution: DistributionDocument, folder: Path) -> None:
    """Write the dist-info of the project's distribution, in place of that of another version."""
    name = distribution["folder"].partition("-")[0]
    for other in folder.glob(f"{name}-*.dist-info"):
        shutil.rmtree(other)
    target = folder / distribution["folder"]
    target.mkdir(parents=True)
    for file, text in distribution["files"].items():
        (target / file).write_text(text, encoding="utf-8", newline="\n")
    loaded = sys.modules.get("pkg_resources")  # it looks for distributions only once
    if loaded is not None:
        loaded.working_set.add_entry(str(folder))


def _folder(variable: str, default: str) -> Path | None:
    """The folder that the environment names, else Kaggle's own if it exists."""
    stated = os.environ.get(variable)
    if stated:
        return Path(stated)
    return Path(default) if Path(default).is_dir() else None


def _nvidia_gpus() -> list[str]:
    """The names of the GPUs that the driver reports."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=NVIDIA_SMI_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _compute_on_gpu(asked: str, gpus: list[str]) -> bool:
    """Multiply on every GPU: `torch.cuda.is_available()` is True even on cards torch cannot use.

    Returns False without PyTorch.
    """
    try:
        import torch
    except ImportError:
        return False
    try:
        for index in range(torch.cuda.device_count()):
            ones = torch.ones(64, 64, device=f"cuda:{index}")
            if float((ones @ ones).sum()) != 64.0**3:
                raise RuntimeError(f"cuda:{index} multiplies wrongly")
        if not torch.cuda.device_count():
            raise RuntimeError("torch sees no CUDA device")
    except RuntimeError as error:
        raise RuntimeFault(
            f"This kernel asks for {asked}; the run has {', '.join(gpus)}, and torch "
            f"{torch.__version__} cannot compute there: {error}. Set another machine_shape."
        ) from error
    return True


def _files_below(folder: Path) -> list[str]:
    """The files in a folder and its subfolders, without those of kernelkit and Kaggle.

    Nor links: whether Kaggle keeps them is not known.
    """
    found = []
    for parent, folders, names in os.walk(folder):
        below = Path(parent).relative_to(folder)
        at_top = parent == str(folder)
        folders[:] = sorted(name for name in folders if not (at_top and name in NOT_OUTPUTS))
        found += [
            (below / name).as_posix()
            for name in sorted(names)
            if not (at_top and name in NOT_OUTPUTS) and _is_regular(Path(parent, name))
        ]
    return found


def _is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _stands_for(declared: str, file: str) -> bool:
    """Whether a declared output is a folder above this file, or a pattern of it or of a folder."""
    pattern = declared.split("/")
    if not pattern[-1]:  # "results/" is a folder and no file
        pattern[-1] = "*"
    return _matches(file.split("/"), pattern)


def _matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_matches(path[skipped:], pattern[1:]) for skipped in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])


def recorded(value: object) -> Parameter:
    """A JSON value that describes any Python value: what has no form in JSON becomes text."""
    return _Recorder().record(value)


class _Recorder:
    def __init__(self) -> None:
        self._left = MAX_RECORDED
        self._above: list[int] = []

    def record(self, value: Any) -> Parameter:
        """One value, at most `MAX_RECORDED` in all."""
        self._left -= 1
        if self._left < 0 or id(value) in self._above or len(self._above) > MAX_DEPTH:
            return "…"
        self._above.append(id(value))
        try:
            return self._record(value)
        except Exception:  # an object of any class may raise anything
            return _shown(value)
        finally:
            self._above.pop()

    def _record(self, value: Any) -> Parameter:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return _text(str.__str__(value))
        if isinstance(value, int):
            number = int(value)
            return number if number.bit_length() <= MAX_BITS else hex(number)[:MAX_CHARACTERS]
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else repr(float(value))
        if isinstance(value, Mapping):
            return self._table(value)
        if isinstance(value, set | frozenset):
            return sorted(self._items(value), key=repr)
        if isinstance(value, _CONTAINERS):
            return self._items(value)
        if hasattr(value, "tolist") and value.nbytes <= MAX_ARRAY_BYTES:  # numpy and torch
            return self.record(value.tolist())
        if isinstance(value, PurePath | datetime.date | datetime.time):
            return _text(str(value))
        return _shown(value)

    def _items(self, value: Iterable[Any]) -> list[Parameter]:
        return [self.record(item) for item in itertools.islice(value, max(self._left, 0) + 1)]

    def _table(self, value: Mapping[Any, Any]) -> Parameter:
        items = list(itertools.islice(value.items(), max(self._left, 0) + 1))
        if len({_key(key) for key, _ in items}) == len(items):
            return {_key(key): self.record(item) for key, item in items}
        return [[self.record(key), self.record(item)] for key, item in items]


def _key(key: object) -> str:
    """As JSON writes keys, and the text of those that it cannot write."""
    if isinstance(key, str):
        return _text(str.__str__(key))
    if key is None or type(key) in (bool, int, float):
        return str(key) if isinstance(key, float) else json.dumps(key)[:MAX_CHARACTERS]
    return _shown(key)


def _text(text: str) -> str:
    """Text of bounded length that UTF-8 can encode."""
    if len(text) > MAX_CHARACTERS:
        text = text[:MAX_CHARACTERS] + "…"
    return text.encode(errors="backslashreplace").decode()


def _shown(value: object) -> str:
    """`repr`, of bounded length, for any object."""
    try:
        text = repr(value)
    except Exception as error:  # also of numbers with thousands of digits
        text = f"<{type(value).__name__}: {type(error).__name__} in its repr>"
    return _text(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…")


def _error_text(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be read)"
    return _text(f"{type(error).__name__}: {text}")


def _traceback_text(error: BaseException) -> str:
    try:
        lines = traceback.format_exception(error)
    except Exception:
        lines = [*traceback.format_tb(error.__traceback__), _error_text(error)]
    return _text("".join(lines)[-MAX_CHARACTERS:])


def _describe(folder: Path, name: str) -> OutputDocument:
    """Name, size in bytes and sha256 of an output; for a csv also rows and a hash of the ids."""
    path = folder / name
    described: OutputDocument = {
        "path": _text(name),
        "size": path.stat().st_size,
        "sha256": _sha256(path),
    }
    return {**described, **_describe_csv(path)} if path.suffix == ".csv" else described


def _describe_csv(path: Path) -> OutputDocument:
    """Rows below the header, and the sha256 over the first column, with a newline after each id.

    Both are None where the file is not a UTF-8 csv.
    """
    ids, rows = hashlib.sha256(), 0
    limit = csv.field_size_limit(CELL_CHARACTERS)
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.reader(stream)
            next(reader, None)
            for row in reader:
                ids.update((row[0] if row else "").encode() + b"\n")
                rows += 1
    except (UnicodeDecodeError, csv.Error):
        return {"rows": None, "ids_sha256": None}
    finally:
        csv.field_size_limit(limit)  # the notebook may go on
    return {"rows": rows, "ids_sha256": ids.hexdigest()}


def _sha256(path: Path) -> str | None:
    """SHA-256 of a file's content, in hexadecimal; None where there is no such file."""
    if not path.is_file():
        return None
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def _versions(third_party: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of the installed distributions that the package imports."""
    versions = {"python": platform.python_version()}
    # The metadata of a distribution that something has broken must not prevent the manifest.
    with contextlib.suppress(Exception):
        distributions = importlib.metadata.packages_distributions()
        names = {name for module in third_party for name in distributions.get(module, [])}
        for name in sorted(names):
            with contextlib.suppress(Exception):
                versions[name] = str(importlib.metadata.version(name))
    return versions


def _tree(folder: Path) -> str:
    """What a folder holds, one line each, at most `SEARCH_DEPTH` deep and `TREE_LINES` long."""
    lines = []
    for path in sorted(folder.rglob("*")):
        depth = len(path.relative_to(folder).parts)
        if depth <= SEARCH_DEPTH:
            lines.append("  " * depth + path.name + ("/" if path.is_dir() else ""))
    cut = [f"  … and {len(lines) - TREE_LINES} more"] if len(lines) > TREE_LINES else []
    return "\n".join(lines[:TREE_LINES] + cut) or "  (nothing)"


def _timestamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
