"""What the source of a project says about a run: what could start it, which files it needs.

Source is parsed and never executed. What only running the program shows is missing here, so the
answers are suggestions for a person to check.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from kernelkit.bundle import image, syntax
from kernelkit.bundle.scripts import (
    CommandLine,
    Option,
    OptionValue,
    executed_files,
    function_arguments,
    read_command_line,
)

_ENTRY_FUNCTIONS = ("run", "train", "main", "fit", "train_model", "run_training")
_GOOD_NAMES = {"train": 40, "main": 30, "run": 30, "training": 35, "fit": 25, "__main__": 20}
_BAD_NAMES = re.compile(
    r"predict|infer|eval|test|plot|prepare|preprocess|download|sample|convert|setup|util|config"
)
_WORK = (b".fit(", b".backward(", b"optimizer", b"to_csv(", b"torch.save(")

# Function or method → the position of its path; -1 where the path is what the method belongs to.
_WRITERS = {
    **dict.fromkeys(("to_csv", "to_parquet", "to_json", "to_pickle", "to_feather", "savefig"), 0),
    **dict.fromkeys(("savez", "savez_compressed", "savetxt", "imwrite", "save_weights"), 0),
    **dict.fromkeys(("save_pretrained", "save_model", "save_checkpoint", "save_file"), 0),
    **dict.fromkeys(("write_text", "write_bytes"), -1),
}
_SAVES = {"torch": 1, "joblib": 1, "np": 0, "numpy": 0}  # module → the position of the path
_ADDED = {  # to a name without it
    (module, function): suffix
    for module in ("np", "numpy")
    for function, suffix in (("save", ".npy"), ("savez", ".npz"), ("savez_compressed", ".npz"))
}
_READERS = {
    **dict.fromkeys(("read_csv", "read_parquet", "read_json", "read_excel", "read_feather"), 0),
    **dict.fromkeys(("imread", "loadtxt", "genfromtxt", "safe_load_file", "run_path"), 0),
    **dict.fromkeys(("memmap", "fromfile"), 0),
    **dict.fromkeys(("read_text", "read_bytes"), -1),
}
_OPENS = frozenset({"", "io", "gzip", "bz2", "lzma", "codecs"})  # with `open(path, mode)`
_LOADS = frozenset({"np", "numpy", "torch", "joblib", "OmegaConf", "Image"})
_DOWNLOADS = re.compile(
    rb"from_pretrained\(|pretrained\s*=\s*True|torch\.hub|load_dataset\(|urlretrieve\("
)


@dataclass(frozen=True)
class Candidate:
    """Something in the project that could start the run."""

    entry: str
    """As in the project file: `pkg.mod:function`, `pkg.mod` or `script.py`."""

    options: tuple[Option, ...]
    """Its parameters, as far as the source shows them."""

    library: str
    """What reads its command line; "function" for a function."""

    score: int
    """How likely it is what the user means."""

    @property
    def parameters(self) -> str:
        """Its parameters in one line, for a list."""
        return ", ".join(option.names[-1] for option in self.options)


@dataclass(frozen=True)
class FileUse:
    """A file that the source reads or writes."""

    base: str
    """The parameter or variable that holds its folder; empty for the working folder."""

    path: str
    """Relative to the base; `*` stands for what only the run knows."""


@dataclass(frozen=True)
class Source:
    """One Python file of the project."""

    path: str
    content: bytes

    @cached_property
    def parsed(self) -> syntax.Parsed:
        """Its syntax; that of an empty file where it is not valid Python."""
        try:
            return syntax.parse(self.content, self.path, image.snapshot().release)
        except (SyntaxError, ValueError, RecursionError):
            return syntax.Parsed(ast.Module([], []), b"")

    @property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return self.parsed.tree

    @property
    def stem(self) -> str:
        """The file's name without its suffix."""
        return PurePosixPath(self.path).stem


def candidates(
    project: Path, sources: Iterable[Source], declared: Iterable[str] = ()
) -> list[Candidate]:
    """Everything that could start a run, the most likely first.

    `declared` are the functions of `[project.scripts]`.
    """
    every = list(sources)
    imported = {name for source in every for name in _imported(source.tree)}
    found: list[Candidate] = []
    commands = set(declared)
    for source in every:
        found += _programs(project, source, every, imported)
        found += _functions(project, source)
    found = [replace(c, score=c.score + 15 * (c.entry in commands)) for c in found]
    return sorted(found, key=lambda c: (-c.score, c.entry.count("/"), c.entry))


def named_candidate(project: Path, sources: Iterable[Source], entry: str) -> Candidate | None:
    """What a user names as the entry, though nothing shows that it starts a run."""
    module, colon, function = entry.partition(":")
    every = list(sources)
    for source in every:
        if entry == source.path or (not colon and module == module_of(project, source.path)):
            line = command_line_of(source, every)
            return Candidate(entry, line.options, line.library, 0)
        if not colon or module != module_of(project, source.path):
            continue
        for node in source.tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == function:
                return Candidate(entry, _options_of(node), "function", 0)
    return None


def command_line_of(source: Source, sources: Iterable[Source]) -> CommandLine:
    """What a script accepts, as far as its own file and those that it executes show it."""
    if not source.tree.body:
        return CommandLine("")
    names = executed_files(source.parsed.source)
    behind = [other.parsed.source for other in sources if other.path in names]
    return read_command_line([source.parsed.source, *behind])


def _options_of(function: ast.FunctionDef) -> tuple[Option, ...]:
    arguments = function_arguments(function)
    return tuple(Option((name,), "", required=r, default=default) for name, r, default in arguments)


def settings_of(source: Source) -> dict[str, OptionValue]:
    """The names and literals that a file consists of; empty where it does anything else."""
    found: dict[str, OptionValue] = {}
    for node in source.tree.body:
        is_plain = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if is_plain:
            with suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                found[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)  # type: ignore[attr-defined]
                continue
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not (is_plain or is_text or isinstance(node, ast.Import)):
            return {}
    return found


def _programs(
    project: Path, source: Source, sources: Sequence[Source], imported: set[str]
) -> Iterator[Candidate]:
    line = command_line_of(source, sources)
    guarded = any(_is_main_guard(node) for node in source.tree.body)
    module = module_of(project, source.path)
    in_package = bool(module) and package_folder(project, source.path) is not None
    works = source.stem not in imported and any(_does_work(node) for node in source.tree.body)
    # Without either, it only defines a command line for others.
    if not guarded and not (works and (line.library or not in_package)):
        return
    if source.stem in ("__init__", "setup", "conftest", "noxfile"):
        return
    entry = module.removesuffix(".__main__") if in_package else source.path
    yield Candidate(entry, line.options, line.library, _score(source) + 5 * guarded)


def _functions(project: Path, source: Source) -> Iterator[Candidate]:
    module = module_of(project, source.path)
    if not module or b"argparse" in source.content or b"sys.argv" in source.content:
        return
    for node in source.tree.body:
        if not isinstance(node, ast.FunctionDef) or node.name not in _ENTRY_FUNCTIONS:
            continue
        options = _options_of(node)
        if node.decorator_list or node.args.posonlyargs or not options:
            continue
        named = 10 if node.name in ("run", "train") else 0
        yield Candidate(f"{module}:{node.name}", options, "function", _score(source) + named)


def module_of(project: Path, path: str) -> str:
    """The name under which a file of the project is imported; empty where nothing can."""
    package = package_folder(project, path)
    if package is not None:
        holder = package.rpartition("/")[0]
    else:  # a folder without __init__.py is a package, too
        holder = "" if any((project / "src").glob("*.py")) else "src"
    parts = PurePosixPath(path).with_suffix("").parts
    if holder and path.startswith(f"{holder}/"):
        parts = parts[holder.count("/") + 1 :]
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return name if all(part.isidentifier() for part in name.split(".")) else ""


def package_folder(project: Path, path: str) -> str | None:
    """The topmost regular package around a file."""
    folders = [folder.as_posix() for folder in reversed(PurePosixPath(path).parents)]
    return next((f for f in folders[1:] if (project / f / "__init__.py").is_file()), None)


def _score(source: Source) -> int:
    score = _GOOD_NAMES.get(source.stem, 0)
    score += 20 if source.stem.startswith("train_") else 0
    score -= 20 if _BAD_NAMES.search(source.stem) else 0
    score += 10 * sum(word in source.content for word in _WORK)
    return score - 3 * source.path.count("/")


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.rpartition(".")[2] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").rpartition(".")[2]
            yield from (alias.name for alias in node.names)


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def _does_work(node: ast.stmt) -> bool:
    """Whether a statement at the top level does more than define something."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call)
    return isinstance(node, ast.For | ast.While | ast.With)


# Files.


@dataclass
class FileUses:
    """The files that some sources read and write."""

    written: list[FileUse] = field(default_factory=list)
    read: list[FileUse] = field(default_factory=list)
    defaults: dict[str, str] = field(default_factory=dict)
    """Texts that are the default values of fields of classes, such as a dataclass of settings."""


def file_uses(
    sources: Iterable[Source], values: Mapping[str, OptionValue] | None = None
) -> FileUses:
    """What the sources read and write, as far as literals show it.

    `values` are the values of global variables that the run sets from outside.
    """
    uses = FileUses()
    for source in sources:
        folder = str(PurePosixPath(source.path).parent)
        names = _Names(source.tree, "" if folder == "." else folder, values or {})
        uses.defaults |= names.defaults
        calls = (node for node in ast.walk(source.tree) if isinstance(node, ast.Call))
        for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
            with suppress(RecursionError):  # an expression of hundreds of terms
                _note_call(call, names, uses)
    uses.written = list(dict.fromkeys(uses.written))
    uses.read = list(dict.fromkeys(uses.read))
    return uses


def _note_call(call: ast.Call, names: _Names, uses: FileUses) -> None:
    function = syntax.called_name(call)
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    module = ast.unparse(owner) if owner is not None else ""
    if (module, function) == ("hydra", "main"):
        given = {k.arg: k.value for k in call.keywords}
        folder = given.get("config_path", call.args[0] if call.args else None)
        if isinstance(folder, ast.Constant) and isinstance(folder.value, str):
            path = PurePosixPath(names.folder, folder.value)
            uses.read.append(FileUse("", f"{path.as_posix()}/"))
        return
    found = _path_place(call, module, function)
    if found is None:
        return
    writes, place = found
    argument = owner if place == -1 else _argument(call, place)
    use = names.resolve(argument) if argument is not None else None
    if use is not None:
        suffix = _ADDED.get((module, function), "")
        if suffix and use.path and not use.path.endswith(("*", suffix)):
            use = FileUse(use.base, use.path + suffix)
        (uses.written if writes else uses.read).append(use)


def _path_place(call: ast.Call, module: str, function: str) -> tuple[bool, int] | None:
    """Whether a call writes a file or reads one, and the position of its path; None for neither."""
    if function == "open" and module != "Image":
        place = 0 if module in _OPENS else -1
        return not set(_mode(call, place + 1)).isdisjoint("wax"), place
    if function in ("save", "dump") and module in _SAVES:
        return True, _SAVES[module]
    if function in ("load", "open") and module in _LOADS:
        return False, 0
    if function in _WRITERS:
        return True, _WRITERS[function]
    if function in _READERS:
        return False, _READERS[function]
    return (True, 0) if function == "save" and module and call.args else None


def _argument(call: ast.Call, place: int) -> ast.expr | None:
    if len(call.args) > place:
        return call.args[place]
    words = ("path", "path_or_buf", "fname", "f", "filename", "file", "filepath_or_buffer")
    return next((k.value for k in call.keywords if k.arg in words), None)


def _mode(call: ast.Call, place: int) -> str:
    node = call.args[place] if len(call.args) > place else None
    node = next((k.value for k in call.keywords if k.arg == "mode"), node)
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return node.value if is_text else "r"  # type: ignore[union-attr]


class _Names:
    """Follows expressions for paths to a literal, or to the variable that holds their folder."""

    def __init__(self, tree: ast.Module, folder: str, given: Mapping[str, OptionValue]) -> None:
        self.folder = folder
        """The folder of the source itself, relative to the project."""

        self._values: dict[str, ast.expr] = {
            name: ast.Constant(value) for name, value in given.items() if isinstance(value, str)
        }
        self._found: dict[str, FileUse] = {}
        self.defaults: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self._values.setdefault(node.targets[0].id, node.value)
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                self._values.setdefault(ast.unparse(node.target), node.value)
            elif isinstance(node, ast.ClassDef):
                for line in node.body:
                    value = getattr(getattr(line, "value", None), "value", None)
                    if isinstance(line, ast.AnnAssign) and isinstance(value, str):
                        self.defaults[ast.unparse(line.target)] = value

    def resolve(self, node: ast.expr) -> FileUse | None:
        """The file that an expression names; None where it could be anything."""
        if isinstance(node, ast.Constant):
            return FileUse("", node.value) if isinstance(node.value, str) and node.value else None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div | ast.Add):
            return self._joined(node)
        if isinstance(node, ast.JoinedStr):
            return self._formatted(node)
        if isinstance(node, ast.IfExp | ast.BoolOp):
            return self._either(node)
        if isinstance(node, ast.Call):
            return self._called(node)
        if isinstance(node, ast.Name):
            return self._named(node.id)
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if "__file__" in text:  # Path(__file__).parent
                return FileUse("", self._around(text))
            return FileUse(node.attr, "")
        if isinstance(node, ast.Subscript) and "__file__" in (text := ast.unparse(node)):
            return FileUse("", self._around(text))
        return None

    def _named(self, name: str) -> FileUse:
        """What a variable holds: a file, or else the folder that only the run knows."""
        if name not in self._found:
            self._found[name] = unknown = FileUse(name, "")  # its value may name it again
            value = self._values.get(name)
            if value is not None and "parse_args" not in ast.unparse(value):
                self._found[name] = self.resolve(value) or unknown
        return self._found[name]

    def _around(self, text: str) -> str:
        """The folder that `Path(__file__).parent.parent` or `….parents[1]` means."""
        ups = text.count(".parent") - text.count(".parents")
        if match := re.search(r"\.parents\[(\d+)\]", text):
            ups += int(match[1]) + 1
        parts = PurePosixPath(self.folder).parts
        return "/".join(parts[: max(0, len(parts) - (ups - 1))]) or "."

    def _joined(self, node: ast.BinOp) -> FileUse | None:
        left, right = self.resolve(node.left), self._part(node.right)
        if left is None:
            return None
        if isinstance(node.op, ast.Add):
            return FileUse(left.base, f"{left.path}{right}".lstrip("/"))
        return _below(left, right)

    def _formatted(self, node: ast.JoinedStr) -> FileUse | None:
        start = FileUse("", "")
        parts = list(node.values)
        if parts and isinstance(parts[0], ast.FormattedValue):
            first = self.resolve(parts.pop(0).value)  # type: ignore[attr-defined]
            start = first or FileUse("?", "")
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in parts)
        if start.base or start.path:
            return _below(start, text.lstrip("/")) if text.startswith("/") else None
        return FileUse("", text)

    def _either(self, node: ast.IfExp | ast.BoolOp) -> FileUse | None:
        """Of several possible values the one that is a literal: it is the default."""
        values = [node.body, node.orelse] if isinstance(node, ast.IfExp) else node.values
        found = [use for value in values if (use := self.resolve(value)) is not None]
        return next((use for use in found if not use.base), found[0] if found else None)

    def _called(self, node: ast.Call) -> FileUse | None:
        name = ast.unparse(node.func)
        if name in ("os.environ.get", "os.getenv", "getenv") and len(node.args) > 1:
            return self.resolve(node.args[1])
        if "__file__" in ast.unparse(node) and name.endswith(("resolve", "absolute", "dirname")):
            text = ast.unparse(node)
            ups = text.count("dirname(")
            return FileUse("", self._around(text + ".parent" * ups))
        if name in ("str", "os.fspath", "os.path.abspath", "os.path.expanduser") and node.args:
            return self.resolve(node.args[0])
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("resolve", "as_posix"):
            return self.resolve(node.func.value)
        is_join = name.endswith(("path.join", "Path", "joinpath"))
        parts: list[ast.expr] = list(node.args)
        if name.endswith("joinpath") and isinstance(node.func, ast.Attribute):
            parts.insert(0, node.func.value)
        if not is_join or not parts:
            return None
        found = self.resolve(parts[0])
        for part in parts[1:]:
            found = _below(found, self._part(part)) if found is not None else None
        return found

    def _part(self, node: ast.expr) -> str:
        """One part of a path below another; `*` where only the run knows it."""
        found = self.resolve(node)
        if found is None or found.base:
            return f"*{found.path}" if found is not None and found.path else "*"
        return found.path


def _below(use: FileUse, part: str) -> FileUse:
    path = f"{use.path}/{part}" if use.path not in ("", ".") else part
    return FileUse(use.base, path)


def downloads(sources: Iterable[Source]) -> str:
    """The first file that downloads weights or data in the run; empty without one."""
    return next((source.path for source in sources if _DOWNLOADS.search(source.content)), "")
