"""pip in a run: it installs into an environment that ends with the run."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from kernelkit.emulator.environment import create_environment

WHEELS = '''
import json, os, pathlib, subprocess, sys, zipfile

def wheel(name, version, code, command):
    """A wheel with one module and one command."""
    path = pathlib.Path(f"{name}-{version}-py3-none-any.whl")
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
    files = {
        f"{name}.py": code,
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        f"{info}/entry_points.txt": f"[console_scripts]\\n{command} = {name}:main\\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return str(path)

os.chdir(os.environ.get("KAGGLE_TEMP_DIR", "/kaggle/temp"))
greeter = wheel("greeter", "1.0", "def main():\\n    print('hello from greeter')\\n", "greet")
newer = wheel("tqdm", "99.0", "version = 'mine'\\n", "newer")
'''

INSTALL = """
!pip install -q --no-index --no-deps {greeter}
%pip install -q --no-index --no-deps {newer}
def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return [done.returncode, (done.stdout + done.stderr).strip()]

import importlib.metadata, greeter as imported, tqdm
seen = {
    "command": run("greet"),
    "imported": imported.__file__,
    "tqdm": [tqdm.version, importlib.metadata.version("tqdm")],
    "child": run("python", "-c", "import tqdm, greeter; print(tqdm.version)"),
    "script": run("jupyter-kernelspec", "--version")[0],
    "uninstall": run(sys.executable, "-m", "pip", "uninstall", "-y", "nbclient", "greeter"),
}
import nbclient
seen["gone"] = run(sys.executable, "-c", "import greeter")[0]
print(json.dumps(seen))
"""


def installed() -> dict[str, int]:
    """What the interpreter's environment holds, with the time of the last change."""
    folders = [Path(sysconfig.get_path("purelib")), Path(sys.executable).parent]
    return {str(path): path.stat().st_mtime_ns for one in folders for path in one.iterdir()}


@pytest.mark.parametrize(
    "isolation", ["namespace", pytest.param("folders", marks=pytest.mark.slow)]
)
def test_pip_installs_for_the_run_only(launch, isolation):
    emulator = launch("--isolation", "auto" if isolation == "namespace" else isolation)
    if emulator.ready["isolation"] != isolation:
        pytest.skip("this machine has no namespaces")
    before = installed()
    seen = json.loads(emulator.run("with-pip", WHEELS, INSTALL).splitlines()[-1])
    assert seen["command"] == [0, "hello from greeter"]
    assert seen["tqdm"] == ["mine", "99.0"]
    assert seen["child"] == [0, "mine"]
    assert seen["script"] == 0
    assert seen["uninstall"][0] == 0
    assert "outside environment" in seen["uninstall"][1]  # nbclient stays
    assert "Successfully uninstalled greeter" in seen["uninstall"][1]
    assert seen["gone"] == 1
    assert Path(seen["imported"]).is_relative_to("/environment") == (isolation == "namespace")
    assert installed() == before
    assert not (emulator.folder("with-pip") / "scratch").exists()
    again = emulator.run("after-pip", "import tqdm; print(hasattr(tqdm, 'version'), tqdm.__file__)")
    assert str(Path(sysconfig.get_path("purelib"))) in again


@pytest.mark.parametrize(
    "head",
    [
        "#!{python}\n",
        "#!{python} -I\n",
        "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n",
        "#!/bin/sh\n'''exec' {python} \"$0\" \"$@\"\n' '''\n",
    ],
)
def test_commands_of_the_interpreter_run_in_the_environment(tmp_path, monkeypatch, head):
    """As pip and uv write them; also where the path is too long for a `#!` line."""
    scripts, folder = tmp_path / "own" / "bin", tmp_path / ("long-" * 40) / "environment"
    scripts.mkdir(parents=True)
    python = scripts / "python3.11"
    code = "# -*- coding: utf-8 -*-\nimport sys\nprint(sys.prefix, sys.argv[1:])\n"
    (scripts / "command").write_text(head.format(python=python) + code)
    (scripts / "other").write_text("#!/bin/bash\necho not Python\n")
    for script in scripts.iterdir():
        script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    create_environment(folder, folder)
    monkeypatch.undo()
    command = [folder / "bin" / "command", "one", "two words"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{folder} ['one', 'two words']\n"
    assert not (folder / "bin" / "other").exists()


@pytest.mark.slow
def test_an_environment_without_pip_gets_pythons_own(tmp_path):
    """`uv venv` makes one; Kaggle's image has pip."""
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    program = "import sys; from pathlib import Path\n"
    program += "from kernelkit.emulator.environment import create_environment as create\n"
    program += "create(Path(sys.argv[1]), Path(sys.argv[1]))"
    root = Path(__file__).resolve().parents[2]
    folder = tmp_path / "environment"
    subprocess.run([bare / "bin" / "python", "-c", program, folder], cwd=root, check=True)
    for command in (["pip"], ["python", "-m", "pip"]):
        done = subprocess.run(
            [folder / "bin" / command[0], *command[1:], "--version"],
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"]},
            check=True,
        )
        assert str(folder) in done.stdout
