"""Tells the metrics which version each adapter's name resolves to."""

from graftwork_adapters.registry import Registry

from graftwork_server.metrics import Metrics

_PAGE_SIZE = 1000


class LiveVersions:
    """Reads the registry anew at each report, so that reports may come in any order."""

    def __init__(self, registry: Registry, metrics: Metrics) -> None:
        self._registry = registry
        self._metrics = metrics

    def report_all(self) -> None:
        """Call once at start."""
        page_token = ""
        while True:
            page = self._registry.list_adapters(page_size=_PAGE_SIZE, page_token=page_token)
            for adapter in page.items:
                self.report(adapter.name)
            page_token = page.next_page_token
            if not page_token:
                return

    def report(self, name: str) -> None:
        """Call after each mutation of an adapter. One without versions has no series: its label is
        for others to take."""
        if self._registry.list_versions(name, page_size=1).items:
            self._metrics.set_live_version(name, self._registry.get_adapter(name).live_version)
        else:
            self._metrics.forget_adapter(name)
