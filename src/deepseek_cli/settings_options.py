"""Command-line options from a settings struct: a setting and its words are written once, where it is defined."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from deepseek.errors import ConfigurationError

CONFIG_HELP = "a YAML file with settings under the names of the options, with _ for -; options go before it"
_ENTRY = re.compile(r"^ {8}(\w+(?:, \w+)*): (.*(?:\n {9,}.*)*)", re.MULTILINE)
_ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")


def documented(struct: type[Any]) -> dict[str, str]:
    """Field -> its words in the "Attributes" of the docstring of ``struct`` or of a base; markup is taken out."""
    found: dict[str, str] = {}
    for class_ in reversed(struct.__mro__):
        _, _, attributes = (class_.__dict__.get("__doc__") or "").partition("Attributes:")
        for names, text in _ENTRY.findall(attributes):
            words = " ".join(_ROLE.sub(r"\1", text).replace("``", "").split())
            found |= dict.fromkeys(names.split(", "), words)
    return found


def add_settings(*structs: type[Any], extra: Mapping[str, str] | None = None) -> Callable[[Any], Any]:
    """Decorates a command, which gets an option per field of ``structs``; it is called with ``given``, the settings
    that the options and the file of ``--config`` name. The command's other parameters come first.

    Args:
        extra: words for fields that refer to another docstring.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = [
            parameter
            for parameter in inspect.signature(function, eval_str=True).parameters.values()
            if parameter.name != "given"
        ]
        fields = {field.name: field for struct in structs for field in msgspec.structs.fields(struct)}
        words = {name: text for struct in structs for name, text in documented(struct).items()} | dict(extra or {})
        options = [_parameter(field, words.get(name, "")) for name, field in fields.items()]
        config = inspect.Parameter(
            "config",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[Path | None, typer.Option("--config", help=CONFIG_HELP)],
        )

        def command(**values: Any) -> Any:
            file = values.pop("config")
            given = {} if file is None else read_config(file)
            given |= {name: _value(fields[name], values.pop(name)) for name in fields if values[name] is not None}
            return function(**{parameter.name: values[parameter.name] for parameter in own}, given=given)

        every = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + [config, *options]
        command.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return decorate


def _parameter(field: Any, words: str) -> inspect.Parameter:
    kind, option = _plain(field.type), "--" + field.name.replace("_", "-")
    names = [f"{option}/--no-{option[2:]}"] if kind is bool else [option]
    if kind is dict:
        words += " NAME=COLUMN; repeatable."
    elif kind is list:
        words += " Repeatable."
    default = "on" if field.default is True else field.default
    hidden = default is msgspec.NODEFAULT or default is None or default is False
    shown = "" if hidden else f" (default: {default})"
    annotation = list[str] if kind in (dict, list) else kind
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation | None, typer.Option(*names, help=words + shown, show_default=False)],
    )


def _plain(annotation: Any) -> Any:
    """``int`` for ``int | None``, ``list`` for ``list[str]``."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        (annotation,) = (part for part in typing.get_args(annotation) if part is not types.NoneType)
    return typing.get_origin(annotation) or annotation


def _value(field: Any, value: Any) -> Any:
    if _plain(field.type) is not dict:
        return value
    return dict(_pairs(field.name, value))


def _pairs(name: str, texts: list[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigurationError(f"--{name} takes NAME=VALUE, not {text!r}.")
        yield key.strip(), value.strip()


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a YAML file. Raises ConfigurationError if it is no mapping of names."""
    try:
        import yaml
    except ImportError as error:
        raise ConfigurationError("--config needs PyYAML: pip install 'deepseek-platform[tune]'.") from error

    class Loader(yaml.SafeLoader):
        """YAML 1.1 takes 1e-4 for a text, as it has no point."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )
    try:
        found = yaml.load(path.expanduser().read_bytes(), Loader=Loader)  # a SafeLoader
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}.") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ConfigurationError(f"{path} must hold names and values (epochs: 10), not {type(found).__name__}.")
    return found
