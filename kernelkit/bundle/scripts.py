"""Reads from the source of a script which options its command line takes; no code is executed.

argparse, click, typer and fire name their options in the source. So does a script whose command
line overrides its own global variables. Where only running a script shows what it takes, its
command line is `open`: it may take any option.
"""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kernelkit.bundle.syntax import arguments_of, called_name
from kernelkit.config import RESERVED_NAMES, Arguments

OptionForm = Literal[
    "value", "list", "repeated", "switch", "count", "truth", "literal", "subcommand", "first"
]
"""How an option takes its value: one word, several words, once for each item, by being there, by
its number of times, a text that `bool()` reads, a Python literal after `=`, the first word, or
words before all options."""

OptionValue = str | int | float | bool | list[str | int | float | bool] | None

_SWITCHES = {"store_true": True, "store_false": False, "store_const": True}
_REPEATED = frozenset({"append", "append_const", "extend"})
_WITHOUT_PARAMETER = frozenset({"help", "version"})
_OPENING = frozenset({"parse_known_args", "parse_known_intermixed_args", "add_subparsers"})
_DATACLASS_PARSERS = frozenset({"HfArgumentParser", "simple_parsing", "tyro", "jsonargparse"})


@dataclass(frozen=True)
class Option:
    """One option or one positional argument."""

    names: tuple[str, ...]
    """The names under which [tool.kernelkit.parameters] may give it, as Python writes them."""

    flag: str
    """How it is written, such as `--learning-rate`; empty for a positional argument."""

    form: OptionForm = "value"
    off: str = ""
    """Of a switch: the flag that sets it to false, where there is one."""

    required: bool = False
    default: OptionValue = None
    """The default value, if the source states it as a literal."""


@dataclass(frozen=True)
class CommandLine:
    """What a script accepts behind its name."""

    library: str
    """argparse, click, typer, fire, hydra, dataclasses, or globals for a script that overrides its
    own global variables; empty where none of them is used."""

    options: tuple[Option, ...] = ()
    open: bool = True
    """Whether it may take options that the source does not show."""

    arguments: Arguments = "--key value"
    """The form in which it reads options that the source does not show, as far as that is known."""

    def __post_init__(self) -> None:
        """Let parameters have a name where Python or the notebook uses the option's own name."""
        named = tuple(
            replace(o, names=tuple(dict.fromkeys([*o.names, *map(parameter_name, o.names)])))
            for o in self.options
        )
        object.__setattr__(self, "options", named)

    def options_of(self, parameters: Iterable[str]) -> list[tuple[str, Option]]:
        """Each parameter with its option, in the order of the source; unknown ones are left out.

        Parsers that read dataclasses take any value as words, true and false included.
        """
        names = list(parameters)
        if self.library == "dataclasses":
            return [(name, Option((name,), f"--{name}", "list")) for name in names]
        return [(name, o) for o in self.options for name in names if name in o.names]

    @property
    def names(self) -> frozenset[str]:
        """Every name that a parameter may have."""
        return frozenset(name for option in self.options for name in option.names)


def parameter_name(name: str) -> str:
    """The name of the parameter for an option: `lambda` becomes `lambda_`, as in Python."""
    name = re.sub(r"\W", "_", name)
    return f"{name}_" if keyword.iskeyword(name) or name in RESERVED_NAMES else name


def read_command_line(sources: Iterable[bytes | str]) -> CommandLine:
    """The command line of a script: its source comes first, then what it imports and executes."""
    trees = [ast.parse(source) for source in sources]
    main = trees[0]
    used = _words(main)
    if "hydra" in used:
        return CommandLine("hydra", arguments="key=value")
    if any(_DATACLASS_PARSERS & _words(tree) for tree in trees):
        return CommandLine("dataclasses")
    if "fire" in used and (found := _fire(main)):
        return found
    if "typer" in used and (found := _typer(main)):
        return found
    if "click" in used and (found := _click(main)):
        return found
    found = _argparse(trees)
    return found if found.library else _own_parser(trees)


def executed_files(source: bytes | str) -> list[str]:
    """The files that a script executes in its own namespace: `exec(open("settings.py").read())`."""
    return [
        text
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call) and called_name(call) == "exec"
        for inner in ast.walk(call)
        if isinstance(inner, ast.Call) and called_name(inner) in ("open", "Path") and inner.args
        if (text := _text(inner.args[0]))
    ]


def _own_parser(trees: Sequence[ast.Module]) -> CommandLine:
    """What a script takes that reads `sys.argv` itself; its global variables, if it sets them."""
    readers = [tree for tree in trees if _mentions(tree, "argv")]
    texts = {text for tree in readers for node in ast.walk(tree) if (text := _text(node))}  # type: ignore[arg-type]
    arguments: Arguments = "--key value"
    if any(text.endswith("=") for text in texts):
        arguments = "--key=value" if any(text.startswith("--") for text in texts) else "key=value"
    sets_globals = any(_mentions(tree, "globals") for tree in readers)
    if not sets_globals or arguments != "--key=value":
        return CommandLine("", arguments=arguments)
    is_literal = any(_mentions(tree, "literal_eval", "eval") for tree in readers)
    is_closed = any(isinstance(node, ast.Raise) for tree in readers for node in ast.walk(tree))
    form: OptionForm = "literal" if is_literal else "value"
    options = tuple(
        Option((name,), f"--{name}", form, default=default)
        for name, default in _variables(trees[0])
    )
    return CommandLine("globals", options, not is_closed, arguments)


def _mentions(tree: ast.Module, *names: str) -> bool:
    return any(
        (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.Name) and node.id in names)
        for node in ast.walk(tree)
    )


def _variables(tree: ast.Module) -> Iterator[tuple[str, OptionValue]]:
    """The global variables that a script sets before it reads its command line."""
    for node in tree.body:
        if _mentions(ast.Module([node], []), "argv", "exec"):
            return
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and not target.id.startswith("_"):
                yield target.id, _literal(node.value)  # type: ignore[attr-defined]


def _words(tree: ast.Module) -> set[str]:
    """Top-level names of imported modules, and the names imported from them."""
    words = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            words |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            words |= {(node.module or "").partition(".")[0], *(a.name for a in node.names)}
    return words


def _argparse(trees: list[ast.Module]) -> CommandLine:
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    options = []
    is_open = False
    for call in calls:
        name = called_name(call)
        is_open |= name in _OPENING
        if name == "add_subparsers":
            given = _keywords(call)
            options.append(_subcommand(_text(given.get("dest")), _is_true(given.get("required"))))
        if name == "add_argument":
            option = _argparse_option(call)
            is_open |= option is None
            options += [option] if option and option.names else []
    if not options:
        return CommandLine("")
    return CommandLine("argparse", tuple(options), is_open)


def _subcommand(name: str = "", required: bool = False) -> Option:
    return Option((name or "command",), "", "subcommand", required=required)


def _argparse_option(call: ast.Call) -> Option | None:
    """One `add_argument`; None where its names are not literals."""
    flags = [_text(argument) for argument in call.args]
    if not flags or not all(flags) or any(keyword.arg is None for keyword in call.keywords):
        return None
    given = _keywords(call)
    action = _text(given.get("action")) or ast.unparse(given["action"]) if "action" in given else ""
    if action in _WITHOUT_PARAMETER:
        return Option((), "")
    dest = _text(given.get("dest"))
    nargs = ast.unparse(given["nargs"]) if "nargs" in given else "None"
    many = nargs not in ("None", "'?'")
    default = _literal(given.get("default"))
    if not flags[0].startswith("-"):
        form: OptionForm = "list" if many else "value"
        required = nargs == "None" or nargs == "'+'" or nargs.isdecimal()
        return Option((_name(flags[0]),), "", form, required=required, default=default)
    long = [flag for flag in flags if flag.startswith("--")] or flags
    names = tuple(dict.fromkeys([*([dest] if dest else []), *map(_name, long)]))
    required = _is_true(given.get("required"))
    if action in _SWITCHES:
        if _SWITCHES[action]:
            return Option(names, long[0], "switch", default=False)
        return Option(names, "", "switch", off=long[0], default=True)
    if action.endswith("BooleanOptionalAction"):
        off = f"--no-{long[0].lstrip('-')}"
        return Option(names, long[0], "switch", off, required, default)
    if action == "count":
        return Option(names, long[0], "count")
    form = "repeated" if action in _REPEATED else "list" if many else "value"
    if form == "value" and "type" in given and ast.unparse(given["type"]) == "bool":
        form = "truth"
    return Option(names, long[0], form, required=required, default=default)


def _click(tree: ast.Module) -> CommandLine | None:
    """The options of the only command; None where there is no command."""
    commands = [node for node in ast.walk(tree) if _decorators(node, "command")]
    if not commands:
        return None
    if len(commands) > 1 or any(_decorators(node, "group") for node in ast.walk(tree)):
        return _with_subcommands("click", [_click_options(node)[0] for node in commands])
    options, is_open = _click_options(commands[0])
    return CommandLine("click", tuple(options), is_open)


def _with_subcommands(library: str, commands: Sequence[Sequence[Option]]) -> CommandLine:
    """The first word, and the options that every command which has them writes in the same way."""
    forms: dict[str, set[tuple[str, OptionForm, str]]] = {}
    every = [replace(option, required=False) for options in commands for option in options]
    for option in every:
        for name in option.names:
            forms.setdefault(name, set()).add((option.flag, option.form, option.off))
    same = [option for option in every if all(len(forms[name]) == 1 for name in option.names)]
    unique = {option.names: option for option in reversed(same)}
    options = [option for option in unique.values() if "command" not in option.names]
    return CommandLine(library, (_subcommand(), *reversed(options)))


def _click_options(command: ast.AST) -> tuple[list[Option], bool]:
    """The options of a command, and whether there may be more of them."""
    options: list[Option] = []
    is_open = False
    for call in _decorators(command, "option", "argument"):
        flags = [_text(argument) for argument in call.args]
        given = _keywords(call)
        if not flags or not all(flags):
            is_open = True
        elif called_name(call) == "argument":
            many = "nargs" in given and ast.unparse(given["nargs"]) != "1"
            required = not ("default" in given or _is_false(given.get("required")))
            default = _literal(given.get("default"))
            form: OptionForm = "list" if many else "value"
            options.append(Option((_name(flags[0]),), "", form, required=required, default=default))
        else:
            options.append(_click_option(flags, given))
    return options, is_open


def _click_option(flags: list[str], given: dict[str, ast.expr]) -> Option:
    plain = [flag for flag in flags if not flag.startswith("-")]
    dashed = [flag for flag in flags if flag.startswith("-")]
    long = [flag for flag in dashed if flag.startswith("--")] or dashed
    on, _, off = long[0].partition("/")
    names = tuple(dict.fromkeys([*plain, *(_name(flag.partition("/")[0]) for flag in long)]))
    required, default = _is_true(given.get("required")), _literal(given.get("default"))
    if off.strip() or _is_true(given.get("is_flag")):
        return Option(names, on.strip(), "switch", off.strip(), required, default)
    if _is_true(given.get("count")):
        return Option(names, on, "count")
    many = "nargs" in given and ast.unparse(given["nargs"]) != "1"
    form: OptionForm = "repeated" if _is_true(given.get("multiple")) else "value"
    return Option(names, on, "list" if many else form, required=required, default=default)


def _typer(tree: ast.Module) -> CommandLine | None:
    """The options of the only command; None where there is no command."""
    functions = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    run = [
        functions.get(ast.unparse(node.args[0]))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("run") and node.args
    ]
    commands = [node for node in run if node is not None]
    commands += [node for node in functions.values() if _decorators(node, "command")]
    if not commands:
        return None
    if len(commands) > 1 or any(_decorators(n, "callback") for n in functions.values()):
        return _with_subcommands("typer", [[*_typer_options(node)] for node in commands])
    return CommandLine("typer", tuple(_typer_options(commands[0])), open=False)


def _typer_options(function: ast.FunctionDef) -> Iterator[Option]:
    for argument, default in arguments_of(function):
        kind = ast.unparse(argument.annotation) if argument.annotation else ""
        if kind.endswith("Context"):
            continue
        nodes = [*ast.walk(argument), default]
        calls = [node for node in nodes if isinstance(node, ast.Call)]
        declared = next((c for c in calls if called_name(c) in ("Argument", "Option")), None)
        words = list(declared.args) if declared else []
        if declared is not None and declared is default:  # `= typer.Option(0.5, "--rate")`
            default = words.pop(0) if words else _keywords(declared).get("default")
        required, value = default is None or ast.unparse(default) == "...", _literal(default)
        is_argument = called_name(declared) == "Argument" if declared else required
        is_list = "list[" in kind.lower()
        if is_argument:
            form: OptionForm = "list" if is_list else "value"
            yield Option((argument.arg,), "", form, required=required, default=value)
            continue
        flags = [text for text in map(_text, words) if text.startswith("--")]
        on, _, off = (flags[0] if flags else f"--{argument.arg.replace('_', '-')}").partition("/")
        names = tuple(dict.fromkeys([argument.arg, _name(on.strip())]))
        if "bool" in kind:
            off = off.strip() or ("" if flags else f"--no-{on.lstrip('-')}")
            yield Option(names, on, "switch", off, required, value)
        else:
            form = "repeated" if is_list else "value"
            yield Option(names, on, form, required=required, default=value)


def _fire(tree: ast.Module) -> CommandLine | None:
    """The arguments of the function that `fire.Fire` calls; open where it gets something else."""
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Fire")
    ]
    if not calls:
        return None
    target = ast.unparse(calls[0].args[0]) if calls[0].args else ""
    function = next(
        (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == target), None
    )
    if function is None:
        return CommandLine("fire")
    return CommandLine(
        "fire",
        tuple(
            Option((name,), f"--{name}", "literal", required=required, default=default)
            for name, required, default in function_arguments(function)
        ),
        open=function.args.kwarg is not None,
    )


def function_arguments(function: ast.FunctionDef) -> Iterator[tuple[str, bool, OptionValue]]:
    """Name, whether it is required, and the literal default of each argument of a function.

    A tuple is no such default: the project file would make a list of it.
    """
    for argument, default in arguments_of(function):
        value = None if isinstance(default, ast.Tuple) else _literal(default)
        yield argument.arg, default is None, value


def _keywords(call: ast.Call) -> dict[str, ast.expr]:
    return {str(keyword.arg): keyword.value for keyword in call.keywords}


def _decorators(node: ast.AST, *words: str) -> list[ast.Call]:
    """The decorators of a function that call `….word(…)`; a bare `@….command` counts as a call."""
    found = []
    for decorator in getattr(node, "decorator_list", ()):
        call = decorator if isinstance(decorator, ast.Call) else ast.Call(decorator, [], [])
        if called_name(call) in words:
            found.append(call)
    return found


def _name(flag: str) -> str:
    """`--learning-rate` → `learning_rate`."""
    return flag.lstrip("-").replace("-", "_")


def _text(node: ast.expr | None) -> str:
    """A literal text; empty for everything else."""
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return node.value if is_text else ""  # type: ignore[union-attr]


def _literal(node: ast.expr | None) -> OptionValue:
    """The value of a literal that TOML can hold; None for everything else."""
    try:
        value = ast.literal_eval(node) if node is not None else None
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    if isinstance(value, list | tuple):
        plain = all(isinstance(item, str | int | float) for item in value)
        return list(value) if plain else None
    return value if isinstance(value, str | int | float) else None


def _is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _is_false(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is False
