"""The parameters of a run as the command line of a script."""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Mapping, Sequence

from .documents import OptionDocument, Parameter
from .faults import RuntimeFault


def command_line(
    parameters: Mapping[str, Parameter], arguments: str, options: Sequence[OptionDocument] = ()
) -> list[str]:
    """The words behind a script's name that give it the parameters; None gives no word.

    `arguments` is the form: "--key value", "--key=value" or "key=value". `options` describes the
    parameters that the source of the script declares, which go before the form.

    Raises:
        RuntimeFault: an option that is on or off has another value.
    """
    declared = {option["name"]: option for option in options}
    words: list[str] = []
    for name, value in parameters.items():
        option = declared.get(name)
        if value is None or (option is not None and (_is_positional(option) or _is_first(option))):
            continue
        if arguments == "key=value":
            words += _hydra_words(_option_name(name), value)
        elif option is None:
            words += _plain_words(_option_name(name), value, arguments)
        else:
            words += _declared_words(option, value, arguments)
    first, last = (
        [
            word
            for option in options
            if is_there(option) and (value := parameters.get(option["name"])) is not None
            for word in _items(value)
        ]
        for is_there in (_is_first, _is_positional)
    )
    # Without `--` an option of several words would take the positional ones, too.
    several = any(option["form"] == "list" and option["flag"] for option in options)
    marked = any(word.startswith("-") for word in last)
    return [*first, *words, *(["--"] if last and (marked or several) else []), *last]


def _is_positional(option: OptionDocument) -> bool:
    return not option["flag"] and option["form"] in ("value", "list")


def _is_first(option: OptionDocument) -> bool:
    return option["form"] in ("subcommand", "first")


def _option_name(name: str) -> str:
    """`lambda_` stands for `lambda`, which cannot be the name of a parameter."""
    return name[:-1] if name.endswith("_") and keyword.iskeyword(name[:-1]) else name


def _declared_words(option: OptionDocument, value: Parameter, arguments: str) -> list[str]:
    flag, form = option["flag"], option["form"]
    if form == "switch":
        if not isinstance(value, bool):
            raise RuntimeFault(
                f"{option['name']} = {value!r}: {flag or option['off']} is on or off"
            )
        word = flag if value else option["off"]
        return [word] if word else []
    if form == "count":
        return [flag] * int(value) if isinstance(value, int) else [flag]
    if form == "truth":  # bool("False") is true
        return [f"{flag}={value if value else ''}"]
    if form == "literal":
        return [f"{flag}={_literal(value)}"]
    if form == "list":
        return [flag, *_items(value)]
    if form == "repeated":
        return [word for item in _items(value) for word in _pair(flag, item, arguments)]
    return _pair(flag, _word(value), arguments)


def _plain_words(name: str, value: Parameter, arguments: str) -> list[str]:
    """An option that the source does not declare."""
    flag = f"--{name}"
    if arguments == "--key=value":
        return [f"{flag}={value if isinstance(value, str) else repr(value)}"]
    if isinstance(value, bool):
        return [flag] if value else []
    if isinstance(value, list):
        return [flag, *_items(value)]
    return _pair(flag, _word(value), arguments)


def _pair(flag: str, word: str, arguments: str) -> list[str]:
    """Two words, or one where the value could be read as another option."""
    joined = arguments == "--key=value" or (word.startswith("-") and flag.startswith("--"))
    return [f"{flag}={word}"] if joined else [flag, word]


def _items(value: Parameter) -> list[str]:
    """The items of a list, or the only value, as words."""
    return [_word(item) for item in (value if isinstance(value, list) else [value])]


def _word(value: Parameter) -> str:
    """Text as it is, lists and tables as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, list | dict) else repr(value)


def _literal(value: Parameter) -> str:
    """A text that fire reads back as the same value."""
    if not isinstance(value, str) or not re.fullmatch(r"[\w./-]+", value):
        return repr(value)  # fire reads `[a,b]` as a list, and drops what follows a `#`
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
    return repr(value)


def _hydra_words(key: str, value: Parameter) -> list[str]:
    if isinstance(value, dict) and value:
        return [word for k, v in value.items() for word in _hydra_words(f"{key}.{k}", v)]
    return [f"{key}={_hydra_value(value)}"]


def _hydra_value(value: Parameter) -> str:
    """By the grammar of Hydra's overrides."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{','.join(map(_hydra_value, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{_hydra_value(v)}" for k, v in value.items()) + "}"
    if not isinstance(value, str):
        return repr(value)
    is_plain = re.fullmatch(r"[A-Za-z_./][\w./-]*", value)
    if is_plain and value.lower() not in ("true", "false", "null", "nan", "inf"):
        return value
    quoted = re.sub(r"(\\*)'", lambda found: 2 * found[1] + "\\'", value)
    trailing = len(quoted) - len(quoted.rstrip("\\"))
    return f"'{quoted}{trailing * chr(92)}'"
