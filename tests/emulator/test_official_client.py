"""The unmodified `kaggle` command against the emulator, as its users type it."""

import json
import os
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
import requests

KAGGLE = Path(sys.executable).with_name("kaggle")


@pytest.fixture
def kaggle(emulator, tmp_path):
    """Run `kaggle …` with the emulator as its proxy; what it printed."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "KAGGLE_CONFIG_DIR": str(tmp_path / "config"),
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "http_proxy": emulator.endpoint,
        "no_proxy": "",
        "KAGGLE_USERNAME": emulator.account,
        "KAGGLE_KEY": "key",
    }
    assert urllib.parse.urlsplit(environment["http_proxy"]).hostname == "127.0.0.1"

    def run(*arguments, code=0, **more):
        done = subprocess.run(
            [KAGGLE, *arguments],
            env=environment | more,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture
def kernel_folder(emulator, tmp_path):
    """A kernel folder as the official client wants it."""
    folder = tmp_path / "kernel"
    folder.mkdir()
    cells = (
        "print('hello'); open('out.txt', 'w').write('result')",
        "import os; os.makedirs('sub'); [open(f'sub/{i}', 'w').write(str(i)) for i in range(25)];",
    )
    (folder / "book.ipynb").write_text(emulator.notebook(*cells))
    metadata = {
        "id": f"{emulator.account}/my-first-kernel",
        "title": "My First Kernel",
        "code_file": "book.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_internet": False,
        "competition_sources": ["some-competition", "none-such"],
    }
    (folder / "kernel-metadata.json").write_text(json.dumps(metadata))
    return folder


def test_from_push_to_output(emulator, kaggle, kernel_folder, tmp_path):
    name = f"{emulator.account}/my-first-kernel"
    pushed = kaggle("kernels", "push", "-p", str(kernel_folder))
    assert "Kernel version 1 successfully pushed." in pushed
    assert "not valid competition sources" in pushed
    assert "['none-such']" in pushed
    assert kaggle("kernels", "logs", name, "--follow") == "hello\n"
    assert 'has status "KernelWorkerStatus.COMPLETE"' in kaggle("kernels", "status", name)

    log = json.loads(kaggle("kernels", "logs", name))
    assert [(entry["stream_name"], entry["data"]) for entry in log] == [("stdout", "hello\n")]
    assert kaggle("kernels", "logs", name, "--follow") == "hello\n"

    kaggle("kernels", "output", name, "-p", str(tmp_path / "out"))
    got = {
        str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()
    }
    assert got == {"out.txt", "my-first-kernel.log", *(f"sub/{i}" for i in range(25))}
    assert (tmp_path / "out" / "out.txt").read_text() == "result"

    files = kaggle("kernels", "files", name, "--csv")
    assert "out.txt,6," in files
    assert "Next Page Token = " in files

    kaggle("kernels", "pull", name, "-m", "-p", str(tmp_path / "pulled"))
    pulled = json.loads((tmp_path / "pulled" / "my-first-kernel.ipynb").read_text())
    sent = json.loads((kernel_folder / "book.ipynb").read_text())
    assert [c["source"] for c in pulled["cells"]] == ["".join(c["source"]) for c in sent["cells"]]
    metadata = json.loads((tmp_path / "pulled" / "kernel-metadata.json").read_text())
    assert metadata["id"] == name
    assert metadata["competition_sources"] == ["some-competition"]

    assert "Kernel version 2 successfully pushed." in kaggle(
        "kernels", "push", "-p", str(kernel_folder)
    )
    emulator.finish("my-first-kernel")


def test_lies_as_the_official_client_sees_them(emulator, kaggle, kernel_folder, tmp_path):
    """What it makes of them: a refused push is exit 0, an error page an output."""

    def lie(*faults):
        answer = requests.post(f"{emulator.endpoint}/emulator/faults", json=faults, timeout=10)
        assert answer.ok, answer.text

    name, push = f"{emulator.account}/my-first-kernel", ("kernels", "push", "-p", kernel_folder)
    lie("session-cap", "lost-after,at=2", "dropped-source,kind=competition,at=3")
    try:
        assert "Maximum batch GPU session count of 2 reached." in kaggle(*push)
        assert "closed connection without response" in kaggle(*push, code=1)
        assert "['some-competition', 'none-such']" in kaggle(*push)
        emulator.finish("my-first-kernel")

        lie("stale-status", "forbidden,at=2")
        assert "COMPLETE" in kaggle("kernels", "status", name)
        assert "Permission 'kernels.get' was denied" in kaggle("kernels", "status", name, code=1)

        lie("pages,size=20", "hostile-names,kind=parent", "error-page")
        out = tmp_path / "deep" / "out"
        kaggle("kernels", "output", name, "-p", str(out))
        assert (out / "out.txt").read_text().startswith("<!DOCTYPE html>")
        assert (out / "sub" / "24").read_text() == "24"
        assert (tmp_path / "deep" / "escaped.txt").read_text() == "hostile\n"
    finally:
        requests.delete(f"{emulator.endpoint}/emulator/faults", timeout=10)


def test_quota(kaggle):
    assert "30.00h" in kaggle("quota")


def test_a_token(kaggle):
    """Asked at import who it belongs to, the emulator names its user."""
    found = kaggle(
        "kernels", "status", "rehearsal/none-such", code=1, KAGGLE_API_TOKEN="some-token"
    )
    assert "Not found" in found


def test_what_is_not_emulated(kaggle):
    assert "unimplemented: kernels.KernelsApiService/ListKernels" in kaggle(
        "kernels", "list", code=1
    )
