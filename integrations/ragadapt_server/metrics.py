"""What /metrics shows, in Prometheus's format; of all processes together under --workers."""

from __future__ import annotations

import os

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The measures of one application."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "ragadapt_requests", "Answered requests.", ["path", "method", "status"], registry=registry
        )
        self.seconds = Histogram(
            "ragadapt_request_seconds", "From the request to its answer.", ["path"], buckets=_SECONDS, registry=registry
        )
        self.stages = Histogram(
            "ragadapt_stage_seconds",
            "Of a batch: waiting for its turn, encoding, searching.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "ragadapt_batch_size", "Texts that were run together.", ["stage"], buckets=_SIZES, registry=registry
        )
        self.refused = Counter("ragadapt_refused", "Requests that found the queue full.", registry=registry)
        self.feedback = Counter("ragadapt_feedback", "Feedback taken in or taken back.", ["kind"], registry=registry)
        self.build = Gauge(
            "ragadapt_build_info",
            "1 for the build that is searched, 0 for earlier ones.",
            ["retriever", "build", "fingerprint"],
            registry=registry,
            multiprocess_mode="livemax",
        )

    def text(self) -> tuple[bytes, str]:
        """(body, media type)."""
        registry = self.registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST
