"""One read of all models' samples a turn, handed out model by model: a model's turn looks at its own samples alone."""

from __future__ import annotations

from collections import defaultdict

from reasonscale.api import constants as c
from reasonscale.signals.assemble import Sample
from reasonscale.signals.sources import Samples, SignalsMissing


class SharedSamples:
    """Samples that all models of a turn share: `renew` asks once, `of` gives a model's part."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self.limit_s = samples.limit_s
        self._by_model: dict[str, list[Sample]] = {}
        self.missing: SignalsMissing | None = SignalsMissing("nothing was asked for yet")

    async def renew(self) -> None:
        """Ask once."""
        try:
            found = await self._samples.fetch()
        except SignalsMissing as error:
            self.missing, self._by_model = error, {}
            return
        by_model: dict[str, list[Sample]] = defaultdict(list)
        for sample in found:
            by_model[sample.labels.get(c.LABEL_METRIC_MODEL, "")].append(sample)
        self.missing, self._by_model = None, by_model

    def of(self, namespace: str, resource: str, served: str) -> ModelSamples:
        """Return the samples of one resource, which goes by the name `served`."""
        return ModelSamples(self, namespace, resource, served)

    def select(self, namespace: str, resource: str, served: str) -> list[Sample]:
        """Return a resource's samples as of the last read; SignalsMissing where there was none.

        Two resources may serve the same name. Whoever scrapes pods of several knows which is whose, and says it in labels;
        a scrape that has no such labels sees one resource alone.
        """
        if self.missing is not None:
            raise self.missing
        return [
            s
            for s in self._by_model.get(served, ())
            if s.labels.get(c.LABEL_METRIC_NAMESPACE, namespace) == namespace
            and s.labels.get(c.LABEL_METRIC_RESOURCE, resource) == resource
        ]


class ModelSamples:
    """One resource's part of what was read; `Samples`, as all other sources."""

    def __init__(self, shared: SharedSamples, namespace: str, resource: str, served: str) -> None:
        self._shared, self._which = shared, (namespace, resource, served)
        self.limit_s = shared.limit_s

    async def fetch(self) -> list[Sample]:
        return self._shared.select(*self._which)
