"""What PromQL expressions read: enough of a parser to hold dashboards and alerts to the real /metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator

KEYWORDS = frozenset(
    ("and", "or", "unless", "sum", "min", "max", "avg", "count", "rate", "increase", "deriv", "histogram_quantile")
)
GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(\{[^}]*\})?")
LABEL = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
OF_THE_SCRAPE = frozenset({"instance", "job"})  # labels that Prometheus adds


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """(metric, labels that the expression reads of it); labels of ``by`` are read of all its metrics."""
    grouped = {name.strip() for found in GROUPING.findall(expression) for name in found.split(",")}
    rest = re.sub(r"\[[^\]]*\]", "", GROUPING.sub("", expression))
    for name, braces in SELECTOR.findall(rest):
        if name not in KEYWORDS and not re.fullmatch(r"e\d+", name):
            yield name, (set(LABEL.findall(braces)) | grouped) - OF_THE_SCRAPE
