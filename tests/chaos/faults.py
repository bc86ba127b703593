"""The faults that tests can inject into the local Kaggle.

`--fault NAME[,key=value]...` on the command line, or a list of the same words as JSON to
`POST /emulator/faults` while it runs (or objects with `fault` and the keys). `DELETE
/emulator/faults` removes all faults. A fault strikes requests; these keys are common to all:

    call=M1+M2   the calls it strikes: a method's name (SaveKernel, GetKernel, …), Log, Download,
                 Upload, or any; each fault has its own default
    at=N         the N-th matching request is the first to be struck (1)
    times=N      how many are struck; 0: all that follow (1, unless the table says otherwise)
    chance=P     each of them is struck with this probability, drawn from the seed, the fault's
                 name, the call and the request's number among the matching ones (1)
    lasting=S    from the first one, all matching requests of S seconds are struck; overrides
                 `times`
    account=A    only requests of this account; a download belongs to the owner of its kernel
    kernel=K     only requests about the kernel with this slug

A mark says whether the real Kaggle does this: [V] verified in the client's source, [D] documented,
[A] anecdotal, [?] any server and network can do it, without a report about Kaggle.

    fault                calls        its keys and their defaults; what it does
    -------------------  -----------  ----------------------------------------------------------
    forbidden            status       code=403: status is refused right after a push (or 404) [A]
    stale-status         status       the state of the previous version is returned [A]
    stale-kernel         GetKernel    shows the previous version; the new one, pinned, is 404 [A]
    queued               status       `{}`, whatever the state of the run [A]
    lost-before          SaveKernel   reset=false: the connection ends, nothing is done [?]
    lost-after           SaveKernel   reset=false: the request is done, but the connection ends [?]
    reset                any          when=before: the connection is reset (RST) [?]
    timeout              any          seconds=120 when=before: the response comes so much later [?]
    server-error         any          code=502 when=before: an error of 500 to 599, as JSON [A]
    rate-limit           any          form=seconds retry_after=1 when=before: 429 with Retry-After
                                      as seconds or as a date, or without it (form=none) [A]
    html                 any          code=200 when=before: a web page instead of JSON [A]
    error-in-200         any          code=404 message=… when=before: an error, with HTTP 200 [V]
    save-error           SaveKernel   message=…: `error` inside a 200; no version is made [V]
    session-cap          SaveKernel   kind=GPU: the message for too many sessions [A]
    quota                SaveKernel   the message for a used quota [A]
    quota-used           quota        the week's GPU hours are used up (times=0) [?]
    dropped-source       SaveKernel   kind=all reported=true: sources are dropped and the run starts
                                      without; kind is competition, dataset, kernel or model [A];
                                      reported=false: the response does not say so [?]
    other-machine        GetKernel    shape=NvidiaTeslaP100: shows another machine for a session
                                      that has started; shape= (empty): a CPU (times=0) [A]
    public               SaveKernel   a kernel that should be private becomes public [?]
    internet-flipped     SaveKernel   internet is on if it was not requested, else off [A]
    stream-cut           Log          entries=1 bytes=0 reset=false: the stream breaks off after so
                                      many entries, or after so many bytes if given [A]
    stream-replayed      Log          entries=1: after them the log starts again [A]
    stream-endless       Log          the stream ends without END_OF_LOG [A]
    stream-silent        Log          entries=1 seconds=30: after them nothing is sent, not even
                                      comments [A]
    pages                listing      size=1: so many files a page, always (times=0) [?]
    page-circle          listing      the last page names the first as the next (times=0) [?]
    expired-url          Download     uses=1 seconds=0 code=403 form=xml: addresses work so many
                                      times (0: any number) and so long (0: forever), then return an
                                      error page; listing again makes new ones (times=0) [?]
    download-cut         Download     bytes=1000 reset=false: the connection ends after them [?]
    download-slow        Download     rate=10000: bytes a second (times=0) [?]
    download-short       Download     bytes=1000: the file ends there, as if it were complete [?]
    wrong-length         Download     by=10: Content-Length is so much too large, or too small [?]
    error-page           Download     a web page with 200 in place of the file [A]
    etag-changes         Download     every response has another ETag (times=0) [?]
    no-range             Download     Range is ignored: the whole file is sent (times=0) [?]
    hostile-names        listing      kind=all: the listing has entries that would leave the folder,
                                      or that some systems cannot store; they can be downloaded;
                                      kind is parent, absolute, drive, reserved, case, long,
                                      backslash, control, dots or nested (times=0) [A]
    server-dies          any          seconds=2 when=before: all connections are cut, the port
                                      is refused, and then it listens again; runs go on [?]
    expired-credentials  any          seconds=0: from the struck request (or so long after its
                                      first use) this token or key is 401; others are valid [V]
    run-cancelled        SaveKernel   seconds=0 outputs=gone message=…: the run ends
                                      CANCEL_ACKNOWLEDGED after so many seconds (0: at its own end)
                                      with this message; outputs=kept keeps its outputs [A]
    run-error            SaveKernel   seconds=0 outputs=gone message=…: the same, with ERROR [A]
    run-timed-out        SaveKernel   seconds=0 outputs=kept message=…: the same, with the message
                                      of a run that has reached its limit [A]

status is GetKernelSessionStatus, quota GetAcceleratorQuotaStatistics, listing
ListKernelSessionOutput and ListKernelFiles. With `when=after` the request is carried out. A fault
that shows the previous version strikes only if there is one; stream faults strike only
while the run goes on. Faults of downloads can strike other calls as well.
"""

# ruff: noqa: ARG002
# The table above describes each fault; all `before` and `after` have one signature.

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import email.utils
import json
import random
import secrets
import threading
import time
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

from kernelkit.emulator.responses import ConnectionDropped, RequestRefused
from kernelkit.emulator.runner import TIMED_OUT, ForcedEnd, SessionRunner
from kernelkit.emulator.server import ApiCall
from kernelkit.emulator.state import EmulatedKaggle, EmulatedKernel, KernelVersion, WorkerStatus
from tests.chaos.throttle import FaultyReply, Throttle

ANY = "any"
STATUS, QUOTA = "GetKernelSessionStatus", "GetAcceleratorQuotaStatistics"
LISTING = "ListKernelSessionOutput+ListKernelFiles"
KINDS = ("competition", "dataset", "kernel", "model")
CONTROL = ("call", "at", "times", "chance", "lasting", "account", "kernel")
"""The keys that every fault has."""

When = Literal["before", "after"]
_HTML = b"<!DOCTYPE html><html><head><title>Kaggle</title></head><body>We'll be back</body></html>"
_XML = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>ExpiredToken</Code>"
    b"<Message>The provided token has expired.</Message></Error>"
)

_HOSTILE = b"hostile\n"
_FIRST_PAGE = "C1C1E"


class FaultError(Exception):
    """There is no such fault; the message says why, and what there is."""


class ReplaceResponse(Exception):
    """Respond with `reply` and do not carry out the request."""

    def __init__(self, reply: FaultyReply) -> None:
        super().__init__("a fault replaces the response")
        self.reply = reply


@dataclass(frozen=True)
class FaultContext:
    """The parts of the local Kaggle that faults use."""

    kaggle: EmulatedKaggle
    runner: SessionRunner
    endpoint: str
    go_down: Callable[[float], None]

    def find(self, call: ApiCall) -> tuple[EmulatedKernel, KernelVersion] | None:
        """The kernel and the version of a call, if they exist."""
        owner, _, slug = call.fields.get("slug", "").rpartition("/")
        owner = owner or call.fields.get("userName", "") or call.account
        slug = slug or call.fields.get("kernelSlug", "")
        label = call.fields.get("versionLabel", "")
        with contextlib.suppress(RequestRefused, AttributeError, TypeError):
            return self.kaggle.find(call.account, owner, slug, label)
        return None


@dataclass(kw_only=True)
class Fault:
    """A fault: the requests that it strikes, and three places to act.

    `before` and `after` are called around the effect. They may wait or raise ConnectionDropped;
    `before` may raise ReplaceResponse. `events` changes a log stream.
    """

    name: ClassVar[str]
    call: str = ANY
    at: int = 1
    times: int = 1
    chance: float = 1.0
    lasting: float = 0.0
    account: str = ""
    kernel: str = ""

    _seen: int = field(default=0, init=False, repr=False)
    _hits: int = field(default=0, init=False, repr=False)
    _until: float | None = field(default=None, init=False, repr=False)

    def strikes(self, call: ApiCall, context: FaultContext, seed: int) -> bool:
        """Count a request and decide whether it is struck. The schedule holds its lock."""
        if not self.matches(call, context):
            return False
        self._seen += 1
        if self._until is not None:
            return time.monotonic() < self._until
        if self._seen < self.at or (self.times and self._hits >= self.times):
            return False
        if self.chance < 1:
            draw = random.Random(f"{seed}:{self.name}:{call.method}:{self._seen}").random()
            if draw >= self.chance:
                return False
        self._hits += 1
        if self.lasting:
            self._until = time.monotonic() + self.lasting
        return True

    def matches(self, call: ApiCall, context: FaultContext) -> bool:
        """Whether this request is counted."""
        return (
            (self.call == ANY or call.method in self.call.split("+"))
            and self.account in ("", call.account)
            and self.kernel in ("", call.kernel)
        )

    def before(self, call: ApiCall, context: FaultContext) -> None:
        """Before the request is carried out."""

    def after(self, call: ApiCall, context: FaultContext, reply: FaultyReply) -> FaultyReply:
        """After it was carried out: the response to send."""
        return reply

    def events(self, events: Iterator[str]) -> Iterator[str]:
        """The log stream to send."""
        return events


FAULTS: dict[str, type[Fault]] = {}
F = TypeVar("F", bound=Fault)


def fault(name: str) -> Callable[[type[F]], type[F]]:
    """Register a class as the fault of that name. Its fields are the keys, with defaults."""

    def named(kind: type[F]) -> type[F]:
        kind.name = name
        FAULTS[name] = kind
        return dataclass(kw_only=True)(kind)

    return named


class FaultSchedule:
    """The active faults. `calls`: the methods that exist."""

    def __init__(self, seed: int, calls: Collection[str]) -> None:
        self._seed = seed
        self._calls = sorted({*calls, "Log", "Download", "Upload", ANY})
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, wanted: Collection[str | Mapping[str, Any]]) -> None:
        """Add faults, all or none. Raises FaultError."""
        faults = [self._made(one) for one in wanted]
        with self._lock:
            self._faults += faults

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._faults = []

    def strike(self, call: ApiCall, context: FaultContext) -> list[Fault]:
        """The faults that strike this request, oldest first."""
        with self._lock:
            return [f for f in self._faults if f.strikes(call, context, self._seed)]

    def _made(self, wanted: str | Mapping[str, Any]) -> Fault:
        made = make(wanted)
        for call in made.call.split("+"):
            if call not in self._calls:
                raise FaultError(f"{made.name}: no call {call!r}{_near(call, self._calls)}")
        return made


def make(wanted: str | Mapping[str, Any]) -> Fault:
    """A fault from `name,key=value,…`, or from an object with `fault` and the keys.

    Raises FaultError for an unknown name or key, and for an invalid value.
    """
    name, keys = _parsed(wanted)
    kind = FAULTS.get(name)
    if kind is None:
        raise FaultError(f"no fault {name!r}{_near(name, FAULTS)}")
    types_ = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind) if f.init]
    values = {}
    for key, value in keys.items():
        if (key := key.replace("-", "_")) not in known:
            raise FaultError(f"{name}: no key {key!r}{_near(key, known)}")
        values[key] = _typed(f"{name}: {key}", value, types_[key])
    return kind(**values)


def _parsed(wanted: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(wanted, Mapping):
        return str(wanted.get("fault", "")), {k: v for k, v in wanted.items() if k != "fault"}
    if not isinstance(wanted, str):
        raise FaultError(f"{wanted!r} is neither text nor an object")
    name, *pairs = wanted.split(",")
    for pair in pairs:
        if "=" not in pair:
            raise FaultError(f"{name}: {pair!r} is not key=value")
    return name, dict(pair.split("=", 1) for pair in pairs)


def _typed(what: str, value: Any, kind: Any) -> Any:
    """The value of a key, from text or JSON. Only `by` may be negative."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if typing.get_origin(kind) is Literal:
        if text not in typing.get_args(kind):
            raise FaultError(f"{what}={text} must be one of {', '.join(typing.get_args(kind))}")
        return text
    if kind is bool:
        if text not in ("true", "false"):
            raise FaultError(f"{what}={text} must be true or false")
        return text == "true"
    if kind is str:
        return text
    try:
        number = kind(text)
    except ValueError:
        number = None
    if number is None or not number < threading.TIMEOUT_MAX:
        raise FaultError(f"{what}={text} must be a {'whole ' * (kind is int)}number")
    lowest = {"at": 1, "rate": 1, "size": 1, "entries": 1, "by": -threading.TIMEOUT_MAX}
    key = what.rpartition(" ")[2]
    if number < lowest.get(key, 0) or (key == "chance" and number > 1):
        raise FaultError(f"{what}={text} is out of range")
    return number


def _near(word: str, words: Collection[str]) -> str:
    near = difflib.get_close_matches(word, words, 1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(words)}"


def json_reply(
    code: int, value: Any, headers: Mapping[str, str] = types.MappingProxyType({})
) -> FaultyReply:
    """A response in JSON."""
    body = json.dumps(value).encode()
    return FaultyReply(code, body, {"Content-Type": "application/json", **headers})


def page_reply(code: int, form: str = "html") -> FaultyReply:
    """A response that is not JSON."""
    if form == "xml":
        return FaultyReply(code, _XML, {"Content-Type": "application/xml"})
    return FaultyReply(code, _HTML, {"Content-Type": "text/html; charset=utf-8"})


def _amended(reply: FaultyReply, change: Callable[[dict[str, Any]], None]) -> FaultyReply:
    """The response with its JSON changed. Anything but a JSON object in a 200 is not changed."""
    if reply.code != 200 or not isinstance(reply.body, bytes):
        return reply
    try:
        answer = json.loads(reply.body)
    except ValueError:  # a page of another fault
        return reply
    if not isinstance(answer, dict) or "code" in answer:
        return reply
    change(answer)
    return replace(reply, body=json.dumps(answer).encode())


# ---- missing and wrong responses ----


@dataclass(kw_only=True)
class _Replaced(Fault):
    """Replaces the response; the request is not carried out."""

    def before(self, call: ApiCall, context: FaultContext) -> None:
        raise ReplaceResponse(self.reply())

    def reply(self) -> FaultyReply:
        """The response."""
        raise NotImplementedError


@dataclass(kw_only=True)
class _ReplacedWhen(_Replaced):
    """Replaces the response, before or after the request is carried out."""

    when: When = "before"

    def before(self, call: ApiCall, context: FaultContext) -> None:
        if self.when == "before":
            super().before(call, context)

    def after(self, call: ApiCall, context: FaultContext, reply: FaultyReply) -> FaultyReply:
        return self.reply()


@fault("forbidden")
class Forbidden(_Replaced):
    call: str = STATUS
    code: int = 403

    def reply(self) -> FaultyReply:
        denied = self.code == 403
        message = "Permission 'kernels.get' was denied" if denied else "Not found"
        return json_reply(self.code, {"code": self.code, "message": message})


@fault("queued")
class Queued(_Replaced):
    call: str = STATUS

    def reply(self) -> FaultyReply:
        return json_reply(200, {})


@fault("server-error")
class ServerError(_ReplacedWhen):
    code: int = 502

    def reply(self) -> FaultyReply:
        return json_reply(self.code, {"code": self.code, "message": "Internal error"})


@fault("rate-limit")
class RateLimit(_ReplacedWhen):
    form: Literal["seconds", "date", "none"] = "seconds"
    retry_after: float = 1

    def reply(self) -> FaultyReply:
        date = email.utils.formatdate(time.time() + self.retry_after, usegmt=True)
        forms = {"seconds": f"{self.retry_after:.0f}", "date": date}
        headers = {"Retry-After": forms[self.form]} if self.form in forms else {}
        return json_reply(429, {"code": 429, "message": "Too many requests"}, headers)


@fault("html")
class Html(_ReplacedWhen):
    code: int = 200

    def reply(self) -> FaultyReply:
        return page_reply(self.code)


@fault("error-in-200")
class ErrorIn200(_ReplacedWhen):
    code: int = 404
    message: str = "Not found"

    def reply(self) -> FaultyReply:
        return json_reply(200, {"code": self.code, "message": self.message})


@fault("save-error")
class SaveError(_Replaced):
    call: str = "SaveKernel"
    message: str = "Something went wrong."

    def reply(self) -> FaultyReply:
        return json_reply(200, {"error": self.message})


@fault("session-cap")
class SessionCap(_Replaced):
    call: str = "SaveKernel"
    kind: Literal["GPU", "CPU"] = "GPU"

    def reply(self) -> FaultyReply:
        limit = {"GPU": 2, "CPU": 5}[self.kind]
        message = f"Maximum batch {self.kind} session count of {limit} reached."
        return json_reply(200, {"error": message})


@fault("quota")
class Quota(_Replaced):
    call: str = "SaveKernel"

    def reply(self) -> FaultyReply:
        return json_reply(200, {"error": "Maximum weekly GPU quota of 30.00 hours reached."})


@fault("lost-before")
class LostBefore(Fault):
    call: str = "SaveKernel"
    reset: bool = False

    def before(self, call: ApiCall, context: FaultContext) -> None:
        raise ConnectionDropped(self.reset)


@fault("lost-after")
class LostAfter(Fault):
    call: str = "SaveKernel"
    reset: bool = False

    def after(self, call: ApiCall, context: FaultContext, reply: FaultyReply) -> FaultyReply:
        raise ConnectionDropped(self.reset)


@dataclass(kw_only=True)
class _Event(Fault):
    """Something that happens before or after the effect."""

    when: When = "before"

    def before(self, call: ApiCall, context: FaultContext) -> None:
        if self.when == "before":
            self.happen(context)

    def after(self, call: ApiCall, context: FaultContext, reply: FaultyReply) -> FaultyReply:
        if self.when == "after":
            self.happen(context)
        return reply

    def happen(self, context: FaultContext) -> None:
        """Let it happen."""
        raise NotImplementedError


@fault("reset")
class Reset(_Event):
    def happen(self, context: FaultContext) -> None:
        raise ConnectionDropped(reset=True)


@fault("timeout")
class Timeout(_Event):
    seconds: float = 120

    def happen(self, context: FaultContext) -> None:
        time.sleep(self.seconds)


@fault("server-dies")
class ServerDies(_Event):
    seconds: float = 2

    def happen(self, context: FaultContext) -> None:
        context.go_down(self.seconds)
        raise ConnectionDropped(reset=True)


@fault("expired-credentials")
class ExpiredCredentials(Fault):
    seconds: float = 0
    _first: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _expired: set[str] = field(default_factory=set, init=False, repr=False)

    def strikes(self, call: ApiCall, context: FaultContext, seed: int) -> bool:
        token = self._token(call)
        if token in self._expired:
            return True
        if not token or call.method == "IntrospectToken" or not self.matches(call, context):
            return False
        first = self._first.setdefault(token, time.monotonic())
        if time.monotonic() - first < self.seconds or not super().strikes(call, context, seed):
            return False
        self._expired.add(token)
        return True

    def before(self, call: ApiCall, context: FaultContext) -> None:
        if call.method == "IntrospectToken":
            raise ReplaceResponse(json_reply(200, {}))
        raise ReplaceResponse(json_reply(401, {"code": 401, "message": "Unauthorized access"}))

    def _token(self, call: ApiCall) -> str:
        """The token that decides about the request; a refresh token never expires."""
        if call.method == "IntrospectToken":
            return f"Bearer {call.fields.get('token')}"
        return "" if call.fields.get("refreshToken") else call.token


# ---- wrong details of a version ----


@dataclass(kw_only=True)
class _PreviousVersion(Fault):
    """Shows the version before the latest, if there is one."""

    def matches(self, call: ApiCall, context: FaultContext) -> bool:
        if not super().matches(call, context) or (found := context.find(call)) is None:
            return False
        kernel, version = found
        return len(kernel.versions) > 1 and version is kernel.latest

    def before(self, call: ApiCall, context: FaultContext) -> None:
        if found := context.find(call):
            call.fields["versionLabel"] = f"v{found[1].number - 1}"


@fault("stale-status")
class StaleStatus(_PreviousVersion):
    call: str = STATUS


@fault("stale-kernel")
class StaleKernel(_PreviousVersion):
    call: str = "GetKernel"

    def before(self, call: ApiCall, context: FaultContext) -> None:
        if call.fields.get("versionLabel"):
            raise ReplaceResponse(json_reply(404, {"code": 404, "message": "Not found"}))
        super().before(call, context)

    def after(self, call: ApiCall, context: FaultContext, reply: FaultyReply) -> FaultyReply:
        shown = int(call.fields["versionLabel"][1:])
        return _amended(reply, lambda a: a["metadata"].update(currentVersionNumber=shown))


@fault("other-machine")
class OtherMachine(Fault):
    call: str = "GetKernel"
    times: int = 0
    shape: str = "NvidiaTeslaP100"

    def after(self, call: ApiCall, context: FaultContext, reply: FaultyReply) -> FaultyReply:
        def change(answer: dict[str, Any]) -> None:
            metadata = answer["metadata"]
            if "lastRunTime" in metadata:  # without a started session, no machine is shown
                metadata.pop("machineShape", None)
                metadata.update({"machineShape": self.shape} if self.shape else {})

        return _amended(reply, change)


@fault("public")
class Public(Fault):
    call: str = "SaveKernel"

    def before(self, call: ApiCall, context: FaultContext) -> None:
        call.fields["isPrivate"] = False


@fault("internet-flipped")
class InternetFlipped(Fault):
    call: str = "SaveKernel"

    def before(self, call: ApiCall, context: FaultContext) -> None:
        call.fields["enableInternet"] = not call.fields.get("enableInternet", False)


@fault("dropped-source")
class DroppedSource(Fault):
    call: str = "SaveKernel"
    kind: Literal["all", "competition", "dataset", "kernel", "model"] = "all"
    reported: bool = True

    def before(self, call: ApiCall, context: FaultContext) -> None:
        dropped = {}
        for kind in KINDS if self.kind == "all" else (self.kind,):
            if names := call.fields.pop(f"{kind}DataSources", None):
                dropped[f"invalid{kind.capitalize()}Sources"] = names
        call.fields["_dropped"] = dropped

    def after(self, call: ApiCall, context: FaultContext, reply: FaultyReply) -> FaultyReply:
        dropped = call.fields["_dropped"] if self.reported else {}
        return _amended(reply, lambda answer: answer.update(dropped))


@fault("quota-used")
class QuotaUsed(Fault):
    call: str = QUOTA
    times: int = 0

    def after(self, call: ApiCall, context: FaultContext, reply: FaultyReply) -> FaultyReply:
        def change(answer: dict[str, Any]) -> None:
            gpu = answer["gpuQuota"]
            gpu.update(timeUsed=gpu["totalTimeAllowed"], hasEverRun=True)

        return _amended(reply, change)


@dataclass(kw_only=True)
class _ForcedEndOfRun(Fault):
    """The run of this push ends in another way than its notebook."""

    call: str = "SaveKernel"
    seconds: float = 0
    outputs: Literal["gone", "kept"] = "gone"
    status: ClassVar[WorkerStatus]
    message: str = ""

    def after(self, call: ApiCall, context: FaultContext, reply: FaultyReply) -> FaultyReply:
        if found := reply.code == 200 and context.find(call):
            kept = self.outputs == "kept"
            end = ForcedEnd(self.status, self.message, keeps_outputs=kept)
            context.runner.force_end(found[1], end, self.seconds)
        return reply


@fault("run-cancelled")
class RunCancelled(_ForcedEndOfRun):
    status = WorkerStatus.CANCEL_ACKNOWLEDGED


@fault("run-error")
class RunError(_ForcedEndOfRun):
    status = WorkerStatus.ERROR
    message: str = (
        "Your notebook tried to allocate more memory than is available. It has restarted."
    )


@fault("run-timed-out")
class RunTimedOut(_ForcedEndOfRun):
    status = WorkerStatus.CANCEL_ACKNOWLEDGED
    outputs: Literal["gone", "kept"] = "kept"
    message: str = TIMED_OUT.failure


# ---- the log stream ----


@dataclass(kw_only=True)
class _OfRunningStream(Fault):
    """The log of a running run; a run that has ended has no stream."""

    call: str = "Log"

    def matches(self, call: ApiCall, context: FaultContext) -> bool:
        if not super().matches(call, context) or (found := context.find(call)) is None:
            return False
        return not found[1].status.has_ended


@fault("stream-cut")
class StreamCut(_OfRunningStream):
    entries: int = 1
    bytes: int = 0
    reset: bool = False

    def after(self, call: ApiCall, context: FaultContext, reply: FaultyReply) -> FaultyReply:
        if not self.bytes:
            return reply
        return replace(reply, throttle=Throttle(cut=self.bytes, reset=self.reset))

    def events(self, events: Iterator[str]) -> Iterator[str]:
        for number, event in enumerate(events, 1):
            yield event
            if number == self.entries and not self.bytes:
                raise ConnectionDropped(self.reset)


@fault("stream-replayed")
class StreamReplayed(_OfRunningStream):
    entries: int = 1

    def events(self, events: Iterator[str]) -> Iterator[str]:
        first: list[str] = []
        for event in events:
            yield event
            if len(first) < self.entries and event.startswith("data: {"):
                first.append(event)
                if len(first) == self.entries:
                    yield from first


@fault("stream-endless")
class StreamEndless(_OfRunningStream):
    def events(self, events: Iterator[str]) -> Iterator[str]:
        return (event for event in events if not event.startswith("data: END_OF_LOG"))


@fault("stream-silent")
class StreamSilent(_OfRunningStream):
    entries: int = 1
    seconds: float = 30

    def events(self, events: Iterator[str]) -> Iterator[str]:
        for number, event in enumerate(events):
            if number == self.entries:
                time.sleep(self.seconds)
            yield event


# ---- the listing ----


@fault("pages")
class Pages(Fault):
    call: str = LISTING
    times: int = 0
    size: int = 1

    def before(self, call: ApiCall, context: FaultContext) -> None:
        call.fields["pageSize"] = self.size


@fault("page-circle")
class PageCircle(Fault):
    call: str = LISTING
    times: int = 0

    def before(self, call: ApiCall, context: FaultContext) -> None:
        if call.fields.get("pageToken") == _FIRST_PAGE:
            call.fields["pageToken"] = ""

    def after(self, call: ApiCall, context: FaultContext, reply: FaultyReply) -> FaultyReply:
        def change(answer: dict[str, Any]) -> None:
            answer.setdefault("nextPageToken", _FIRST_PAGE)

        return _amended(reply, change)


HOSTILE = {
    "parent": ("../escaped.txt", "sub/../../escaped.txt"),
    "absolute": ("/tmp/escaped.txt", "//escaped.txt"),
    "drive": ("C:\\escaped.txt", "C:escaped.txt", "C:/escaped.txt", "file.txt:stream"),
    "reserved": ("CON", "nul.txt", "sub/AUX.log", "COM1", "lpt9.csv"),
    "case": ("Case.txt", "case.TXT", "caf\u00e9.txt", "cafe\u0301.txt"),
    "long": ("x" * 300, "/".join(["deep"] * 1100)),
    "backslash": ("..\\escaped.txt", "sub\\file.txt", "\\\\host\\share\\escaped.txt"),
    "control": ("nul\0byte.txt", "line\nbreak.txt", "\x1b[2Jclear.txt", "tab\t.txt"),
    "dots": (
        "dots...",
        "space ",
        ".",
        "..",
        "",
        "sub/",
        "sub//file.txt",
        "./file.txt",
        "~/escaped.txt",
    ),
    "nested": ("file", "file/inside.txt"),
}
"""Names that must not become paths unchanged. A listing cannot contain links."""


@fault("hostile-names")
class HostileNames(Fault):
    call: str = LISTING
    times: int = 0
    kind: Literal[
        "all", "parent", "absolute", "drive", "reserved", "case", "long", "backslash", "control",
        "dots", "nested",
    ] = "all"  # fmt: skip

    def matches(self, call: ApiCall, context: FaultContext) -> bool:
        if call.method == "Download":
            return call.path.startswith("hostile/")
        return super().matches(call, context) and not call.fields.get("pageToken")

    def before(self, call: ApiCall, context: FaultContext) -> None:
        if call.method == "Download":
            raise ReplaceResponse(
                FaultyReply(200, _HOSTILE, {"Content-Type": "application/octet-stream"})
            )

    def after(self, call: ApiCall, context: FaultContext, reply: FaultyReply) -> FaultyReply:
        kinds = HOSTILE if self.kind == "all" else (self.kind,)
        names = [name for kind in kinds for name in HOSTILE[kind]]
        if call.method == "ListKernelFiles":
            extra: list[dict[str, Any]] = [{"name": name, "size": len(_HOSTILE)} for name in names]
        else:
            address = f"{context.endpoint}/download/hostile"
            extra = [{"fileName": n, "url": f"{address}/{i}"} for i, n in enumerate(names)]
        return _amended(reply, lambda a: a.update(files=a.get("files", []) + extra))


# ---- downloads ----


@fault("expired-url")
class ExpiredUrl(Fault):
    call: str = "Download"
    times: int = 0
    uses: int = 1
    seconds: float = 0
    code: int = 403
    form: Literal["xml", "html"] = "xml"
    _issued: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _used: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def matches(self, call: ApiCall, context: FaultContext) -> bool:
        """Listings make new addresses, so they count too."""
        if call.method == "ListKernelSessionOutput":
            return self.kernel in ("", call.kernel) and self.account in ("", call.account)
        return super().matches(call, context)

    def strikes(self, call: ApiCall, context: FaultContext, seed: int) -> bool:
        if call.method == "ListKernelSessionOutput":
            return self.matches(call, context)
        if not self.matches(call, context) or self._good(call):
            return False
        return super().strikes(call, context, seed)

    def _good(self, call: ApiCall) -> bool:
        issue = call.query.get("issue", "")
        address = f"{call.path}?{issue}"
        self._used[address] = self._used.get(address, 0) + 1
        age = time.monotonic() - self._issued.setdefault(issue, time.monotonic())
        in_time = not self.seconds or age < self.seconds
        return in_time and (not self.uses or self._used[address] <= self.uses)

    def before(self, call: ApiCall, context: FaultContext) -> None:
        if call.method == "Download":
            raise ReplaceResponse(page_reply(self.code, self.form))

    def after(self, call: ApiCall, context: FaultContext, reply: FaultyReply) -> FaultyReply:
        issue = secrets.token_hex(4)
        self._issued[issue] = time.monotonic()

        def change(answer: dict[str, Any]) -> None:
            for file in answer.get("files", []):
                file["url"] += f"?issue={issue}"

        return _amended(reply, change)


@dataclass(kw_only=True)
class _Throttled(Fault):
    """Sends a file in another way; errors and redirections are not changed."""

    call: str = "Download"

    def after(self, call: ApiCall, context: FaultContext, reply: FaultyReply) -> FaultyReply:
        if reply.code >= 300:
            return reply
        return replace(reply, throttle=self.change(reply.throttle))

    def change(self, throttle: Throttle) -> Throttle:
        """The changed throttle."""
        raise NotImplementedError


@fault("download-cut")
class DownloadCut(_Throttled):
    bytes: int = 1000
    reset: bool = False

    def change(self, throttle: Throttle) -> Throttle:
        return replace(throttle, cut=self.bytes, reset=self.reset)


@fault("download-slow")
class DownloadSlow(_Throttled):
    times: int = 0
    rate: float = 10_000

    def change(self, throttle: Throttle) -> Throttle:
        return replace(throttle, rate=self.rate)


@fault("download-short")
class DownloadShort(_Throttled):
    bytes: int = 1000

    def change(self, throttle: Throttle) -> Throttle:
        return replace(throttle, stop=self.bytes)


@fault("wrong-length")
class WrongLength(_Throttled):
    by: int = 10

    def change(self, throttle: Throttle) -> Throttle:
        return replace(throttle, excess=self.by)


@fault("error-page")
class ErrorPage(_Replaced):
    call: str = "Download"

    def reply(self) -> FaultyReply:
        return page_reply(200)


@fault("etag-changes")
class EtagChanges(Fault):
    call: str = "Download"
    times: int = 0

    def after(self, call: ApiCall, context: FaultContext, reply: FaultyReply) -> FaultyReply:
        return replace(reply, headers=reply.headers | {"ETag": f'"{secrets.token_hex(16)}"'})


@fault("no-range")
class NoRange(Fault):
    call: str = "Download"
    times: int = 0

    def before(self, call: ApiCall, context: FaultContext) -> None:
        call.headers.pop("range", None)

    def after(self, call: ApiCall, context: FaultContext, reply: FaultyReply) -> FaultyReply:
        kept = {k: v for k, v in reply.headers.items() if k != "Accept-Ranges"}
        return replace(reply, headers=kept)
