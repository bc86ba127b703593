"""Short messages through Apprise: a run, a chain or a sweep has ended; the quota gets low.

The address is the value of the environment variable that `notify_env` names. It is a credential:
no message, record or error contains it, and what Apprise says about it is dropped. A message has
slug, version and state, and nothing of the run. A message that cannot be sent is reported and
changes nothing else. Each is sent once: a marker below `runs/` remembers it.

With a local Kaggle, messages go only to addresses of this machine; a rehearsal sends none.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kernelkit.bundle.secrets import declare_credential
from kernelkit.errors import ConfigError, LocalError, require_extra, silent
from kernelkit.kaggle.types import Quota, Status, ignore
from kernelkit.runs.watch import EndedRun
from kernelkit.storage import digest_of_bytes, write_json

if TYPE_CHECKING:
    from kernelkit.campaigns.chain import ChainRecord
    from kernelkit.config import Config
    from kernelkit.runs.store import RunFolder

Heard = TypeVar("Heard")

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Messenger:
    """Sends the messages of a project; without an address it sends none."""

    config: Config
    say: Callable[[str], None] = ignore
    """Hears of a message that could not be sent."""

    address: str = field(default="", repr=False)

    def listening(
        self, on_event: Callable[[Heard], None] = ignore, *, runs: bool = True
    ) -> Callable[[Heard], None]:
        """A listener that passes events on; a message for the end of a run, and a low quota.

        Without `runs`, none for the end of a run: it is a session of a campaign.
        """

        def listen(event: Heard) -> None:
            on_event(event)
            if runs and isinstance(event, EndedRun):
                self.run_ended(event.folder, event.end)
            quota = event if isinstance(event, Quota) else getattr(event, "quota", None)
            if isinstance(quota, Quota):  # a sweep reports it as a part of its state
                self.quota(quota)

        return listen

    def run_ended(self, folder: RunFolder, end: Status) -> None:
        """Say how a run has ended, once."""
        record = folder.read()
        mark = f"v{folder.version}-{(record.push_id or record.digest)[:12]}"
        text = f"{folder.slug} v{folder.version}: {end.word}"
        self._once(folder.path.parent / f".notified-{mark}", text)

    def campaign_ended(self, kind: str, mark: str, state: str) -> None:
        """Say how a chain or a sweep has ended, once for each `mark` and state.

        A campaign that failed may be continued, and then end in another state.
        """
        slug = self.config.kernel.slug
        name = f".notified-{kind}-{digest_of_bytes(f'{mark} {state}'.encode())[:12]}"
        self._once(self._runs / slug / name, f"{slug} {kind}: {state}")

    def chain_ended(self, chain: ChainRecord) -> None:
        """Say how a chain has ended."""
        if chain.last is not None:
            self.campaign_ended("chain", chain.last.mark, chain.word)

    def quota(self, quota: Quota) -> None:
        """Say that the quota is low, once until its refresh."""
        limit = self.config.notify_quota_hours
        if limit and quota.allowed and quota.left < limit:
            until = f"{quota.refresh:%Y-%m-%d}" if quota.refresh else "now"
            text = f"{self.config.kernel.slug}: {quota.left:.1f} GPU hours left"
            self._once(self._runs / f".notified-quota-{until}", text)

    @property
    def _runs(self) -> Path:
        return self.config.project / "runs"

    def _once(self, marker: Path, text: str) -> None:
        """Send a text, unless its marker exists."""
        if not self.address or marker.exists():
            return
        if problem := _send(self.address, text):
            self.say(
                f"warning: the message {text!r} was not sent to ${self.config.notify_env}: "
                f"{problem}"
            )
            return
        try:
            write_json(marker, {"sent": text})
        except LocalError as error:  # a message must not end the command
            self.say(f"warning: the message {text!r} may be sent again: {error}")


def messenger(
    config: Config,
    say: Callable[[str], None] = ignore,
    environment: Mapping[str, str] = os.environ,
) -> Messenger:
    """What sends the messages of this project, if it asks for any.

    Raises:
        ConfigError: Apprise is not installed, or the address is not one that Apprise knows.
    """
    name = config.notify_env
    if not name:
        return Messenger(config, say)
    declare_credential(name)
    require_extra("notify", "apprise")
    address = environment.get(name, "").strip()
    if not address:
        say(f"note: {name} is not set, so no message is sent (notify_env)")
        return Messenger(config, say)
    hosts = _hosts(address)
    if not hosts:
        raise ConfigError(
            f"the value of {name} is not an address that Apprise knows (it is not shown)",
            "Set it to one such as tgram://… or mailto://…, or remove notify_env.",
        )
    if config.endpoint is not None and not LOOPBACK.issuperset(hosts):
        say("note: a local Kaggle sends no messages to other machines (notify_env)")
        return Messenger(config, say)
    return Messenger(config, say, address)


def _hosts(address: str) -> list[str]:
    """The hosts that Apprise would call; empty if it does not know the address."""
    with silent(logging.CRITICAL):  # its records may have parts of the address
        try:
            servers = list(_service(address))
        except Exception:  # whatever it says may quote the address
            return []
        hosts = []
    for server in servers:  # mail can go through another host than the address names
        named = [getattr(server, name, "") for name in ("host", "smtp_host")]
        hosts += [str(name) for name in named if name] or ["a service"]
    return hosts


def _send(address: str, text: str) -> str:
    """Why a text could not be sent; empty if it was."""
    with silent(logging.CRITICAL):  # its records may have parts of the address
        try:
            sent = _service(address).notify(body=text, title="kernelkit")
        except Exception as error:  # its text and its traceback may quote the address
            return f"{type(error).__name__} in Apprise"
    return "" if sent else "the service did not accept it"


def _service(address: str) -> Any:
    import apprise

    asset = apprise.AppriseAsset(app_id="kernelkit", app_desc="kernelkit", async_mode=False)
    service = apprise.Apprise(asset=asset)
    service.add(address)
    return service
