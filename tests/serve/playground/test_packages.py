"""The page is in what is published: built here without compiling, which is not what is looked at."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from deepseek_serve.playground.assets import PAGE

ROOT = Path(__file__).resolve().parents[3]
BUILD = """
import sys
from scikit_build_core import build
print(build.build_sdist(sys.argv[1]))
print(build.build_wheel(sys.argv[1], {"wheel.cmake": "false"}))
"""


def test_the_wheel_and_the_source_have_every_file(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    install = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--target", str(tools), "scikit-build-core>=0.11"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    if install.returncode:
        pytest.skip(f"scikit-build-core cannot be had: {install.stderr.strip().splitlines()[-1:]}")
    out = tmp_path / "out"
    out.mkdir()
    script = f"import sys; sys.path.insert(0, {str(tools)!r})\n{BUILD}"
    built = subprocess.run(
        [sys.executable, "-c", script, str(out)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert built.returncode == 0, built.stderr
    files = {path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file()}
    wheel, source = next(out.glob("*.whl")), next(out.glob("*.tar.gz"))
    assert files <= _below("deepseek_serve/playground/page/", zipfile.ZipFile(wheel).namelist())
    with tarfile.open(source) as archive:
        assert files <= _below("src/deepseek_serve/playground/page/", archive.getnames())


def _below(folder: str, names: list[str]) -> set[str]:
    return {name.partition(folder)[2] for name in names if folder in name}
