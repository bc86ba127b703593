"""Source for a newer Python than the one that runs kernelkit."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelkit.bundle import syntax
from kernelkit.bundle.bundle import read_bundle
from kernelkit.config import load_config
from kernelkit.errors import BundleError

Make = Callable[..., Path]

NEW = [
    "type X = int\nimport a\n",
    'type X[T: (int, str), *Ts, **P] = dict[T, "Y"]\nimport a\n',
    "if x: type Y = int\nimport a\n",
    "class A[T]:\n    import a\n",
    "class A[\n    T,  # ]\n    U,\n](Base, x=1):\n    def f[\n  V](self) -> V: ...\nimport a\n",
    'async def f[T: "]"](x: T) -> T:\n    import a\n',
    "x = f'{d['a']}'\nimport a\n",
    'x = f"{"\\n".join(l)}" "b" f"{1}"\nimport a\n',
    "x = f'{f'{f'{1 + 1}'}'}'\nimport a\n",
    "x = f'{\n  a # comment }'\n  + 1\n}'\nimport a\n",
    'x = f\'{x:{\'>10\'}}\' if y else f"""{\n d["a"]\n}"""\nimport a\n',
    "def f[T](): return lambda: f'{x!r:>{w}} {{}} {d['}']}'\nimport a\n",
    "type = 3\nprint(type == 4)\nx: type = int\nf'{d['a']}'\nimport a\n",
    "match type:\n    case 1: type X = int\nimport a\n",
    "class A[T](Base[T]): x = {'a': 1}; type Z[Q] = list[Q]\nimport a\n",
    "# coding: latin-1\ntype X = 'ä'\nimport a\n",
]


@pytest.mark.parametrize("source", NEW)
def test_imports_are_found_in_the_syntax_of_python_3_12(source: str) -> None:
    content = source.encode("latin-1" if "latin" in source else "utf-8")
    tree = syntax.parse(content, "a.py", (3, 12)).tree
    lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Import)]
    assert lines == [n for n, line in enumerate(source.splitlines(), 1) if "import a" in line]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("x = 1\nclass A[T = int]: ...\n", 2),  # Python 3.13
        ("x = t'a'\n", 1),  # Python 3.14
        ("try: pass\nexcept A, B: pass\n", 2),  # Python 3.14
        ("type X = int\n\nx = = 1\n", 3),
        ("def f[T](x): ...\nx = 'unterminated\n", 2),
        ("x = f'{d['a'}'\n", 1),
        ("class A[T: ...\n", 1),
    ],
)
def test_what_kaggles_python_does_not_know_stays_an_error(source: str, line: int) -> None:
    with pytest.raises(SyntaxError) as caught:
        syntax.parse(source.encode(), "a.py", (3, 12))
    assert caught.value.lineno == line


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python knows the syntax")
def test_a_package_with_new_syntax_is_carried_and_reported(make_project: Make) -> None:
    files: dict[str, str | bytes] = {
        "pkg/main.py": '"""Trains."""\nfrom pkg import b\ntype Rate = float\n'
        "def run[T: float](rate: T, steps=3):\n    import torch\n",
        "pkg/b.py": "import numpy\nclass A[T]:\n    x = f'{numpy['a']}'\n",
    }
    project = make_project(files)
    bundle = read_bundle(load_config(project, environment={}))
    assert [file.path for file in bundle.files][1:] == ["pkg/b.py", "pkg/main.py"]
    assert bundle.files[2].content == files["pkg/main.py"].encode()  # type: ignore[union-attr]
    assert bundle.files[2].summary == "Trains."
    assert (list(bundle.third_party), list(bundle.optional)) == (["numpy"], ["torch"])
    assert bundle.signature is not None
    assert bundle.signature.required == {"rate"}
    (note,) = bundle.notes
    assert note.startswith("pkg/b.py and 1 more: syntax that Kaggle's Python 3.12 knows")
    (project / "pkg" / "b.py").write_text("class A[T]:\n    from pkg import gone\n")
    with pytest.raises(BundleError, match=r'pkg/b\.py:2: imports "pkg\.gone"'):
        read_bundle(load_config(project, environment={}))


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python knows the syntax")
def test_scripts_edits_and_new_projects_may_have_new_syntax(
    make_project: Make, cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    script = (
        '"""Trains."""\nimport argparse\ntype Rate = float\n\n\ndef main() -> None:\n'
        "    parser = argparse.ArgumentParser()\n    parser.add_argument('--learning-rate')\n"
        "    words = vars(parser.parse_args())\n    print(f'{words['learning_rate']}')\n\n\n"
        'if __name__ == "__main__":\n    main()\n'
    )
    extra = "[tool.kernelkit.parameters]\nlearning_rate = 1.0\n"
    project = make_project({"train.py": script}, entry="train.py", extra=extra)
    cli("render", "--project", project)
    notebook = project / "build" / "kernel" / "notebook.ipynb"
    text = notebook.read_text()
    assert "--learning-rate" in text
    notebook.write_text(text.replace("type Rate = float", "type Rate = int"))
    done = cli("sync", notebook, "--project", project)
    assert "type Rate = int" in (project / "train.py").read_text()
    assert "invalid syntax" not in done.stdout + done.stderr
    (project / "pyproject.toml").unlink()
    cli("init", "--project", project, "--yes")
    assert 'entry = "train.py"' in (project / "pyproject.toml").read_text()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="this Python does not know the syntax")
def test_a_newer_python_refuses_what_kaggles_does_not_know() -> None:
    with pytest.raises(SyntaxError):
        syntax.parse(b"type X = int\n", "a.py", (3, 11))
