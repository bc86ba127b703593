"""What Kaggle would refuse, or run other than meant, found before anything is sent.

Every check is a pure function from a `Kernel` to the problems it sees; all are shown at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from slugify import slugify

from kernelkit.render import Kernel

SIZE_CAP_BYTES = 1_000_000
"""Kaggle: "The kernel source must be less than 1 megabytes in size.\""""

SIZE_LIMIT_BYTES = (
    900_000  # 1,353,126 were refused and 878,947 accepted: where between is not known
)
SHORTEST_NAME = 5  # characters, of title and slug alike
PLACES = ("input", "working", "temp")  # what `runtime` resolves
P100 = "NvidiaTeslaP100"  # CUDA capability 6.0, for which the image's torch has no code


@dataclass(frozen=True)
class Problem:
    """One thing that stands against a push."""

    subject: str
    """The key or file it is about."""

    message: str
    remedy: str


def check(kernel: Kernel) -> list[Problem]:
    """Every problem of the kernel; an empty list where it may be pushed."""
    return [problem for look in CHECKS for problem in look(kernel)]


def check_size(kernel: Kernel) -> Iterator[Problem]:
    """The source as it is sent, under Kaggle's cap with room to spare."""
    size = len(kernel.payload)
    if size > SIZE_LIMIT_BYTES:
        largest = sorted(kernel.manifest["files"], key=lambda file: -int(file["size"]))[:5]
        names = ", ".join(f"{file['path']} ({file['size']:,} B)" for file in largest)
        yield Problem(
            "notebook",
            f"{size:,} B as it is sent; Kaggle's cap is {SIZE_CAP_BYTES:,} B, and "
            f"{SIZE_LIMIT_BYTES:,} B is what is known to pass",
            f"Move data into a Kaggle dataset, or split the package. The largest files: {names}.",
        )


def check_names(kernel: Kernel) -> Iterator[Problem]:
    """Kaggle makes the slug of a new kernel from its title: both must agree."""
    title, slug = str(kernel.metadata["title"]), kernel.slug
    for subject, name in (("title", title), ("id", slug)):
        if len(name) < SHORTEST_NAME:
            yield Problem(
                subject,
                f'"{name}" has fewer than {SHORTEST_NAME} characters',
                "Choose a longer one.",
            )
    if slugify(title) != slug:
        yield Problem(
            "title",
            f'"{title}" becomes the slug "{slugify(title)}", but the id says "{slug}"',
            f'Set id = "{slugify(title)}", or a title that becomes "{slug}".',
        )


def check_accelerator(kernel: Kernel) -> Iterator[Problem]:
    """A GPU is asked for by name, and by one that the image's torch can use."""
    fields = kernel.manifest["kernel"]
    if fields["enable_gpu"] and not fields["machine_shape"]:
        yield Problem(
            "machine_shape",
            "enable_gpu without a machine_shape gets Kaggle's default GPU, a P100, on which the "
            "image's torch cannot compute",
            'Set machine_shape = "NvidiaTeslaT4".',
        )
    if fields["machine_shape"] == P100:
        yield Problem(
            "machine_shape",
            "the image's torch has no code for a P100: it sees the card, and the first operation "
            "fails",
            'Set machine_shape = "NvidiaTeslaT4".',
        )
    if kernel.manifest["wants_gpu"] and fields["enable_tpu"]:
        yield Problem("enable_tpu", "asks for a TPU beside a GPU", "Choose one of them.")


def check_inputs(kernel: Kernel) -> Iterator[Problem]:
    """Each `kaggle://input/<slug>` among the parameters is a declared source."""
    fields = kernel.manifest["kernel"]
    owned = [*fields["dataset_sources"], *fields["kernel_sources"], *fields["model_sources"]]
    declared = {*fields["competition_sources"]}
    declared |= {source.split("/")[1] for source in owned if "/" in source}
    for name, value in kernel.manifest["parameters"].items():
        for address in _addresses(value):
            place, _, rest = address.partition("/")
            slug = rest.partition("/")[0]
            if place not in PLACES:
                yield Problem(
                    f"parameters.{name}",
                    f"kaggle://{address} is no place of a run",
                    f"There are kaggle://{', kaggle://'.join(PLACES)}.",
                )
            elif place == "input" and slug not in declared:
                yield Problem(
                    f"parameters.{name}",
                    f"wants kaggle://input/{slug}, which is no source of this kernel",
                    "Add it to competition_sources, dataset_sources or kernel_sources.",
                )


def check_sources(kernel: Kernel) -> Iterator[Problem]:
    """Datasets and kernels are named by their owner too: Kaggle drops what it cannot find."""
    fields = kernel.manifest["kernel"]
    for kind, form in (
        ("dataset_sources", r"[^/]+/[^/]+(/\d+)?"),
        ("kernel_sources", r"[^/]+/[^/]+(/\d+)?"),
        ("competition_sources", r"[^/]+"),
        ("model_sources", r"[^/]+/[^/]+/[^/]+/[^/]+/\d+"),
    ):
        for source in fields[kind]:
            if not re.fullmatch(form, source):
                yield Problem(kind, f'"{source}" has not the form {FORMS[kind]}', "Mend the name.")


FORMS = {
    "dataset_sources": "owner/slug",
    "kernel_sources": "owner/slug",
    "competition_sources": "slug",
    "model_sources": "owner/model/framework/instance/version",
}

CHECKS: tuple[Callable[[Kernel], Iterator[Problem]], ...] = (
    check_size,
    check_names,
    check_accelerator,
    check_inputs,
    check_sources,
)


def _addresses(value: Any) -> Iterator[str]:
    """Every `kaggle://` address in a parameter, without that beginning."""
    if isinstance(value, str) and value.startswith("kaggle://"):
        yield value.removeprefix("kaggle://")
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _addresses(item)
    elif isinstance(value, dict):
        yield from _addresses(list(value.values()))
