"""`deepseek quantize`: a model in, a folder of INT8 or INT4 weights and a quality report out."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek.errors import CheckpointError, ConfigurationError, DeepSeekError
from deepseek.hub.open import open_checkpoint
from deepseek.hub.output import check_output, check_space, written_whole
from deepseek.hub.progress import RichProgress
from deepseek.hub.resolve import ModelFiles, resolve
from deepseek.machine import describe_machine
from deepseek.quality import load_model_of, product_dtype, scoring_config
from deepseek.threads import wait_politely

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from deepseek.hub.checkpoint import Checkpoint, QuantizedMatrix
    from deepseek.kernels.ops import Ops
    from deepseek.models.base import Model
    from deepseek.quant.calibration import Calibration
    from deepseek.quant.plan import Plan, Shapes
    from deepseek.quant.study import Study

logger = logging.getLogger(__name__)

REPORT = "quality.json"
CALIBRATION_TOKENS = 8192
_INT4_FOR_FP16 = 2.4
"""Weights that must go from 8 to 4.6 bits for one to go from 8 to 16."""

Say = Callable[[str], None]


def quantize_model(
    model: str,
    kind: str,
    output: Path,
    *,
    calibration: Path | None = None,
    tokens: int = CALIBRATION_TOKENS,
    offline: bool = False,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Quantize ``model`` to ``kind`` (``int8`` or ``int4``) and write it to the folder ``output``.

    Args:
        model: any name that :func:`deepseek.hub.resolve.resolve` knows.
        calibration: plain text, or JSONL with a "text" field. A quarter of its windows judges the result; the others
            weigh errors and choose which matrices keep more or get fewer bits. Without it the choice is by the
            weights alone, and no report on quality is written.
        tokens: of the calibration text that are used.
        say: hears of progress.

    Returns the report, which lies beside the weights as ``quality.json`` if there was calibration.

    Raises:
        ConfigurationError: ``kind``, ``output`` (not empty) or ``calibration`` cannot be used.
        HubError, CheckpointError, TokenizerError: the model cannot be had or read; a matrix with NaN is named.
        DiskSpaceError: no room. Whatever goes wrong, nothing is left under ``output``.
    """
    wait_politely()
    from deepseek.models.registry import parse_config
    from deepseek.quant.plan import HEAD, KINDS
    from deepseek.quant.windows import read_texts

    if kind not in KINDS:
        raise ConfigurationError(f"a model can be quantized to {' or '.join(KINDS)}, not to {kind!r}.")
    check_output(output)
    texts = None if calibration is None else read_texts(calibration)
    files = resolve(model, offline=offline, progress=RichProgress())
    checkpoint = open_checkpoint(files.path)
    try:
        parse_config(checkpoint.config)
        tied = checkpoint.config.get("tie_word_embeddings") is True
        shapes = {name: shape for name, shape in checkpoint.shapes.items() if not (tied and name == HEAD)}

        def choose(found: Calibration | None) -> Plan:
            return _choose(shapes, kind, tied, found, say)

        study = None if texts is None else _study(files, checkpoint, texts, kind, tokens, choose, say)
        try:
            with written_whole(output) as folder:
                plan = choose(None) if study is None else study.plan
                dtype = _float_dtype(checkpoint.config)
                source = checkpoint if study is None else study.checkpoint
                _write_weights(source, shapes, plan, study, folder, tied, dtype, say)
                _write_companions(files.path, checkpoint.config, plan, shapes, folder, tied, dtype)
                report = _report(files, shapes, plan, folder)
                if study is not None:
                    say("comparing with the unquantized model on text that calibration did not see")
                    report |= _judge(folder, study)
                    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        finally:
            if study is not None:
                study.held_out.__exit__(None, None, None)
    finally:
        checkpoint.close()
    return report


def _study(
    files: ModelFiles,
    checkpoint: Checkpoint,
    texts: list[str],
    kind: str,
    tokens: int,
    choose: Callable[[Calibration], Plan],
    say: Say,
) -> Study:
    import torch

    from deepseek.models.registry import architecture_of, load_model
    from deepseek.quant.study import run_study

    def load(source: Checkpoint, ops: Ops) -> Model:
        return load_model(source, ops=ops, dtype=torch.float32, device="cpu")

    offset = 1.0 if architecture_of(checkpoint.config).startswith("Gemma") else 0.0
    return run_study(files, checkpoint, texts, kind, tokens, choose, load, offset, say)


def _choose(shapes: Shapes, kind: str, tied: bool, found: Calibration | None, say: Say) -> Plan:
    from deepseek.quant.plan import make_plan, units_of

    units = units_of(shapes)
    weights = {unit: sum(math.prod(shapes[name]) for name in names) for unit, names in units.items()}
    if found is None:
        # The weights alone do not tell which matter: few large units touch the fewest places.
        return make_plan(kind, shapes, tied=tied, cheapest=sorted(units, key=lambda unit: (-weights[unit], unit)))
    harm = {unit: cost / weights[unit] for unit, cost in found.kl4.items()}
    others = sorted((unit for unit in units if unit not in harm), key=lambda unit: found.error4.get(unit, math.inf))
    cheapest = [*sorted(harm, key=harm.__getitem__), *others]
    plan = make_plan(kind, shapes, tied=tied, cheapest=cheapest)
    if kind == "int8":
        sensitive = _sensitive(found, weights, plan, harm)
        plan = make_plan(kind, shapes, tied=tied, cheapest=cheapest, sensitive=sensitive)
    for unit, reason in plan.reasons.items():
        say(f"{unit}: {reason}")
    return plan


def _sensitive(found: Calibration, weights: Mapping[str, int], plan: Plan, harm: Mapping[str, float]) -> dict[str, str]:
    """Units to keep floating, with the reason: INT8 costs much, and more than INT4 would elsewhere to pay for them."""
    from deepseek.quant.calibration import SENSITIVE_KL

    price = max((harm[unit] for unit in plan.reasons if unit in harm), default=0.0) * _INT4_FOR_FP16
    return {
        unit: f"INT8 alone costs a KL divergence of {cost:.1e} nats per token"
        for unit, cost in found.kl8.items()
        if cost > SENSITIVE_KL and cost / weights[unit] > price
    }


def _float_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """What stays floating is stored as BF16 if the model was, else as FP16."""
    import torch

    return torch.bfloat16 if (config.get("dtype") or config.get("torch_dtype")) == "bfloat16" else torch.float16


def _write_weights(
    checkpoint: Checkpoint,
    shapes: Shapes,
    plan: Plan,
    study: Study | None,
    folder: Path,
    tied: bool,
    dtype: torch.dtype,
    say: Say,
) -> None:
    import torch

    from deepseek.hub.shard_writer import ShardWriter
    from deepseek.quant.compressed_tensors import stored_tensors
    from deepseek.quant.plan import plan_size, unit_of

    needed = plan_size(plan, shapes, tied=tied)
    check_space(folder, needed)
    say(f"writing {needed / 2**20:.0f} MiB of weights")
    writer = ShardWriter(folder)
    for name in shapes:
        tensor = checkpoint.load(name, torch.float32)
        if not all(torch.isfinite(extreme) for extreme in torch.aminmax(tensor)):
            raise CheckpointError(f"tensor {name!r} holds NaN or infinity: the checkpoint is damaged.")
        bits = plan.bits.get(name, 16)
        if bits == 16:
            stored = tensor.to(dtype)
            if not all(torch.isfinite(extreme) for extreme in torch.aminmax(stored)):
                raise CheckpointError(f"tensor {name!r} has values beyond the range of {dtype}.")
            writer.add({name: stored})
            continue
        matrix = _quantize(tensor, bits, unit_of(name), None if study is None else study.found, dtype)
        writer.add(stored_tensors(name, matrix, dtype, tied=tied))
    writer.finish()


def _quantize(weight: Tensor, bits: int, unit: str, found: Calibration | None, dtype: torch.dtype) -> QuantizedMatrix:
    from deepseek.quant.gptq import quantize_with_feedback
    from deepseek.quant.schemes import int8_group, quantize

    if bits == 8:
        return quantize(weight, 8, group=int8_group(weight.shape[1]), scale_dtype=dtype)
    if found is not None and unit in found.moments:
        return quantize_with_feedback(weight, found.moments[unit], scale_dtype=dtype)
    return quantize(weight, 4, None if found is None else found.importance.get(unit), scale_dtype=dtype)


def _write_companions(
    source: Path,
    config: Mapping[str, Any],
    plan: Plan,
    shapes: Shapes,
    folder: Path,
    tied: bool,
    dtype: torch.dtype,
) -> None:
    """config.json, and what stands beside it."""
    from deepseek.quant.compressed_tensors import quantization_config
    from deepseek.tokenizer.companions import write_companions

    ours = {key: value for key, value in config.items() if key not in ("torch_dtype", "dtype")}
    ours["dtype"] = str(dtype).removeprefix("torch.")
    ours["quantization_config"] = quantization_config(plan, shapes, tied=tied)
    if ours.get("rope_factors"):
        logger.warning(
            "config.json keeps this GGUF file's rope_factors, which this engine reads and others do not know: they "
            "would compute long contexts wrongly."
        )
    (folder / "config.json").write_text(json.dumps(ours, indent=2) + "\n", encoding="utf-8")
    write_companions(source, folder)


def _report(files: ModelFiles, shapes: Shapes, plan: Plan, folder: Path) -> dict[str, Any]:
    from deepseek.quant.plan import float_size
    from deepseek.quant.report import weights_size

    size, float16 = weights_size(folder), float_size(shapes)
    return {
        "model": files.name,
        "kind": plan.kind,
        "size_bytes": size,
        "fp16_size_bytes": float16,
        "size_ratio": size / float16,
        "precision": plan.summary(shapes),
        "machine": describe_machine(),
    }


def _judge(folder: Path, study: Study) -> dict[str, Any]:
    from deepseek.quant.report import text_figures

    try:
        model, _, dtype = load_model_of(scoring_config(str(folder), product_dtype(folder), offline=True))
    except DeepSeekError as error:
        raise CheckpointError(f"what was written cannot be read back: {error}") from error
    figures = asdict(text_figures([study.held_out.compare(model)]))
    return {
        "calibration_tokens": study.found.tokens,
        "held_out_text": figures,
        "computed": f"natively, {dtype}" if dtype == "as stored" else f"in {dtype}, without rounding activations",
        "divergence_of_one_unit": {"int8": study.found.kl8, "int4": study.found.kl4},
    }
