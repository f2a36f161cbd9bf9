"""How busy a search keeps a cluster: ``python -m tests.benchmarks.cluster [--trials 10] [--slots 8,64,512]``.

Virtual time, with the product's own sources and stopping rule (``tests/study/search/simulated.py``): trial lengths are
lognormal with a deviation of 30 %, and what processes need to start is left out.
"""

from __future__ import annotations

import argparse
import time

import tests  # noqa: F401  # the checkout is network_surgery
from tests.study.search.simulated import search

ASHA = {"early_stopping": "asha", "first_rung": 1, "reduction": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10, help="trials for each slot")
    parser.add_argument("--slots", default="8,16,32,64,128,256,512")
    options = parser.parse_args()
    print(f"{options.trials} trials for each slot, share of slot-seconds in which a slot trains; in brackets while")
    print("there are trials to start\n")
    print("| slots | generations | generations, asha | asynchronous | asynchronous, asha | driver, ms a trial |")
    print("|--:|--:|--:|--:|--:|--:|")
    for count in map(int, options.slots.split(",")):
        trials, words = options.trials * count, []
        for sampling in ("generations", "asynchronous"):
            for stopping in ({}, ASHA):
                generation = count if sampling == "generations" else 4
                began = time.perf_counter()
                load = search(count, trials, sampling=sampling, generation=generation, **stopping)
                spent = 1000 * (time.perf_counter() - began) / trials
                words.append(f"{100 * load.whole:.0f} % ({100 * load.steady:.0f})")
        print(f"| {count} | {' | '.join(words)} | {spent:.0f} |", flush=True)


if __name__ == "__main__":
    main()
