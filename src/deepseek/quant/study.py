"""Running the unquantized model over text: what decides how it is quantized, and what the result is judged by."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass

from deepseek.errors import ConfigurationError
from deepseek.hub.checkpoint import Checkpoint
from deepseek.hub.resolve import ModelFiles
from deepseek.kernels.ops import Ops
from deepseek.kernels.registry import bind
from deepseek.models.base import Model
from deepseek.quant import calibration
from deepseek.quant.plan import Plan, unit_of
from deepseek.quant.report import ReferenceLogits
from deepseek.quant.smoothing import SmoothedCheckpoint, smooth
from deepseek.quant.windows import cut_windows
from deepseek.tokenizer.load import load_tokenizer

Loader = Callable[[Checkpoint, Ops], Model]

SAMPLE_TOKENS = 128
HELD_OUT_TOKENS = 1024
_WORST = 8
"""Units whose divergence is measured in INT8."""
_LEAST_BEST, _MOST_BEST, _WORK = 32, 160, 2e10
"""Units whose divergence is measured in INT4: as many as read so many weights, but between these numbers."""


@dataclass
class Study:
    """What calibration found.

    Attributes:
        checkpoint: the model's weights, scaled so that they and their inputs round well.
        found: measured on it.
        plan: chosen by that.
        held_out: what the result is judged by, of the model as it came, on text that nothing else was measured on.
    """

    checkpoint: SmoothedCheckpoint
    found: calibration.Calibration
    plan: Plan
    held_out: ReferenceLogits


def run_study(
    files: ModelFiles,
    checkpoint: Checkpoint,
    texts: list[str],
    kind: str,
    tokens: int,
    choose: Callable[[calibration.Calibration], Plan],
    load: Loader,
    norm_offset: float,
    say: Callable[[str], None],
) -> Study:
    """Measure about ``tokens`` tokens of ``texts`` for quantizing to ``kind``, and have the plan chosen by ``choose``.
    ``load`` builds an fp32 model of a checkpoint and ops; its family adds ``norm_offset`` to the weights of its norms.
    Close ``held_out`` after use.

    Raises ConfigurationError where the text is too short.
    """
    windows = cut_windows(texts, load_tokenizer(files.path), tokens=tokens)
    if len(windows) < 2:
        raise ConfigurationError("the calibration text is too short: it must have at least two windows of 256 tokens.")
    held_out = windows[3::4] or windows[-1:]
    windows = [window for window in windows if window not in held_out] or windows[:1]
    say(f"loading {files.name} unquantized")
    model, ops = _load(checkpoint, load)
    say(f"measuring inputs on {sum(map(len, windows))} tokens")
    found = calibration.measure_importance(model, ops, windows)
    judge = _reference(held_out, model.vocab_size)
    try:
        say(f"the unquantized model's answers on {sum(map(len, judge.windows))} other tokens")
        judge.record(model)
        del model, ops
        gc.collect()
        say("smoothing")
        smoothed = smooth(checkpoint, found.importance, norm_offset=norm_offset)
        model, ops = _load(smoothed, load)
        if kind == "int8":
            _measure_units(model, ops, found, windows, smoothed, say)
        plan = choose(found)
        units = dict.fromkeys(unit_of(name) for name, bits in plan.bits.items() if bits == 4)
        calibration.measure_moments(model, ops, found, windows, list(units))
    except BaseException:
        judge.__exit__(None, None, None)
        raise
    return Study(smoothed, found, plan, judge)


def _load(checkpoint: Checkpoint, load: Loader) -> tuple[Model, calibration.CalibrationOps]:
    named = calibration.NamedCheckpoint(checkpoint)
    ops = calibration.CalibrationOps(bind("cpu", "torch"), named)
    return load(named, ops), ops


def _measure_units(
    model: Model,
    ops: calibration.CalibrationOps,
    found: calibration.Calibration,
    windows: list[list[int]],
    checkpoint: Checkpoint,
    say: Callable[[str], None],
) -> None:
    say("measuring what INT8 and INT4 do to each matrix")
    count = min(4, len(windows))
    sample = [windows[index * len(windows) // count][: SAMPLE_TOKENS // count] for index in range(count)]
    calibration.measure_errors(model, ops, found, sample)
    weights = sum(math.prod(shape) for shape in checkpoint.shapes.values())
    worst = sorted(found.error8, key=lambda unit: -found.error8[unit])[:_WORST]
    best = sorted(found.error4, key=lambda unit: found.error4[unit])
    best = best[: min(_MOST_BEST, max(_LEAST_BEST, int(_WORK / weights)))]
    calibration.measure_divergence(model, ops, found, sample, int8=worst, int4=best, say=say)


def _reference(windows: list[list[int]], vocab_size: int) -> ReferenceLogits:
    kept: list[list[int]] = []
    for window in windows:
        if sum(map(len, kept)) < HELD_OUT_TOKENS:
            kept.append(window)
    return ReferenceLogits(kept, vocab_size)
