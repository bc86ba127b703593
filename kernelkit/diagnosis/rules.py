"""A table of error messages with their causes and next steps, and the facts that it quotes.

An error is `Type: message`, as Python prints it, or Kaggle's message about the run. [A] marks
messages of Kaggle that other users have reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from kernelkit.diagnosis.documents import Parameters, RunReport, SentBundle


class FailureCause(StrEnum):
    """Why a run failed, in a few words."""

    GPU_MEMORY = "out of GPU memory"
    HOST_MEMORY = "out of memory"
    MISSING_INPUT = "missing input"
    NO_INTERNET = "no internet"
    WRONG_GPU = "wrong GPU"
    MISSING_MODULE = "missing module"
    TIMED_OUT = "timed out"
    STALLED = "stalled"
    DISK_FULL = "disk full"
    OWN_CHECK = "kernelkit's own check"
    CRASH = "crash of the process"
    DIED = "death of the process"
    USAGE = "wrong arguments"
    EXIT = "exit of the program"
    OTHER = "the code's own error"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Rule:
    """A cause, the pattern of its errors, and one sentence on what to do next.

    `pattern` is searched in `Type: message`. `next_step` is a format string: its fields are the
    pattern's named groups and the phrases of `Facts`.
    """

    cause: FailureCause
    pattern: re.Pattern[str]
    next_step: str


def _rule(cause: FailureCause, next_step: str, *patterns: str) -> Rule:
    return Rule(cause, re.compile("|".join(patterns), re.MULTILINE), next_step)


_LEFT_OUT = re.compile(r"rehearsal: (\S+\.whl) does not fit ")

RULES = (
    # kernelkit_runtime: wheels.
    _rule(
        FailureCause.OWN_CHECK,
        "Publish the wheels that the lock file names: `kernelkit wheels`. Then push again.",
        r"RuntimeFault: The wheels of this notebook are not here",
        r"RuntimeFault: The dataset \S+ does not have the wheels of this notebook",
    ),
    _rule(
        FailureCause.OWN_CHECK,
        "Choose wheels again for the Python of the run: `kernelkit wheels --upgrade`. Then push "
        "again.",
        r"RuntimeFault: [^\n]* the wheels were chosen for Python",
    ),
    # NotebookRun.resolve; and open() and pandas under Kaggle's mounts, old and new.
    _rule(
        FailureCause.MISSING_INPUT,
        "{source_advice}",
        r"kaggle://input/(?P<input>[^\s/:]++)[^\s:]*+: no folder has that name",
        r"(?:FileNotFoundError|NotADirectoryError)\b[^\n]*/kaggle/input/"
        r"(?:competitions/|(?:datasets|notebooks|models)/[^/\s'\"]++/)?(?P<file_in>[^/\s'\"]++)",
    ),
    _rule(
        FailureCause.MISSING_INPUT,
        "Set KAGGLE_INPUT_DIR to the folder of inputs: this run was not on Kaggle.",
        r"kaggle://input/\S+ this machine has no /kaggle/input",
    ),
    # NotebookRun.check_hardware.
    _rule(
        FailureCause.WRONG_GPU,
        "Check with `kernelkit doctor` that GPU quota is left, and verify the account by phone. "
        "To run on a CPU, set enable_gpu = false and machine_shape = ''.",
        r"asks for [^\n]* and the run has no GPU",
    ),
    # CUDA's message for a card older than torch was built for: a P100 (sm_60) with torch ≥ 2.8.
    _rule(
        FailureCause.WRONG_GPU,
        'Set machine_shape = "NvidiaTeslaT4" in [tool.kernelkit.kernel]: the image\'s torch has no '
        "code for the GPU of this run.",
        r"no kernel image is available for execution on the device",
        r"the run has [^\n]*, and torch \S+ cannot compute there",
        r"CUDA driver version is insufficient",
    ),
    # torch.cuda's lazy initialisation, and torch.load of a GPU's weights on a CPU.
    _rule(
        FailureCause.WRONG_GPU,
        'Set enable_gpu = true and machine_shape = "NvidiaTeslaT4" in [tool.kernelkit.kernel], or '
        "choose the device by torch.cuda.is_available().",
        r"Found no NVIDIA driver on your system",
        r"Torch not compiled with CUDA enabled",
        r"No CUDA GPUs are available",
        r"no CUDA-capable device is detected",
        r"on a CUDA device but torch\.cuda\.is_available\(\) is False",
    ),
    # torch's allocator, CUDA, cuBLAS, cuDNN, TensorFlow and JAX without enough memory.
    _rule(
        FailureCause.GPU_MEMORY,
        "{gpu_advice}",
        r"\bOutOfMemoryError: CUDA\b",
        r"CUDA out of memory",
        r"CUDA error: out of memory",
        r"CUBLAS_STATUS_ALLOC_FAILED",
        r"CUDNN_STATUS_ALLOC_FAILED",
        r"[Uu]nable to find (?:a valid cuDNN algorithm|an engine to execute this computation)",
        r"OOM when allocating tensor",
        r"RESOURCE_EXHAUSTED: Out of memory",
    ),
    # torch's DataLoader on a full /dev/shm.
    _rule(
        FailureCause.HOST_MEMORY,
        "Use fewer worker processes{workers}.",
        r"Unexpected bus error encountered in worker",
        r"Bus error[^\n]*shared memory",
    ),
    # Linux kills a process without memory: signal 9, exit status 137, as reported by subprocess,
    # torchrun, torch's DataLoader, concurrent.futures, joblib, nbclient and, last, Kaggle [A].
    _rule(
        FailureCause.HOST_MEMORY,
        "{host_advice}",
        r"\bMemoryError\b",
        r"DefaultCPUAllocator: (?:can't allocate|not enough) memory",
        r"Unable to allocate [\d.]+ [KMGTP]?i?B for an array",
        r"Cannot allocate memory",
        r"killed by signal: Killed",
        r"died with <Signals\.SIGKILL",
        r"returned non-zero exit status (?:137|-9)\b",
        r"Signal 9 \(SIGKILL\) received",
        r"terminated with signal SIGKILL",
        r"BrokenProcessPool: A (?:child )?process in the process pool",
        r"TerminatedWorkerError",
        r"exit(?:ed with)? code 137\b",
        r"tried to allocate more memory than is available",
    ),
    # errno 28 and 122; torch.save on a full disk.
    _rule(
        FailureCause.DISK_FULL,
        "Keep fewer files in kaggle://working (20 GB), and put scratch files into kaggle://temp.",
        r"No space left on device",
        r"\[Errno (?:28|122)\]",
        r"Disk quota exceeded",
        r"PytorchStreamWriter failed writing",
        r"inline_container\.cc:\d+\] ?\. unexpected pos",
    ),
    # The resolver's messages on Linux and macOS, requests and urllib3, urllib, huggingface_hub.
    _rule(
        FailureCause.NO_INTERNET,
        "{internet_advice}",
        r"Temporary failure in name resolution",
        r"Name or service not known",
        r"nodename nor servname provided",
        r"\bNameResolutionError\b",
        r"Failed to resolve '",
        r"Max retries exceeded with url",
        r"Failed to establish a new connection",
        r"\bURLError\b",
        r"\bgaierror\b",
        r"Network is unreachable",
        r"\bENETUNREACH\b",
        r"couldn't connect to 'https?://huggingface\.co'",
        r"\bLocalEntryNotFoundError\b",
    ),
    # Kaggle's failure messages, its page on submissions [A], and nbclient.
    _rule(
        FailureCause.TIMED_OUT,
        "{time_advice}",
        r"exceeded the (?:time limit|(?:max(?:imum)? )?allowed (?:runtime|execution))",
        r"\bCellTimeoutError\b",
        r"A cell timed out while it was being executed",
    ),
    # Python's import system.
    _rule(
        FailureCause.MISSING_MODULE,
        "{module_advice}",
        r"ModuleNotFoundError: No module named '(?P<module>[^']++)'",
        r"ImportError: cannot import name '[^']*+' from (?:partially initialized module )?"
        r"'(?P<from_module>[^']++)'",
    ),
    # kernelkit_runtime: the watchdog.
    _rule(
        FailureCause.STALLED,
        "Look where it hung: the traceback in run-manifest.json shows every thread. If it is only "
        "slow, let it print something now and then, or set a longer stall_minutes.",
        r"\bStalled: ",
    ),
    # kernelkit_runtime: pip_install, check_sources, finish, call, and all its other errors.
    _rule(
        FailureCause.OWN_CHECK,
        "Correct `pip` in [tool.kernelkit], and try it with `kernelkit rehearse`.",
        r"RuntimeFault: pip could not install",
    ),
    _rule(
        FailureCause.OWN_CHECK,
        "Change the package, not the cells, and push again: `kernelkit push`.",
        r"RuntimeFault: The sources on disk are not those of the package",
    ),
    _rule(
        FailureCause.OWN_CHECK,
        "Let the entry write them to kaggle://working, or change `outputs` in [tool.kernelkit].",
        r"RuntimeFault: The run ended without its declared outputs",
    ),
    _rule(
        FailureCause.OWN_CHECK,
        "Rename the package: the image or a source has another package of that name.",
        r"RuntimeFault: \S+ came from \S+ not from ",
    ),
    _rule(FailureCause.OWN_CHECK, "Follow the message, and push again.", r"\bRuntimeFault\b"),
    # faulthandler (ipykernel turns it on), subprocess and torch's DataLoader.
    _rule(
        FailureCause.CRASH,
        "Compiled code crashed, not Python: check what the innermost line calls, and try it "
        "without worker processes{workers}.",
        r"Fatal Python error",
        r"Segmentation fault",
        r"terminate called after throwing",
        r"\bSIG(?:SEGV|ABRT|BUS|ILL|FPE)\b",
        r"killed by signal: (?:Segmentation fault|Aborted|Bus error|Illegal instruction)",
        r"returned non-zero exit status (?:13[24569]|-(?:4|6|7|8|11))\b",
        r"exit(?:ed with)? code (?:13[24569]|-(?:4|6|7|8|11))\b",
        r"illegal memory access",
    ),
    # nbclient, when the kernel has died; it cannot know why.
    _rule(
        FailureCause.DIED,
        "The process ended at once, without an error. If the memory ran out (Kaggle has about "
        "30 GB), try smaller batches{batch} and fewer worker processes. Otherwise look for a crash "
        "of compiled code, or os._exit: `kernelkit rehearse` with "
        "`faulthandler.enable()` shows the line.",
        r"\bDeadKernelError\b",
    ),
    # A program that read Jupyter's own command line.
    _rule(
        FailureCause.USAGE,
        "The program read Jupyter's own arguments: let the entry parse a list of its own, such as "
        "parse_args([]), or make the script itself the entry.",
        r"unrecognized arguments: -f \S+\.json",
        r"[Nn]o such option:? '?-f\b",
    ),
    # argparse, click, typer (with and without a box), absl, fire and docopt.
    _rule(
        FailureCause.USAGE,
        "The program refuses its command line. A script gets `arguments` and the parameters of "
        "[tool.kernelkit]: the log shows them after `$ python`. A function gets an empty one: let "
        "it take parameters, or make the script the entry. Try it with `kernelkit rehearse`.",
        r"^\s*[Uu]sage: (?:.*\n){1,60}?.*(?:\b[Ee]rror: |ERROR: |─ Error ─)",
        r"^ERROR: (?:.*\n){1,60}?[Uu]sage: ",
        r"FATAL Flags parsing error:",
        r"^.{0,80}: error: (?:the following arguments are required|unrecognized arguments"
        r"|argument \S+|ambiguous option|one of the arguments|invalid choice|too few arguments)",
        r"^(?:Error: )?(?:No such (?:option|command)|Missing (?:option|argument|command)"
        r"|Invalid value for|Got unexpected extra argument)\b",
    ),
    # CUDA reports an error later than it happens.
    _rule(
        FailureCause.OTHER,
        "The error may have happened before this line: try it on a CPU "
        "(`kernelkit rehearse`), where an index out of range is reported at once.",
        r"device-side assert triggered",
    ),
    _rule(
        FailureCause.EXIT,
        "The program ended itself: its last lines say why, or the condition around that call. "
        "Try it with `kernelkit rehearse`, and push again.",
        r"^SystemExit\b",
    ),
)
"""Tried in this order, on the error itself and then on its causes."""

OTHER_STEP = "Fix it, try it with `kernelkit rehearse`, and push again."
UNKNOWN_STEP = "Read the end of the log: `kernelkit logs`, or the kernel's page on Kaggle."


def find_cause(errors: Iterable[str], facts: Facts) -> tuple[FailureCause, str]:
    """The cause of the first error that a rule matches, and one sentence on what to do next."""
    for error in errors:
        for rule in RULES:
            if match := rule.pattern.search(error):
                return rule.cause, rule.next_step.format_map(facts.phrases(match.groupdict()))
    return FailureCause.OTHER, OTHER_STEP


@dataclass(frozen=True)
class Facts:
    """What is known about the run; the next steps quote it."""

    parameters: Parameters
    sources: frozenset[str]
    """Slugs of everything that the kernel declares as a source."""

    own: frozenset[str]
    """Names that the package adds to the import path."""

    internet: bool
    timeout: int = 0
    """session_timeout_seconds; 0 if it is not set."""

    left_out: tuple[str, ...] = ()
    """Wheels that do not fit the Python of a rehearsal."""

    @classmethod
    def of(cls, report: RunReport, bundle: SentBundle, log: Iterable[str] = ()) -> Facts:
        """From what the run reported, what was sent, and the lines of the log."""
        left_out = (_LEFT_OUT.match(line) for line in log)
        return cls(
            report.parameters or bundle.parameters,
            bundle.sources,
            frozenset(path.partition("/")[0].removesuffix(".py") for path in bundle.hashes),
            bundle.kernel.enable_internet,
            bundle.kernel.session_timeout_seconds,
            tuple(found[1] for found in left_out if found),
        )

    def phrases(self, groups: Mapping[str, str | None]) -> dict[str, str]:
        """The fields of a rule's next step."""
        batch = self._smaller("batch_size")
        return {
            "batch": batch,
            "gpu_advice": f"Use smaller batches{batch or ' or images'}.",
            "host_advice": "Keep less in memory at once (Kaggle has about 30 GB): smaller batches"
            f"{batch}, fewer worker processes, files read when they are needed.",
            "workers": ": `--set num_workers=0`" if "num_workers" in self.parameters else "",
            "time_advice": self.time_advice,
            "source_advice": self._source(groups.get("input") or groups.get("file_in") or ""),
            "module_advice": self._module(groups.get("module"), groups.get("from_module")),
            "internet_advice": self._internet(),
        }

    @property
    def time_advice(self) -> str:
        """What to do about a run that reached its time limit."""
        limit = f"session_timeout_seconds = {self.timeout}, or " if self.timeout else ""
        return (
            f"Make the run shorter{self._smaller('epochs')}, or resume it: its outputs so far are "
            "kept, and the next version can read them if kernel_sources names this kernel. "
            f"A session ends after {limit}12 hours."
        )

    def _smaller(self, ending: str) -> str:
        """A `--set` with half of the parameter, if there is one that can be halved."""
        for name, value in self.parameters.items():
            if name.endswith(ending) and type(value) is int and value > 1:
                return f": `--set {name}={value // 2}`"
        return ""

    def _source(self, slug: str) -> str:
        if slug in self.sources:
            return (
                f"{slug} is declared: check that it contains the file under that path. On Kaggle, "
                f"accept its rules on its page; in a rehearsal, look into DIR/{slug} of --inputs."
            )
        return (
            f"Add {slug} to competition_sources or dataset_sources in [tool.kernelkit.kernel], and "
            "accept its rules on its page on Kaggle."
        )

    def _module(self, module: str | None, imported_from: str | None) -> str:
        name = module or imported_from or ""
        top = name.partition(".")[0]
        if top in self.own:
            return (
                f"{name} belongs to the package: check that its file is in the package, and that "
                "`kernelkit render` lists it."
            )
        if imported_from:
            return (
                f"The version of {top} in the image differs from yours: use what both have, or "
                "attach the version that you need as a dataset."
            )
        if self.left_out:
            return (
                f"The Python of this machine has no {top}, and these wheels do not fit it: "
                f"{', '.join(self.left_out)}. If one of them has {top}, the run on Kaggle installs "
                "it. For the rehearsal, install the package on this machine."
            )
        wheels = "" if self.internet else " and run `kernelkit wheels`"
        return (
            f"The run's Python has no {top}: add its package to `pip` in [tool.kernelkit]{wheels}, "
            "or do without it. For a rehearsal, you can install it on this machine."
        )

    def _internet(self) -> str:
        if self.internet:
            return (
                "enable_internet is set already. On Kaggle, verify the account by phone. In a "
                "rehearsal, connect this machine to the network, or install what the run needs "
                "on it."
            )
        return (
            "Set enable_internet = true in [tool.kernelkit.kernel], or attach the downloads as a "
            "dataset: `kernelkit wheels` for packages, `kernelkit dataset push` for other files."
        )
