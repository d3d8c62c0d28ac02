"""Numbers in an answer, with the separators and numerals of English, Chinese, Japanese and Korean."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal, InvalidOperation

from deepseek_eval.metrics import one
from deepseek_eval.scorers.refusal import is_refusal
from deepseek_eval.task import Item, Output, Score, Scorer

_DIGITS = {
    char: value
    for value, chars in enumerate(("零〇", "一", "二两兩", "三", "四", "五", "六", "七", "八", "九"))
    for char in chars
}
_SMALL = {"十": 10, "百": 100, "千": 1000, "백": 100, "천": 1000, "십": 10}
_GREAT = {"万": 10**4, "萬": 10**4, "億": 10**8, "亿": 10**8, "兆": 10**12, "만": 10**4, "억": 10**8}
_UNITS = "".join([*_SMALL, *_GREAT])
_NUMERALS = "".join(_DIGITS) + _UNITS
# A number may be written with digits, with Chinese numerals, or with both (3万5千). A lone 一 or 十 is mostly a word.
_ARABIC = r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>[-−–](?=[\s$€£¥₩]*\d))?[\s$€£¥₩]*"
    rf"(?P<number>(?:(?:{_ARABIC})\s?[{_UNITS}])+(?:{_ARABIC})?|{_ARABIC}|[{_NUMERALS}]{{2,}})"
)
_PIECE = re.compile(rf"(?P<arabic>{_ARABIC})|(?P<digit>[{''.join(_DIGITS)}])|(?P<unit>[{_UNITS}])")
_MARKS = (
    ("####", re.compile(r"####(.*)")),
    ("\\boxed", re.compile(r"\\boxed\s*\{(.*)")),
    (
        "the words before it",
        re.compile(
            r"(?:answer(?: is|:)|答案(?:是|为|為|：|:)|答え(?:は|：|:)|答(?:え)?[：:]|정답(?:은|:)|답(?:은|:)"
            r"|(?:最终|所以|因此)答案)(.*)",
            re.IGNORECASE,
        ),
    ),
)


def numbers(text: str) -> list[Decimal]:
    """All numbers of a text, in order. A minus sign right behind a letter or a digit is a hyphen or a subtraction."""
    text = unicodedata.normalize("NFKC", text)
    found = []
    for match in _NUMBER.finditer(text):
        value = _value(match["number"])
        if value is not None:
            before = text[: match.start()]
            if match["sign"] and text[match.end("sign")].isspace():
                before = before.rstrip()  # "10 - 3" is a subtraction, "10 -3" has a negative number
            negative = bool(match["sign"]) and not (before[-1:].isalnum() or before[-1:] in (")", "%"))
            found.append(-value if negative else value)
    return found


def _value(text: str) -> Decimal | None:
    """The value of one number; None if its numerals make none (三三三 reads digit by digit, 百百 does not)."""
    pieces = list(_PIECE.finditer(text))
    if all(piece["digit"] for piece in pieces):
        return Decimal("".join(str(_DIGITS[piece["digit"]]) for piece in pieces))
    whole = part = Decimal(0)
    current: Decimal | None = None
    last_unit = 10**16
    for piece in pieces:
        if piece["unit"]:
            factor = _SMALL.get(piece["unit"]) or _GREAT[piece["unit"]]
            if piece["unit"] in _GREAT:
                whole += (part + (current or 0) if part or current is not None else Decimal(1)) * factor
                part, last_unit = Decimal(0), 10**16
            else:
                if factor >= last_unit:
                    return None
                part += (Decimal(1) if current is None else current) * factor
                last_unit = factor
            current = None
        else:
            value = _decimal(piece["arabic"]) if piece["arabic"] else Decimal(_DIGITS[piece["digit"]])
            if value is None or (current is not None and current != 0):
                return None
            current = value
    return whole + part + (current or 0)


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None


def read_number(text: str) -> tuple[Decimal | None, str]:
    """The number that an answer ends with, and how it was found.

    After ``####``, in ``\\boxed{}`` or behind words such as "the answer is" (the last of each, the first number
    there), in this order; else the last number of the text.
    """
    for name, pattern in _MARKS:
        marked = pattern.findall(unicodedata.normalize("NFKC", text))
        if marked and (found := numbers(marked[-1])):
            return found[0], f"the number after {name}"
    found = numbers(text)
    return (found[-1], "the last number") if found else (None, "no number in the answer")


def number(*, strict: bool = False) -> Scorer:
    """Exact value of a number. ``target``: the right one, as a number or its text.

    Metrics: ``exact_match``: the number is found by :func:`read_number`. ``strict``, if asked for: it follows
    ``####``, as examples showed.
    """

    def score(item: Item, output: Output) -> Score:
        text = output.samples[0].text
        right = _decimal(str(item.target))
        found, how = read_number(text)
        same = found is not None and found == right
        statistics: dict[str, tuple[float, ...]] = {"exact_match": one(same)}
        if strict:
            statistics["strict"] = one(same and how.endswith("####"))
        return Score(
            statistics=statistics,
            answer="" if found is None else f"{found:f}",
            explanation=how if same else f"{how}; right is {item.target}",
            refused=found is None and is_refusal(text),
            expected=str(item.target),
        )

    return score
