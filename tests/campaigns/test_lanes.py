"""The project as another kernel: names that Kaggle accepts and that stay apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from slugify import slugify

from kernelkit.campaigns.lanes import lane_config, session_config
from kernelkit.config import Config, load_config
from kernelkit.workflow import render_kernel


@pytest.fixture
def config(plain: Path) -> Config:
    return load_config(plain, settings=["kernel.id=someone/some-push", "kernel.title=Some Push"])


@pytest.mark.parametrize("suffix", ["b", "lane-1", "lane-12"])
def test_a_lane_has_a_slug_and_a_title_of_its_own(config: Config, suffix: str) -> None:
    lane = lane_config(config, suffix).kernel
    assert lane.id == f"someone/some-push-{suffix}"
    assert lane.title == f"Some Push {suffix.replace('-', ' ')}"


def test_all_lanes_have_the_packages_in_the_same_dataset(config: Config) -> None:
    config = config.model_copy(update={"layout": "dataset"})
    kernels = [render_kernel(lane_config(config, suffix)) for suffix in ("", "b", "lane-1")]
    assert {kernel.manifest.code_dataset for kernel in kernels} == {"some-push-code"}


def test_without_a_suffix_it_is_the_project_itself(config: Config) -> None:
    assert lane_config(config, "") is config


@pytest.mark.parametrize("length", range(43, 51))
def test_long_names_are_shortened_and_stay_apart(config: Config, length: int) -> None:
    lanes = []
    for last in "xy":
        slug = "a" * (length - 3) + f"-b{last}"
        kernel = config.kernel.model_copy(update={"id": slug, "title": slug})
        lanes.append(lane_config(config.model_copy(update={"kernel": kernel}), "lane-1").kernel)
    for lane in lanes:
        assert len(lane.title) <= 50
        assert len(lane.slug) <= 50
        assert slugify(lane.title) == lane.slug
        assert lane.slug.endswith("-lane-1")
    assert lanes[0].slug != lanes[1].slug


def test_a_title_that_would_be_too_long_gives_way_to_the_slug(config: Config) -> None:
    title = "Some   " + " " * 38 + " Push"
    kernel = config.kernel.model_copy(update={"title": title})
    lane = lane_config(config.model_copy(update={"kernel": kernel}), "lane-1").kernel
    assert lane.title == lane.slug == "some-push-lane-1"


def test_a_session_has_parameters_and_sources_on_top(config: Config) -> None:
    session = session_config(config, {"epochs": 7}, ["someone/some-push-b"])
    assert session.parameters == {**config.parameters, "epochs": 7}
    assert session.kernel.kernel_sources == ("someone/some-push-b",)
    assert session.kernel.id == config.kernel.id
