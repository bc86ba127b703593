"""Kaggle's calls on kernels and accounts: JSON fields in, a response out. No sockets, no rules.

Responses follow the SDK [V]: lowerCamelCase, defaults and empty lists left out, enums by name.
The rules that a call follows are in `state`.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
import secrets
import shutil
import urllib.parse
from collections.abc import Callable

from kernelkit.emulator.fields import JsonObject, RequestFields, answer, iso_time, page_of
from kernelkit.emulator.kernel_list import select_kernels
from kernelkit.emulator.limits import Machine, Usage
from kernelkit.emulator.responses import Reply, RequestRefused
from kernelkit.emulator.runner import SessionRunner
from kernelkit.emulator.state import (
    EmulatedKaggle,
    EmulatedKernel,
    KernelVersion,
    SaveRequest,
    StoredFile,
    WorkerStatus,
    is_account,
)

TOKEN_SECONDS = 12 * 3600
"""Lifetime of an access token, as the client asks for it [V]."""


class KernelsApi:
    """The calls. Each takes the caller's account and the fields of the request."""

    def __init__(
        self, kaggle: EmulatedKaggle, runner: SessionRunner, endpoint: str, user: str
    ) -> None:
        self._kaggle = kaggle
        self._runner = runner
        self._endpoint = endpoint
        self._user = user
        kernels = "kernels.KernelsApiService"
        self.calls: dict[str, Callable[[str, RequestFields], Reply]] = {
            f"{kernels}/SaveKernel": self.save_kernel,
            f"{kernels}/ListKernels": self.list_kernels,
            f"{kernels}/GetKernel": self.get_kernel,
            f"{kernels}/DeleteKernel": self.delete_kernel,
            f"{kernels}/GetKernelSessionStatus": self.session_status,
            f"{kernels}/ListKernelSessionOutput": self.list_output,
            f"{kernels}/ListKernelFiles": self.list_files,
            f"{kernels}/DownloadKernelOutput": self.download_output,
            f"{kernels}/GetAcceleratorQuotaStatistics": self.quota,
            f"{kernels}/CancelKernelSession": self.cancel_session,
            "security.OAuthService/IntrospectToken": self.introspect_token,
            "users.AccountService/GenerateAccessToken": self.generate_access_token,
        }

    def save_kernel(self, account: str, fields: RequestFields) -> Reply:
        """Push a version and start its run."""
        saved = self._kaggle.save(account, _save_request(account, fields))
        if saved.kernel is None or saved.version is None:
            return answer(error=saved.error)
        self._runner.launch(saved.version)
        path = f"/code/{saved.kernel.owner}/{saved.kernel.slug}"
        dropped = {f"invalid{k}Sources": names for k, names in saved.version.dropped.items()}
        return answer(
            ref=path,
            url=self._endpoint + path,
            versionNumber=saved.version.number,
            kernelId=saved.kernel.kernel_id,
            **dropped,
        )

    def get_kernel(self, account: str, fields: RequestFields) -> Reply:
        """Metadata and source; without a source for a kernel that only the inputs folder has."""
        try:
            kernel, version = self._find(account, fields)
        except RequestRefused:
            owner, slug = fields.text("userName"), fields.text("kernelSlug")
            if fields.text("versionLabel") or not self._kaggle.given_outputs(owner, slug):
                raise
            details = {"ref": f"{owner}/{slug}", "title": slug, "author": owner, "slug": slug}
            return answer(metadata=JsonObject(**details), blob=JsonObject(slug=slug))
        push = version.push
        names = {"language": push.language, "kernelType": push.kernel_type}
        blob = {"source": _source_with_metadata(push), "slug": kernel.slug, **names}
        return answer(metadata=_metadata(kernel, version), blob=blob)

    def list_kernels(self, account: str, fields: RequestFields) -> Reply:
        """A page of the kernels that the caller may see, in the order that it asks for."""
        found = select_kernels(self._kaggle.listed(), account, fields)
        names = ("group", "user", "search", "sortBy", "competition", "dataset", "parentKernel")
        listing = " ".join(["kernels", account, *(fields.text(name) for name in names)])
        page, token = page_of(found, listing, fields)
        # Every entry shows the kernel's current version, and when its latest run began [A].
        kernels = [_metadata(k, k.latest) | {"lastRunTime": iso_time(k.last_run)} for k in page]
        return answer(kernels=kernels, nextPageToken=token)

    def delete_kernel(self, account: str, fields: RequestFields) -> Reply:
        """Delete a kernel at once with all versions and outputs; its runs end, and their billing.

        A deleted kernel stays listed for a while, and its status answers 404 [A].
        """
        owner, slug = fields.text("userName"), fields.text("kernelSlug")
        kernel = self._kaggle.delete(account, owner, slug)
        self._runner.end_all(kernel.versions)
        shutil.rmtree(kernel.folder, ignore_errors=True)
        return answer()

    def session_status(self, account: str, fields: RequestFields) -> Reply:
        """Kaggle answers `{}` for a queued run [A]: QUEUED is the default of the enum."""
        version = self._find(account, fields)[1]
        status = "" if version.status is WorkerStatus.QUEUED else version.status
        return answer(status=status, failureMessage=version.failure)

    def list_output(self, account: str, fields: RequestFields) -> Reply:
        """A page of output files. The log (so far, while it runs) is part of every page [?]."""
        version = self._find(account, fields)[1]
        outputs, token = page_of(version.outputs, str(version.session_id), fields)
        files = [
            {"url": self._download_url(version, o), "fileName": _readable(o.name)} for o in outputs
        ]
        log = json.dumps(list(version.log)) if version.log else ""
        return answer(nextPageToken=token, files=files, log=log)

    def list_files(self, account: str, fields: RequestFields) -> Reply:
        """A page of output files with their sizes."""
        version = self._find(account, fields)[1]
        outputs, token = page_of(version.outputs, str(version.session_id), fields)
        files = [
            JsonObject(
                name=_readable(o.name), creationDate=iso_time(o.modified), size=o.size or None
            )
            for o in outputs
        ]
        return answer(nextPageToken=token, files=files)

    def download_output(self, account: str, fields: RequestFields) -> Reply:
        """A redirection to the file. Without `filePath` Kaggle sends a zip: not emulated."""
        path, number = fields.text("filePath"), fields.number("versionNumber")
        if not path:
            raise RequestRefused(501, "unimplemented: DownloadKernelOutput without filePath")
        owner, slug = fields.text("ownerSlug"), fields.text("kernelSlug")
        label = f"v{number}" if number is not None else ""
        version = self._kaggle.find(account, owner, slug, label)[1]
        for output in version.outputs:
            if _readable(output.name) == path:
                return Reply(302, headers={"Location": self._download_url(version, output)})
        raise RequestRefused(404, "Not found")

    def quota(self, account: str, _: RequestFields) -> Reply:
        """Used, reserved and allowed accelerator time."""
        gpu = self._kaggle.usage(account, Machine.GPU)
        tpu = self._kaggle.usage(account, Machine.TPU)
        refresh = iso_time(math.ceil(gpu.refresh))
        return answer(quotaRefreshTime=refresh, gpuQuota=_quota(gpu), tpuQuota=_quota(tpu))

    def cancel_session(self, account: str, fields: RequestFields) -> Reply:
        """End a run. For one that is unknown or has ended, a 200 with an `errorMessage` [A]."""
        number = fields.number("kernelSessionId")
        version = self._kaggle.session(account, number) if number is not None else None
        if version is None:
            return answer(errorMessage=f"Kernel session {number} was not found")
        if version.status.has_ended or not self._runner.cancel(version):
            return answer(errorMessage=f"Kernel session {number} has already ended")
        return answer()

    def generate_access_token(self, account: str, fields: RequestFields) -> Reply:
        """A new token, for any refresh token or for a caller who is signed in [V]."""
        if not fields.text("refreshToken") and not account:
            raise RequestRefused(401, "Unauthorized access")
        token = f"access-{secrets.token_hex(16)}"
        return answer(token=token, expiresIn=TOKEN_SECONDS, userName=self._user, userId=1)

    def introspect_token(self, _: str, fields: RequestFields) -> Reply:
        """Every token is valid and belongs to the emulator's user."""
        if not fields.text("token"):
            return answer()
        return answer(active=True, username=self._user, userId=1, clientId="local")

    def account(self, authorization: str) -> str:
        """The caller, by the Authorization header. Any key is valid; names are checked."""
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() == "bearer" and value.strip():
            return self._user
        if scheme.lower() == "basic":
            name, colon, key = _from_base64(value).partition(":")
            if colon and key and is_account(name):
                return name
        raise RequestRefused(401, "Unauthorized access")

    def _find(self, account: str, fields: RequestFields) -> tuple[EmulatedKernel, KernelVersion]:
        owner, slug = fields.text("userName"), fields.text("kernelSlug")
        return self._kaggle.find(account, owner, slug, fields.text("versionLabel"))

    def _download_url(self, version: KernelVersion, output: StoredFile) -> str:
        name = urllib.parse.quote(os.fsencode(output.name))
        return f"{self._endpoint}/download/{version.download_key}/{name}"


def _save_request(account: str, fields: RequestFields) -> SaveRequest:
    owner, _, slug = fields.text("slug").rpartition("/")
    return SaveRequest(
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


def _metadata(kernel: EmulatedKernel, version: KernelVersion) -> JsonObject:
    """`machineShape` is that of the last session: right after a push, of the previous version [V].

    Only accepted sources are listed; a dropped one is not attached.
    """
    push, dropped, session = version.push, version.dropped, kernel.last_session
    requested = {
        "Competition": push.competitions,
        "Dataset": push.datasets,
        "Kernel": push.kernels,
        "Model": push.models,
    }
    sources = {
        f"{kind.lower()}DataSources": [name for name in names if name not in dropped.get(kind, [])]
        for kind, names in requested.items()
    }
    return JsonObject(
        id=kernel.kernel_id,
        ref=f"{kernel.owner}/{kernel.slug}",
        title=kernel.title,
        author=kernel.owner,
        slug=kernel.slug,
        language=push.language,
        kernelType=push.kernel_type,
        isPrivate=push.is_private,
        enableGpu=push.machine is Machine.GPU,
        enableTpu=push.machine is Machine.TPU,
        enableInternet=push.enable_internet,
        currentVersionNumber=kernel.latest.number,
        categoryIds=list(push.tags),
        dockerImage=push.docker_image,
        lastRunTime=iso_time(session.started) if session and session.started is not None else "",
        machineShape=session.push.accelerator if session else "",
        **sources,
    )


def _source_with_metadata(push: SaveRequest) -> str:
    """The source with the `metadata.kaggle` block that Kaggle adds [A]."""
    try:
        notebook = json.loads(push.text)
        notebook["metadata"]["kaggle"] = {
            "accelerator": push.accelerator or "none",
            "dataSources": [],
            "isGpuEnabled": push.machine is Machine.GPU,
            "isInternetEnabled": push.enable_internet,
            "language": push.language,
            "sourceType": push.kernel_type,
        }
    except (ValueError, KeyError, TypeError):
        return push.text  # not a notebook; its run will report that
    return json.dumps(notebook)


def _quota(usage: Usage) -> JsonObject:
    times = {
        "timeUsed": usage.used,
        "timeReserved": usage.reserved,
        "totalTimeAllowed": usage.allowed,
    }
    seconds = {name: f"{round(time)}s" for name, time in times.items()}
    return JsonObject(**seconds, hasEverRun=True if usage.used else None)


def _readable(name: str) -> str:
    """A file name that JSON can carry: bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(name).decode("utf-8", "replace")


def _from_base64(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
