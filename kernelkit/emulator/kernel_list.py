"""Which kernels a list shows, and in which order.

`select_kernels` reads the fields of a ListKernels request [V]: a group (whose kernels), a user, a
text to search for, a source, and an order. Kaggle ranks by votes and views; here every kernel has
the same, so those orders are the order of the latest runs [?].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kernelkit.emulator.fields import RequestFields
from kernelkit.emulator.responses import RequestRefused
from kernelkit.emulator.state import EmulatedKernel

OWN = ("PROFILE",)
OWN_AND_PUBLIC = ("PUBLIC_AND_USERS_PRIVATE",)
PUBLIC = ("", "KERNELS_LIST_VIEW_TYPE_UNSPECIFIED", "EVERYONE")
NONE = ("UPVOTED", "COLLABORATION", "FORK", "BOOKMARKED", "RECENTLY_VIEWED")
"""The names of KernelsListViewType [V]; there are no votes, forks and shared kernels here."""

_ORDERS: dict[str, Callable[[EmulatedKernel], float]] = {
    "DATE_CREATED": lambda kernel: kernel.versions[0].created,
    "DATE_RUN": lambda kernel: kernel.last_run,
}
_RANKS = (
    *("", "HOTNESS", "COMMENT_COUNT", "RELEVANCE", "SCORE_ASCENDING", "SCORE_DESCENDING"),
    *("VIEW_COUNT", "VOTE_COUNT"),
)
"""The names of KernelsListSortType [V]; the first two of `_ORDERS` belong to them."""


def select_kernels(
    kernels: Iterable[EmulatedKernel], account: str, fields: RequestFields
) -> list[EmulatedKernel]:
    """The kernels that a request asks for and the caller may see, newest first.

    Raises RequestRefused for a group, an order or a kind of kernel that is unknown.
    """
    order = fields.text("sortBy")
    if order not in _ORDERS and order not in _RANKS:
        raise RequestRefused(400, "Invalid value for sortBy")
    belongs = _group(account, fields)
    found = [kernel for kernel in kernels if belongs(kernel) and _matches(kernel, fields)]
    return sorted(found, key=_ORDERS.get(order, _ORDERS["DATE_RUN"]), reverse=True)


def _group(account: str, fields: RequestFields) -> Callable[[EmulatedKernel], bool]:
    """Which kernels the request's group and user name. Private ones only the owner sees."""
    group, user = fields.text("group"), fields.text("user").lower()
    if group not in (*OWN, *OWN_AND_PUBLIC, *PUBLIC, *NONE):
        raise RequestRefused(400, "Invalid value for group")

    def belongs(kernel: EmulatedKernel) -> bool:
        owner, private = kernel.owner.lower(), kernel.latest.push.is_private
        mine = owner == account.lower()
        if group in NONE or (user and owner != user):
            return False
        if group in OWN:
            return mine
        return not private or (mine and (group in OWN_AND_PUBLIC or bool(user)))

    return belongs


def _matches(kernel: EmulatedKernel, fields: RequestFields) -> bool:
    push = kernel.latest.push
    for name, value in {"language": push.language, "kernelType": push.kernel_type}.items():
        if fields.text(name) not in ("", "all", value):
            return False
    sources = {
        "competition": push.competitions,
        "dataset": push.datasets,
        "parentKernel": push.kernels,
    }
    for name, names in sources.items():
        if (wanted := fields.text(name)) and wanted not in names:
            return False
    if fields.text("outputType") not in ("", "all", "data"):  # "visualization" needs a picture
        return False
    words = fields.text("search").lower().split()
    text = f"{kernel.title} {kernel.slug}".lower()
    return all(word in text for word in words)
