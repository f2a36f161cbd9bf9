"""What is claimed where nothing is: ``python -m tests.benchmarks.error_rates [--studies 4000]``.

Error rates of whole studies and the coverage of the intervals, simulated through the product's own functions
(``tests/study/evidence/simulated.py``), as tables.
"""

from __future__ import annotations

import argparse

from tests.study.evidence.simulated import KINDS, RIVALS, coverage, studies

ZERO = {arm: (0.0, 0.0) for arm in RIVALS}
FAR = {arm: (0.03, 0.0) for arm in RIVALS}
EDGE = {arm: (0.005, 0.0) for arm in RIVALS}
#: Case → the truths of its schedules, the seeds of its looks, the deviation between seeds.
CASES = {
    "nothing differs, one look of 5": ([ZERO], (5,), 0.004),
    "nothing differs, one look of 10": ([ZERO], (10,), 0.004),
    "nothing differs, 4 looks: 3, 5, 10, 20": ([ZERO], (3, 5, 10, 20), 0.004),
    "nothing differs, 3 schedules": ([ZERO] * 3, (5,), 0.004),
    "nothing differs, 3 schedules, 4 looks": ([ZERO] * 3, (3, 5, 10, 20), 0.004),
    "restart is worse by 3 points, nothing else differs": ([ZERO | {"restart": (0.03, 0.0)}], (5,), 0.004),
    "all but the original differ": ([FAR | {"original": (0.0, 0.0)}], (5,), 0.004),
    "one of 2 schedules differs in all, the other in nothing": ([FAR, ZERO], (5,), 0.004),
    "all at the margin, 5 seeds": ([EDGE], (5,), 0.001),
    "all at the margin, 4 looks": ([EDGE], (3, 5, 10, 20), 0.001),
    "all at the margin, 3 schedules": ([EDGE] * 3, (5,), 0.001),
    "restart alike, the others at the margin": ([EDGE | {"restart": (0.0, 0.0)}], (5,), 0.001),
    "half the FLOPs, ends alike": ([{arm: (0.0, -0.7) for arm in RIVALS}], (5,), 0.001),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=4000)
    options = parser.parse_args()
    print(f"{options.studies} studies each; a rate of 5 % is between 4.3 and 5.7 % in 19 of 20 tables of 4000\n")
    print("| truth | claims a difference that is not there | claims *as good* that is not | the question's rival |")
    print("|---|--:|--:|---|")
    for name, (truths, looks, spread) in CASES.items():
        found = studies(options.studies, truths, looks, spread)
        asked = ", ".join(f"{word} {rate:.0%}" for word, rate in sorted(found.decisions["restart"].items()))
        print(f"| {name} | {found.difference:.1%} | {found.alike:.1%} | {asked} |", flush=True)
    print("\n| n seeds | m samples | kind | covered | by seeds alone | *as good* at the margin |")
    print("|--:|--:|---|--:|--:|--:|")
    for m in (100, 359, 10_000):
        for n in (3, 5, 10):
            for kind in KINDS:
                count = options.studies if m < 1000 else options.studies // 10
                rates = coverage(count, kind, n, m)
                print(f"| {n} | {m} | {kind} | " + " | ".join(f"{rate:.1%}" for rate in rates) + " |", flush=True)


if __name__ == "__main__":
    main()
