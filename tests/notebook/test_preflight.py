from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelkit import workflow
from kernelkit.bundle.secrets import own_credentials
from kernelkit.config import load_config
from kernelkit.errors import ConfigError
from kernelkit.notebook.preflight import advise, check
from kernelkit.notebook.problems import Problem

Make = Callable[..., Path]


def problems(project: Path, *settings: str) -> list[Problem]:
    config = load_config(project, settings=settings, environment={})
    return check(workflow.render_kernel(config), own_credentials(os.environ, Path.home(), project))


def subjects(project: Path, *settings: str) -> list[str]:
    return [problem.subject for problem in problems(project, *settings)]


def test_a_valid_kernel_has_no_problems(plain: Path) -> None:
    assert subjects(plain) == []
    assert subjects(plain, "kernel.machine_shape=NvidiaTeslaT4") == []


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (["kernel.title=Something else"], ["title"]),
        (["kernel.title=ab", "kernel.id=ab"], ["title"]),
        (["kernel.title=a - b", "kernel.id=a-b"], ["id"]),
        (["kernel.enable_gpu=true"], ["machine_shape"]),
        (["kernel.machine_shape=NvidiaTeslaP100"], ["machine_shape"]),
        (["kernel.machine_shape=NvidiaTeslaT4", "kernel.enable_tpu=true"], ["enable_tpu"]),
        (["kernel.competition_sources=[]"], ["parameters.data_dir"]),
        (['kernel.dataset_sources=["no-owner"]'], ["dataset_sources"]),
        (['data_dir=["kaggle://input/else/where"]'], ["parameters.data_dir"]),
        (["data_dir=kaggle://imput/letters"], ["parameters.data_dir"]),
        (["data_dir=kaggle:/input/letters"], ["parameters.data_dir"]),
        (["data_dir=Kaggle://input/letters"], ["parameters.data_dir"]),
        (['data_dir=["kaggle:///input/letters"]'], ["parameters.data_dir"]),
        (["output_dir=kaggle://working/../x"], ["parameters.output_dir"]),
        (["data_dir=kaggle://input/letters/.."], ["parameters.data_dir"]),
        (["data_dir=kaggle://input/letters/a..b", "word=kaggle: input"], []),
        (
            ["data_dir=kaggle://input/ann", 'kernel.dataset_sources=["ann/salt"]'],
            ["parameters.data_dir"],
        ),
        (["data_dir=kaggle://input/salt/x", 'kernel.dataset_sources=["ann/salt/3"]'], []),
    ],
)
def test_each_problem_is_found(plain: Path, settings: list[str], found: list[str]) -> None:
    assert subjects(plain, *settings) == found


@pytest.mark.parametrize(
    ("shape", "meant"),
    [
        ("T4", "NvidiaTeslaT4"),
        ("nvidiateslat4", "NvidiaTeslaT4"),
        ("NvidiaTelsaT4", "NvidiaTeslaT4"),
        ("NvidaTeslaT4", "NvidiaTeslaT4"),
        ("GPU T4 x2", "NvidiaTeslaT4"),
        ("NvidiaTeslaT4x2", "NvidiaTeslaT4"),
        ("NvidiaT4", "NvidiaTeslaT4"),
        ("nvidia-tesla-a100", "NvidiaTeslaA100"),
        ("l4x1", "NvidiaL4X1"),
        ("NvidiaTeslaH100", "NvidiaH100"),
        ("NvidiaRtxPr6000", "NvidiaRtxPro6000"),
        ("TPU v5e-8", "TpuV5E8"),
        ("TpuV6e8", "TpuV6E8"),
        ("gpu", ""),
        ("cuda", ""),
        ("V100", ""),
        ("Nvidia", ""),
    ],
)
def test_a_misspelled_machine_is_refused_with_the_list(plain: Path, shape: str, meant: str) -> None:
    found = problems(plain, f"kernel.machine_shape={json.dumps(shape)}")
    (problem,) = [one for one in found if "knows no" in one.message]
    assert (problem.subject, f'mean "{meant}"' in problem.message) == ("machine_shape", bool(meant))
    assert "NvidiaL4X1" in problem.remedy


@pytest.mark.parametrize("shape", ["NvidiaB200", "NvidiaH200", "NvidiaTeslaV100", "TpuV7X8"])
def test_a_machine_that_may_be_new_is_a_warning(plain: Path, shape: str) -> None:
    assert subjects(plain, f"kernel.machine_shape={shape}") == []
    config = load_config(plain, settings=[f"kernel.machine_shape={shape}"], environment={})
    notes = advise(workflow.render_kernel(config))
    assert any(note.startswith("warning: machine_shape: ") and shape in note for note in notes)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (["machine_shape=NvidiaTeslaT4", "enable_gpu=false"], ["enable_gpu"]),
        (["machine_shape=NvidiaTeslaT4", "enable_gpu=true"], []),
        (["machine_shape=NvidiaTeslaT4"], []),
        (["enable_gpu=false"], []),
        (["machine_shape=TpuV5E8", "enable_gpu=true"], ["enable_gpu"]),
        (["machine_shape=TpuV5E8", "enable_tpu=false"], ["enable_tpu"]),
        (["machine_shape=TpuV5E8", "enable_tpu=true"], []),
    ],
)
def test_a_machine_and_its_flags_must_agree(
    plain: Path, settings: list[str], found: list[str]
) -> None:
    assert subjects(plain, *(f"kernel.{setting}" for setting in settings)) == found


@pytest.mark.parametrize(
    ("title", "slug", "found"),
    [
        ("A" * 50, "a" * 50, []),
        ("A" * 51, "a" * 51, ["title"]),
        ("Ünïcode " * 7 + "end", "unicode-" * 7 + "end", ["title"]),
        (" Plain parcel", "plain-parcel", ["title"]),
        ("Plain\nparcel", "plain-parcel", ["title"]),
    ],
)
def test_titles_have_a_length_and_one_line(
    plain: Path, title: str, slug: str, found: list[str]
) -> None:
    assert subjects(plain, f"kernel.title={json.dumps(title)}", f"kernel.id={slug}") == found


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("/kaggle/input/letters", "kaggle://input/letters"),
        ("/kaggle/input/letters/train/*.png", "kaggle://input/letters/train/*.png"),
        ("../input/letters", "kaggle://input/letters"),
        ("/kaggle/input/competitions/others/x.csv", "kaggle://input/others/x.csv"),
        ("/kaggle/input/datasets/ann/words", "kaggle://input/words"),
        ("/kaggle/input/words", "kaggle://input/words"),
    ],
)
@pytest.mark.parametrize("form", ["{}", "[[{}]]", '{{train = "x", test = {}}}'])
def test_a_hard_coded_input_is_refused_with_its_address(
    plain: Path, value: str, address: str, form: str
) -> None:
    (problem,) = problems(plain, f"data_dir={form.format(json.dumps(value))}")
    assert problem.subject == "parameters.data_dir"
    assert f'"{address}"' in problem.remedy


@pytest.mark.parametrize(
    "value",
    ["/kaggle/input", "/kaggle/input/competitions/letters", "/kaggle/working/x", "/kaggle/temp"],
)
def test_other_paths_of_a_run_are_no_problem(plain: Path, value: str) -> None:
    assert subjects(plain, f"data_dir={value}") == []


CODE = """
def run(**parameters):
    a = "/kaggle/input/words/train.csv"  # and "/kaggle/input/comment"
    b = f'../input/{a}', "/kaggle/input/datasets/ann/words/x"
    c = Path("/kaggle/input") / "words" / "x"
    d = os.path.join('../input', 'words')
    # "/kaggle/input/old"
    e = "/kaggle/input", "/kaggle/input/", f"/kaggle/input/{parameters}"
"""


def test_a_hard_coded_input_in_the_code_is_a_warning_with_its_place(make_project: Make) -> None:
    files = {
        "pkg/main.py": CODE,
        "pkg/config.yaml": "# /kaggle/input/old\ndata: /kaggle/input/unknown/x\n",
        "pkg/notes.txt": "'/kaggle/input/notes'\n",
    }
    project = make_project(files)
    settings = ['kernel.dataset_sources=["ann/words"]']
    assert subjects(project, *settings) == []
    config = load_config(project, settings=settings, environment={})
    notes = [note for note in advise(workflow.render_kernel(config)) if "/input/" in note]
    places = [note.removeprefix("warning: ").partition(" may not")[0] for note in notes]
    assert sorted(places) == [
        'pkg/config.yaml:2: "/kaggle/input/unknown/x"',
        'pkg/main.py:3: "/kaggle/input/words/train.csv"',
        'pkg/main.py:5: "/kaggle/input/words"',
        'pkg/main.py:6: "../input/words"',
    ]
    (other,) = [note for note in notes if "not a source" in note]
    assert "config.yaml" in other
    assert all('the value "kaggle://input/' in note for note in notes)


def test_a_path_of_this_machine_is_refused(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernelkit.notebook import preflight

    monkeypatch.setattr(preflight, "SYSTEM_FOLDERS", frozenset({"usr"}))
    (tmp_path / "data").mkdir()
    for text in (str(tmp_path / "data"), f"{tmp_path}/data/"):
        (problem,) = problems(plain, f"data_dir={text}")
        assert "is a path of this machine" in problem.message
    assert subjects(plain, f"data_dir={tmp_path}/none", "word=/api/v1", "output_dir=/") == []
    assert subjects(plain, f"word=/{'x' * 5000}", "data_dir=/usr") == []


@pytest.mark.parametrize(
    "value",
    [
        "~/data",
        "/home/nobody/data",
        "/Users/ann/data.csv",
        "C:\\data",
        "d:/data",
        "data",
        "data/x.csv",
        "../data",
        "./../x.csv",
        "..",
    ],
)
def test_a_path_that_a_run_may_lack_is_a_note(plain: Path, value: str) -> None:
    (plain / "data").mkdir()
    (plain / "data" / "x.csv").touch()
    settings = [f"data_dir={json.dumps(value)}"]
    assert subjects(plain, *settings) == []
    notes = advise(workflow.render_kernel(load_config(plain, settings=settings, environment={})))
    assert any(note.startswith("parameters.data_dir: ") for note in notes)


def test_words_and_carried_files_are_no_paths(plain: Path) -> None:
    (plain / "unet").mkdir()
    settings = ["word=unet", "data_dir=parcel/main.py"]
    notes = advise(workflow.render_kernel(load_config(plain, settings=settings, environment={})))
    assert not [note for note in notes if note.startswith("parameters.")]


def test_all_problems_are_shown_at_once(plain: Path) -> None:
    assert subjects(plain, "kernel.title=Something", "kernel.enable_gpu=true") == [
        "title",
        "machine_shape",
    ]


def test_the_size_is_measured_on_the_escaped_source(make_project: Make) -> None:
    """A character that takes four bytes on disk takes twelve when it is sent."""
    text = "# " + "🧂" * 76_000 + "\n"
    project = make_project({"pkg/big.py": text}, keys='layout = "cells"')
    assert len(text.encode()) < 310_000
    assert subjects(project) == ["notebook"]


def test_above_the_size_limit_the_largest_files_and_remedies_are_named(make_project: Make) -> None:
    project = make_project({"pkg/weights.bin": os.urandom(700_000)})
    (problem,) = problems(project)
    assert "700,000 B  pkg/weights.bin" in problem.message
    assert "Kaggle dataset" in problem.remedy


def declaring(project: Path, *outputs: str) -> Path:
    path = project / "pyproject.toml"
    path.write_text(path.read_text().replace('["out.txt"]', json.dumps(outputs)))
    return project


@pytest.mark.parametrize("output", ["results/", "models/*.pth", "**/fold_?/"])
def test_an_output_that_nothing_can_write_is_a_problem(make_project: Make, output: str) -> None:
    (problem,) = problems(declaring(make_project({}), output))
    assert (problem.subject, output in problem.message) == ("outputs", True)


@pytest.mark.parametrize(
    ("output", "source"),
    [
        ("results/", "def run(**p):\n    open('Results/a.txt', 'w')\n"),
        ("models/*.pth", "def run(**p):\n    open(p['name'] + '.pth', 'w')\n"),
        ("*.csv", "def run(**p):\n    open('a.csv', 'w')\n"),
        ("**", "def run(**p):\n    pass\n"),
    ],
)
def test_an_output_that_the_package_names_is_no_problem(
    make_project: Make, output: str, source: str
) -> None:
    assert subjects(declaring(make_project({"pkg/main.py": source}), output)) == []


def test_a_library_or_an_input_may_name_an_output(make_project: Make) -> None:
    project = declaring(make_project({"pkg/more.py": "import torch\n"}), "lightning_logs/")
    assert subjects(project) == []
    notes = advise(workflow.render_kernel(load_config(project, environment={})))
    assert any("lightning_logs/" in note for note in notes)
    project = declaring(make_project({}), "extracted/*.png")
    assert subjects(project, 'kernel.dataset_sources=["ann/salt"]') == []


def test_a_missing_import_is_a_problem_unless_pip_installs_it(make_project: Make) -> None:
    source = "import segmentation_models_pytorch\ndef run(): ...\n"
    project = make_project({"pkg/main.py": source})
    (problem,) = problems(project)
    assert problem.subject == "pkg/main.py:1"
    assert 'pip = ["segmentation-models-pytorch"]' in problem.remedy
    project = make_project(
        {"pkg/main.py": source}, keys='pip = ["segmentation_models.pytorch==0.5.0"]'
    )
    assert subjects(project) == ["pip"]
    assert subjects(project, "kernel.enable_internet=true") == []


def test_optional_or_unknown_imports_are_not_problems(make_project: Make) -> None:
    project = make_project(
        {
            "pkg/main.py": "try:\n    import segmentation_models_pytorch\n"
            "except ImportError:\n    pass\nimport nobody_knows_it\ndef run(): ...\n"
        }
    )
    assert subjects(project) == []
    unknown, absent = workflow.advise(workflow.render_kernel(load_config(project, environment={})))
    assert unknown.startswith('warning: pkg/main.py:5 imports "nobody_knows_it"')
    assert absent.endswith("is not in Kaggle's image; its import is optional (pkg/main.py:2)")


def test_a_project_can_use_its_own_image_snapshot(make_project: Make) -> None:
    snapshot = {"complete": True, "python": "3.12.1", "distributions": {}, "modules": {}}
    files = {
        "pkg/main.py": "import numpy\ndef run(): ...\n",
        "image.json": json.dumps(snapshot),
        "other.json": "{}",
    }
    project = make_project(files, keys='image = "image.json"')
    (problem,) = problems(project)
    assert 'imports "numpy", which Kaggle\'s image does not have' in problem.message
    for name, words in {
        "other.json": "not a snapshot of an image",
        "none.json": "no such file",
    }.items():
        project = make_project(files, keys=f'image = "{name}"')
        with pytest.raises(ConfigError, match=words):
            problems(project)


@pytest.mark.parametrize(
    ("function", "found"),
    [
        ("def run(a, *, b=1): ...", []),
        ("def run(a, **more): ...", []),
        ("def run(aa): ...", ["parameters.a"]),
        ("def run(a, *, b): ...", ["parameters.b"]),
        ("def run(): ...", ["parameters.a"]),
        ("from functools import cache\n@cache\ndef run(): ...", []),
        ("run = print", []),
    ],
)
def test_the_entry_must_accept_the_parameters(
    make_project: Make, function: str, found: list[str]
) -> None:
    project = make_project(
        {"pkg/main.py": f"{function}\n"}, extra="[tool.kernelkit.parameters]\na = 1"
    )
    assert subjects(project) == found


def test_one_mistake_is_one_message(make_project: Make) -> None:
    source = "def run(epochs): ...\n"
    secret = 'token = "ghp_' + "abcdefghijklmnopqrstuvwxyz0123456789" + '"'
    project = make_project(
        {"pkg/main.py": source}, extra=f"[tool.kernelkit.parameters]\nepoch = 3\n{secret}\n"
    )
    path = project / "pyproject.toml"
    path.write_text(path.read_text().replace("Some kernel", "Abc").replace("some-kernel", "abc"))
    kernel = workflow.render_kernel(load_config(project, environment={}))
    subjects = [problem.subject for problem in check(kernel)]
    assert sorted(subjects) == ["parameters.epoch", "parameters.token", "parameters.token", "title"]
    line = "import argparse\np = argparse.ArgumentParser()\n"
    line += "p.add_argument('--epochs', required=True)\np.add_argument('--token')\np.parse_args()\n"
    (project / "pkg" / "main.py").write_text(line)
    path.write_text(path.read_text().replace("pkg.main:run", "pkg.main"))
    kernel = workflow.render_kernel(load_config(project, environment={}))
    subjects = [problem.subject for problem in check(kernel)]
    assert sorted(subjects) == ["parameters.epoch", "parameters.token", "title"]
