from __future__ import annotations

import ast
import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

from kernelkit import workflow
from kernelkit.bundle.bundle import Bundle, SourceFile
from kernelkit.bundle.git import Provenance
from kernelkit.config import RESERVED_NAMES, TrialSettings, load_config
from kernelkit.errors import BundleError, ConfigError, TemplateError
from kernelkit.notebook.layout import SIZE_LIMIT_BYTES
from kernelkit.notebook.render import Kernel, render

Make = Callable[..., Path]

AWKWARD = {
    "quotes.py": '"""Doc with \'\'\' and \\"\\"\\"."""\nx = r"\\n {{ x }} {% raw %} {# no #}"\n',
    "magics.py": "y = '''\n%%time\n!ls\n?help\n%matplotlib inline\n'''\n",
    "cells.py": "# %%\n# In[1]:\nz = '''\n%%writefile /tmp/never\n'''\n",
    "blank_lines.py": "text = '''a\n   \n\t\nb'''\n",
    "no_newline.py": "a = 1",
    "many_newlines.py": "a = 1\n\n\n",
    "only_newline.py": "\n",
    "empty.py": "",
    "comment.py": "# nothing but this\n",
    "crlf.py": "a = 1\r\nb = '''\r\n'''\r\n",
    "mixed.py": "a = 1\r\nb = 2\n",
    "formfeed.py": "a = 1\n\x0c\nb = 2\n",
    "tabs.py": "if True:\n\ta = '\t'\n",
    "separators.py": "a = '\u2028\u2029\x85'\n",
    "unicode.py": "größe = '🧂 нефть'\n",
    "bom.py": b"\xef\xbb\xbfa = 1\n",
    "latin.py": "# -*- coding: latin-1 -*-\na = 'é'\n".encode("latin-1"),
    "dollar.py": "a = '$SRC {SRC} {{SRC}}'\n",
    "with space.txt": "data\n",
    "data.bin": bytes(range(256)),
    "größe.txt": "data\n",
    "doctest.py": 'def f():\n    """Doc.\n\n    >>> f()\n    1\n    """\n',
    "prompt.py": 'HELP = """\n>>> a\n... b\n"""\n',
    "prompt.txt": "In [1]: x\n   ...: y\n",
    "dots.py": "...\n",
}


def kernel_of(project: Path, **options: object) -> Kernel:
    return workflow.render_kernel(load_config(project, environment={}, **options))  # type: ignore[arg-type]


def cells(kernel: Kernel, tag: str) -> list[str]:
    return [
        "".join(cell["source"])
        for cell in json.loads(kernel.notebook)["cells"]
        if tag in cell["metadata"]["tags"]
    ]


def test_the_notebook_is_valid_and_has_what_kaggle_needs(plain: Path) -> None:
    notebook = nbformat.reads(kernel_of(plain).notebook, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    first_code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first_code.metadata.tags == ["parameters"]
    assert not any(cell.get("outputs") for cell in notebook.cells)


def test_two_renders_give_the_same_bytes(plain: Path, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-m", "kernelkit", "render", "--out", str(tmp_path / seed)],
            cwd=plain,
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        )
    names = [".gitignore", "bundle.json", "kernel-metadata.json", "notebook.ipynb"]
    assert sorted(path.name for path in (tmp_path / "1").iterdir()) == names
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_profiles_change_only_three_cells(plain: Path) -> None:
    notebooks = [
        json.loads(kernel_of(plain, profile=profile).notebook)["cells"]
        for profile in (None, "quick", "gpu")
    ]
    for other in notebooks[1:]:
        differing = {
            cell["metadata"]["tags"][0]
            for cell, twin in zip(notebooks[0], other, strict=True)
            if cell != twin
        }
        assert (
            {"manifest-heading", "start"}
            <= differing
            <= {"manifest-heading", "parameters", "start"}
        )


def test_the_owner_is_not_part_of_the_digest(plain: Path) -> None:
    named = kernel_of(plain, settings=["kernel.id=somebody/plain-parcel"])
    assert named.metadata.id == "somebody/plain-parcel"
    assert named.digest == kernel_of(plain).digest


def test_the_digest_covers_parameters_settings_templates_and_source(plain: Path) -> None:
    digests = {
        kernel_of(plain).digest,
        kernel_of(plain, settings=["epochs=3"]).digest,
        kernel_of(plain, settings=["kernel.enable_internet=true"]).digest,
    }
    letters = plain / "parcel" / "letters.py"
    letters.write_text(letters.read_text() + "# more\n")
    digests.add(kernel_of(plain).digest)
    use_templates(plain, {"99-end.md.j2": "The end."})
    digests.add(kernel_of(plain).digest)
    assert len(digests) == 5


def test_parameters_are_python_literals(plain: Path) -> None:
    names: dict[str, object] = {}
    exec(cells(kernel_of(plain), "parameters")[0], names)
    assert names["word"] == 'it\'s a "test" {{ with }} braces'
    assert names["epochs"] == 2


def run_notebook(kernel: Kernel, folder: Path) -> Path:
    """Execute the whole notebook in a new kernel; return the folder of its sources."""
    folder.mkdir()
    notebook = nbformat.reads(kernel.notebook, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    return Path(json.loads((folder / "where.json").read_text()))


@pytest.mark.parametrize("layout", ["cells", "compressed"])
def test_the_notebook_is_valid_and_written_as_nbformat_writes_it(
    make_project: Make, layout: str
) -> None:
    files = {f"pkg/{name}": text for name, text in AWKWARD.items()}
    project = make_project({**files, "pkg/main.py": '"""Größe."""\ndef run(): ...\n'})
    config = load_config(project, environment={}).model_copy(update={"layout": layout})
    notebook = workflow.render_kernel(config).notebook
    nbformat.validate(nbformat.reads(notebook, as_version=nbformat.NO_CONVERT))
    document = json.loads(notebook)
    assert notebook == json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    ids = [cell["id"] for cell in document["cells"]]
    assert len(set(ids)) == len(ids)


def test_every_awkward_file_is_carried_byte_for_byte(
    make_project: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = (
        "import json\nfrom pathlib import Path\n"
        "def run(**parameters):\n"
        "    here = str(Path(__file__).parent)\n"
        "    Path('where.json').write_text(json.dumps(here))\n"
        "    Path('out.txt').write_text('')\n"
    )
    project = make_project(
        {"pkg/main.py": main, **{f"pkg/{name}": text for name, text in AWKWARD.items()}}
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    written = run_notebook(kernel_of(project), tmp_path / "working")
    for name in AWKWARD:
        assert (written / name).read_bytes() == (project / "pkg" / name).read_bytes(), name


@given(st.text())
def test_any_text_is_kept_unchanged(text: str) -> None:
    """What the cell writes, according to `%%writefile` and Python literals."""
    file = SourceFile("pkg/any.txt", text.encode("utf-8", "surrogatepass"), module=None)
    config = load_config(SAMPLE, environment={})
    bundle = Bundle({"pkg": "."}, "pkg.main:run", (file,), {}, Provenance())
    (cell,) = cells(render(bundle, config), "module")
    assert written_by(cell) == file.content


FILE_NAMES = st.builds(
    "/".join,
    st.lists(st.sampled_from(["a", "b", "größe", "with space", "_x"]), min_size=1, max_size=3),
)
FILES = st.dictionaries(
    st.builds(str.__add__, FILE_NAMES, st.sampled_from([".py", ".txt", "/__init__.py", ".bin"])),
    st.binary(max_size=40) | st.sampled_from([b"import parcel.a\n", b"x = '''\n  \n'''\n"]),
    max_size=6,
)


@settings(max_examples=40)
@given(FILES)
@pytest.mark.slow
def test_any_tree_renders_to_the_same_bytes_twice(files: dict[str, bytes]) -> None:
    """Or both renders fail with the same error."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(shutil.copytree(SAMPLE, Path(folder, "project")))
        for name, content in files.items():
            path = project / "parcel" / name
            with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        renders: list[object] = []
        for _ in range(2):
            try:
                kernel = kernel_of(project)
                renders.append((kernel.notebook, kernel.manifest))
            except BundleError as error:
                renders.append(str(error))
    assert renders[0] == renders[1]


OLD_TEMPLATES = Path(__file__).parent.parent / "samples" / "templates"
SAMPLE = Path(__file__).parent.parent / "samples" / "plain"


def written_by(cell: str) -> bytes:
    """What a kernel would write: IPython transforms the cell, then executes it."""
    written: list[bytes] = []

    class Recorder:
        def write_source(self, path: str, content: bytes) -> None:
            assert path
            written.append(content)

        def run_cell_magic(self, magic: str, line: str, body: str) -> None:
            assert (magic, bool(body)) == ("writefile", True), line
            written.append(body.encode())

    recorder = Recorder()
    code = TransformerManager().transform_cell(cell)
    exec(code, {"kernelkit_run": recorder, "get_ipython": lambda: recorder})
    return written[0]


SOURCE_LINES = st.sampled_from(
    ["", " ", "x = 1", "  >>> f()", "... y", "In [2]: z", '"""', "%%time", "!ls", "\t", "{{ x }}"]
)


@given(st.lists(SOURCE_LINES).map("\n".join).map(lambda text: text + "\n"))
@pytest.mark.slow
def test_lines_that_ipython_would_change_are_kept(text: str) -> None:
    file = SourceFile("pkg/any.txt", text.encode(), module=None)
    bundle = Bundle({"pkg": "."}, "pkg.main:run", (file,), {}, Provenance())
    (cell,) = cells(render(bundle, load_config(SAMPLE, environment={})), "module")
    assert written_by(cell) == file.content


def use_templates(project: Path, templates: dict[str, str]) -> None:
    folder = project / "templates"
    folder.mkdir(exist_ok=True)
    for name, text in templates.items():
        (folder / name).write_text(text)
    path = project / "pyproject.toml"
    if "templates =" not in path.read_text():
        path.write_text(
            path.read_text().replace(
                "[tool.kernelkit]\n", '[tool.kernelkit]\ntemplates = "templates"\n'
            )
        )


def test_a_projects_templates_replace_and_extend_the_built_in_ones(plain: Path) -> None:
    use_templates(
        plain,
        {
            "65-extra.py.j2": "print({{ manifest.slug | repr }})",
            "00-title.md.j2": "# Mine",
            "80-results.md.j2": "",
        },
    )
    kernel = kernel_of(plain)
    assert cells(kernel, "extra") == ["print('plain-parcel')"]
    assert cells(kernel, "title") == ["# Mine"]
    assert len(cells(kernel, "results")) == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("65-x.py.j2", "a = 1\nb = {{ nothing }}", "65-x.py.j2:2: 'nothing' is undefined"),
        ("65-x.py.j2", "{{ manifest.nope }}", "65-x.py.j2:1: "),
        ("65-x.py.j2", "\n{% if %}", "65-x.py.j2:2: "),
        ("extra.py.j2", "x", "no place in the notebook"),
        ("65-x.py.j2", "{{ 1 / 0 }}", "65-x.py.j2:1: division by zero"),
    ],
)
def test_a_template_error_names_file_and_line(
    plain: Path, name: str, text: str, message: str
) -> None:
    use_templates(plain, {name: text})
    with pytest.raises(TemplateError) as caught:
        kernel_of(plain)
    assert message in str(caught.value)


def test_a_reader_sees_what_the_notebook_does_and_the_rest_is_folded(plain: Path) -> None:
    notebook = nbformat.reads(kernel_of(plain).notebook, 4)
    nbformat.validate(notebook)
    metadata = {cell.metadata.tags[0]: cell.metadata for cell in notebook.cells}
    assert list(metadata)[:4] == ["title", "parameters-heading", "parameters", "manifest-heading"]
    for tag in ("start", "runtime-module", "hardware", "module"):
        hidden = metadata[tag]
        assert hidden["_kg_hide-input"]
        assert hidden["jupyter"]["source_hidden"]
        assert hidden["cellView"] == "form"
        assert "hide-input" in hidden["tags"]
    for tag in ("runtime-module", "module", "run"):
        assert metadata[tag]["_kg_hide-output"]
        assert metadata[tag]["jupyter"]["outputs_hidden"]
        assert "hide-output" in metadata[tag]["tags"]
    for tag in ("parameters", "results"):
        assert metadata[tag] == {"tags": [tag]}
    folded = [cell for cell in notebook.cells if "jp-MarkdownHeadingCollapsed" in cell.metadata]
    assert [cell.source.split("\n")[0] for cell in folded] == [
        "## The manifest",
        "## The runtime",
        "## The package",
    ]
    ids = [cell.id for cell in folded]
    assert notebook.metadata.colab.collapsed_sections == ids
    assert [cell.metadata.id for cell in folded] == ids


def test_the_links_of_the_first_cell_lead_to_headings(plain: Path) -> None:
    notebook = nbformat.reads(kernel_of(plain).notebook, 4)
    headings = re.findall(r"^#+ (.*)$", "\n".join(c.source for c in notebook.cells), re.MULTILINE)
    anchors = {heading.replace(" ", "-") for heading in headings}
    links = re.findall(r"\(#([^)]+)\)", notebook.cells[0].source)
    assert {"The-run", "The-results", "Parameters"} <= set(links) <= anchors


@pytest.mark.slow
def test_the_results_cell_sees_the_events_of_child_processes(
    make_project: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = {"event": "epoch", "epochs": 2, "val_iou": 0.5}
    main = (
        "import json, os, subprocess, sys\n"
        "from pathlib import Path\n"
        "def run(**parameters):\n"
        f"    line = json.dumps({event!r})\n"
        "    subprocess.run([sys.executable, '-c', f'print({line!r})'], check=True)\n"
        "    if (child := os.fork()) == 0:\n"
        "        print(line.replace('0.5', '0.75'), flush=True)\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
        "    print('no event {', line)\n"
        "    print(line.replace('0.5', '0.25'))\n"
        "    Path('out.txt').write_text('')\n"
    )
    notebook = nbformat.reads(kernel_of(make_project({"pkg/main.py": main})).notebook, 4)
    monkeypatch.setenv("KAGGLE_WORKING_DIR", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # with it, ipykernel leaves child processes alone
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (results,) = [
        cell
        for cell in notebook.cells
        if "results" in cell.metadata.tags[:1]
        if cell.cell_type == "code"
    ]
    text = results.outputs[0].data["text/plain"]
    assert text.startswith("val_iou 0.7500: the highest of 3 epochs")
    assert "<table>" in results.outputs[0].data["text/html"]


def test_metadata_has_the_official_fields(plain: Path) -> None:
    metadata = kernel_of(plain, profile="gpu").metadata.document
    assert metadata["code_file"] == "notebook.ipynb"
    assert metadata["machine_shape"] == "NvidiaTeslaT4"
    assert (metadata["language"], metadata["kernel_type"]) == ("python", "notebook")
    assert metadata["enable_internet"] is False
    assert "docker_image" not in metadata


def test_the_templates_of_an_earlier_version_still_render_and_run(
    make_project: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A project may have copied the whole folder of kernelkit 0.1.0."""
    main = (
        "import json\nfrom pathlib import Path\n"
        "def run(**parameters):\n"
        "    Path('where.json').write_text(json.dumps(str(Path(__file__).parent)))\n"
        "    Path('out.txt').write_text('')\n"
    )
    project = make_project({"pkg/main.py": main, "pkg/data.bin": b"\xff\xfe", "pkg/odd.py": "\r\n"})
    stored = {path.name: path.read_text() for path in OLD_TEMPLATES.iterdir()}
    assert len(stored) == 18
    use_templates(project, stored)
    for layout in ("compressed", "cells"):
        config = load_config(project, environment={}).model_copy(update={"layout": layout})
        rendered = workflow.render_kernel(config)
        assert cells(rendered, "start")[0].startswith("# What this notebook was made from")
        assert len(cells(rendered, "archive")) == (layout == "compressed")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    written = run_notebook(rendered, tmp_path / "working")
    assert (written / "data.bin").read_bytes() == b"\xff\xfe"


def test_included_templates_are_part_of_the_digest(plain: Path) -> None:
    digests = set()
    for text in ("one", "two"):
        use_templates(plain, {"65-x.py.j2": "# {% include 'part.txt' %}", "part.txt": text})
        digests.add(kernel_of(plain).digest)
    assert len(digests) == 2


def test_the_notebook_embeds_bundle_json(plain: Path) -> None:
    kernel = kernel_of(plain, settings=[f"word={'long ' * 50}"])
    source = cells(kernel, "start")[0].partition("BUNDLE = ")[2].partition("\nprint")[0]
    assert eval(source) == kernel.manifest.document


def noise(size: int, seed: int) -> str:
    """Python that hardly compresses: a comment of random digits."""
    generator = random.Random(seed)
    return "# " + "".join(generator.choices("0123456789abcdef", k=size)) + "\n"


def forms(kernel: Kernel) -> dict[str, str]:
    return {share.path: share.form for share in kernel.budget if share.path}


@pytest.mark.slow
def test_no_more_files_than_needed_are_compressed(make_project: Make) -> None:
    sizes = {"pkg/huge.py": 500_000, "pkg/large.py": 300_000, "pkg/small.py": 50_000}
    main = "import json\nfrom . import huge\ndef run(**parameters): ...\n" + noise(135_000, 9)
    files = {name: noise(size, size) for name, size in sizes.items()}
    project = make_project({**files, "pkg/main.py": main})
    kernel = kernel_of(project)
    assert forms(kernel) == {
        "pkg/__init__.py": "empty",
        "pkg/huge.py": "compressed",
        "pkg/large.py": "compressed",
        "pkg/small.py": "writefile",
        "pkg/main.py": "writefile",
    }
    assert 600_000 < len(kernel.payload) <= SIZE_LIMIT_BYTES
    assert kernel.size == len(kernel.payload) == len(kernel.payload.encode())
    assert abs(sum(share.sent for share in kernel.budget) - kernel.size) < 500
    assert [share.sent for share in kernel.budget] == sorted(
        (share.sent for share in kernel.budget), reverse=True
    )


@pytest.mark.parametrize("layout", ["cells", "compressed"])
def test_the_requested_layout_is_used(
    make_project: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """Both write the same files, and the source check passes."""
    project = make_project(
        {
            "pkg/main.py": "from pathlib import Path\nimport json\n"
            "def run():\n"
            "    here = Path(__file__).parent\n"
            "    Path('out.txt').touch()\n"
            "    Path('where.json').write_text(json.dumps(str(here)))\n",
            "pkg/data.bin": bytes(range(256)) * 9,
            "pkg/größe.txt": "\r\n{{ x }}",
            "pkg/empty.txt": "",
        },
        keys=f'layout = "{layout}"',
    )
    kernel = kernel_of(project)
    assert ("compressed" in forms(kernel).values()) == (layout == "compressed")
    assert len(cells(kernel, "archive")) == (layout == "compressed")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    written = run_notebook(kernel, tmp_path / "working")
    for path in (project / "pkg").iterdir():
        assert (written / path.name).read_bytes() == path.read_bytes()


def test_parameters_come_with_their_comments(make_project: Make) -> None:
    project = make_project(
        {},
        extra="""
[tool.kernelkit.parameters]
# How often all images are seen.
# Twenty are enough.
epochs = 20
rate = 1e-4  # Adam's own is ten times that

# stands alone

word = "a # b"
[tool.kernelkit.profiles.quick.parameters]
epochs = 1 # to see that it runs
""",
    )
    assert cells(kernel_of(project), "parameters") == [
        "# How often all images are seen.\n# Twenty are enough.\nepochs = 20\n"
        "rate = 0.0001  # Adam's own is ten times that\nword = 'a # b'"
    ]
    quick = cells(kernel_of(project, profile="quick"), "parameters")[0]
    assert quick.startswith("epochs = 1  # to see that it runs\nrate")


def test_requirements_are_installed_first(make_project: Make) -> None:
    project = make_project({}, keys="pip = [\"some-thing[extra]>=1; python_version>'3'\"]")
    kernel = kernel_of(project)
    (cell,) = cells(kernel, "pip")
    assert "pip_install([\"some-thing[extra]>=1; python_version>'3'\"])" in cell
    assert cells(kernel_of(make_project({}, keys="")), "pip") == []
    assert kernel.digest != kernel_of(make_project({}, keys="")).digest


def test_every_module_has_a_heading(make_project: Make) -> None:
    summary = '"""Does *this* and `that`.\n\nMore."""\n'
    files = {"pkg/a.py": f"{summary}import pkg.b\n", "pkg/b.py": ""}
    kernel = kernel_of(make_project(files))
    headings = cells(kernel, "module-heading")
    assert headings[1:3] == ["### `pkg/b.py`", r"### `pkg/a.py`: Does \*this\* and \`that\`."]
    (contents,) = cells(kernel, "package")
    assert "1. [`pkg/a.py`](#pkg/a.py%3A-Does-%2Athis%2A-and-%60that%60.): Does" in contents
    assert contents.index("pkg/b.py") < contents.index("pkg/a.py")


@pytest.mark.parametrize("link", ["build", "build/kernel"])
def test_render_does_not_follow_a_link_out_of_the_project(
    plain: Path, tmp_path: Path, link: str
) -> None:
    away = tmp_path / "away"
    away.mkdir()
    (plain / link).parent.mkdir(exist_ok=True)
    (plain / link).symlink_to(away)
    config = load_config(plain, environment={})
    with pytest.raises(ConfigError, match="leads out of the project"):
        workflow.render_to(config)
    assert not list(away.iterdir())
    workflow.render_to(config, away)  # a folder that the user names


def test_no_cell_uses_a_name_that_a_parameter_may_have(make_project: Make) -> None:
    """A parameter is a global name of the notebook, so it could hide what a later cell uses."""
    files = {name: content for name, content in AWKWARD.items() if name.isascii()}
    project = make_project(
        {f"pkg/{name}": content for name, content in files.items()},
        keys='pip = ["six"]',
        extra="[tool.kernelkit.parameters]\nmy_own = 1",
    )
    used: set[str] = set()
    for layout in ("cells", "compressed"):
        path = project / "pyproject.toml"
        path.write_text(path.read_text() + "\n")
        config = load_config(project, environment={}).model_copy(update={"layout": layout})
        for cell in json.loads(workflow.render_kernel(config).notebook)["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and not source.startswith("%%"):
                names = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
                used |= {node.id for node in names}
    assert used - {"my_own"} <= RESERVED_NAMES


@pytest.mark.parametrize(
    ("entry", "trials", "optional"),
    [
        ("pkg.main:run", 0, set()),
        ("pkg.main", 0, {"command_line.py"}),
        ("pkg.main:run", 2, {"trials.py"}),
    ],
)
def test_a_notebook_carries_the_runtime_that_its_run_needs(
    make_project: Make, entry: str, trials: int, optional: set[str]
) -> None:
    """Each carried module imports, at its top, only carried ones."""
    config = load_config(make_project({}, entry=entry), environment={})
    numbers = [TrialSettings(number=number, parameters={}) for number in range(trials)]
    config = config.model_copy(update={"trials": tuple(numbers)})
    cells = nbformat.reads(workflow.render_kernel(config).notebook, 4).cells
    heads = [
        cell.source.partition("\n") for cell in cells if "runtime-module" in cell.metadata.tags
    ]
    carried = {head.rpartition("/")[2]: text for head, _, text in heads}
    assert carried.keys() & {"command_line.py", "trials.py", "wheels.py"} == optional
    assert {"run.py", "program.py", "events.py"} <= carried.keys()
    for name, text in carried.items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.ImportFrom) and node.level:
                modules = [node.module] if node.module else [one.name for one in node.names]
                missing = {f"{module}.py" for module in modules} - carried.keys()
                assert not missing, f"{name} imports {missing}"
