"""The project as another kernel: the same notebook under another name, with other parameters.

Two sessions of one campaign must not be versions of one kernel while both run, and a kernel cannot
be sure of its own earlier output as an input. So campaigns use several kernels, `<slug>-b` or
`<slug>-lane-1`, `<slug>-lane-2`, ….
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kernelkit.config import CHAIN_SUFFIX, LONGEST_TITLE, derived_name
from kernelkit.errors import ConfigError

if TYPE_CHECKING:
    from kernelkit.config import Config, Parameter
    from kernelkit.runs.manifest import RunAddress


def lane_config(config: Config, suffix: str) -> Config:
    """The project as the kernel `<slug>-<suffix>`, with a title that gives this slug.

    An empty suffix means the project's own kernel. A slug that would be longer than Kaggle accepts
    is shortened; see `derived_name`. All of them have the packages in the same dataset.
    """
    if not suffix:
        return config
    from slugify import slugify  # its tables take 10 ms

    slug = derived_name(config.kernel.slug, suffix)
    title = f"{config.kernel.title} {suffix.replace('-', ' ')}"
    if len(title) > LONGEST_TITLE or slugify(title) != slug:
        title = slug
    owner = f"{config.kernel.owner}/" if config.kernel.owner else ""
    kernel = config.kernel.model_copy(update={"id": f"{owner}{slug}", "title": title})
    return config.model_copy(update={"kernel": kernel, "lane_of": config.kernel.slug})


def session_config(
    config: Config,
    parameters: Mapping[str, Parameter],
    kernel_sources: Sequence[str] = (),
) -> Config:
    """The project with parameters on top of its own, and with further kernels as inputs."""
    sources = tuple(dict.fromkeys([*config.kernel.kernel_sources, *kernel_sources]))
    kernel = config.kernel.model_copy(update={"kernel_sources": sources})
    merged = {**config.parameters, **parameters}
    return config.model_copy(update={"kernel": kernel, "parameters": merged})


def resuming_config(config: Config, run: RunAddress) -> Config:
    """The project as the session that continues from the outputs of a run.

    It is another kernel than the run's, unless the project says that one is enough.

    Raises:
        ConfigError: the entry takes no parameter for the folder of earlier results.
        BundleError: the package cannot be read.
    """
    from kernelkit.runs.resume import accepts_resume

    if not accepts_resume(config):
        raise ConfigError(
            f"{config.entry} takes no parameter {config.resume_parameter!r} for the folder of the "
            "earlier session's outputs",
            f"Add {config.resume_parameter}=None to it, or name another one with resume_parameter.",
        )
    own = run.slug == config.kernel.slug and config.chain == "two kernels"
    lane = lane_config(config, CHAIN_SUFFIX if own else "")
    address = {config.resume_parameter: f"kaggle://input/{run.slug}"}
    return session_config(lane, address, [f"{run.owner}/{run.slug}"])
