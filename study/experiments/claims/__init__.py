"""The three claims of the PCNS draft, each at equal seconds of training.

Rolet 2022, *PCNS: Principal Component Network Shrinking* (draft, abstract): the algorithm is expected "to minimize
network size while maintaining good performance; to significantly reduce training time; to be faster and simpler to
operate than other shrinking methods", which "require a full training to be done beforehand". Its sections 4 and 5, the
experiment and the benefits, were left to be written.

``arms``
    The networks, and the arms of one seed: what each starts from, when it is cut, and how.
``race``
    Equal seconds: what a step and an operation cost, and training until the seconds are spent.
``parallel``
    Several seeds at once.
``verdicts``
    What is chosen on validation images, the claims as differences paired by seed, and their tests.
``figure``, ``report``
    The figure and the tables.

    python -m network_surgery.study.experiments.claims --data folder:PATH --seeds 10 --out study/docs
"""
