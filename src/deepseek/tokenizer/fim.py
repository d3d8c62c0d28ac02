"""Fill in the middle (Bavarian et al. 2022): the special tokens around the text before a hole and the text behind it.

All families known here were trained on, and are prompted with, ``prefix-token before suffix-token after middle-token``,
behind a BOS where the model has one; the model writes what is missing and then an end token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# (before, behind, middle) of each family, from the model's own publication
_FAMILIES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # README of Qwen2.5-Coder; model card of CodeGemma
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # README of DeepSeek-Coder; V2 and V3 have the same tokens
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # model cards of StarCoder, StarCoder2, Granite Code, StableCode
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # model card of SantaCoder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # generation.py of CodeLlama
)
_ENDS = frozenset(
    {
        "<|fim_pad|>",  # Qwen2.5-Coder stops at these three
        "<|repo_name|>",
        "<|file_sep|>",
        "<|file_separator|>",  # CodeGemma
        "<fim_pad>",  # StarCoder and its descendants
        "<fim-pad>",
        "<file_sep>",
        "<repo_name>",
        "<reponame>",
        "<filename>",
        "▁<EOT>",  # CodeLlama
    }
)
SPELLINGS = _ENDS.union(*_FAMILIES)
"""All spellings that :func:`find_fim` looks for."""


@dataclass(frozen=True, slots=True)
class FimTokens:
    """The ids around the parts of a prompt with a hole.

    Attributes:
        before: in front of the text before the hole.
        behind: in front of the text behind the hole.
        middle: where the answer begins.
        ends: tokens that end the answer, besides the model's usual end tokens: another file begins, or another hole.
    """

    before: int
    behind: int
    middle: int
    ends: frozenset[int]


def find_fim(ids: Mapping[str, int], named: Mapping[str, int | None] | None = None) -> FimTokens | None:
    """The tokens of a vocabulary, None if its model does not fill in the middle.

    Args:
        ids: spelling -> id, at least of the vocabulary's :data:`SPELLINGS`.
        named: what the model's files name: ``pre``, ``suf``, ``mid``, and ``pad``, ``rep`` (repository), ``sep`` (file
            separator), as in GGUF metadata. They go before spellings.
    """
    named = named or {}
    given = tuple(named.get(name) for name in ("pre", "suf", "mid"))
    found = [given, *(tuple(ids.get(text) for text in family) for family in _FAMILIES)]
    for before, behind, middle in found:
        if before is not None and behind is not None and middle is not None:
            ends = {ids[text] for text in _ENDS if text in ids}
            ends.update(i for name in ("pad", "rep", "sep") if (i := named.get(name)) is not None)
            return FimTokens(before, behind, middle, frozenset({before, behind, middle, *ends}))
    return None
