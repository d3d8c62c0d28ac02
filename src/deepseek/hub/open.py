"""Open whatever holds the weights."""

from __future__ import annotations

from pathlib import Path

from deepseek.hub.checkpoint import Checkpoint
from deepseek.hub.shapes import MARK, RandomCheckpoint


def open_checkpoint(path: Path | str) -> Checkpoint:
    """The checkpoint at ``path``: a ``.gguf`` file, a folder of safetensors with a config.json, or one of a
    shape with random weights.

    Raises CheckpointError if it is missing, damaged or truncated, UnsupportedModelError if it needs what is not
    implemented.
    """
    path = Path(path)
    if (path / MARK).is_file():
        return RandomCheckpoint(path)
    if path.is_dir():
        from deepseek.hub.safetensors_checkpoint import SafetensorsCheckpoint

        return SafetensorsCheckpoint(path)
    from deepseek.hub.gguf_checkpoint import GGUFCheckpoint

    return GGUFCheckpoint(path)
