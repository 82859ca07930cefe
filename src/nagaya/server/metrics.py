"""Prometheus metrics. Tenant labels are bounded: the first ``metrics_tenants`` tenants by name, the rest as one."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

OTHER = "other"


class Metrics:
    """What one process counts. With several workers, ``folder`` is where they put their counts together."""

    def __init__(self, *, max_tenants: int, folder: str | None = None) -> None:
        # In several processes the values live in mapped files and are collected from there.
        self._folder = folder
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "nagaya_requests_total", "Requests answered", ["route", "method", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "nagaya_request_seconds", "Time to answer", ["route"], registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )  # fmt: skip
        self._tenant_requests = Counter(
            "nagaya_tenant_requests_total", "Requests admitted, by tenant", ["tenant"], registry=self.registry
        )
        self.streams = Gauge(
            "nagaya_open_streams", "Streams open now", registry=self.registry, multiprocess_mode="livesum"
        )
        self._max_tenants = max_tenants
        self._tenants: dict[str, object] = {}
        self._other = self._tenant_requests.labels(OTHER)
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def count(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request. ``route`` is a pattern, never a path: paths would be unbounded labels."""
        if len(method) > 7 or not method.isascii():
            method = "OTHER"
        children = self._children.get((route, method, status))
        if children is None:
            if len(self._children) > 4096:
                return
            children = (self._requests.labels(route, method, str(status)), self._seconds.labels(route))
            self._children[route, method, status] = children
        children[0].inc()
        children[1].observe(seconds)

    def admitted(self, tenant_id: str) -> None:
        """Count an admitted request under its tenant, or under ``other`` once there are too many tenants."""
        child = self._tenants.get(tenant_id)
        if child is None:
            if len(self._tenants) >= self._max_tenants:
                self._other.inc()
                return
            child = self._tenants[tenant_id] = self._tenant_requests.labels(tenant_id)
        child.inc()  # type: ignore[attr-defined]  # a Counter's child; the library does not name its type

    def page(self) -> bytes:
        """The text that Prometheus scrapes."""
        if self._folder is None:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together, path=self._folder)  # type: ignore[no-untyped-call]  # untyped there
        return generate_latest(together)
