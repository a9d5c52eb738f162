"""The parts that all commands share: `--config` and its overrides, help that fits a screen, errors of one line."""

import ast
import dataclasses
import inspect
import pathlib
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags

from conformer import interrupts
from conformer.config import Config, ConfigError, check_key, load_config

_ROOMS = ("conformer.", "benchmarks.")  # modules whose flags belong to a command, beside its own
_NAME_COLUMNS, _COLUMNS = 26, 100
_SHORT = 32  # characters of choices that are shown beside the name
_ADDED = re.compile(r"^<[^>]*>: |;\n +repeat this option.*", re.DOTALL)  # to a flag's help by absl
_FIELD = re.compile(r"^    (\w+): .*?  # (.*)$", re.MULTILINE)


class ConfigFlag:
    """The file of `--config` and its configuration, overridden by every `--config.KEY=VALUE`; set by `parse_flags`."""

    name: str  # FILE
    value: Config


_FLAG = ConfigFlag()


def define_config_flag() -> ConfigFlag:
    """Defines `--config=FILE` with overrides `--config.KEY=VALUE`."""
    flags.DEFINE_string(
        "config",
        None,
        "Experiment, such as configs/demo.py; --config.KEY=VALUE changes a key, --help-config lists them.",
        required=True,
    )
    return _FLAG


def run_command(main: Callable[[list[str]], None]) -> None:
    """Runs a command: reads its flags, then calls `main` with the other arguments."""
    with interrupts.in_one_line():
        app.run(main, flags_parser=parse_flags)


def parse_flags(argv: list[str]) -> list[str]:
    """A flags parser for `absl.app.run` that reports an error in one line, and the nearest to an unknown key."""
    if {"-h", "-help", "--help"} & set(argv[1:]):
        sys.exit(print(help_text(argv[0])))
    if {"-help-config", "--help-config"} & set(argv[1:]):
        sys.exit(print(config_text()))
    try:
        overrides = [argument for argument in argv[1:] if re.match("--?config[.]", argument)]
        if "config" not in flags.FLAGS:
            return _parse(argv)
        values = dict(map(_read_override, overrides))
        arguments = _parse([argument for argument in argv if argument not in overrides])
        _FLAG.name = flags.FLAGS.config
        if not pathlib.Path(_FLAG.name.partition(":")[0]).is_file():
            raise ConfigError(f"--config={_FLAG.name} does not exist: name a file such as configs/demo.py")
        _FLAG.value = load_config(_FLAG.name, values)
        return arguments
    except (ConfigError, flags.Error) as error:
        sys.exit(f"{pathlib.Path(argv[0]).name}: {error}")


def help_text(script: str) -> str:
    """Returns a command's help: the summary and the examples of its module's docstring, then its flags, one by one."""
    summary, *rest = (sys.modules["__main__"].__doc__ or "").strip().split("\n\n")
    examples = next((block for block in rest if block.lstrip().startswith("python ")), "")
    lines = [summary, "", *([examples, ""] if examples else [])]
    columns = min(shutil.get_terminal_size((_COLUMNS, 24)).columns, 120)
    for flag in sorted(_own_flags(script), key=lambda flag: not _required(flag)):
        name = f"  --{flag.name}{_value(flag)}"
        gap = "\n" if len(name) >= _NAME_COLUMNS else " " * (_NAME_COLUMNS - len(name))
        indent = " " * _NAME_COLUMNS
        text = textwrap.fill(
            _description(flag), columns, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )
        lines.append(name + gap + (text if gap == "\n" else text.lstrip()))
    return "\n".join(lines)


def config_text() -> str:
    """A line a key of the configuration: its default, and what it is."""
    comments = dict(_comments(Config, ""))
    shown = {key: ",".join(map(str, v)) if isinstance(v, tuple) else v for key, v in Config().items()}
    return "\n".join(f"{f'--config.{key}={value}':<48}  {comments[key]}" for key, value in shown.items())


def _comments(section: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """The comment behind each field, by key."""
    comments = dict(_FIELD.findall(inspect.getsource(section)))
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.type):
            yield from _comments(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, comments[field.name]


def _parse(argv: list[str]) -> list[str]:
    """Raises flags.Error, and ConfigError where flags are missing, all of them by name."""
    try:
        return flags.FLAGS(argv)
    except flags.IllegalFlagValueError:
        missing = [flag for flag in _own_flags(argv[0]) if _required(flag) and flag.value is None]
        if not missing:
            raise
    names = " and ".join(f"--{flag.name}" for flag in missing)
    raise ConfigError(f"{names} {'are' if len(missing) > 1 else 'is'} required: --help says what for")


def _own_flags(script: str) -> list[flags.Flag]:
    """Returns a command's own flags, without those of its libraries, in the order of their definition."""
    modules = flags.FLAGS.flags_by_module_dict()
    return [flag for name, own in modules.items() if name == script or name.startswith(_ROOMS) for flag in own]


def _required(flag: flags.Flag) -> bool:
    return any("other than None" in validator.message for validator in flag.validators)


def _value(flag: flags.Flag) -> str:
    """Returns what the help shows behind a flag's name: its choices, or "=" and the kind of its value."""
    if flag.boolean:
        return ""
    if (choices := "|".join(_choices(flag))) and len(choices) <= _SHORT:
        return f"={choices}"
    kinds = {flags.IntegerParser: "N", flags.FloatParser: "X", flags.ListParser: "A,B"}
    return "=" + next((value for kind, value in kinds.items() if isinstance(flag.parser, kind)), "...")


def _description(flag: flags.Flag) -> str:
    text = _ADDED.sub("", flag.help or "")
    if len("|".join(_choices(flag))) > _SHORT:
        text += f" One of {', '.join(_choices(flag))}."
    if _required(flag):
        return f"{text} Required."
    default = ",".join(map(str, flag.default)) if isinstance(flag.default, list) else flag.default
    return text if default in (None, "", False) or "default:" in text else f"{text} Default: {default}."


def _choices(flag: flags.Flag) -> list[str]:
    return flag.parser.enum_values if isinstance(flag.parser, flags.EnumParser) else []


def _read_override(argument: str) -> tuple[str, Any]:
    """Key and value of `--config.KEY=VALUE`; the value as Python writes it, or as text."""
    key, equals, text = argument.lstrip("-").removeprefix("config.").partition("=")
    check_key(key)
    if not equals:
        raise ConfigError(f"{argument} has no value: write --config.{key}=VALUE")
    if isinstance(known := dict(Config().items())[key], str):
        return key, text
    try:
        return key, ast.literal_eval(text.capitalize() if isinstance(known, bool) else text)
    except (SyntaxError, ValueError):
        return key, tuple(filter(None, text.split(",")))  # a list of names
