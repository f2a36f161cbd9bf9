"""PCNS tried as its draft asks for it (Rolet 2022, *PCNS: Principal Component Network Shrinking*, sections 3 and 4).

``trained``
    The networks, and one of them after its training.
``shrinking``
    Every layer is shrunk, by PCNS and by other removals to the same sizes; training goes on.
``orders``
    Last to first, first to last with a forward pass for each layer, all at once.
``samples``
    How the number of components and the error on new data depend on the size of the sample.
``prediction``
    The change of the loss, predicted before the operation and measured after it.
``parallel``
    All of it, for several seeds at once.
``figures``, ``report``
    The figures, the tests, the tables and the verdicts.

    python -m network_surgery.study.experiments.pcns --data folder:MNIST --seeds 5 --out study/docs
"""
