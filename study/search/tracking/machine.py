"""The load of the machine on which the study's driver runs, as MLflow's system metrics of the parent run.

MLflow has a monitor of its own; it writes from its own thread and gives up when the server is away. So only its gauges
are used, and what they say goes the way of all that is tracked. Training runs go on beside each other on this machine,
and on others of a cluster: none of them has a load of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

#: Seconds between looks, where MLflow's environment variable does not say otherwise.
INTERVAL = 10.0


class Machine(threading.Thread):
    """Calls ``tell(metrics)`` every so often until ``stopped`` is set, and once more then. It starts at once."""

    def __init__(self, tell: Callable[[dict[str, float]], None], stopped: threading.Event) -> None:
        from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL

        super().__init__(name="machine", daemon=True)
        self._tell, self._over, self._gauges = tell, stopped, _gauges()
        self._interval = MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or INTERVAL
        self.start()

    def run(self) -> None:
        self._read()  # the processor's load is that since the look before; the first is of no use
        while not self._over.wait(self._interval):
            self._tell(self._read())
        self._tell(self._read())

    def _read(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for gauge in self._gauges:
            try:
                gauge.collect_metrics()
                found |= {f"system/{name}": float(value) for name, value in gauge.aggregate_metrics().items()}
                gauge.clear_metrics()
            except Exception:  # a gauge that the system does not allow to be read
                continue
        return found


def _gauges() -> list[Any]:
    """Processor and memory, disk, network; GPUs where there are any."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        try:
            found.append(kind())
        except Exception:  # no GPU, or a system that does not say
            continue
    return found
