"""The reports of a run that has ended, made again from its outcome."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from network_surgery.study.training.records import operations_of


def reports(outcome: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The epochs of an outcome as its training had reported them, one by one (see ``study.training.run.Reporter``)."""
    operations = operations_of(outcome)
    parameters = operations[0].parameters_before if operations else outcome["parameters"]
    for number, record in enumerate(outcome["epochs"], 1):
        so_far = [each for each in operations if each.epoch < number]
        news = [each for each in so_far if each.epoch >= number - 1]
        parameters = news[-1].parameters_after if news else parameters
        seen = []
        for each in so_far:
            back = each.epochs_to_recover
            known = back if back is not None and int(each.epoch) + back <= number else None
            seen.append(each.to_data() | {"epochs_to_recover": known})
        checks = [each for each in outcome.get("checks", ()) if number - 1 <= each["epoch"] < number]
        yield {
            **record, "parameters": parameters, "checks": checks, "operations": seen[len(seen) - len(news) :],
            "so_far": {"operations": seen},
        }  # fmt: skip
