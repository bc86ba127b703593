"""The unmodified `kaggle` command with the emulator, as users type it."""

import json

import pytest


def test_a_notebook_is_pushed_followed_and_downloaded(emulator, kaggle, kernel_folder, tmp_path):
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


def test_the_quota_is_shown(kaggle):
    assert "30.00h" in kaggle("quota")


def test_a_token_identifies_its_user(kaggle):
    """The client asks at import for the token's user."""
    found = kaggle(
        "kernels", "status", "rehearsal/none-such", code=1, KAGGLE_API_TOKEN="some-token"
    )
    assert "Not found" in found


@pytest.mark.slow
def test_kernels_are_listed_and_deleted(kaggle, emulator):
    emulator.push("some-kernel", "pass")
    name = f"{emulator.account}/some-kernel"
    assert name in kaggle("kernels", "list", "--mine", "--sort-by", "dateRun", "--csv")
    assert "deleted successfully" in kaggle("kernels", "delete", name, "-y")
    assert "Not found" in kaggle("kernels", "status", name, code=1)


def test_an_unimplemented_command_is_named(kaggle):
    assert "unimplemented: models.ModelApiService/ListModels" in kaggle("models", "list", code=1)
