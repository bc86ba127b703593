"""A `Bundle`, the templates and a `Config` become a `Kernel`: notebook, metadata, manifest.

One Jinja file is one cell, in the order of the file names: `10-parameters.py.j2` gives a code cell,
`00-title.md.j2` a Markdown cell. A template that renders to nothing gives no cell. Neighboring
files whose name begins with `module` are rendered together, once for each file of the packages;
those whose name begins with `runtime-module`, once for each module of the runtime.

Source is a template value and never a template: braces in it have no meaning. The same input gives
the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import resources
from pathlib import Path

import kernelkit
from kernelkit.bundle.bundle import (
    RUNTIME_MODULE,
    Bundle,
    SourceFile,
    digest_of,
    digest_part,
)
from kernelkit.bundle.image import Availability, Snapshot, load_snapshot
from kernelkit.bundle.requirements import InstallPlan, WheelLock, plan_installation
from kernelkit.config import Config
from kernelkit.errors import ConfigError, LocalError
from kernelkit.notebook.cells import module_cell, notebook_json, sent_size
from kernelkit.notebook.code_dataset import (
    CODE_FOLDER,
    CODE_LICENSE,
    CODE_METADATA,
    code_dataset,
    write_code,
)
from kernelkit.notebook.description import description_of
from kernelkit.notebook.layout import Draft, SizeEntry
from kernelkit.notebook.manifest import (
    BUNDLE_NAME,
    MANIFEST_SCHEMA,
    METADATA_NAME,
    NOTEBOOK_NAME,
    KernelMetadata,
    Manifest,
    ManifestCommand,
    ManifestDistribution,
    ManifestOption,
    ManifestWheel,
    ManifestWheels,
)
from kernelkit.notebook.reader import with_push
from kernelkit.notebook.templates import (
    Templates,
    TemplateVariables,
    kernel_variable,
    project_templates,
)
from kernelkit.storage import as_json, make_ignored_folder, write_atomically, write_json

OPTIONAL_RUNTIME = {"command_line.py": "command", "trials.py": "trials", "wheels.py": "wheels"}
"""Module of the runtime → the key of the manifest without which a run does not import it."""


@dataclass(frozen=True)
class Kernel:
    """A notebook with its metadata, ready for Kaggle."""

    notebook: str
    """The notebook's JSON."""

    metadata: KernelMetadata
    manifest: Manifest
    bundle: Bundle
    size: int
    """Bytes of the notebook as it is sent: the length of `payload`."""

    budget: tuple[SizeEntry, ...]
    """The largest first; their `sent` add up to the payload, except for a few brackets."""

    image: Snapshot
    """What is installed in Kaggle's image, as far as the project or kernelkit knows."""

    installs: InstallPlan
    """Where the run gets each requirement from."""

    templates: Mapping[str, str]
    """The project's own: path in the project → text, as it is in the file."""

    project: Path
    """The folder of the project file."""

    code_version: str = field(default="", kw_only=True)
    """`owner/slug/3`: the version of the dataset with the packages; known once it is published."""

    allowed_secrets: tuple[str, ...]
    """Places that the project file names in `allow_secrets`; not part of the digest."""

    @property
    def slug(self) -> str:
        """The kernel's name within its owner's account."""
        return self.manifest.slug

    @property
    def digest(self) -> str:
        """SHA-256 over sources, parameters, settings and templates; the owner is not part of it."""
        return self.manifest.digest

    @property
    def downloads(self) -> list[str]:
        """The requirements that the image is not known to satisfy."""
        return self.installs.downloads

    @property
    def own_datasets(self) -> list[str]:
        """Slugs of datasets of the pushing account that the run needs and no setting names."""
        wheels = self.manifest.wheels
        slugs = (self.manifest.code_dataset, wheels.dataset if wheels else "")
        return [slug for slug in slugs if slug]

    def owned_by(self, owner: str) -> Kernel:
        """The same kernel with the account's own datasets among its sources."""
        stated = self.metadata.dataset_sources
        names = {name.lower() for name in stated}
        own = (f"{owner}/{slug}" for slug in self.own_datasets)
        added = tuple(name for name in own if name.lower() not in names)
        if not added:
            return self
        sources = {"dataset_sources": (*stated, *added)}
        return replace(self, metadata=self.metadata.model_copy(update=sources))

    @cached_property
    def payload(self) -> str:
        """The notebook as the official client sends it: no outputs, joined sources, ASCII."""
        body = json.loads(self.notebook)
        for cell in body["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"] = []
            cell["source"] = "".join(cell["source"])
        return json.dumps(body)

    def with_code(self, source: str, version: int) -> Kernel:
        """The same kernel, whose packages are in that version of the dataset `source`."""
        return replace(self, code_version=f"{source}/{version}")

    def as_pushed(
        self, push_id: str | None, session: str | None = None, session_seconds: int | None = None
    ) -> Kernel:
        """The same kernel as one push sends it: its manifest carries the `push_id`.

        `session` is the mark of a campaign's session, `session_seconds` how long Kaggle and the
        quota let the run take. Without a push_id the kernel stays as it is, and also if the
        templates hide the manifest: the identity of such a run stays unproven.
        """
        if push_id is None:
            return self
        stated = {"push_id": push_id, "session": session, "session_seconds": session_seconds}
        identity = {name: value for name, value in stated.items() if value is not None}
        try:
            notebook = with_push(self.notebook, identity)
        except ConfigError:
            return self
        manifest = self.manifest.model_copy(update=identity)
        kernel = replace(self, notebook=notebook, manifest=manifest)
        return replace(kernel, size=len(kernel.payload))

    def as_sent(self, manifest: Manifest) -> Kernel:
        """The same kernel as the push of a manifest has sent it."""
        return self.as_pushed(manifest.push_id, manifest.session, manifest.session_seconds)


@dataclass(frozen=True)
class RenderedKernel:
    """A kernel in its folder, with the imports compared with Kaggle's image, and advice."""

    kernel: Kernel
    folder: Path
    imports: Sequence[Availability]
    notes: Sequence[str]


def render(bundle: Bundle, config: Config) -> Kernel:
    """Render a notebook; nothing is written to disk.

    Raises:
        TemplateError: a template has a syntax error, uses an undefined variable, or is misnamed.
        ConfigError: the project's snapshot of Kaggle's image cannot be read.
    """
    templates = Templates(config)
    image, internet = load_snapshot(config.image), config.kernel.enable_internet
    lock = None if internet or not config.pip else WheelLock.read(config.project)
    installs = plan_installation(config.pip, image, internet=internet, lock=lock)
    wheels = _wheels(lock, installs) if lock and installs.wheels else None
    manifest = _manifest(bundle, config, templates.texts, wheels)
    variables = TemplateVariables(
        manifest=manifest.document,
        kernel=kernel_variable(config.kernel),
        parameters=config.described_parameters,
        third_party=bundle.third_party,
        runtime_modules=[module_cell(file) for file in _needed_runtime(manifest.document)],
    )
    draft = Draft(bundle, templates, variables)
    compressed = draft.choose(config.layout)
    cells = draft.cells(compressed)
    kernel = Kernel(
        notebook=notebook_json(cells),
        metadata=KernelMetadata(**config.kernel.model_dump(exclude_unset=True)),
        manifest=manifest,
        bundle=bundle,
        size=sent_size(cells),
        budget=draft.budget(compressed, cells),
        image=image,
        installs=installs,
        templates=project_templates(config),
        project=config.project,
        allowed_secrets=config.allow_secrets,
    )
    return kernel.owned_by(config.kernel.owner) if config.kernel.owner else kernel


def write_kernel(kernel: Kernel, folder: Path) -> None:
    """Write the three files of a kernel; other files in the folder stay.

    With `layout = "dataset"`, the folder CODE_FOLDER gets what the official client publishes first.

    Raises:
        LocalError: the folder cannot be written.
    """
    metadata, owner = kernel.metadata, kernel.metadata.owner
    if owner is None and kernel.own_datasets:  # whoever pushes adds the account, as to the id
        sources = (*metadata.dataset_sources, *kernel.own_datasets)
        metadata = metadata.model_copy(update={"dataset_sources": sources})
    if slug := kernel.manifest.code_dataset:
        name = f"{owner}/{slug}" if owner else slug
        _write_code_folder(kernel, folder / CODE_FOLDER, name)
    files = {
        NOTEBOOK_NAME: kernel.notebook,
        METADATA_NAME: as_json(metadata.document),
        BUNDLE_NAME: as_json(kernel.manifest.document),
    }
    make_ignored_folder(folder)
    try:
        for name, text in files.items():
            write_atomically(folder / name, text)
    except OSError as error:
        raise LocalError(f"{folder} cannot be written: {error.strerror}") from None


def _wheels(lock: WheelLock, installs: InstallPlan) -> ManifestWheels:
    return ManifestWheels(
        dataset=lock.dataset,
        python=lock.python,
        files=tuple(ManifestWheel(file=w.file, sha256=w.sha256) for w in installs.wheels),
        install=installs.install,
    )


def _write_code_folder(kernel: Kernel, folder: Path, name: str) -> None:
    """What `kaggle datasets create` publishes; it is private unless the user asks otherwise."""
    write_code(kernel.bundle, folder)
    document = {
        "id": name,
        "title": name.rpartition("/")[2],
        "licenses": [{"name": CODE_LICENSE}],
    }
    write_json(folder / CODE_METADATA, document)


def _manifest(
    bundle: Bundle, config: Config, templates: Mapping[str, str], wheels: ManifestWheels | None
) -> Manifest:
    command, distribution = _command(bundle, config), _distribution(bundle)
    optional: dict[str, object] = {
        "command": command and command.document,
        "import_folders": [] if bundle.import_folders == ("",) else list(bundle.import_folders),
        "working_files": list(bundle.working_files),
        "code_dataset": code_dataset(config.lane_of or config.kernel.slug)
        if config.layout == "dataset"
        else "",
        "distribution": distribution and distribution.document,
        "wheels": wheels and wheels.document,
        "trials": [
            {"number": t.number, "parameters": t.parameters, "outputs": list(config.outputs)}
            for t in config.trials
        ],
        "pruning": config.pruning and config.pruning.model_dump(mode="json"),
        "description": description_of(bundle, config),
    }
    stated = {
        "entry": bundle.entry,
        **{name: value for name, value in optional.items() if value},
        "outputs": [
            f"{folder}{name}"
            for folder in [f"trial-{t.number}/" for t in config.trials] or [""]
            for name in config.outputs
        ],
        "pip": list(config.pip),
        **({"deadline_hours": config.deadline_hours} if config.deadline_hours else {}),
        "stall_minutes": config.stall_minutes,
        "layout": config.layout,
        "parameters": config.parameters,
        "kernel": {**config.kernel.model_dump(mode="json"), "id": config.kernel.slug},
    }
    parts = [
        *((f"file {f.path}", digest_part(f.sha256, f.executable)) for f in bundle.files),
        *((f"template {name}", source) for name, source in templates.items()),
        *((f"runtime {file.path}", file.sha256) for file in _needed_runtime(stated)),
        ("settings", json.dumps(stated, sort_keys=True)),
    ]
    return Manifest.model_validate(
        {
            "schema": MANIFEST_SCHEMA,
            "kernelkit": kernelkit.__version__,
            "digest": digest_of(parts),
            "source_digest": bundle.digest,
            "slug": config.kernel.slug,
            "profile": config.profile,
            "wants_gpu": config.kernel.wants_gpu,
            "roots": {**bundle.roots},
            **stated,
            **_declared_metric(config),
            "provenance": bundle.provenance.model_dump(),
            "files": [
                {"path": file.path, "sha256": file.sha256, "size": len(file.content)}
                | ({"executable": True} if file.executable else {})
                for file in bundle.files
            ],
            "third_party": sorted({*bundle.third_party, *bundle.optional}),
        }
    )


def _distribution(bundle: Bundle) -> ManifestDistribution | None:
    """The metadata of the project's distribution; None where that is not known."""
    found = bundle.distribution
    if found is None:
        return None
    return ManifestDistribution(
        name=found.name,
        version=found.version,
        folder=found.folder,
        files=found.files(bundle.tops),
    )


def _declared_metric(config: Config) -> dict[str, str]:
    """Only for people who compare runs: it changes nothing in the run."""
    goal = {"metric_goal": config.metric_goal} if config.metric_goal else {}
    return {"metric": config.metric, **goal} if config.metric else {}


def _command(bundle: Bundle, config: Config) -> ManifestCommand | None:
    """How a script is started; None for a function."""
    line = bundle.command_line
    if line is None:
        return None
    place = {"path" if bundle.entry.endswith(".py") else "module": bundle.entry}
    positional = [ManifestOption(name=name, flag="", form="first") for name in config.positional]
    swept = config.trials[0].parameters if config.trials else {}
    given = {**config.parameters, **swept}
    others = [name for name in given if name not in config.positional]
    options = [
        ManifestOption(name=name, flag=option.flag, form=option.form, off=option.off)
        for name, option in line.options_of(others)
    ]
    return ManifestCommand(**place, arguments=config.arguments, options=(*positional, *options))


def _needed_runtime(manifest: Mapping[str, object]) -> Iterator[SourceFile]:
    """The modules of the runtime that a run with this manifest imports."""
    for file in _runtime_files():
        key = OPTIONAL_RUNTIME.get(file.path.rpartition("/")[2])
        if key is None or manifest.get(key):
            yield file


@cache
def _runtime_files() -> tuple[SourceFile, ...]:
    """The modules that run inside the notebook, as the package `RUNTIME_MODULE`."""
    folder = resources.files("kernelkit.notebook") / "runtime"
    texts = {
        file.name: file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".py")
    }
    return tuple(
        SourceFile(
            path=f"{RUNTIME_MODULE}/{name}",
            content=text.encode(),
            module=None,
            summary=text.partition("\n")[0].strip('"'),
        )
        for name, text in sorted(texts.items())
    )
