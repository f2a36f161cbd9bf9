"""What is trained: data, network, loss and metrics, and nothing of how surgery or a study goes about it.

One's own task is a subclass of ``Task``; see ``study/guide/task.md``.
"""

from network_surgery.study.task.build import build
from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.task.samples import Samples, Sets, Stream
from network_surgery.study.task.task import Classification, Task

__all__ = ["ACCURACY", "Classification", "Metric", "Samples", "Sets", "Stream", "Task", "build"]
