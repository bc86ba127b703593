"""Lists of kernels, and kernels that are deleted."""

from dataclasses import replace

import pytest

from kernelkit.emulator.fields import RequestFields
from kernelkit.emulator.kernel_list import select_kernels
from kernelkit.emulator.limits import Machine
from kernelkit.emulator.responses import RequestRefused
from kernelkit.emulator.state import EmulatedKaggle, KaggleSettings, WorkerStatus
from kernelkit.errors import NotFoundError
from kernelkit.kaggle.kernels import Kaggle
from kernelkit.kaggle.types import Credentials, State, Timeouts
from tests.emulator.test_state import GPU, PUSH

WAITS = "import time; print('begun', flush=True); time.sleep(600)"


@pytest.fixture
def kaggle(tmp_path):
    return EmulatedKaggle(tmp_path / "state", None)


@pytest.fixture
def client(emulator):
    """kernelkit's client for the shared emulator."""
    credentials = Credentials(emulator.account, "the test", key="key")
    return Kaggle(credentials, emulator.endpoint, timeouts=Timeouts(retry=3))


def saved(kaggle, title, owner="me", **changes):
    slug = title.lower().replace(" ", "-")
    version = kaggle.save(
        owner, replace(PUSH, owner=owner, slug=slug, title=title, **changes)
    ).version
    kaggle.start(version)
    kaggle.finish(version, WorkerStatus.COMPLETE, "", ())
    return version


def titles(kaggle, account="me", **fields):
    return [k.title for k in select_kernels(kaggle.listed(), account, RequestFields(fields))]


def test_a_list_shows_what_the_caller_may_see(kaggle):
    saved(kaggle, "Mine private")
    saved(kaggle, "Mine public", is_private=False)
    saved(kaggle, "Yours private", owner="you")
    saved(kaggle, "Yours public", owner="you", is_private=False)
    assert titles(kaggle, group="PROFILE") == ["Mine public", "Mine private"]
    assert titles(kaggle, group="EVERYONE") == ["Yours public", "Mine public"]
    assert titles(kaggle, user="ME") == ["Mine public", "Mine private"]
    assert titles(kaggle, user="you") == ["Yours public"]
    assert titles(kaggle, group="PUBLIC_AND_USERS_PRIVATE", search="mine") == [
        "Mine public",
        "Mine private",
    ]
    assert titles(kaggle, group="UPVOTED") == []


def test_a_list_is_filtered_and_sorted(kaggle):
    first = saved(kaggle, "Salt unet", competitions=("salt",), datasets=("me/points",))
    saved(kaggle, "Sugar unet", kernels=("me/salt-unet",))
    again = kaggle.save("me", replace(PUSH, slug="salt-unet", title="Salt unet")).version
    assert titles(kaggle, group="PROFILE", sortBy="DATE_CREATED") == ["Sugar unet", "Salt unet"]
    assert titles(kaggle, group="PROFILE", sortBy="DATE_RUN") == ["Salt unet", "Sugar unet"]
    assert titles(kaggle, group="PROFILE", search="unet SUGAR") == ["Sugar unet"]
    assert titles(kaggle, group="PROFILE", parentKernel="me/salt-unet") == ["Sugar unet"]
    # Only the current version counts, and it has no sources.
    assert titles(kaggle, group="PROFILE", competition="salt") == []
    assert titles(kaggle, group="PROFILE", language="r") == []
    assert again.created >= first.started
    for wrong in ({"group": "MINE"}, {"sortBy": "DATE"}):
        with pytest.raises(RequestRefused):
            titles(kaggle, **wrong)


def test_a_deleted_kernel_stays_listed_for_a_while(tmp_path):
    kaggle = EmulatedKaggle(tmp_path / "state", None, KaggleSettings(deleted_listed=60))
    run = saved(kaggle, "My Kernel", machine_shape=GPU.machine_shape)
    run.started -= 100
    used = kaggle.usage("me", Machine.GPU).used
    with pytest.raises(RequestRefused):
        kaggle.delete("you", "me", "my-kernel")
    gone = kaggle.delete("me", "me", "my-kernel")
    with pytest.raises(RequestRefused, match="Not found"):
        kaggle.find("me", "me", "my-kernel")
    assert titles(kaggle, group="PROFILE") == ["My Kernel"]
    assert kaggle.usage("me", Machine.GPU).used == used >= 100
    # The name is free, and the new kernel is another one.
    assert saved(kaggle, "My Kernel").number == 1
    assert kaggle.find("me", "me", "my-kernel")[0].kernel_id != gone.kernel_id
    gone.deleted -= 60
    assert titles(kaggle, group="PROFILE") == ["My Kernel"]


def test_own_kernels_are_found_and_deleted(emulator, client):
    """Deleting ends the run and its billing; the outputs are gone."""
    for slug in ("first-kernel", "second-kernel", "third-kernel"):
        emulator.push(slug, WAITS)
    events = emulator.events("second-kernel")
    next(events)
    listed = client.list_own_kernels()
    assert {k.slug for k in listed} == {"first-kernel", "second-kernel", "third-kernel"}
    assert [k.last_run for k in listed] == sorted((k.last_run for k in listed), reverse=True)
    assert {(k.owner, k.version) for k in listed} == {(emulator.account, 1)}
    assert [k.slug for k in client.list_own_kernels("second")] == ["second-kernel"]

    folder = emulator.folder("second-kernel")
    client.delete("second-kernel")
    assert list(events) == []  # the log ended with the run
    assert not folder.exists()
    with pytest.raises(NotFoundError):
        client.status(emulator.account, "second-kernel", 1)
    with pytest.raises(NotFoundError):
        client.delete("second-kernel")
    assert "second-kernel" in {k.slug for k in client.list_own_kernels()}
    assert client.status(emulator.account, "first-kernel", 1).state in (State.QUEUED, State.RUNNING)
    # A lost response: the kernel is gone, and that is what was asked for.
    emulator.inject("lost-after,call=DeleteKernel")
    for slug in ("first-kernel", "third-kernel"):
        client.delete(slug)
    assert [r["code"] for r in emulator.journal() if r["method"] == "DeleteKernel"] == [
        *(200, 404, None, 404, 200)
    ]


def test_a_long_list_has_pages(emulator, client, monkeypatch):
    for number in range(5):
        emulator.push(f"kernel-{number}", "pass")
        emulator.finish(f"kernel-{number}")
    monkeypatch.setattr("kernelkit.kaggle.kernels.KERNEL_PAGE_SIZE", 2)
    assert [k.slug for k in client.list_own_kernels()] == [f"kernel-{n}" for n in range(4, -1, -1)]
    assert len(emulator.journal()) >= 3
    newest = client.list_own_kernels()[0]
    before = len(emulator.journal())
    assert client.list_own_kernels(since=newest.last_run) == [newest]
    assert len(emulator.journal()) == before + 1
