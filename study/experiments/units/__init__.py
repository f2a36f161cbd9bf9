"""Which units should go, and what should stay of them? Evci 2018, *Detecting dead weights and units*, chapter 4.

``looks``
    A network trains and is looked at: the loss without some of a layer's units, by every score and replacement, with
    everything put back; and how scores rank units, compared with the mean replacement penalty.
``schedule``
    Units go while it trains, until 4,019 of 20,522 parameters are left, against the same network unpruned, random
    units, and the final shape from fresh weights.
``parallel``
    Both, for several seeds at once.
``claims``, ``figures``, ``report``
    What the thesis says asked of the numbers, the figures, the page.

    python -m network_surgery.study.experiments.units --data folder:PATH --seeds 5 --out study/docs
"""
