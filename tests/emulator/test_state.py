"""Kaggle's rules, without processes and sockets."""

from dataclasses import replace

import pytest

from kernelkit.emulator.limits import HOUR, AccountLimits, Clock, Machine
from kernelkit.emulator.responses import RequestRefused
from kernelkit.emulator.state import (
    EmulatedKaggle,
    KaggleSettings,
    SaveRequest,
    StoredFile,
    WorkerStatus,
    slugify,
)

PUSH = SaveRequest(
    owner="me",
    slug="my-kernel",
    kernel_id=None,
    title="My Kernel",
    text="{}",
    language="python",
    kernel_type="notebook",
    execution="",
    competitions=(),
    datasets=(),
    kernels=(),
    models=(),
    tags=(),
    is_private=True,
    enable_gpu=False,
    enable_tpu=False,
    enable_internet=False,
    machine_shape="",
    docker_image="",
    timeout=None,
)
GPU = replace(PUSH, machine_shape="NvidiaTeslaT4")
TPU = replace(PUSH, machine_shape="TpuV5E8")


def limits(speed=1.0, quota=30.0):
    """Limits with another clock, or other GPU hours."""
    quotas = {Machine.GPU: quota * HOUR}
    return AccountLimits(quota=quotas, clock=Clock(speed))


@pytest.fixture
def inputs(tmp_path):
    for slug in ("salt", "weights"):
        (tmp_path / "inputs" / slug).mkdir(parents=True)
    return tmp_path / "inputs"


@pytest.fixture
def kaggle(tmp_path, inputs):
    return EmulatedKaggle(tmp_path / "state", inputs)


def refusal(kaggle, push, account="me"):
    with pytest.raises(RequestRefused) as caught:
        kaggle.save(account, push)
    return caught.value.code, str(caught.value)


def done(kaggle, push, status=WorkerStatus.COMPLETE):
    saved = kaggle.save("me", push)
    kaggle.start(saved.version)
    kaggle.finish(saved.version, status, "", ())
    return saved


@pytest.mark.parametrize(
    ("title", "slug"),
    [
        ("TGS Salt: U-Net (v2)", "tgs-salt-u-net-v2"),
        ("  --Déjà vu__ ", "deja-vu"),
        ("盐", ""),
    ],
)
def test_a_title_determines_the_slug(title, slug):
    assert slugify(title) == slug


def test_each_push_is_a_version_of_one_kernel(kaggle):
    first, second = done(kaggle, PUSH), done(kaggle, PUSH)
    assert (first.version.number, second.version.number) == (1, 2)
    assert first.kernel.kernel_id == second.kernel.kernel_id
    assert kaggle.find("me", "me", "my-kernel")[1] is second.version
    assert kaggle.find("me", "me", "my-kernel", "v1")[1] is first.version
    assert kaggle.find("me", "me", "my-kernel/1")[1] is first.version


@pytest.mark.parametrize("label", ["v0", "v2", "1", "v", "latest", "v01", "V1"])
def test_an_unknown_label_is_never_the_latest(kaggle, label):
    done(kaggle, PUSH)
    with pytest.raises(RequestRefused) as caught:
        kaggle.find("me", "me", "my-kernel", label)
    assert caught.value.code == 404


def test_the_slug_follows_the_title(kaggle):
    saved = done(kaggle, replace(PUSH, title="Another Name"))
    assert saved.kernel.slug == "another-name"
    with pytest.raises(RequestRefused):
        kaggle.find("me", "me", "my-kernel")


def test_a_new_title_renames_the_kernel(kaggle):
    first = done(kaggle, PUSH)
    renamed = done(kaggle, replace(PUSH, title="Better Name"))
    assert renamed.kernel is first.kernel
    assert renamed.version.number == 2
    assert kaggle.find("me", "me", "better-name")[0] is first.kernel
    # The old name can be used again for a new kernel, in another folder.
    again = done(kaggle, PUSH)
    assert again.version.number == 1
    assert again.version.folder != first.version.folder


def test_a_used_title_is_refused(kaggle):
    done(kaggle, PUSH)
    assert refusal(kaggle, replace(PUSH, slug="other-kernel"))[0] == 409


def test_the_id_takes_precedence_over_the_slug(kaggle):
    first = done(kaggle, PUSH)
    second = done(kaggle, replace(PUSH, slug="wrong-slug", kernel_id=first.kernel.kernel_id))
    assert second.kernel is first.kernel
    assert refusal(kaggle, replace(PUSH, kernel_id=1))[0] == 404


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"owner": "you"}, 403),
        ({"title": "abcd"}, 400),
        ({"title": "盐盐盐盐盐盐"}, 400),
        ({"slug": "", "title": "A Title"}, 400),
        ({"kernel_type": "script"}, 501),
        ({"language": "r"}, 501),
        ({"execution": "QUICK_SAVE"}, 501),
        ({"text": "x" * 1_000_000}, 400),
        ({"text": "é" * 500_000}, 400),
        ({"text": "\ud800"}, 400),
        ({"timeout": 0}, 400),
    ],
)
def test_invalid_pushes_are_refused(kaggle, change, code):
    assert refusal(kaggle, replace(PUSH, **change))[0] == code


def test_the_size_limit_has_kaggles_message(kaggle):
    assert done(kaggle, replace(PUSH, text="x" * 999_999)).version
    message = "The kernel source must be less than 1 megabytes in size."
    assert refusal(kaggle, replace(PUSH, text="x" * 1_000_000))[1] == message


@pytest.mark.parametrize(
    ("push", "most", "kind"), [(GPU, 2, "GPU"), (PUSH, 5, "CPU"), (TPU, 1, "TPU")]
)
def test_sessions_are_limited(kaggle, push, most, kind):
    saved = [kaggle.save("me", push) for _ in range(most)]
    kaggle.start(saved[0].version)  # both running and queued runs count
    full = kaggle.save("me", push)
    assert full.error == f"Maximum batch {kind} session count of {most} reached."
    assert full.version is None
    assert kaggle.find("me", "me", "my-kernel")[0].latest.number == most
    kaggle.finish(saved[0].version, WorkerStatus.ERROR, "", ())
    assert kaggle.save("me", push).version.number == most + 1


def test_the_session_limit_is_per_account_and_kind(kaggle):
    for _ in range(2):
        kaggle.save("me", GPU)
    assert kaggle.save("me", PUSH).version
    assert kaggle.save("me", replace(PUSH, enable_tpu=True)).version
    assert kaggle.save("you", replace(GPU, owner="you")).version
    assert kaggle.save("me", replace(PUSH, enable_gpu=True)).error


def test_a_used_gpu_quota_refuses_gpu_runs(tmp_path):
    kaggle = EmulatedKaggle(tmp_path, None, KaggleSettings(limits=limits(quota=0)))
    assert kaggle.save("me", GPU).error == "Maximum weekly GPU quota of 0.00 hours reached."
    assert kaggle.save("me", PUSH).version


def test_gpu_seconds_are_counted_and_reserved(kaggle):
    run = kaggle.save("me", replace(GPU, timeout=1000)).version
    assert kaggle.usage("me", Machine.GPU).reserved == 1000
    kaggle.start(run)
    run.started -= 100
    while_it_runs = kaggle.usage("me", Machine.GPU)
    assert 100 <= while_it_runs.used < 110
    assert 890 < while_it_runs.reserved <= 900
    kaggle.finish(run, WorkerStatus.COMPLETE, "", ())
    usage = kaggle.usage("me", Machine.GPU)
    assert 100 <= usage.used < 110
    assert (usage.reserved, usage.allowed) == (0, 30 * HOUR)
    done(kaggle, PUSH)
    assert kaggle.usage("you", Machine.GPU).used == 0
    assert kaggle.usage("me", Machine.TPU).used == 0


def test_a_faster_clock_uses_the_quota_faster(tmp_path):
    """An hour passes in a minute; the limit of 12 hours, too."""
    kaggle = EmulatedKaggle(tmp_path, None, KaggleSettings(limits=limits(speed=60, quota=20)))
    first, second = (kaggle.save("me", GPU).version for _ in range(2))
    assert kaggle.seconds_left(first) == 12 * 60
    kaggle.start(first)
    first.started -= 60
    assert kaggle.usage("me", Machine.GPU).used == pytest.approx(HOUR, abs=300)
    assert kaggle.seconds_left(first) == pytest.approx(11 * 60, abs=5)
    kaggle.start(second)
    second.started -= 60
    # 18 of 20 hours are left for two runs: 9 minutes of this machine for each.
    assert kaggle.seconds_left(second) == pytest.approx(9 * 60, abs=5)
    first.started -= 18 * 60
    assert kaggle.seconds_left(second) == 0
    kaggle.finish(first, WorkerStatus.COMPLETE, "", ())
    assert "weekly GPU quota of 20.00 hours" in kaggle.save("me", GPU).error


def sources(kaggle, **names):
    saved = done(kaggle, replace(PUSH, title="The Reader", **names))
    return {str(m.target): m.source.name for m in saved.version.mounts}, saved.version.dropped


def test_sources_are_mounted_or_dropped(kaggle):
    done(kaggle, PUSH)
    mounts, dropped = sources(
        kaggle,
        competitions=("salt", "sugar", "../inputs", ""),
        datasets=("you/weights", "you/weights/3", "weights", "you/none", "../weights"),
        kernels=("me/my-kernel", "me/none"),
        models=("you/unet/pytorch/base",),
    )
    assert mounts == {
        "competitions/salt": "salt",
        "datasets/you/weights": "weights",
        "notebooks/me/my-kernel": "working",
    }
    assert dropped == {
        "Competition": ["sugar", "../inputs", ""],
        "Dataset": ["weights", "you/none", "../weights"],
        "Kernel": ["me/none"],
        "Model": ["you/unet/pytorch/base"],
    }


def test_old_mounts_are_supported(tmp_path, inputs):
    kaggle = EmulatedKaggle(tmp_path / "state", inputs, KaggleSettings(mounts="old"))
    mounts, _ = sources(kaggle, competitions=("salt",), datasets=("you/weights",))
    assert mounts == {"salt": "salt", "weights": "weights"}


def test_a_kernel_without_a_complete_run_is_no_source(kaggle):
    done(kaggle, PUSH, WorkerStatus.ERROR)
    assert sources(kaggle, kernels=("me/my-kernel",)) == ({}, {"Kernel": ["me/my-kernel"]})


def test_what_a_run_left_when_it_was_cancelled_is_a_source(kaggle):
    """The latest outputs count: here those of a run that was ended after a complete one."""
    done(kaggle, PUSH)
    ended = kaggle.save("me", PUSH).version
    reading = replace(PUSH, slug="the-reader", title="The Reader", kernels=("me/my-kernel",))
    assert "v1" in str(done(kaggle, reading).version.mounts[0].source)
    kaggle.finish(ended, WorkerStatus.CANCEL_ACKNOWLEDGED, "", (StoredFile("part.bin", 1, 0.0),))
    assert done(kaggle, reading).version.mounts[0].source == ended.working.resolve()
    # Without outputs it is passed over.
    kaggle.finish(kaggle.save("me", PUSH).version, WorkerStatus.CANCEL_ACKNOWLEDGED, "", ())
    assert done(kaggle, reading).version.mounts[0].source == ended.working.resolve()


@pytest.mark.parametrize("accepted", [False, True])
def test_a_kernels_own_output_is_dropped_or_mounted(tmp_path, accepted):
    kaggle = EmulatedKaggle(tmp_path / "state", None, KaggleSettings(own_output=accepted))
    own = replace(PUSH, kernels=("me/my-kernel",))
    assert done(kaggle, own).version.dropped == {"Kernel": ["me/my-kernel"]}  # there is none yet
    first = kaggle.find("me", "me", "my-kernel")[1]
    second = done(kaggle, own).version
    mounted = [(str(mount.target), mount.source) for mount in second.mounts]
    if accepted:
        assert mounted == [("notebooks/me/my-kernel", first.working.resolve())]
        assert second.dropped == {}
    else:
        assert (mounted, second.dropped) == ([], {"Kernel": ["me/my-kernel"]})


def test_only_the_owner_finds_a_private_kernel(kaggle):
    done(kaggle, PUSH)
    with pytest.raises(RequestRefused, match=r"kernels\.get"):
        kaggle.find("you", "me", "my-kernel")
    done(kaggle, replace(PUSH, is_private=False))
    assert kaggle.find("you", "me", "my-kernel")


def test_the_last_session_is_one_that_has_started(kaggle):
    """Right after a push, GetKernel shows the machine of the previous version."""
    first = done(kaggle, GPU)
    second = kaggle.save("me", PUSH)
    assert second.kernel.last_session is first.version
    kaggle.start(second.version)
    assert second.kernel.last_session is second.version


def test_log_requests_wait_for_new_lines(kaggle):
    version = kaggle.save("me", PUSH).version
    assert kaggle.wait_log(version, 0, timeout=0) == ([], False)
    entry = {"stream_name": "stdout", "time": 0.5, "data": "hello\n"}
    kaggle.add_log(version, entry)
    assert kaggle.wait_log(version, 0, timeout=0) == ([entry], False)
    kaggle.finish(version, WorkerStatus.COMPLETE, "", ())
    assert kaggle.wait_log(version, 1, timeout=60) == ([], True)
