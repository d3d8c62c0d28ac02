from __future__ import annotations

import pytest

from deepseek.errors import ConfigurationError
from deepseek_cli.serve import named, parse_size
from deepseek_serve.config import ServeConfig


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2**31), ("500 MB", 500_000_000), ("1073741824", 2**30), ("1.5g", 1_500_000_000), ("8KiB", 8192)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "2 parsecs", "1e999GiB", "nan", "2GiB!", "--3"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigurationError, match="not a size"):
        parse_size(text)


def test_further_models() -> None:
    assert named("--also", "MODEL", ["a=org/x:Q8_0", "b=/models/y=z.gguf"]) == {
        "a": "org/x:Q8_0",
        "b": "/models/y=z.gguf",
    }
    for options in (["a"], ["=x"], ["a="], ["a=x", "a=y"]):
        with pytest.raises(ConfigurationError, match="NAME=MODEL"):
            named("--also", "MODEL", options)


@pytest.mark.parametrize(
    "settings",
    [
        {"port": 70000},
        {"served_model_name": " "},
        {"api_keys": ("",)},
        {"api_keys": ("schlüssel",)},
        {"log_level": "loud"},
        {"log_format": "xml"},
        {"max_sequences": 0},
        {"drain_timeout": -1},
        {"also": {"no spaces": "x"}},
    ],
)
def test_settings_that_cannot_work(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        ServeConfig(**settings)  # type: ignore[arg-type]
