"""The lies the local Kaggle can be told to tell: a seeded, declarative plan of faults.

`--fault NAME[,key=value]...` on the command line, or a list of the same words as JSON to
`POST /emulator/faults` while it runs (an object with a `fault` and the keys will do as well);
`DELETE /emulator/faults` ends them all. A fault strikes requests; these keys are common to all:

    call=M1+M2   the calls it strikes: a method's name (SaveKernel, GetKernel, …), Log, Download,
                 Upload, or any; each fault has its own default
    at=N         the N-th matching request is the first to be struck (1)
    times=N      how many are struck; 0: all that follow (1, where the table says no other)
    chance=P     each of them is struck with this probability, drawn from the seed, the fault's
                 name, the call and the request's number among the matching ones (1)
    lasting=S    from the first on, all matching requests of S seconds are struck, whatever
                 `times` says
    account=A    only requests of this account
    kernel=K     only requests about the kernel of this slug

What happens in the real Kaggle and what we made up is said by a mark: [V] seen in the client's
source, [D] documented, [A] anecdotal, [?] any server and network can do it; nobody told of Kaggle.

    fault                calls        its keys and their defaults; what it does
    -------------------  -----------  ----------------------------------------------------------
    forbidden            status       code=403: status is refused right after a push (or 404) [A]
    stale-status         status       the state of the version before is told as this one's [A]
    stale-kernel         GetKernel    the version before is shown; the new one, pinned, is 404 [A]
    queued               status       `{}`, whatever the run does [A]
    lost-before          SaveKernel   reset=false: the connection ends, nothing was done [?]
    lost-after           SaveKernel   reset=false: it was done, but the connection ends [?]
    reset                any          when=before: the connection is reset (RST) [?]
    timeout              any          seconds=120 when=before: silence, and then the answer [?]
    server-error         any          code=502 when=before: an error of 500 to 599, as JSON [A]
    rate-limit           any          form=seconds retry_after=1 when=before: 429 with Retry-After
                                      as seconds or as a date, or without it (form=none) [A]
    html                 any          code=200 when=before: a web page instead of JSON [A]
    error-in-200         any          code=404 message=… when=before: an error, with HTTP 200 [V]
    save-error           SaveKernel   message=…: `error` inside a 200; no version is made [V]
    session-cap          SaveKernel   kind=GPU: the words for too many sessions [A]
    quota                SaveKernel   the words for a quota that is used up [A]
    quota-used           quota        the week's GPU hours are used up (times=0) [?]
    dropped-source       SaveKernel   kind=all told=true: sources are dropped and the run goes on
                                      without; kind is competition, dataset, kernel or model [A];
                                      told=false: without a word in the answer [?]
    other-machine        GetKernel    shape=NvidiaTeslaP100: the machine of a started session is
                                      told to be another; shape= (nothing): a CPU (times=0) [A]
    public               SaveKernel   the kernel is made public though private was asked for [?]
    internet-flipped     SaveKernel   internet is given if it was not asked for, or else not [A]
    stream-cut           Log          entries=1 bytes=0 reset=false: the stream breaks off after so
                                      many entries, or bytes where some are given [A]
    stream-replayed      Log          entries=1: after them the log comes from its start [A]
    stream-endless       Log          the stream ends without END_OF_LOG [A]
    stream-silent        Log          entries=1 seconds=30: after them, silence, not even
                                      comments [A]
    pages                listing      size=1: so many files a page, whatever is asked (times=0) [?]
    page-circle          listing      the last page names the first as the next (times=0) [?]
    expired-url          Download     uses=1 seconds=0 code=403 form=xml: addresses work so many
                                      times (0: ever) and so long (0: for ever), and then give an
                                      error page; listing again gives new ones (times=0) [?]
    download-cut         Download     bytes=1000 reset=false: the connection ends after them [?]
    download-slow        Download     rate=10000: bytes a second (times=0) [?]
    download-short       Download     bytes=1000: the file ends there, as if it were whole [?]
    wrong-length         Download     by=10: Content-Length tells so much more, or less, than
                                      comes [?]
    error-page           Download     a web page with 200 in place of the file [A]
    etag-changes         Download     each answer has an ETag of its own (times=0) [?]
    no-range             Download     Range is ignored: the whole file comes (times=0) [?]
    hostile-names        listing      kind=all: entries that would leave the folder, or that some
                                      system cannot hold, are listed and can be downloaded; kind
                                      is parent, absolute, drive, reserved, case, long, backslash,
                                      control, dots or nested (times=0) [A]
    server-dies          any          seconds=2 when=before: all connections are cut, the port
                                      is refused, and then it listens again; runs go on [?]
    expired-credentials  any          seconds=0: from the struck request on (or so long after its
                                      first use) this token or key is 401; others are good [V]
    run-cancelled        SaveKernel   seconds=0 outputs=gone: the run ends CANCEL_ACKNOWLEDGED
                                      after so many seconds (0: at its own end); outputs=kept [A]
    run-error            SaveKernel   seconds=0 outputs=gone: the same, with ERROR [A]

status is GetKernelSessionStatus, quota GetAcceleratorQuotaStatistics, listing
ListKernelSessionOutput and ListKernelFiles. `when=after` means that the request was carried out.
A fault that tells of the version before strikes only where there is one, and one of the stream
only while the run goes on. A download's faults do to other calls what they do to downloads.
"""

# ruff: noqa: D101, D102, ARG002
# Each fault is said once, in the table above; and its places to act have one signature.

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

from kernelkit.emulator.api import Json, Reply
from kernelkit.emulator.delivery import Lost, Manner
from kernelkit.emulator.runner import Fate, Runner
from kernelkit.emulator.state import Kaggle, Kernel, Refusal, Status, Version

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


class BadFault(Exception):
    """What was asked for is no fault; the words say why, and what there is."""


class Instead(Exception):
    """This is the answer; the request is not carried out."""

    def __init__(self, reply: Reply) -> None:
        super().__init__("answered by a fault")
        self.reply = reply


@dataclass
class Call:
    """A request as the plan sees it. Faults may change `fields` and `headers` before the effect.

    `path`: of a download what follows /download/, of an RPC service/method. `headers`: their names
    in lower case. `kernel`: the slug, empty where it is about none. `token`: Authorization.
    """

    method: str = ""
    account: str = ""
    token: str = ""
    kernel: str = ""
    path: str = ""
    query: dict[str, str] = field(default_factory=dict)
    fields: Json = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class House:
    """What a fault may need of the local Kaggle it strikes."""

    kaggle: Kaggle
    runner: Runner
    endpoint: str
    die: Callable[[float], None]

    def find(self, call: Call) -> tuple[Kernel, Version] | None:
        """The kernel and the version a call is about, if there are such."""
        owner, _, slug = call.fields.get("slug", "").rpartition("/")
        owner = owner or call.fields.get("userName", "") or call.account
        slug = slug or call.fields.get("kernelSlug", "")
        label = call.fields.get("versionLabel", "")
        with contextlib.suppress(Refusal, AttributeError, TypeError):
            return self.kaggle.find(call.account, owner, slug, label)
        return None


@dataclass(kw_only=True)
class Fault:
    """What all faults have: which requests they strike, and three places to act.

    `before` and `after` surround the effect and may wait or raise Lost; `before` may raise
    Instead. `events` is between a log stream and the wire.
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

    def strikes(self, call: Call, house: House, seed: int) -> bool:
        """Count a request, and say whether it is struck. Under the plan's lock."""
        if not self.matches(call, house):
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

    def matches(self, call: Call, house: House) -> bool:
        """Whether this request counts at all."""
        return (
            (self.call == ANY or call.method in self.call.split("+"))
            and self.account in ("", call.account)
            and self.kernel in ("", call.kernel)
        )

    def before(self, call: Call, house: House) -> None:
        """Before the request is carried out."""

    def after(self, call: Call, house: House, reply: Reply) -> Reply:
        """After it was carried out: the answer that is given."""
        return reply

    def events(self, events: Iterator[str]) -> Iterator[str]:
        """The log stream that is sent."""
        return events


FAULTS: dict[str, type[Fault]] = {}
F = TypeVar("F", bound=Fault)


def fault(name: str) -> Callable[[type[F]], type[F]]:
    """Make a class the fault of that name. Its fields are the keys, with their defaults."""

    def named(kind: type[F]) -> type[F]:
        kind.name = name
        FAULTS[name] = kind
        return dataclass(kw_only=True)(kind)

    return named


class Plan:
    """The faults that are set. `calls` are the methods that there are."""

    def __init__(self, seed: int, calls: Collection[str]) -> None:
        self._seed = seed
        self._calls = sorted({*calls, "Log", "Download", "Upload", ANY})
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, wanted: Collection[str | Mapping[str, Any]]) -> None:
        """Set faults, all or none. Raises BadFault."""
        faults = [self._made(one) for one in wanted]
        with self._lock:
            self._faults += faults

    def clear(self) -> None:
        """No faults."""
        with self._lock:
            self._faults = []

    def strike(self, call: Call, house: House) -> list[Fault]:
        """The faults that strike this request, in the order in which they were set."""
        with self._lock:
            return [f for f in self._faults if f.strikes(call, house, self._seed)]

    def _made(self, wanted: str | Mapping[str, Any]) -> Fault:
        made = make(wanted)
        for call in made.call.split("+"):
            if call not in self._calls:
                raise BadFault(f"{made.name}: no call {call!r}{_near(call, self._calls)}")
        return made


def make(wanted: str | Mapping[str, Any]) -> Fault:
    """A fault from `name,key=value,…`, or from an object with `fault` and the keys.

    Raises BadFault for an unknown name or key, and for a value that the key cannot have.
    """
    name, keys = _taken_apart(wanted)
    kind = FAULTS.get(name)
    if kind is None:
        raise BadFault(f"no fault {name!r}{_near(name, FAULTS)}")
    types_ = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind) if f.init]
    values = {}
    for key, value in keys.items():
        if (key := key.replace("-", "_")) not in known:
            raise BadFault(f"{name}: no key {key!r}{_near(key, known)}")
        values[key] = _typed(f"{name}: {key}", value, types_[key])
    return kind(**values)


def _taken_apart(wanted: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(wanted, Mapping):
        return str(wanted.get("fault", "")), {k: v for k, v in wanted.items() if k != "fault"}
    if not isinstance(wanted, str):
        raise BadFault(f"{wanted!r} is neither a fault's words nor an object")
    name, *pairs = wanted.split(",")
    for pair in pairs:
        if "=" not in pair:
            raise BadFault(f"{name}: {pair!r} is no key=value")
    return name, dict(pair.split("=", 1) for pair in pairs)


def _typed(what: str, value: Any, kind: Any) -> Any:
    """The value of a key, from text or JSON; numbers are never negative, but for `by`."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if typing.get_origin(kind) is Literal:
        if text not in typing.get_args(kind):
            raise BadFault(f"{what}={text} must be one of {', '.join(typing.get_args(kind))}")
        return text
    if kind is bool:
        if text not in ("true", "false"):
            raise BadFault(f"{what}={text} must be true or false")
        return text == "true"
    if kind is str:
        return text
    try:
        number = kind(text)
    except ValueError:
        number = None
    if number is None or not number < threading.TIMEOUT_MAX:
        raise BadFault(f"{what}={text} must be a number{' without a point' * (kind is int)}")
    lowest = {"at": 1, "rate": 1, "size": 1, "entries": 1, "by": -threading.TIMEOUT_MAX}
    key = what.rpartition(" ")[2]
    if number < lowest.get(key, 0) or (key == "chance" and number > 1):
        raise BadFault(f"{what}={text} is out of range")
    return number


def _near(word: str, words: Collection[str]) -> str:
    near = difflib.get_close_matches(word, words, 1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(words)}"


def json_reply(
    code: int, value: Any, headers: Mapping[str, str] = types.MappingProxyType({})
) -> Reply:
    """An answer in JSON."""
    body = json.dumps(value).encode()
    return Reply(code, body, {"Content-Type": "application/json", **headers})


def page_reply(code: int, form: str = "html") -> Reply:
    """An answer that is no JSON."""
    if form == "xml":
        return Reply(code, _XML, {"Content-Type": "application/xml"})
    return Reply(code, _HTML, {"Content-Type": "text/html; charset=utf-8"})


def _amended(reply: Reply, change: Callable[[Json], None]) -> Reply:
    """The answer with its JSON changed; what is no JSON object of a 200 stays as it is."""
    if reply.code != 200 or not isinstance(reply.body, bytes):
        return reply
    answer = json.loads(reply.body)
    if not isinstance(answer, dict):
        return reply
    change(answer)
    return replace(reply, body=json.dumps(answer).encode())


# ---- answers that never come, or that are another's ----


@dataclass(kw_only=True)
class _Answered(Fault):
    """Another answer is given, and the request is not carried out."""

    def before(self, call: Call, house: House) -> None:
        raise Instead(self.reply())

    def reply(self) -> Reply:
        """The answer."""
        raise NotImplementedError


@dataclass(kw_only=True)
class _AnsweredWhen(_Answered):
    """Another answer is given, whether or not the request is carried out."""

    when: When = "before"

    def before(self, call: Call, house: House) -> None:
        if self.when == "before":
            super().before(call, house)

    def after(self, call: Call, house: House, reply: Reply) -> Reply:
        return self.reply()


@fault("forbidden")
class Forbidden(_Answered):
    call: str = STATUS
    code: int = 403

    def reply(self) -> Reply:
        denied = self.code == 403
        words = "Permission 'kernels.get' was denied" if denied else "Not found"
        return json_reply(self.code, {"code": self.code, "message": words})


@fault("queued")
class Queued(_Answered):
    call: str = STATUS

    def reply(self) -> Reply:
        return json_reply(200, {})


@fault("server-error")
class ServerError(_AnsweredWhen):
    code: int = 502

    def reply(self) -> Reply:
        return json_reply(self.code, {"code": self.code, "message": "Internal error"})


@fault("rate-limit")
class RateLimit(_AnsweredWhen):
    form: Literal["seconds", "date", "none"] = "seconds"
    retry_after: float = 1

    def reply(self) -> Reply:
        date = email.utils.formatdate(time.time() + self.retry_after, usegmt=True)
        told = {"seconds": f"{self.retry_after:.0f}", "date": date}
        headers = {"Retry-After": told[self.form]} if self.form in told else {}
        return json_reply(429, {"code": 429, "message": "Too many requests"}, headers)


@fault("html")
class Html(_AnsweredWhen):
    code: int = 200

    def reply(self) -> Reply:
        return page_reply(self.code)


@fault("error-in-200")
class ErrorIn200(_AnsweredWhen):
    code: int = 404
    message: str = "Not found"

    def reply(self) -> Reply:
        return json_reply(200, {"code": self.code, "message": self.message})


@fault("save-error")
class SaveError(_Answered):
    call: str = "SaveKernel"
    message: str = "Something went wrong."

    def reply(self) -> Reply:
        return json_reply(200, {"error": self.message})


@fault("session-cap")
class SessionCap(_Answered):
    call: str = "SaveKernel"
    kind: Literal["GPU", "CPU"] = "GPU"

    def reply(self) -> Reply:
        most = {"GPU": 2, "CPU": 5}[self.kind]
        words = f"Maximum batch {self.kind} session count of {most} reached."
        return json_reply(200, {"error": words})


@fault("quota")
class Quota(_Answered):
    call: str = "SaveKernel"

    def reply(self) -> Reply:
        return json_reply(200, {"error": "Maximum weekly GPU quota of 30.00 hours reached."})


@fault("lost-before")
class LostBefore(Fault):
    call: str = "SaveKernel"
    reset: bool = False

    def before(self, call: Call, house: House) -> None:
        raise Lost(self.reset)


@fault("lost-after")
class LostAfter(Fault):
    call: str = "SaveKernel"
    reset: bool = False

    def after(self, call: Call, house: House, reply: Reply) -> Reply:
        raise Lost(self.reset)


@dataclass(kw_only=True)
class _Then(Fault):
    """Something happens, before the effect or after it."""

    when: When = "before"

    def before(self, call: Call, house: House) -> None:
        if self.when == "before":
            self.happens(house)

    def after(self, call: Call, house: House, reply: Reply) -> Reply:
        if self.when == "after":
            self.happens(house)
        return reply

    def happens(self, house: House) -> None:
        """It happens."""
        raise NotImplementedError


@fault("reset")
class Reset(_Then):
    def happens(self, house: House) -> None:
        raise Lost(reset=True)


@fault("timeout")
class Timeout(_Then):
    seconds: float = 120

    def happens(self, house: House) -> None:
        time.sleep(self.seconds)


@fault("server-dies")
class ServerDies(_Then):
    seconds: float = 2

    def happens(self, house: House) -> None:
        house.die(self.seconds)
        raise Lost(reset=True)


@fault("expired-credentials")
class ExpiredCredentials(Fault):
    seconds: float = 0
    _first: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _expired: set[str] = field(default_factory=set, init=False, repr=False)

    def strikes(self, call: Call, house: House, seed: int) -> bool:
        token = self._token(call)
        if token in self._expired:
            return True
        if not call.token or not self.matches(call, house):
            return False
        first = self._first.setdefault(token, time.monotonic())
        if time.monotonic() - first < self.seconds or not super().strikes(call, house, seed):
            return False
        self._expired.add(token)
        return True

    def before(self, call: Call, house: House) -> None:
        if call.method == "IntrospectToken":
            raise Instead(json_reply(200, {}))
        raise Instead(json_reply(401, {"code": 401, "message": "Unauthorized access"}))

    def _token(self, call: Call) -> str:
        return (
            f"Bearer {call.fields.get('token')}" if call.method == "IntrospectToken" else call.token
        )


# ---- what is told of a version, and what it is given ----


@dataclass(kw_only=True)
class _OfTheVersionBefore(Fault):
    """The version before the newest is told of, where there is one."""

    def matches(self, call: Call, house: House) -> bool:
        if not super().matches(call, house) or (found := house.find(call)) is None:
            return False
        kernel, version = found
        return len(kernel.versions) > 1 and version is kernel.latest

    def before(self, call: Call, house: House) -> None:
        if found := house.find(call):
            call.fields["versionLabel"] = f"v{found[1].number - 1}"


@fault("stale-status")
class StaleStatus(_OfTheVersionBefore):
    call: str = STATUS


@fault("stale-kernel")
class StaleKernel(_OfTheVersionBefore):
    call: str = "GetKernel"

    def before(self, call: Call, house: House) -> None:
        if call.fields.get("versionLabel"):
            raise Instead(json_reply(404, {"code": 404, "message": "Not found"}))
        super().before(call, house)

    def after(self, call: Call, house: House, reply: Reply) -> Reply:
        shown = int(call.fields["versionLabel"][1:])
        return _amended(reply, lambda a: a["metadata"].update(currentVersionNumber=shown))


@fault("other-machine")
class OtherMachine(Fault):
    call: str = "GetKernel"
    times: int = 0
    shape: str = "NvidiaTeslaP100"

    def after(self, call: Call, house: House, reply: Reply) -> Reply:
        def change(answer: Json) -> None:
            metadata = answer["metadata"]
            if "lastRunTime" in metadata:  # no session has started: no machine is told
                metadata.pop("machineShape", None)
                metadata.update({"machineShape": self.shape} if self.shape else {})

        return _amended(reply, change)


@fault("public")
class Public(Fault):
    call: str = "SaveKernel"

    def before(self, call: Call, house: House) -> None:
        call.fields["isPrivate"] = False


@fault("internet-flipped")
class InternetFlipped(Fault):
    call: str = "SaveKernel"

    def before(self, call: Call, house: House) -> None:
        call.fields["enableInternet"] = not call.fields.get("enableInternet", False)


@fault("dropped-source")
class DroppedSource(Fault):
    call: str = "SaveKernel"
    kind: Literal["all", "competition", "dataset", "kernel", "model"] = "all"
    told: bool = True

    def before(self, call: Call, house: House) -> None:
        dropped = {}
        for kind in KINDS if self.kind == "all" else (self.kind,):
            if names := call.fields.pop(f"{kind}DataSources", None):
                dropped[f"invalid{kind.capitalize()}Sources"] = names
        call.fields["_dropped"] = dropped

    def after(self, call: Call, house: House, reply: Reply) -> Reply:
        dropped = call.fields["_dropped"] if self.told else {}
        return _amended(reply, lambda answer: answer.update(dropped))


@fault("quota-used")
class QuotaUsed(Fault):
    call: str = QUOTA
    times: int = 0

    def after(self, call: Call, house: House, reply: Reply) -> Reply:
        def change(answer: Json) -> None:
            gpu = answer["gpuQuota"]
            gpu.update(timeUsed=gpu["totalTimeAllowed"], hasEverRun=True)

        return _amended(reply, change)


@dataclass(kw_only=True)
class _Ends(Fault):
    """The run that this push starts ends otherwise than its notebook."""

    call: str = "SaveKernel"
    seconds: float = 0
    outputs: Literal["gone", "kept"] = "gone"
    status: ClassVar[Status]
    failure: ClassVar[str] = ""

    def after(self, call: Call, house: House, reply: Reply) -> Reply:
        if found := reply.code == 200 and house.find(call):
            kept = self.outputs == "kept"
            fate = Fate(self.status, self.failure, keeps_outputs=kept)
            house.runner.condemn(found[1], fate, self.seconds)
        return reply


@fault("run-cancelled")
class RunCancelled(_Ends):
    status = Status.CANCEL_ACKNOWLEDGED


@fault("run-error")
class RunError(_Ends):
    status = Status.ERROR
    failure = "Your notebook tried to allocate more memory than is available. It has restarted."


# ---- the log stream ----


@dataclass(kw_only=True)
class _OfAStream(Fault):
    """The log of a run that goes on; that of one that is over is no stream."""

    call: str = "Log"

    def matches(self, call: Call, house: House) -> bool:
        if not super().matches(call, house) or (found := house.find(call)) is None:
            return False
        return not found[1].status.over


@fault("stream-cut")
class StreamCut(_OfAStream):
    entries: int = 1
    bytes: int = 0
    reset: bool = False

    def after(self, call: Call, house: House, reply: Reply) -> Reply:
        if not self.bytes:
            return reply
        return replace(reply, manner=Manner(cut=self.bytes, reset=self.reset))

    def events(self, events: Iterator[str]) -> Iterator[str]:
        for number, event in enumerate(events, 1):
            yield event
            if number == self.entries and not self.bytes:
                raise Lost(self.reset)


@fault("stream-replayed")
class StreamReplayed(_OfAStream):
    entries: int = 1

    def events(self, events: Iterator[str]) -> Iterator[str]:
        begun: list[str] = []
        for event in events:
            yield event
            if len(begun) < self.entries and event.startswith("data: {"):
                begun.append(event)
                if len(begun) == self.entries:
                    yield from begun


@fault("stream-endless")
class StreamEndless(_OfAStream):
    def events(self, events: Iterator[str]) -> Iterator[str]:
        return (event for event in events if not event.startswith("data: END_OF_LOG"))


@fault("stream-silent")
class StreamSilent(_OfAStream):
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

    def before(self, call: Call, house: House) -> None:
        call.fields["pageSize"] = self.size


@fault("page-circle")
class PageCircle(Fault):
    call: str = LISTING
    times: int = 0

    def before(self, call: Call, house: House) -> None:
        if call.fields.get("pageToken") == _FIRST_PAGE:
            call.fields["pageToken"] = ""

    def after(self, call: Call, house: House, reply: Reply) -> Reply:
        def change(answer: Json) -> None:
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
"""Names that must not become paths as they are. Links are not among them: a listing has none."""


@fault("hostile-names")
class HostileNames(Fault):
    call: str = LISTING
    times: int = 0
    kind: Literal[
        "all", "parent", "absolute", "drive", "reserved", "case", "long", "backslash", "control",
        "dots", "nested",
    ] = "all"  # fmt: skip

    def matches(self, call: Call, house: House) -> bool:
        if call.method == "Download":
            return call.path.startswith("hostile/")
        return super().matches(call, house) and not call.fields.get("pageToken")

    def before(self, call: Call, house: House) -> None:
        if call.method == "Download":
            raise Instead(Reply(200, _HOSTILE, {"Content-Type": "application/octet-stream"}))

    def after(self, call: Call, house: House, reply: Reply) -> Reply:
        kinds = HOSTILE if self.kind == "all" else (self.kind,)
        names = [name for kind in kinds for name in HOSTILE[kind]]
        if call.method == "ListKernelFiles":
            extra: list[Json] = [{"name": name, "size": len(_HOSTILE)} for name in names]
        else:
            address = f"{house.endpoint}/download/hostile"
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

    def matches(self, call: Call, house: House) -> bool:
        """Every listing makes addresses anew, and so counts."""
        if call.method == "ListKernelSessionOutput":
            return self.kernel in ("", call.kernel) and self.account in ("", call.account)
        return super().matches(call, house)

    def strikes(self, call: Call, house: House, seed: int) -> bool:
        if call.method == "ListKernelSessionOutput":
            return self.matches(call, house)
        if not self.matches(call, house) or self._good(call):
            return False
        return super().strikes(call, house, seed)

    def _good(self, call: Call) -> bool:
        issue = call.query.get("issue", "")
        address = f"{call.path}?{issue}"
        self._used[address] = self._used.get(address, 0) + 1
        age = time.monotonic() - self._issued.setdefault(issue, time.monotonic())
        in_time = not self.seconds or age < self.seconds
        return in_time and (not self.uses or self._used[address] <= self.uses)

    def before(self, call: Call, house: House) -> None:
        if call.method == "Download":
            raise Instead(page_reply(self.code, self.form))

    def after(self, call: Call, house: House, reply: Reply) -> Reply:
        issue = secrets.token_hex(4)
        self._issued[issue] = time.monotonic()

        def change(answer: Json) -> None:
            for file in answer.get("files", []):
                file["url"] += f"?issue={issue}"

        return _amended(reply, change)


@dataclass(kw_only=True)
class _Sent(Fault):
    """A file leaves in another manner; errors and redirections leave as they are."""

    call: str = "Download"

    def after(self, call: Call, house: House, reply: Reply) -> Reply:
        return replace(reply, manner=self.manner(reply.manner)) if reply.code < 300 else reply

    def manner(self, manner: Manner) -> Manner:
        """The other manner."""
        raise NotImplementedError


@fault("download-cut")
class DownloadCut(_Sent):
    bytes: int = 1000
    reset: bool = False

    def manner(self, manner: Manner) -> Manner:
        return replace(manner, cut=self.bytes, reset=self.reset)


@fault("download-slow")
class DownloadSlow(_Sent):
    times: int = 0
    rate: float = 10_000

    def manner(self, manner: Manner) -> Manner:
        return replace(manner, rate=self.rate)


@fault("download-short")
class DownloadShort(_Sent):
    bytes: int = 1000

    def manner(self, manner: Manner) -> Manner:
        return replace(manner, stop=self.bytes)


@fault("wrong-length")
class WrongLength(_Sent):
    by: int = 10

    def manner(self, manner: Manner) -> Manner:
        return replace(manner, told=self.by)


@fault("error-page")
class ErrorPage(_Answered):
    call: str = "Download"

    def reply(self) -> Reply:
        return page_reply(200)


@fault("etag-changes")
class EtagChanges(Fault):
    call: str = "Download"
    times: int = 0

    def after(self, call: Call, house: House, reply: Reply) -> Reply:
        return replace(reply, headers=reply.headers | {"ETag": f'"{secrets.token_hex(16)}"'})


@fault("no-range")
class NoRange(Fault):
    call: str = "Download"
    times: int = 0

    def before(self, call: Call, house: House) -> None:
        call.headers.pop("range", None)

    def after(self, call: Call, house: House, reply: Reply) -> Reply:
        kept = {k: v for k, v in reply.headers.items() if k != "Accept-Ranges"}
        return replace(reply, headers=kept)
