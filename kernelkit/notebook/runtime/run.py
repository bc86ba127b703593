"""One run of a kernel, from its first cell to its last: what the cells of the notebook call."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import deadline, installation, run_manifest
from .descriptions import Descriptions, split_files
from .documents import (
    RUN_MANIFEST_NAME,
    BundleDocument,
    Hardware,
    OutputDocument,
    Parameter,
    RunManifestDocument,
    TrialDocument,
)
from .epochs import EpochHistory
from .events import INCOMPLETE, OutputTap, RunEvent
from .faults import RuntimeFault, Stalled
from .files import tree
from .hardware import read_hardware, require_gpu, session_number
from .inputs import RunFolders
from .outputs import declared_outputs, describe
from .program import call_entry
from .recording import error_text, recorded, shown, traceback_text
from .results import show_results
from .sources import Sources
from .watchdog import Watchdog

MAX_OUTPUTS_SHOWN = 100


class NotebookRun:
    """One run of a kernel, from its first cell to its last.

    `bundle` is the embedded manifest. `source_dir` is the folder where the notebook writes the
    sources; it becomes the first entry of `sys.path`.
    """

    def __init__(self, bundle: BundleDocument, source_dir: str | Path) -> None:
        self.bundle = bundle
        self.source_dir = Path(source_dir)
        self._sources = Sources(bundle, self.source_dir)
        self._folders = RunFolders()
        self.input_dir = self._folders.input
        self.working_dir = self._folders.working
        self.temp_dir = self._folders.temp
        self.hardware: Hardware = {}
        self.parameters: Mapping[str, Parameter] = {}
        self._recorded: dict[str, Parameter] = {}
        self._stated: Mapping[str, Parameter] = {}
        self._trials: list[TrialDocument] = []
        self._started = time.time()
        self._epochs = EpochHistory(bundle.get("metric", ""), bundle.get("metric_goal"))
        self._tap = OutputTap(self._on_event)
        self._deadline = self._started + deadline.allowed_seconds(bundle)
        self._descriptions = Descriptions(self.working_dir, bundle["outputs"])
        self._incomplete = False
        if push_id := bundle.get("push_id"):  # two pushes may have the same digest
            print("kernelkit push", push_id, flush=True)
        self._register_cells()

    def check_hardware(self) -> Hardware:
        """The machine's hardware; a requested GPU must really compute.

        Raises:
            RuntimeFault: the kernel requests a GPU, and there is none or it cannot compute.
        """
        if session := session_number():
            print("kernelkit session", session, flush=True)
        self.hardware = read_hardware()
        if self.bundle["wants_gpu"]:
            self.hardware["gpu_checked"] = require_gpu(
                self.bundle["kernel"]["machine_shape"], self.hardware["gpus"]
            )
        print("hardware:", json.dumps(self.hardware, sort_keys=True))
        return self.hardware

    def write_source(self, path: str, content: bytes) -> None:
        """Write one file of the package that a `%%writefile` cell would not write exactly."""
        self._sources.write(path, content)

    def unpack(self, archive: str) -> None:
        """Write the files that are carried compressed: a .tar.xz in base64."""
        self._sources.unpack(archive)

    def load_sources(self, slug: str) -> None:
        """Write the files of the packages, which the private dataset `slug` holds.

        Raises:
            RuntimeFault: it is not mounted, or holds anything else than the manifest lists.
        """
        self._sources.load(self._folders.dataset(slug))

    def pip_install(self, requirements: list[str]) -> None:
        """Install the project's own requirements: from PyPI, or from the wheels of a dataset.

        Raises:
            RuntimeFault: pip fails, or the dataset has other wheels than the manifest names.
        """
        if wheels := self.bundle.get("wheels"):
            from .wheels import install_wheels  # other notebooks do not carry it

            install_wheels(requirements, wheels, self._folders)
        else:
            installation.pip_install(requirements)

    def check_sources(self) -> None:
        """Compare every source on disk with the manifest, and make all of them importable.

        Raises:
            RuntimeFault: a file is missing or differs.
        """
        self._sources.check()

    def resolve(self, parameters: Mapping[str, Parameter]) -> Mapping[str, Parameter]:
        """The parameters, with every `kaggle://` address replaced by a path of this run.

        `kaggle://input/<slug>` is looked up in the mounts of 2026, then in the older ones, then by
        a bounded search. `kaggle://working` and `kaggle://temp` are the folders of that name, and
        `kaggle://hours_left` is how long the run may still take. From now on there is a manifest.

        Raises:
            RuntimeFault: an input is missing; the message lists what is mounted.
        """
        self._stated = parameters
        os.environ[deadline.DEADLINE_VARIABLE] = str(int(self._deadline))
        self._recorded = {name: recorded(value) for name, value in parameters.items()}
        self.parameters = {name: self._folders.resolve(value) for name, value in parameters.items()}
        # Now, because the entry may change the values while it runs.
        self._recorded = {name: recorded(value) for name, value in self.parameters.items()}
        for name, value in self.parameters.items():
            print(f"{name} = {shown(value)}")
        run_manifest.save(self._manifest("running", [], []), self.working_dir)
        return self.parameters

    def call(self, entry: str, parameters: Mapping[str, Parameter]) -> object:
        """Import "package.module:function" from the sources and call it with the parameters.

        `sys.exit(0)`, with which many programs end, is a success.

        Raises:
            RuntimeFault: another copy of one of the packages was imported.
            Stalled: nothing has happened for too long.
        """
        with self._watched():
            result = call_entry(self._sources, self.working_dir, entry, parameters)
        if isinstance(result, str) and result == INCOMPLETE:
            self._incomplete = True
        return result

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Keep the manifest up to date while the program runs, and end it if it stalls.

        Raises:
            Stalled: nothing has happened for too long.
        """
        watchdog = Watchdog(
            self._tap,
            refresh=self._refresh,
            end_stalled=self._end_stalled,
            working=self.working_dir,
            folders=(self.temp_dir, Path.home() / ".cache"),
            deadline=self._deadline,
            stall_seconds=60 * self.bundle.get("stall_minutes", 0.0),
        )
        try:
            with watchdog.watching():
                yield
        except BaseException as error:  # the watchdog interrupts it, and ends its processes
            if watchdog.stalled:
                raise Stalled(watchdog.stalled) from error
            raise
        if watchdog.stalled:
            raise Stalled(watchdog.stalled)

    def _on_event(self, event: RunEvent) -> None:
        """An event that the entry prints, in whichever thread prints it."""
        self._epochs.add(event)
        if event.kind == INCOMPLETE:
            self._incomplete = True

    def _refresh(self, stop: Callable[[], bool]) -> None:
        """Write what the run has made so far; `stop` becomes true when there is no time left."""
        outputs, checkpoints = self._descriptions.update(stop)
        if not stop():
            run_manifest.save(self._manifest("running", outputs, checkpoints), self.working_dir)

    def _end_stalled(self, reason: str, stacks: str) -> None:
        """Write and print the manifest of a run that has stalled."""
        files = self._descriptions.update(lambda: False)
        manifest = self._manifest("stalled", *files)
        manifest["error"], manifest["traceback"] = f"{Stalled.__name__}: {reason}", stacks
        self._save_or_say(manifest)
        run_manifest.print_line(manifest)

    def run_trials(self, entry: str) -> list[TrialDocument]:
        """Call the entry once for each trial of the manifest, side by side.

        Raises:
            RuntimeFault: all of them failed.
            Stalled: nothing has happened for too long.
        """
        from .trials import require_results, run_trials  # other notebooks do not carry it

        gpus = len(self.hardware.get("gpus", ())) if self.bundle["wants_gpu"] else 0
        with self._watched():
            run_trials(
                self.bundle,
                self.source_dir,
                self._folders,
                entry,
                self._stated,
                gpus,
                self._trials,
            )
        require_results(self._trials)
        return self._trials

    def show_results(self) -> None:
        """Show the metric, the epochs, declared csv files, Markdown files and images, bounded."""
        show_results(self.working_dir, self.bundle["outputs"], self._epochs)

    def finish(self) -> RunManifestDocument:
        """Write the manifest of a complete run.

        Raises:
            RuntimeFault: a declared output is missing, and the program does not say that another
                session must continue its work.
        """
        ended = tuple(
            f"trial-{one['number']}/" for one in self._trials if one["status"] != "complete"
        )
        missing = [
            name
            for name, files in self._outputs().items()
            if not files and not name.startswith(ended)
        ]
        if missing and not self._incomplete:
            raise RuntimeFault(
                f"The run ended without its declared outputs: {', '.join(missing)}. Found in "
                f"{self.working_dir}:\n{tree(self.working_dir)}"
            )
        try:
            outputs = [describe(self.working_dir, name) for name in self._existing_outputs()]
        except OSError as problem:
            name = Path(problem.filename or "").name
            raise RuntimeFault(f"the output {name} cannot be read: {problem}") from problem
        manifest = self._manifest("complete", outputs, self._final_checkpoints())
        run_manifest.save(manifest, self.working_dir)
        for output in manifest["outputs"][:MAX_OUTPUTS_SHOWN]:
            print(f"{str(output['sha256'])[:12]}  {output['size']:>12,} B  {output['path']}")
        if len(manifest["outputs"]) > MAX_OUTPUTS_SHOWN:
            print(f"… and {len(manifest['outputs']) - MAX_OUTPUTS_SHOWN} more outputs")
        return manifest

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
        outputs = []
        for name in self._existing_outputs():
            with contextlib.suppress(OSError):
                outputs.append(describe(self.working_dir, name))
        status = "stalled" if isinstance(error, Stalled) else "failed"
        manifest = self._manifest(status, outputs, self._final_checkpoints())
        manifest["error"], manifest["traceback"] = error_text(error), traceback_text(error)
        self._save_or_say(manifest)
        run_manifest.print_line(manifest)

    def _save_or_say(self, manifest: RunManifestDocument) -> None:
        try:
            run_manifest.save(manifest, self.working_dir)
        except OSError as problem:  # such as a full disk: the log still has the manifest
            print(f"{RUN_MANIFEST_NAME} cannot be written: {problem}")

    def _final_checkpoints(self) -> list[OutputDocument]:
        """The checkpoints at the end of the program: nothing writes them any more."""
        found = []
        for name in split_files(self.working_dir, self.bundle["outputs"])[1]:
            with contextlib.suppress(OSError):
                found.append(describe(self.working_dir, name))
        return found

    def _manifest(
        self, status: str, outputs: list[OutputDocument], checkpoints: list[OutputDocument]
    ) -> RunManifestDocument:
        """What run-manifest.json holds; all of it has a form in JSON."""
        is_over = status in ("complete", "failed")  # else this must be quick
        third_party = self.bundle["third_party"] if is_over else ()
        manifest: RunManifestDocument = {
            "schema": 1,
            "digest": self.bundle["digest"],
            "push_id": self.bundle.get("push_id"),
            "status": status,
            "error": None,
            "traceback": None,
            "parameters": self._recorded,
            "outputs": outputs,
            "checkpoints": checkpoints,
            "incomplete": self._incomplete,
            "last_event": self._tap.last_event.document if self._tap.last_event else {},
            "refreshed": run_manifest.timestamp(time.time()),
            "deadline": run_manifest.timestamp(self._deadline),
            "versions": run_manifest.versions(third_party),
            "hardware": self.hardware,
            "started": run_manifest.timestamp(self._started),
            "seconds": round(time.time() - self._started, 3),
        }
        if self._trials:
            manifest["trials"] = self._trials
        return manifest

    def _existing_outputs(self) -> list[str]:
        """Each file once, although several declared outputs may stand for it."""
        return list(dict.fromkeys(file for files in self._outputs().values() for file in files))

    def _outputs(self) -> dict[str, list[str]]:
        """Declared output → the files that it stands for."""
        return declared_outputs(self.working_dir, self.bundle["outputs"])
