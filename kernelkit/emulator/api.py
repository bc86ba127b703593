"""Kaggle's calls: JSON fields in, JSON out. No sockets and no rules.

Answers follow the SDK [V]: lowerCamelCase, defaults and empty lists left out (a null list crashes
the client), enums by name. What a call asks for and means is `state`'s business.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import datetime as dt
import json
import os
import secrets
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kernelkit.emulator.delivery import Manner, Part
from kernelkit.emulator.runner import Runner
from kernelkit.emulator.state import (
    Kaggle,
    Kernel,
    OutputFile,
    Push,
    Refusal,
    Status,
    Version,
    is_account,
)

PAGE, MAX_PAGE = 20, 200
"""Output files a page: default and most [D]."""

TOKEN_SECONDS = 12 * 3600
"""An access token's life, as the client asks for it [V]."""

Json = dict[str, Any]
T = TypeVar("T")


class Fields:
    """A request's fields with their types checked. Unknown ones are ignored, as Kaggle does."""

    def __init__(self, fields: Json) -> None:
        self._fields = fields

    def text(self, name: str) -> str:
        """A string; empty where it is missing."""
        return self._typed(name, str, "")

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        return self._typed(name, bool, default)

    def number(self, name: str) -> int | None:
        """An integer."""
        value = self._typed(name, int, -1) if self._fields.get(name) is not None else None
        if isinstance(value, bool):
            raise Refusal(400, f"Invalid value for {name}")
        return value

    def names(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        values = self._typed(name, list, [])
        if not all(isinstance(value, str) for value in values):
            raise Refusal(400, f"Invalid value for {name}")
        return tuple(values)

    def inner(self, name: str) -> Fields:
        """An object's fields; none where it is missing."""
        return Fields(self._typed(name, dict, {}))

    def items(self, name: str) -> list[Fields]:
        """A list of objects."""
        values = self._typed(name, list, [])
        if not all(isinstance(value, dict) for value in values):
            raise Refusal(400, f"Invalid value for {name}")
        return [Fields(value) for value in values]

    def _typed(self, name: str, kind: type[T], default: T) -> T:
        value = self._fields.get(name)
        if value is None:
            return default
        if not isinstance(value, kind):
            raise Refusal(400, f"Invalid value for {name}")
        return value


@dataclass(frozen=True)
class Reply:
    """A whole answer. A body of strings is a stream: each leaves when it is there."""

    code: int
    body: bytes | Part | Iterator[str] = b""
    headers: dict[str, str] = field(default_factory=dict)
    manner: Manner = field(default_factory=Manner)


class Api:
    """The calls. Each takes the caller's account and the fields, and gives an answer's JSON."""

    def __init__(self, kaggle: Kaggle, runner: Runner, endpoint: str, user: str) -> None:
        self._kaggle = kaggle
        self._runner = runner
        self._endpoint = endpoint
        self._user = user
        self.calls: dict[str, Callable[[str, Fields], Json | Reply]] = {
            "kernels.KernelsApiService/SaveKernel": self.save_kernel,
            "kernels.KernelsApiService/GetKernel": self.get_kernel,
            "kernels.KernelsApiService/GetKernelSessionStatus": self.session_status,
            "kernels.KernelsApiService/ListKernelSessionOutput": self.list_output,
            "kernels.KernelsApiService/ListKernelFiles": self.list_files,
            "kernels.KernelsApiService/DownloadKernelOutput": self.download_output,
            "kernels.KernelsApiService/GetAcceleratorQuotaStatistics": self.quota,
            "kernels.KernelsApiService/CancelKernelSession": self.cancel_session,
            "security.OAuthService/IntrospectToken": self.introspect_token,
            "users.AccountService/GenerateAccessToken": self.generate_access_token,
        }

    def save_kernel(self, account: str, fields: Fields) -> Json:
        """Push: the new version starts at once."""
        saved = self._kaggle.save(account, _push(account, fields))
        if saved.kernel is None or saved.version is None:
            return {"error": saved.error}
        self._runner.launch(saved.version)
        path = f"/code/{saved.kernel.owner}/{saved.kernel.slug}"
        answer: Json = {
            "ref": path,
            "url": self._endpoint + path,
            "versionNumber": saved.version.number,
            "kernelId": saved.kernel.kernel_id,
        }
        dropped = saved.version.dropped
        return answer | {f"invalid{kind}Sources": names for kind, names in dropped.items()}

    def get_kernel(self, account: str, fields: Fields) -> Json:
        """Metadata and source."""
        kernel, version = self._find(account, fields)
        push = version.push
        source = _as_read_back(push)
        names = {"language": push.language, "kernelType": push.kernel_type}
        blob = {"source": source, "slug": kernel.slug, **names}
        return {"metadata": _metadata(kernel, version), "blob": blob}

    def session_status(self, account: str, fields: Fields) -> Json:
        """Production answers `{}` for a queued run [A]: QUEUED is the enum's default."""
        version = self._find(account, fields)[1]
        answer: Json = {} if version.status is Status.QUEUED else {"status": version.status}
        return answer | ({"failureMessage": version.failure} if version.failure else {})

    def list_output(self, account: str, fields: Fields) -> Json:
        """A page of output files; the log (so far, while it runs) comes with every page [?]."""
        version = self._find(account, fields)[1]
        outputs, answer = _page(version, fields)
        if outputs:
            answer["files"] = [
                {"url": self._download_url(version, o), "fileName": _readable(o.name)}
                for o in outputs
            ]
        return answer | ({"log": json.dumps(list(version.log))} if version.log else {})

    def list_files(self, account: str, fields: Fields) -> Json:
        """A page of output files with their sizes."""
        outputs, answer = _page(self._find(account, fields)[1], fields)
        if outputs:
            answer["files"] = [
                {"name": _readable(o.name), "creationDate": iso(o.modified)}
                | ({"size": o.size} if o.size else {})
                for o in outputs
            ]
        return answer

    def download_output(self, account: str, fields: Fields) -> Reply:
        """A redirection to the file. Without `filePath` Kaggle would give a zip: not emulated."""
        path, number = fields.text("filePath"), fields.number("versionNumber")
        if not path:
            raise Refusal(501, "unimplemented: DownloadKernelOutput without filePath")
        owner, slug = fields.text("ownerSlug"), fields.text("kernelSlug")
        label = f"v{number}" if number is not None else ""
        version = self._kaggle.find(account, owner, slug, label)[1]
        for output in version.outputs:
            if _readable(output.name) == path:
                return Reply(302, headers={"Location": self._download_url(version, output)})
        raise Refusal(404, "Not found")

    def quota(self, account: str, _: Fields) -> Json:
        """Used and allowed accelerator time."""
        quota = self._kaggle.quota(account)
        return {
            "quotaRefreshTime": quota.refresh.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "gpuQuota": _quota(quota.gpu_used, quota.gpu_allowed),
            "tpuQuota": _quota(quota.tpu_used, quota.tpu_allowed),
        }

    def cancel_session(self, account: str, fields: Fields) -> Json:
        """End a run. One that has ended, or is unknown, is an `errorMessage` in a 200 [A]."""
        number = fields.number("kernelSessionId")
        version = self._kaggle.session(account, number) if number is not None else None
        if version is None:
            return {"errorMessage": f"Kernel session {number} was not found"}
        if version.status.over or not self._runner.cancel(version):
            return {"errorMessage": f"Kernel session {number} has already ended"}
        return {}

    def generate_access_token(self, _: str, __: Fields) -> Json:
        """A new token for a refresh token [V]; every refresh token is good."""
        token = {"token": f"access-{secrets.token_hex(16)}", "expiresIn": TOKEN_SECONDS}
        return {**token, "userName": self._user, "userId": 1}

    def introspect_token(self, _: str, fields: Fields) -> Json:
        """Every token is good, and belongs to the emulator's user."""
        if not fields.text("token"):
            return {}
        return {"active": True, "username": self._user, "userId": 1, "clientId": "local"}

    def account(self, authorization: str) -> str:
        """Who calls, by the Authorization header. Keys are not checked, names are."""
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() == "bearer" and value.strip():
            return self._user
        if scheme.lower() == "basic":
            with_key = _from_base64(value)
            name, colon, key = with_key.partition(":")
            if colon and key and is_account(name):
                return name
        raise Refusal(401, "Unauthorized access")

    def _find(self, account: str, fields: Fields) -> tuple[Kernel, Version]:
        owner, slug = fields.text("userName"), fields.text("kernelSlug")
        return self._kaggle.find(account, owner, slug, fields.text("versionLabel"))

    def _download_url(self, version: Version, output: OutputFile) -> str:
        name = urllib.parse.quote(os.fsencode(output.name))
        return f"{self._endpoint}/download/{version.download_key}/{name}"


def _push(account: str, fields: Fields) -> Push:
    owner, _, slug = fields.text("slug").rpartition("/")
    return Push(
        owner=owner or account,
        slug=slug.lower(),
        kernel_id=fields.number("id"),
        title=fields.text("newTitle"),
        text=fields.text("text"),
        language=fields.text("language"),
        kernel_type=fields.text("kernelType"),
        execution=fields.text("kernelExecutionType"),
        competitions=fields.names("competitionDataSources"),
        datasets=fields.names("datasetDataSources"),
        kernels=fields.names("kernelDataSources"),
        models=fields.names("modelDataSources"),
        tags=fields.names("categoryIds"),
        is_private=fields.flag("isPrivate", True),
        enable_gpu=fields.flag("enableGpu", False),
        enable_tpu=fields.flag("enableTpu", False),
        enable_internet=fields.flag("enableInternet", False),
        machine_shape=fields.text("machineShape"),
        docker_image=fields.text("dockerImage"),
        timeout=fields.number("sessionTimeoutSeconds"),
    )


def _metadata(kernel: Kernel, version: Version) -> Json:
    """`machineShape` is that of the last session: right after a push, of the version before [V]."""
    push, session = version.push, kernel.last_session
    record: Json = {
        "id": kernel.kernel_id,
        "ref": f"{kernel.owner}/{kernel.slug}",
        "title": kernel.title,
        "author": kernel.owner,
        "slug": kernel.slug,
        "language": push.language,
        "kernelType": push.kernel_type,
        "isPrivate": push.is_private,
        "enableGpu": push.wants_gpu,
        "enableTpu": push.enable_tpu,
        "enableInternet": push.enable_internet,
        "currentVersionNumber": kernel.latest.number,
        "categoryIds": list(push.tags),
        "dockerImage": push.docker_image,
        **_data_sources(version),
    }
    if session is not None and session.started is not None:
        record["lastRunTime"] = iso(session.started)
        record["machineShape"] = session.push.accelerator
    return {name: value for name, value in record.items() if value not in ("", [])}


def _data_sources(version: Version) -> Json:
    """Those that were accepted: a dropped source is not attached."""
    push, dropped = version.push, version.dropped
    asked = {
        "Competition": push.competitions,
        "Dataset": push.datasets,
        "Kernel": push.kernels,
        "Model": push.models,
    }
    return {
        f"{kind.lower()}DataSources": [name for name in names if name not in dropped.get(kind, [])]
        for kind, names in asked.items()
    }


def _as_read_back(push: Push) -> str:
    """The source with the `metadata.kaggle` block that Kaggle puts in [A]."""
    try:
        notebook = json.loads(push.text)
        notebook["metadata"]["kaggle"] = {
            "accelerator": push.accelerator or "none",
            "dataSources": [],
            "isGpuEnabled": push.wants_gpu,
            "isInternetEnabled": push.enable_internet,
            "language": push.language,
            "sourceType": push.kernel_type,
        }
    except (ValueError, KeyError, TypeError):
        return push.text  # not a notebook; its run will say so
    return json.dumps(notebook)


def _page(version: Version, fields: Fields) -> tuple[tuple[OutputFile, ...], Json]:
    """The files of the page that is asked for, and an answer that names the next one.

    A token belongs to its version: the next page is of the run whose first page was read.
    """
    size = min(fields.number("pageSize") or PAGE, MAX_PAGE)
    if size < 1:
        raise Refusal(400, "Invalid value for pageSize")
    start = _page_start(version, fields.text("pageToken"))
    end = start + size
    more = end < len(version.outputs)
    return version.outputs[start:end], {"nextPageToken": _page_token(version, end)} if more else {}


def _page_token(version: Version, start: int) -> str:
    """Opaque: the official client passes it on a command line, so letters and digits only."""
    text = f"{version.session_id}:{start}"
    return base64.b16encode(text.encode()).decode()


def _page_start(version: Version, token: str) -> int:
    if not token:
        return 0
    with contextlib.suppress(ValueError):
        session, start = base64.b16decode(token).decode().split(":")
        if session == str(version.session_id) and start.isdecimal():
            return int(start)
    raise Refusal(400, "Invalid page token")


def _quota(used: float, allowed: float) -> Json:
    times = {"timeUsed": used, "timeReserved": 0.0, "totalTimeAllowed": allowed}
    answer: Json = {name: f"{round(seconds)}s" for name, seconds in times.items()}
    return answer | ({"hasEverRun": True} if used else {})


def iso(seconds: float) -> str:
    """A moment (seconds since the epoch) as it travels."""
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _readable(name: str) -> str:
    """A file's name as JSON can hold it: bytes that are no UTF-8 become U+FFFD."""
    return os.fsencode(name).decode("utf-8", "replace")


def _from_base64(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
