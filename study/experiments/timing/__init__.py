"""How long does an operation interrupt training? Every operation, measured and predicted, against epochs.

On nets of two equal layers (dense n–n–n, and c–c–c with 3 × 3 kernels) each operation is done to the layer between
them, with an Adam optimizer that has stepped: what ``operate`` does, proposing and applying, and then undone off the
clock. The *interruptibility index* (Graham 2019, 3.1.4) is an epoch's seconds over an operation's: above 100 the
operation takes less than 1 % of an epoch. An epoch is ``IMAGES`` images in batches of ``BATCH``, measured step by step.
Prediction is ``complexity``'s work over the rates that this machine reached in the same run.

    python -m network_surgery.study.experiments.timing --out study/docs

``measure``
    Every operation on every net, with the rates of the machine; ``complexity`` has the formulas.
``figure``, ``report``
    The picture, the tables and the bar.
"""
