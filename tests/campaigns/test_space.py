"""The parameters that a sweep varies, as the project file describes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelkit.campaigns.space import Choices, Range, Space, Steps, read_space
from kernelkit.campaigns.sweep_plan import plan_sweep, set_options
from kernelkit.config import load_config
from kernelkit.errors import ConfigError

Make = Callable[..., Path]


def space_of(make_project: Make, parameters: str) -> Space:
    project = make_project({}, extra=f"[tool.kernelkit.sweep.parameters]\n{parameters}")
    return read_space(load_config(project, environment={}))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[1, 2]", [1, 2]),
        ("[0, 1e-4]", [0.0, 1e-4]),
        ("[true, false]", [True, False]),
        ('[["a"], ["a", "b"]]', [["a"], ["a", "b"]]),
        ("{ low = 1, high = 3 }", [1, 2, 3]),
        ("{ low = 1, high = 9, step = 3 }", [1, 4, 7]),
        ("{ low = 0.0, high = 0.5, step = 0.1 }", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        ("{ low = 1e-4, high = 1e-2, log = true }", None),
    ],
)
def test_a_dimension_lists_its_values(make_project: Make, text: str, values: object) -> None:
    (dimension,) = space_of(make_project, f"x = {text}").dimensions.values()
    found = None if dimension.values is None else list(dimension.values)
    assert repr(found) == repr(values)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = { low = 5, high = 1 }", '"x" is empty: low = 5 must be below high = 1'),
        ("x = { low = 0, high = 1, log = true }", "log = true must begin above 0"),
        ("x = { low = 0, high = 1, step = 0.5 }", "for fractions write low = 0.0"),
        ("x = { low = 1, high = 2, log = true, step = 1 }", "leave one of them out"),
        ("x = { low = 1.0, high = 2.0, step = 2.0 }", "at most high - low"),
        ("x = { low = 1, height = 2 }", 'has no key "height"'),
        ("x = { lo = 1, high = 2 }", 'did you mean "low"?'),
        ("x = { low = 1 }", 'is missing "high"'),
        ("x = { low = 1, high = inf }", "must be a finite number"),
        ("x = { low = true, high = 2 }", "low = True: must be a finite number"),
        ("x = { low = 1, high = 99999999999999999999 }", "has whole numbers above"),
        ("x = { low = 0.0, high = 1.0, step = 1e-17 }", "makes more than"),
        ("x = { low = -1e308, high = 1e308 }", "is too wide"),
        ("x = [2020-01-01]", "has the choice 2020-01-01: must be text"),
        ("x = [[0.1, nan], [1.0]]", "has the choice [0.1, nan]"),
        ("x = []", "must have at least one choice"),
        ('x = ["a", 1]', "mixes text and numbers"),
        ("x = [1, true]", "mixes numbers and true or false"),
        ("x = [1, 1.0]", "has the choice 1.0 twice"),
        ("x = 3", "must be a list of choices or a range"),
        ('"class" = [1]', '"class" cannot be the name of a Python argument'),
        ("", "names no parameters"),
    ],
)
def test_what_means_no_dimension_is_explained(make_project: Make, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space_of(make_project, text)
    assert words in str(caught.value)


def test_all_complaints_come_at_once(make_project: Make) -> None:
    with pytest.raises(ConfigError) as caught:
        space_of(make_project, "x = []\ny = 3")
    assert str(caught.value).count("[tool.kernelkit.sweep.parameters]") == 2


def test_a_huge_space_takes_no_memory() -> None:
    space = Space({"a": Range(0.0, 1.0, step=1e-12), "b": Range(1, 10**15), "c": Choices((1, 2))})
    assert space.size == (10**12 + 1) * 10**15 * 2
    assert list(itertools.islice(space.points(), 3)) == [
        {"a": 0.0, "b": 1, "c": 1},
        {"a": 0.0, "b": 1, "c": 2},
        {"a": 0.0, "b": 2, "c": 1},
    ]
    steps = Steps(0.1, 0.5, 0.1)
    assert [steps.nearest(value) for value in (0.0, 0.30000000000000004, 9.0)] == [0.1, 0.3, 0.5]
    assert (steps[-1], steps[1:3]) == (0.5, [0.2, 0.3])


def test_a_grid_has_every_combination_once() -> None:
    space = Space({"a": Choices((1, 2)), "b": Range(1, 3), "c": Choices(("x",))})
    points = list(space.points())
    assert space.size == len(points) == 6
    assert points[:2] == [{"a": 1, "b": 1, "c": "x"}, {"a": 1, "b": 2, "c": "x"}]
    assert len({str(point) for point in points}) == 6
    assert Space({"lr": Range(0.1, 1.0)}).size is None


SWEEP = """
[tool.kernelkit.sweep]
{settings}
[tool.kernelkit.sweep.parameters]
word = ["a", "b"]
count = {{ low = 1, high = 3 }}
"""


@pytest.mark.parametrize(
    ("settings", "keys", "trials", "processes"),
    [
        ('sampler = "grid"', "", 6, 0),
        ('sampler = "grid"\ntrials = 4', "", 4, 0),
        ("trials = 100", "", 6, 0),
        ("trials = 3\nper_gpu = true", "", 3, 2),
        ("trials = 3\nper_gpu = true", 'machine_shape = "NvidiaTeslaT4"', 3, 2),
        ("trials = 3\nper_gpu = true", 'machine_shape = "NvidiaL4"', 3, 4),
        ("trials = 3\nper_gpu = true", 'machine_shape = "NvidiaTeslaP100"', 3, 0),
        ("trials = 3\nper_gpu = true", 'machine_shape = "NvidiaNew9"', 3, 0),
        ("trials = 3\nper_gpu = true", "enable_gpu = true", 3, 0),
    ],
)
def test_the_plan_decides_trials_and_processes(
    make_project: Make, settings: str, keys: str, trials: int, processes: int
) -> None:
    extra = f"{keys}\n{SWEEP.format(settings=settings)}"
    project = make_project({}, keys='metric = "val_loss"', extra=extra)
    plan = plan_sweep(load_config(project, environment={}))
    assert (plan.trials, plan.processes, plan.sessions) == (trials, processes, 2)
    assert plan.search.goal == "minimize"
    unknown = "New9" in keys or "enable_gpu" in keys
    assert ("is taken to have one GPU" in plan.assumption) is unknown


@pytest.mark.parametrize(
    ("keys", "settings", "words"),
    [
        ("", "trials = 3", "declares no metric"),
        ('metric = "val_iou"', "", 'is missing the key "trials"'),
        ('metric = "val_iou"', "trials = 0", '"trials" = 0'),
        ('metric = "val_iou"', 'sampler = "best"', "must be 'tpe', 'random' or 'grid'"),
        ('metric = "val_iou"', "trails = 3", 'has no key "trails"; did you mean "trials"?'),
    ],
)
def test_a_plan_that_lacks_something_is_refused(
    make_project: Make, keys: str, settings: str, words: str
) -> None:
    project = make_project({}, keys=keys, extra=SWEEP.format(settings=settings))
    with pytest.raises(ConfigError) as caught:
        plan_sweep(load_config(project, environment={}))
    assert words in str(caught.value)


def test_a_range_without_steps_has_no_grid(make_project: Make) -> None:
    extra = '[tool.kernelkit.sweep]\nsampler = "grid"\n[tool.kernelkit.sweep.parameters]\n'
    project = make_project(
        {}, keys='metric = "val_iou"', extra=f"{extra}lr = {{ low = 0.1, high = 1.0 }}"
    )
    with pytest.raises(ConfigError, match="lr has a range without a step"):
        plan_sweep(load_config(project, environment={}))


def test_the_best_parameters_can_be_set(make_project: Make) -> None:
    project = make_project({}, extra=SWEEP.format(settings="trials = 3"))
    point = {"word": 'it\'s "b"', "count": 2}
    import shlex

    words = [word for option in set_options(point) for word in shlex.split(option)]
    assert words[::2] == ["--set", "--set"]
    config = load_config(project, settings=words[1::2], environment={})
    assert config.parameters == point
