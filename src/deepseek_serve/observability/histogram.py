"""Histograms that the event loop fills at each token: no locks, and a fraction of a microsecond."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

INFINITY = float("inf")
FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0)
WHOLE = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
QUEUE = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Distribution:
    """Counts per bucket. For one thread; whoever reads from another one may miss the newest observation."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it), as the exposition format wants them."""
        found: list[tuple[str, float]] = []
        count = 0
        for bound, here in zip((*self._bounds, INFINITY), self._counts, strict=True):
            count += here
            found.append(("+Inf" if bound == INFINITY else repr(float(bound)), float(count)))
        return found

    @property
    def total(self) -> float:
        return self._total


class ModelHistogram(Collector):
    """A histogram with one :class:`Distribution` per model. A model's is made when the model is, never from a name that
    a client has sent."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self._models: dict[str, Distribution] = {}

    def of(self, model: str) -> Distribution:
        """The model's distribution."""
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = Distribution(self._bounds)
        return found

    def forget(self, model: str) -> None:
        """Drop the model's distribution."""
        self._models.pop(model, None)

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=["model"])
        for model, distribution in list(self._models.items()):
            family.add_metric([model], distribution.buckets(), distribution.total)
        yield family


class ProcessHistogram(Collector):
    """A histogram without labels."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self.distribution = Distribution(bounds)

    def collect(self) -> Iterator[Metric]:
        yield HistogramMetricFamily(
            self._name, self._text, buckets=self.distribution.buckets(), sum_value=self.distribution.total
        )
