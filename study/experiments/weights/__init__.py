"""Which weights should go? Evci 2018, *Detecting dead weights and units*, chapter 2.

``looks``
    A network trains and is looked at: the loss without some of a layer's weights, by every score, with everything put
    back; how many weights have a score below zero; how the approximations rank weights.
``schedule``
    Weights go while it trains, until nine of ten are zero, against the same network unpruned and random weights; then
    the units that this left useless are removed.
``parallel``
    Both, for several seeds at once.
``claims``, ``figures``, ``report``
    What the thesis says asked of the numbers, the figures, the page.

    python -m network_surgery.study.experiments.weights --data folder:PATH --seeds 5 --out study/docs
"""
