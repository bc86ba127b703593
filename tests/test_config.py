from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from kernelkit import workflow
from kernelkit.config import OWN_OUTPUTS, config_values, find_project, load_config
from kernelkit.config.models import (
    KernelSettings,
    ProjectFile,
    SubmissionSettings,
    SweepSettings,
)
from kernelkit.errors import ConfigError
from kernelkit.notebook.preflight import check

Make = Callable[..., Path]
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def complaint(folder: Path, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(folder, environment={}, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_later_layers_override_earlier_ones(plain: Path) -> None:
    base = load_config(plain, environment={})
    quick = load_config(plain, profile="quick", environment={})
    mine = load_config(plain, profile="quick", settings=["epochs=7"], environment={})
    assert [c.parameters["epochs"] for c in (base, quick, mine)] == [2, 1, 7]
    assert base.parameters["word"] == quick.parameters["word"]


def test_profiles_and_settings_change_kernel_fields(plain: Path) -> None:
    gpu = load_config(plain, profile="gpu", environment={})
    assert gpu.kernel.wants_gpu
    off = load_config(
        plain,
        profile="gpu",
        settings=["kernel.enable_gpu=false", 'kernel.machine_shape=""'],
        environment={},
    )
    assert not off.kernel.wants_gpu


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("0.5", 0.5), ("true", True), ('"3"', "3"), ("bare", "bare"), ("[1, 2]", [1, 2])],
)
def test_a_setting_is_parsed_as_toml(plain: Path, text: str, value: object) -> None:
    config = load_config(plain, settings=[f"word={text}"], environment={})
    assert config.parameters["word"] == value
    assert type(config.parameters["word"]) is type(value)


@pytest.mark.parametrize(
    "setting", ["epochs=two", "word=False", "word=[a, b]", "epochs=1.x", "word=" + "[" * 3000]
)
def test_a_malformed_value_is_not_taken_as_text(plain: Path, setting: str) -> None:
    assert "is not a TOML value" in complaint(plain, settings=[setting])


def test_an_unknown_key_is_reported_with_the_closest_known_key(make_project: Make) -> None:
    project = make_project({}, extra='machine_shap = "NvidiaTeslaT4"')
    assert complaint(project) == (
        '[tool.kernelkit.kernel] has no key "machine_shap"; did you mean "machine_shape"?'
    )


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.kernelkit]\npackage = "a"\nentrry = "x"\n'
        '[tool.kernelkit.kernel]\nid = "Not A Slug"\ntitle = 3\n'
    )
    text = complaint(tmp_path)
    for part in (
        'is missing the key "outputs"',
        "'Not A Slug'",
        '"title"',
    ):
        assert part in text
    assert 'has no key "entrry"; did you mean "entry"?' in text
    assert 'is missing the key "entry"' not in text  # the same mistake


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("not toml", "not valid TOML"),
        ("[tool.other]", "no [tool.kernelkit]"),
        ("[tool.kernelkitt]", 'did you mean "kernelkitt"?'),
        ("tool = 3", "no [tool.kernelkit]"),
        ("[tool]\nkernelkit = 3", "must be a table"),
    ],
)
def test_a_broken_project_file_is_reported(tmp_path: Path, content: str, part: str) -> None:
    (tmp_path / "pyproject.toml").write_text(content)
    assert part in complaint(tmp_path)


PROJECT = """# ä project
[tool.kernelkit]
package = "pkg"
entry = "pkg:run"
outputs = ["out.txt"]

[tool.kernelkit.kernel]
id = "some-kernel"
title = "Söme kernel"

[tool.kernelkit.parameters]
epochs = 2  # how löng
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        ("", "utf-8"),
        ("\ufeff", "utf-8"),
        ("\ufeff\ufeff", "utf-8"),
        ("", "utf-16"),
        ("\ufeff", "utf-16-le"),
        ("\ufeff", "utf-16-be"),
        ("", "utf-32"),
        ("\ufeff", "utf-32-be"),
    ],
)
def test_a_project_file_may_have_a_byte_order_mark(
    tmp_path: Path, mark: str, encoding: str, newline: str
) -> None:
    content = (mark + PROJECT).replace("\n", newline)
    (tmp_path / "pyproject.toml").write_bytes(content.encode(encoding))
    (tmp_path / "sub").mkdir()
    assert find_project(tmp_path / "sub") == tmp_path
    config = load_config(tmp_path, environment={})
    assert config.kernel.title == "Söme kernel"
    assert config.comments["epochs"] == ((), "how löng")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (PROJECT.encode("latin-1"), ["not text in UTF-8", "0xe4 in line 1", "another encoding"]),
        (PROJECT.replace("ä", "a").encode("cp1252"), ["0xf6 in line 9"]),
        ("[tool]\n".encode("utf-16-le"), ["NUL in line 1", "UTF-16"]),
        (b"a = 1\n\x00b = 2\n", ["NUL in line 2"]),
        (b"a = 1\nb = \xe2\x80\x9cx\xe2\x80\x9d\n", ["line 2, column 5", "LEFT DOUBLE QUOTATION"]),
        (b"a = 1\n\xe2\x80\x8bb = 2\n", ["line 2, column 1", "U+200B, ZERO WIDTH SPACE"]),
        (b"a = 1\rb = 2\n", ["line 1, column 6", "U+000D"]),
        (b"a = 1\n[b\n", ["line 2, column 3"]),
        (b"a = " + b"[" * 5000, ["not valid TOML"]),
        (b"a = 1\na = 2\n", ["not valid TOML", "line 2"]),
        (b"\xff\xfea", ["not text in UTF-8"]),
    ],
)
def test_an_unreadable_project_file_is_reported_with_place_and_cause(
    tmp_path: Path, content: bytes, parts: list[str]
) -> None:
    (tmp_path / "pyproject.toml").write_bytes(content)
    for part in parts:
        assert part in complaint(tmp_path)


def test_a_project_file_must_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.mkdir()
    assert "is not a file" in complaint(tmp_path)
    path.rmdir()
    os.mkfifo(path)
    assert "is not a file" in complaint(tmp_path)
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    assert "is not a file" in complaint(tmp_path)


def test_a_missing_project_file_is_reported(tmp_path: Path) -> None:
    assert "no pyproject.toml" in complaint(tmp_path)


def test_invalid_settings_are_rejected(plain: Path) -> None:
    assert 'did you mean "quick"?' in complaint(plain, profile="quik")
    assert 'did you mean "epochs"?' in complaint(plain, settings=["epcohs=1"])
    assert 'did you mean "title"?' in complaint(plain, settings=["kernel.titel=x"])
    assert "must read key=value" in complaint(plain, settings=["epochs"])


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        ("[tool.kernelkit.parameters]\nlambda = 1", "name of a Python argument"),
        ("[tool.kernelkit.parameters]\nBUNDLE = 1", "the notebook itself uses"),
        ("[tool.kernelkit.parameters]\nx = nan", "no form as a Python literal"),
        ("[tool.kernelkit.parameters]\nx = [1979-05-27]", "no form as a Python literal"),
    ],
)
def test_parameters_without_a_python_literal_are_rejected(
    make_project: Make, extra: str, part: str
) -> None:
    assert part in complaint(make_project({}, extra=extra))


NUMBERS = {  # key → the least and the most that it may be, besides 0 where that means "never"
    "gpu_reserve_hours": (0, 1000),
    "notify_quota_hours": (0, 1000),
    "deadline_hours": (0.01, 1000),
    "stall_minutes": (0.1, 60_000),
    "kernel.session_timeout_seconds": (1, 2**31 - 1),
    "submission.pixels": (1, 2**53),
    "sweep.trials": (1, 100_000),
    "sweep.sessions": (1, 100),
    "sweep.retries": (0, 100),
    "sweep.seed": (0, 2**32 - 1),
}


def with_number(project: Path, key: str, value: str) -> Path:
    """The project file with a number under a key, in its table."""
    section, _, name = key.rpartition(".")
    path = project / "pyproject.toml"
    text, heading = path.read_text(), f"[tool.kernelkit{'.' if section else ''}{section}]\n"
    text = text if heading in text else f"{text}\n{heading}"
    path.write_text(text.replace(heading, f"{heading}{name} = {value}\n"))
    return project


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_are_finite_and_in_their_range(make_project: Make, key: str) -> None:
    least, most = NUMBERS[key]
    name = key.rpartition(".")[2]
    tiny = [] if key in ("gpu_reserve_hours", "notify_quota_hours") else ["1e-9"]
    for value in ("true", "nan", "inf", "-inf", "-1", '"3"', str(most + 1), *tiny):
        assert f'"{name}" = ' in complaint(with_number(make_project({}), key, value)), value
    for value in (str(least), str(most)):
        load_config(with_number(make_project({}), key, value), environment={})


def test_every_number_of_the_project_file_has_a_range() -> None:
    found = set()
    sections = (ProjectFile, KernelSettings, SubmissionSettings, SweepSettings)
    for model, section in zip(sections, ("", "kernel.", "submission.", "sweep."), strict=True):
        for name, field in model.model_fields.items():
            kinds = {field.annotation, *get_args(field.annotation)}
            kinds |= {one for kind in kinds for one in get_args(kind)}
            if kinds & {int, float}:
                found.add(f"{section}{name}")
    assert found == set(NUMBERS)


@pytest.mark.parametrize("package", ["..", "../other", "/tmp", "./.."])
def test_the_package_may_not_be_outside_the_project(make_project: Make, package: str) -> None:
    project = make_project({})
    path = project / "pyproject.toml"
    path.write_text(path.read_text().replace('package = "pkg"', f'package = "{package}"'))
    assert "below the folder" in complaint(project)


@pytest.mark.parametrize("entry", ["pkg:", ":run", "pkg.:run", "a-b:run", "../train.py", "x y"])
def test_an_entry_names_a_function_a_module_or_a_script(make_project: Make, entry: str) -> None:
    project = make_project({})
    path = project / "pyproject.toml"
    path.write_text(path.read_text().replace('entry = "pkg', f'entry = "{entry}" # "pkg'))
    assert '"entry" =' in complaint(project)


def with_outputs(project: Path, *outputs: str) -> Path:
    path = project / "pyproject.toml"
    path.write_text(path.read_text().replace('["out.txt"]', json.dumps(outputs)))
    return project


@pytest.mark.parametrize(
    "outputs",
    [
        *[
            [name]
            for name in ("../out.txt", "/out.txt", "a\\b", "", ".", "./", "/", "a/../b", "~/a")
        ],
        *[[name] for name in ("kaggle://working/o.csv", "kaggle://temp/x", "https://x.org/a")],
        *[["o.csv", name] for name in ("aux.csv", "models/NUL", "com1", "a:b", "o.csv ", " o.csv")],
        *[[name, "o.csv"] for name in ("x.", "a./b", "tab\tname", "bell\x07", "x" * 256)],
        *[[name] for name in ("run.json", "bundle.json", "push.json", "Run-Manifest.json")],
        *[[name] for name in ("some-kernel.log", "__notebook__.ipynb", "__results__.html")],
        *[[name] for name in ("run.json/x", "bundle.json/", "!*.tmp", "*.{csv,png}")],
        *[
            ["A.csv", "a.csv"],
            ["Logs/a.txt", "logs/b.txt"],
            ["Logs/", "logs/deep/b.txt"],
            ["a", "a/b.csv"],
            ["a/b.csv", "a"],
            ["a/", "a"],
            ["o.csv", "./o.csv"],
        ],
        *[
            ["\u00e9.csv", "e\u0301.csv"],
            ["m.zip", "m.unpacked/x"],
            ["a/*.csv", "a"],
            ["x/", "x//"],
        ],
    ],
)
def test_an_output_that_can_never_exist_is_refused(make_project: Make, outputs: list[str]) -> None:
    assert '"outputs": ' in complaint(with_outputs(make_project({}), *outputs))


def test_every_name_that_kernelkit_writes_is_refused_as_an_output() -> None:
    from kernelkit.notebook.runtime import NOT_OUTPUTS
    from kernelkit.runs.verify import OWN_NAMES, PARTIAL_FOLDER

    assert {*OWN_NAMES, *NOT_OUTPUTS, PARTIAL_FOLDER} <= OWN_OUTPUTS


def test_outputs_may_be_folders_and_patterns(make_project: Make) -> None:
    stated = ["checkpoints//", "*.csv", "logs/**/*.txt", "./a/b.bin", "fold_[0-9]/", "größe.csv"]
    found = load_config(with_outputs(make_project({}), *stated, "submission.csv"), environment={})
    assert found.outputs == (
        *("checkpoints/", "*.csv", "logs/**/*.txt", "a/b.bin", "fold_[0-9]/", "größe.csv"),
        "submission.csv",
    )


@pytest.mark.parametrize(
    "endpoint",
    [
        *("https://api.kaggle.com", "http://example.org:80", "https://127.0.0.1:1"),
        *("127.0.0.1:80", "", " ", "http://", "http://127.1", "http://0x7f.1", "http://2130706433"),
        *("http://localhost.evil.com", "http://127.0.0.1.evil.com", "http://localhost."),
        *("http://[::ffff:127.0.0.1]", "http://0.0.0.0:80", "http://[::]:80", "http://127.0.0.2"),
        *(
            "http://127.0.0.1:0",
            "http://127.0.0.1:99999",
            "http://127.0.0.1:x",
            "http://127.0.0.1:",
        ),
        *("http://127.0.0.1/api", "http://127.0.0.1:80/a/..", "http://127.0.0.1:\uff18\uff10"),
        *("http://localho\u017ft:80", "http://127.0.0.1\n:80", "http://127.0.0.1\t:80"),
        *("ftp://127.0.0.1", "//127.0.0.1", "http:127.0.0.1", "http:\\\\127.0.0.1"),
    ],
)
def test_an_endpoint_must_be_on_this_machine(plain: Path, endpoint: str) -> None:
    expected = "not an http address of this machine"
    assert expected in complaint(plain, endpoint=endpoint)
    with pytest.raises(ConfigError, match=expected):
        load_config(plain, environment={"KERNELKIT_ENDPOINT": endpoint})


@pytest.mark.parametrize(
    "endpoint",
    [
        *("http://u:hunter2@127.0.0.1", "http://hunter2@localhost:80", "http://u:hunter2@[::1]:80"),
        *(
            "http://127.0.0.1@hunter2.com",
            "http://hunter2:@127.0.0.1",
            "http://u:hunter2%40localhost",
        ),
        *("http://127.0.0.1:80?token=hunter2", "http://127.0.0.1:80/#hunter2", "http://u:hunter2"),
        *("u:hunter2@127.0.0.1", "http:/u:hunter2@localhost", "http://127.0.0.1:80/?hunter2"),
    ],
)
def test_an_endpoint_with_a_password_is_refused_and_not_repeated(
    plain: Path, endpoint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(plain, environment={"KERNELKIT_ENDPOINT": endpoint})
    assert "hunter2" not in str(caught.value) + caught.value.next_step


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("http://127.0.0.1", "http://127.0.0.1"),
        (" http://127.0.0.1:80\r\n", "http://127.0.0.1:80"),
        ("http://LOCALHOST:8000//", "http://localhost:8000"),
        ("HTTP://[::1]:65535/", "http://[::1]:65535"),
    ],
)
def test_an_endpoint_has_one_form(plain: Path, endpoint: str, expected: str) -> None:
    assert load_config(plain, environment={}, endpoint=endpoint).endpoint == expected


def test_the_environment_can_set_the_endpoint(plain: Path) -> None:
    environment = {"KERNELKIT_ENDPOINT": "http://127.0.0.1:7777/"}
    assert load_config(plain, environment=environment).endpoint == "http://127.0.0.1:7777"


def test_the_size_of_images_is_set_for_submissions(plain: Path) -> None:
    path = plain / "pyproject.toml"
    assert load_config(plain, environment={}).submission.pixels is None
    path.write_text(path.read_text() + "\n[tool.kernelkit.submission]\npixels = 10201\n")
    assert load_config(plain, environment={}).submission.pixels == 10201
    path.write_text(path.read_text().replace("pixels = 10201", "pixel = 0"))
    assert 'has no key "pixel"; did you mean "pixels"?' in complaint(plain)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('outputs = ["out.txt"]', 'outputs = "out.txt"', 'must be a list: ["out.txt"]'),
        (
            'outputs = ["out.txt"]',
            'outputs = ["a", 3]',
            "item 2 = 3: must be text in quotes",
        ),
        ('outputs = ["out.txt"]', "outputs = {a = 1}", "must be a list"),
        ('title = "Some kernel"', "title = 3", "must be text in quotes"),
        (
            "[tool.kernelkit.kernel]",
            "[tool.kernelkit.kernel]\nenable_gpu = 1",
            "must be true or false",
        ),
        (
            "[tool.kernelkit.kernel]",
            'layout = "x"\n[tool.kernelkit.kernel]',
            "must be 'auto', 'cells'",
        ),
        ("[tool.kernelkit.kernel]", "parameters = 3\n[tool.kernelkit.kernel]", "must be a table"),
    ],
)
def test_a_value_of_another_type_is_explained_in_the_words_of_toml(
    make_project: Make, old: str, new: str, message: str
) -> None:
    path = make_project({}) / "pyproject.toml"
    path.write_text(path.read_text().replace(old, new))
    assert message in complaint(path.parent)


ALIASES = [  # as they may be written, and as Python reads them
    ("\u00b5", "\u03bc"),  # micro, and the Greek letter
    ("\ufb01lter_size", "filter_size"),  # a ligature
    ("\uff52\uff41\uff54\uff45", "rate"),  # full width
    ("e\u0301tape", "\u00e9tape"),  # a combining accent
    ("x\u00b2", "x2"),
]


@pytest.mark.parametrize(("written", "read"), ALIASES)
def test_parameters_have_the_names_that_python_gives_them(
    make_project: Make, written: str, read: str
) -> None:
    extra = (
        f'[tool.kernelkit.parameters]\n# About it.\n"{written}" = 1\n'
        f'[tool.kernelkit.profiles.big.parameters]\n"{written}" = 2\n'
    )
    main = f"def run({written if written.isidentifier() else read}):\n    pass\n"
    project = make_project({"pkg/main.py": main}, extra=extra)
    config = load_config(project, environment={})
    assert config.parameters == {read: 1}
    assert config.described_parameters[0].above == ("About it.",)
    assert load_config(project, profile="big", environment={}).parameters == {read: 2}
    for name in (written, read):
        assert load_config(project, settings=[f"{name}=3"], environment={}).parameters == {read: 3}
    assert not [p for p in check(workflow.render_kernel(config)) if "argument" in p.message]


def test_two_parameters_that_are_one_for_python_are_refused(make_project: Make) -> None:
    extra = '[tool.kernelkit.parameters]\n"\u00b5" = 1\n"\u03bc" = 2\n'
    assert "the same name for Python" in complaint(make_project({}, extra=extra))


@pytest.mark.parametrize(
    "name",
    [
        *("lambda", "None", "\uff49\uff46", "class", "a-b", "2x", "", "a b", "a.b"),
        *("file", "\uff46\uff49\uff4c\uff45", "result", "print", "SRC", "__debug__", "_x", "exit"),
    ],
)
def test_names_that_the_notebook_cannot_have_are_refused(make_project: Make, name: str) -> None:
    extra = f'[tool.kernelkit.parameters]\n"{name}" = 1\n'
    assert "[tool.kernelkit.parameters]" in complaint(make_project({}, extra=extra))


SHADOWS = ["match", "type", "case", "list", "id", "len", "repr", "open", "input", "display"]


def test_soft_keywords_and_builtins_may_be_names(make_project: Make) -> None:
    lines = "".join(f"{name} = {number}\n" for number, name in enumerate(SHADOWS))
    project = make_project({}, extra=f"[tool.kernelkit.parameters]\n{lines}")
    assert list(load_config(project, environment={}).parameters) == SHADOWS


def test_each_value_has_its_origin(make_project: Make) -> None:
    extra = """
[tool.kernelkit.parameters]
epochs = 3
seed = 1
size = 2
[tool.kernelkit.profiles.small.parameters]
size = 1
[tool.kernelkit.profiles.small.kernel]
enable_internet = true
"""
    config = load_config(
        make_project({}, extra=extra),
        profile="small",
        settings=["epochs=9", "kernel.is_private=false"],
        only_reachable=True,
        environment={"KERNELKIT_ENDPOINT": "http://127.0.0.1:8000"},
    )
    found = {one.key: (one.value, one.origin) for one in config_values(config)}
    assert (
        found.items()
        >= {
            "layout": ("auto", "default"),
            "entry": ("pkg.main:run", "pyproject.toml"),
            "only_reachable": (True, "--only-reachable"),
            "endpoint": ("http://127.0.0.1:8000", "KERNELKIT_ENDPOINT"),
            "kernel.title": ("Some kernel", "pyproject.toml"),
            "kernel.enable_gpu": (False, "default"),
            "kernel.enable_internet": (True, "profile small"),
            "kernel.is_private": (False, "--set"),
            "parameters.epochs": (9, "--set"),
            "parameters.seed": (1, "pyproject.toml"),
            "parameters.size": (1, "profile small"),
        }.items()
    )


def test_the_command_prints_each_setting(make_project: Make, cli: Cli) -> None:
    project = make_project({})
    printed = cli("config", "--set", "kernel.enable_tpu=true", cwd=project).stdout
    assert re.search(r"kernel.enable_tpu +true +--set", printed)
    assert "gpu_reserve_hours" not in printed
    assert "gpu_reserve_hours" in cli("config", "--verbose", cwd=project).stdout
    document = json.loads(cli("config", "--json", cwd=project).stdout)
    assert document["package"] == {"value": ["pkg"], "from": "pyproject.toml"}


REQUIREMENTS = """
# what the program needs
numpy>=2  # of the image
six==1.17.0 \\
    --hash=sha256:0000000000000000000000000000000000000000000000000000000000000000
-r more/others.txt
"""


def test_requirements_come_from_files_and_from_the_project(make_project: Make) -> None:
    project = make_project(
        {
            "requirements.txt": REQUIREMENTS,
            "more/others.txt": "\ufeffuri ; python_version > '3'\r\n-r ../requirements.txt",
        },
        keys='pip = ["project", "requirements.txt", "rich"]',
    )
    path = project / "pyproject.toml"
    path.write_text('[project]\nname = "x"\ndependencies = ["pandas>=2"]\n' + path.read_text())
    assert load_config(project).pip == (
        *("pandas>=2", "numpy>=2", "six==1.17.0", "uri ; python_version > '3'", "rich"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("numpy\n-e .", "requirements.txt:2: the run cannot use -e"),
        (
            "--extra-index-url https://x\nnumpy",
            "requirements.txt:1: the run cannot use --extra-ind",
        ),
        ("a\n\nb ==", "requirements.txt:3: 'b =='"),
        ("./local.whl", "requirements.txt:1: './local.whl'"),
        ("x @ file:///a/x.whl", "names a file of this machine"),
        ("-r missing.txt", "missing.txt cannot be read"),
        ("x @ FILE:///a/x.whl", "names a file of this machine"),
        ("x @ ./x.whl", "names a file of this machine"),
        ("x @ git+file:///a", "names a file of this machine"),
        ("x @ https://${TOKEN}@host/x.whl", "names a variable of this machine"),
        ("-ihttps://me:pw@host\nnumpy", "requirements.txt:1: the run cannot use -i\n"),
        ("--index-url=https://me:pw@host", "the run cannot use --index-url\n"),
        ("-r https://me:pw@host/x.txt", "the run cannot use -r with an address\n"),
        ("# a comment \\\n-e .", "requirements.txt:2: the run cannot use -e"),
        ("six==1 --hash=md5:00", "requirements.txt:1: --hash=md5:00 is not a hash"),
    ],
)
def test_requirements_that_a_run_cannot_use(make_project: Make, text: str, message: str) -> None:
    project = make_project({"requirements.txt": text}, keys='pip = "requirements.txt"')
    assert message in f"{complaint(project)}\n"


@pytest.mark.parametrize(
    "stated",
    [
        "",
        '[project]\ndynamic = ["dependencies"]\n',
        "project = 1\n",
        '[project]\ndependencies = "numpy"\n',
        '[project]\ndependencies = ["numpy", 1]\n',
    ],
)
def test_a_project_without_a_list_of_dependencies(make_project: Make, stated: str) -> None:
    project = make_project({}, keys='pip = "project"')
    path = project / "pyproject.toml"
    path.write_text(stated + path.read_text())
    assert "[project] has no list of dependencies" in complaint(project)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_requirements_with_hashes_on_lines_of_their_own(make_project: Make, end: str) -> None:
    lines = ["six==1.17.0 \\", "    --hash=sha256:00 \\", "    --hash=sha256:01", "uri"]
    text = end.join(lines).encode()
    project = make_project({"requirements.txt": text}, keys='pip = "requirements.txt"')
    config = load_config(project)
    assert config.pip == ("six==1.17.0", "uri")
    assert config.pip_hashes == {"six==1.17.0": ("sha256:00", "sha256:01")}


def test_a_comment_does_not_continue(make_project: Make) -> None:
    text = "# see \\\nsix\nuri \\\n# of others \\\n-r 'a b.txt'"
    files = {"requirements.txt": text.replace("'", '"'), "a b.txt": "rich"}
    project = make_project(files, keys='pip = "requirements.txt"')
    assert load_config(project).pip == ("six", "uri", "rich")


def test_positional_parameters_are_those_of_a_script(make_project: Make) -> None:
    project = make_project({"train.py": "print()\n"}, entry="train.py", keys='positional = "a"')
    assert 'no parameter "a"' in complaint(project)
    project = make_project({"pkg/main.py": "def run(a): ...\n"}, keys='positional = "a"')
    assert "is a function" in complaint(project)


@pytest.mark.parametrize(("key", "wrong"), [("entry", "entri"), ("title", "titel")])
def test_a_misspelled_key_is_one_mistake(make_project: Make, key: str, wrong: str) -> None:
    project = make_project({})
    path = project / "pyproject.toml"
    path.write_text(path.read_text().replace(f"{key} =", f"{wrong} ="))
    assert complaint(project).splitlines() == [
        f'[tool.kernelkit{".kernel" * (key == "title")}] has no key "{wrong}"; '
        f'did you mean "{key}"?'
    ]
