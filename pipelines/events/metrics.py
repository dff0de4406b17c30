"""The metrics for Prometheus at /metrics. Labels never hold a name that a sender chose."""

from prometheus_client import Counter, Gauge

OBJECTS = Counter("thyroid_listen_objects", "Objects of events: counted, repeated, or ignored", ["outcome"])
REJECTED = Counter("thyroid_listen_rejected", "Requests that were refused, by reason code", ["code"])
BATCHES = Counter("thyroid_listen_batches", "Batches: started, or dropped since nothing was left", ["outcome"])
FAILURES = Counter("thyroid_listen_failures", "Failed attempts of the leader, which tries again", ["what"])
WAITING = Gauge("thyroid_listen_waiting_scans", "Scans of the batch that grows")
UNFINISHED = Gauge("thyroid_listen_unfinished_runs", "Runs of this listener that are unfinished")
