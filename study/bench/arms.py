"""Arms beside each other: networks that were trained in one way or another, some of them operated on.

Their rows are of ``kind`` ``arm`` with ``training``, ``arm`` and ``seed``, what ``study.bench.training.read_end``
returns, and ``peaks``: epoch, held-out loss before and after, of each moment at which the network was operated on.
``whole`` is the arm that nobody operated on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from network_surgery.study.bench.claims import Claim
from network_surgery.study.bench.panels import Panels, lines_scale
from network_surgery.study.bench.rows import Rows, Values
from network_surgery.study.bench.tables import deviation, spread, table
from network_surgery.study.evidence.drawing import BLACK, Drawing, Look


def ends(rows: Rows, training: str, whole: str) -> dict[str, Values]:
    """Arm → test accuracy ``[seeds]``, the ``whole`` one first."""
    arms = rows.distinct("arm", kind="arm", training=training)
    arms.sort(key=lambda arm: arm != whole)
    return {arm: rows.grid("test", kind="arm", training=training, arm=arm)[:, 0] for arm in arms}


def claims(rows: Rows, whole: str, operated: Sequence[str], best: str, others: Sequence[str]) -> list[Claim]:
    """Test accuracy at the end: which arms end below the whole network, and whether one ends above others."""
    tests = {training: ends(rows, training, whole) for training in rows.distinct("training", kind="arm")}

    def gaps(one: str, other: str) -> dict[str, Values]:
        return {name: test[one] - test[other] for name, test in tests.items() if {one, other} <= test.keys()}

    below = [
        Claim(f"{arm} ends below the {whole} network", "", gaps(arm, whole), -1, unit="points") for arm in operated
    ]
    return below + [Claim(f"{best} ends above {other}", "", gaps(best, other), unit="points") for other in others]


def to_table(rows: Rows, whole: str) -> str:
    """Every arm of every schedule: accuracy, losses, size, and the worst moment at which it was operated on."""
    columns = ("test accuracy %", f"− {whole}, points", "training loss, last epoch", "parameters that are not zero",
               "loss after / before, worst moment", "n")  # fmt: skip
    lines = []
    for training in rows.distinct("training", kind="arm"):
        tests = ends(rows, training, whole)
        for arm, test in tests.items():
            each = rows.where(kind="arm", training=training, arm=arm)
            sizes = sorted({row["parameters"] for row in each})
            worst = [max(after / before for _, before, after in row["peaks"]) for row in each if row.get("peaks")]
            lines.append([
                training, arm, deviation(test, 2, 100),
                "" if arm == whole else spread(test - tests[whole], 2, 100, "+"),
                f"{np.mean([row['train_losses'][-1] for row in each]):.3f}",
                " – ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1]))),
                f"× {np.median(worst):.2f}" if worst else "", len(test),
            ])  # fmt: skip
    note = (
        "± after an accuracy is the deviation over seeds, after a difference half of its 95 % interval. Loss after / "
        "before: of the validation images, median over seeds."
    )
    return f"{table(['training', 'arm', *columns], lines, words=2)}\n\n{note}"


def draw(rows: Rows, whole: str, looks: Mapping[str, Look]) -> Drawing:
    """Training loss by epoch and test accuracy at the end, of the arms that have a look."""
    loss, accuracy = "training loss of the epoch", "test accuracy at the end, %"
    trainings = rows.distinct("training", kind="arm")
    panels = Panels(trainings, (loss, accuracy), (11.0, 3.6 * len(trainings) + 0.4))
    looks = {whole: {"color": BLACK}, **looks}
    for training in trainings:
        tests = {arm: 100 * test for arm, test in ends(rows, training, whole).items() if arm in looks}
        for arm in tests:
            curves = np.array([row["train_losses"] for row in rows.where(kind="arm", training=training, arm=arm)])
            panels.curve(training, loss, range(1, curves.shape[1] + 1), curves, arm, {"color": looks[arm]["color"]})
        lines_scale(panels[training, loss])
        panels[training, loss].set_xlabel("epoch")
        panels.dots(training, accuracy, tests, looks)
    return panels.drawing(f"The schedule against the {whole} network")
