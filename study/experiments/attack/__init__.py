"""Can one unit be killed by too high a learning rate, and is it seen? Evci 2018, *Detecting dead weights and units*.

His chapter 3 multiplies the learning rate of one unit's incoming weights for ten steps of training, looks at what
becomes of the unit's mean replacement penalty (MRP), and finds that units with BatchNorm or tanh are harmed, units with
ReLU mostly not, that the loss does not tell, and that the first-order form MRS ranks units as MRP does.

``attacker``
    The attack, as a callback of the trainer.
``watch``
    What is measured of every unit of a layer: MRP, MRS, norms, gradient, share of outputs in the flat region.
``arms``
    One network trained without attack, and again with each attack from the same weights on the same batches.
``parallel``
    Several seeds and activations at once; what is found is kept, so that the page can be written anew.
``results``, ``findings``
    An attacked unit beside the same unit left alone; what is tested and counted.
``figures``, ``tables``, ``claims``, ``report``
    The figures, the tables, the claims of the thesis with what was found, the page.

    python -m network_surgery.study.experiments.attack --data cifar10 --seeds 5 --out study/docs
"""
