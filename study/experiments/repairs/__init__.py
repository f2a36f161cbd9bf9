"""What is a repair worth, for every operation that removes units? Right after the operation, and after training on.

Bias propagation is Evci's (2018, *Detecting dead weights and units*, chapter 3), least squares are the second half of
PCNS (Rolet 2022, draft); BatchNorm's statistics belong to a network that is no more, and can be estimated anew. What
each does is in ``ops.surgery.repair``.

``arms``
    One trained network, halved in every layer at once by each removal with each chain of repairs, and trained on.
``at_once``
    A deep network, cut in every layer: accuracy right after, without further training.
``parallel``
    Both, for several seeds at once.
``figure``, ``report``
    The figure, the tests, the tables and the verdicts.

    python -m network_surgery.study.experiments.repairs --data cifar10 --seeds 5 --out study/docs
"""
