"""Settings of a tuning run. Frozen, and complete: what a run does follows from them, the data and the base model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec

from deepseek.errors import ConfigurationError
from deepseek_tune.data.cache import DataSettings
from deepseek_tune.data.shapes import NEEDED
from deepseek_tune.schedule import SCHEDULES

PRESETS = ("default", "tiny")
DTYPES = ("auto", "fp32", "bf16")
ROUNDED = ("int8", "int4")
"""What a base model may be rounded to. ``stored`` rounds nothing."""
BASE_DTYPES = (*ROUNDED, "stored")
VARIANTS, ENCODERS, INITS = ("p-tuning", "prefix"), ("mlp", "lstm"), ("tokens", "random")
_OF_THE_PLACE = frozenset(
    {
        *("train_data", "output_dir", "resume", "offline", "threads", "cache_dir", "progress"),
        *("checkpoint_every", "max_bad_rows", "report", "samples"),
    }
)
"""Settings that may differ between a run and its continuation. The data is known by its digest."""


class TuningSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of every run.

    Attributes:
        base_model: a local folder or ``.gguf`` file, a built-in name, or a Hugging Face repository id.
        train_data: a JSON, JSONL, CSV or Parquet file (:mod:`deepseek_tune.data.read`).
        output_dir: where the adapter goes; None takes a folder beside the data, ``NAME-lora`` or ``NAME-ptuning``.
        epochs: passes over the data.
        learning_rate: the highest of the schedule; None takes what suits adapter and model.
        weight_decay: of AdamW.
        schedule: ``cosine``, ``linear`` (both to zero) or ``constant``.
        warmup: the share of the run in which the learning rate rises from zero.
        batch_tokens: tokens of one optimizer step; None takes 8,192, and less where the data is small.
        row_tokens: tokens of one forward pass, raised to the longest example: what memory depends on.
        max_grad_norm: gradients are scaled down to this norm.
        validation: the share of the examples that is held out (at most 2,000 of them); 0 for none.
        evals_per_epoch: how often the held-out examples are judged.
        patience: judgements without a better one after which the run stops; 0 never stops. The best adapter is kept.
        checkpoint_every: steps between checkpoints; one is written after each judgement too.
        dtype: of the frozen weights: ``auto`` takes bf16 where the processor multiplies it, else fp32. What is trained
            and its optimizer are fp32.
        base_dtype: keep the frozen linear layers as integers, and make floats of them when they are multiplied by
            (QLoRA): ``int8``, ``int4``, or ``stored``, those of a quantized checkpoint as they are. Less memory, a
            little slower. None keeps them in ``dtype``.
        device: ``auto``, ``cpu`` or ``cuda``.
        gradient_checkpointing: compute activations twice rather than keep them: less memory, a third slower.
        share_prompts: compute what the examples of a row begin with once for all of them. The result is the same.
        seed: of initial weights, order, dropout and held-out examples.
        resume: go on from the checkpoint in ``output_dir``; False starts over, and replaces what is there.
        shape, columns, max_tokens, over_long, max_bad_rows: :class:`deepseek_tune.data.cache.DataSettings`.
        cache_dir: for tokenized data; None takes ``tune`` in the folder of downloaded models.
        threads: CPU threads; None takes torch's own number.
        offline: never touch the network.
        progress: draw a progress bar on standard error.
        report: write a page with the run's figures and charts beside the adapter (``report.html``).
        samples: held-out examples that the page shows answers to, without the adapter and with it; 0 for none.
    """

    suffix: ClassVar[str] = ""
    """Of the folder that an adapter gets by default."""

    base_model: str
    train_data: str
    output_dir: str | None = None
    epochs: int = 3
    learning_rate: float | None = None
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: float = 0.03
    batch_tokens: int | None = None
    row_tokens: int = 1024
    max_grad_norm: float = 1.0
    validation: float = 0.05
    evals_per_epoch: int = 1
    patience: int = 3
    checkpoint_every: int = 100
    dtype: str = "auto"
    base_dtype: str | None = None
    device: str = "auto"
    gradient_checkpointing: bool = False
    share_prompts: bool = True
    seed: int = 0
    resume: bool = True
    shape: str = "auto"
    columns: dict[str, str] = {}
    max_tokens: int = 2048
    over_long: str = "truncate"
    max_bad_rows: float = 0.01
    cache_dir: str | None = None
    threads: int | None = None
    offline: bool = False
    progress: bool = True
    report: bool = True
    samples: int = 4

    def __post_init__(self) -> None:
        self.data  # noqa: B018  # checks its own
        self._check_choices(dtype=DTYPES, schedule=SCHEDULES, device=("auto", "cpu", "cuda"), shape=("auto", *NEEDED))
        self._check_choices(base_dtype=(None, *BASE_DTYPES))
        self._check_least(epochs=1, batch_tokens=1, row_tokens=1, evals_per_epoch=1, checkpoint_every=1, threads=1)
        self._check_least(patience=0, seed=0, weight_decay=0, samples=0)
        self._check_positive("learning_rate", "max_grad_norm")
        self._check_shares("warmup", "validation")

    def _check_choices(self, **choices: Sequence[str | None]) -> None:
        for name, known in choices.items():
            if getattr(self, name) not in known:
                listed = ", ".join(choice for choice in known if choice is not None)
                raise ConfigurationError(f"{name} must be one of {listed}; not {getattr(self, name)!r}.")

    def _check_least(self, **bounds: int) -> None:
        for name, least in bounds.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigurationError(f"{name} must be at least {least}, not {value}.")

    def _check_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigurationError(f"{name} must be above 0, not {value}.")

    def _check_shares(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is a share from 0 to below 1, not {getattr(self, name)}.")

    @property
    def data(self) -> DataSettings:
        """How the file is read."""
        return DataSettings(
            shape=self.shape,
            columns=self.columns,
            max_tokens=self.max_tokens,
            over_long=self.over_long,
            max_bad_rows=self.max_bad_rows,
        )

    @property
    def output(self) -> Path:
        """The folder of the result."""
        if self.output_dir is not None:
            return Path(self.output_dir).expanduser()
        data = Path(self.train_data).expanduser()
        return data.with_name(f"{data.name.split('.')[0] or data.name}-{self.suffix}")

    def deciding(self) -> dict[str, Any]:
        """The settings that the result depends on, ready for JSON."""
        return {name: value for name, value in msgspec.to_builtins(self).items() if name not in _OF_THE_PLACE}


class LoRASettings(TuningSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one LoRA run, besides those of :class:`TuningSettings`.

    Attributes:
        preset: ``default`` adapts all linear layers with rank 16; ``tiny`` values, attention's outputs and the
            feed-forward's, with the rank at which about 0.1% of the parameters are trained. What is set explicitly goes
            before the preset.
        lora_rank: None takes the preset's.
        lora_alpha: the adapter is scaled by alpha / rank (rsLoRA: by alpha / sqrt(rank)); None takes twice the rank
            (rsLoRA: the rank).
        lora_dropout: of the adapters' input.
        target_modules: names of the linear layers to adapt (``q_proj``); None takes the preset's.
        rslora: scale by the square root of the rank (Kalajdzievski, 2023, arXiv:2312.03732).
        dora: train direction and magnitude apart (Liu et al., 2024, arXiv:2402.09353). Better at low ranks, slower.
        loraplus_ratio: learning rate of the matrices B over that of A (LoRA+: Hayou et al., 2024, arXiv:2402.12354).
        start_from: the folder of an adapter to train on; its rank, alpha and target modules are kept.
    """

    suffix: ClassVar[str] = "lora"

    preset: str = "default"
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    target_modules: list[str] | None = None
    rslora: bool = False
    dora: bool = False
    loraplus_ratio: float = 1.0
    start_from: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choices(preset=PRESETS)
        self._check_least(lora_rank=1)
        self._check_positive("lora_alpha", "loraplus_ratio")
        self._check_shares("lora_dropout")
        if self.base_dtype and self.dora and self.lora_dropout and not self.gradient_checkpointing:
            raise ConfigurationError(
                "base_dtype saves nothing with dora and lora_dropout: together they keep the floats of all matrices "
                "for the backward pass. Leave lora_dropout out, or set gradient_checkpointing."
            )
        if self.target_modules == []:
            raise ConfigurationError("target_modules names no module; leave it out for the preset's.")
        if self.start_from is not None:
            kept = ("lora_rank", "lora_alpha", "target_modules", "rslora", "dora")
            if clashing := [name for name in kept if getattr(self, name) not in (None, False)]:
                raise ConfigurationError(f"start_from keeps the adapter's own {', '.join(clashing)}: leave them out.")


class PTuningSettings(TuningSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one run of P-Tuning or of its prefix variant, besides those of :class:`TuningSettings`.

    Attributes:
        variant: ``p-tuning`` learns embeddings before the input, ``prefix`` keys and values in every layer.
        virtual_tokens: positions that are learned.
        encoder: of P-Tuning: ``mlp`` or ``lstm``, the network that makes the embeddings.
        encoder_hidden: its width, and that of a prefix's projection; None takes the model's.
        encoder_layers: of the LSTM. The MLP has always the same.
        encoder_dropout: between the LSTM's layers.
        projection: of a prefix: make it by an MLP of two layers rather than learn it itself. Needs ``init="random"``.
        init: of a prefix: ``tokens`` begins with keys and values that the model has for random tokens, which trains
            far faster than ``random`` numbers. P-Tuning always begins with random numbers.
    """

    suffix: ClassVar[str] = "ptuning"

    variant: str = "p-tuning"
    virtual_tokens: int = 20
    encoder: str = "mlp"
    encoder_hidden: int | None = None
    encoder_layers: int = 2
    encoder_dropout: float = 0.0
    projection: bool = False
    init: str = "tokens"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choices(variant=VARIANTS, encoder=ENCODERS, init=INITS)
        self._check_least(virtual_tokens=1, encoder_hidden=1, encoder_layers=1)
        self._check_shares("encoder_dropout")
        if self.projection and (self.variant, self.init) != ("prefix", "random"):
            raise ConfigurationError("projection needs variant='prefix' and init='random'.")


Settings = TypeVar("Settings", bound=TuningSettings)


def make_settings(kind: type[Settings], given: Mapping[str, Any], who: str) -> Settings:
    """Settings of a kind from what a user gave to ``who``. Paths may be :class:`pathlib.Path`.

    Raises ConfigurationError: an unknown name (with the nearest known), a missing one, a value of the wrong type.
    """
    known = kind.__struct_fields__
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
            hint = f" Did you mean {' or '.join(close)}?" if close else f" Known are {', '.join(known)}."
            raise ConfigurationError(f"{who} has no setting {name!r}.{hint}")
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    try:
        return msgspec.convert(plain, kind)
    except ConfigurationError:
        raise
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigurationError):
            raise error.__cause__ from None
        raise ConfigurationError(f"{who}: {error}.") from error
