"""What does a widened layer learn? WeakExpand by the shares of its copies, against not widening and starting over.

Graham 2019, *Applied HOSVD for weight compression and expansion* (4.2.2): "WeakExpand adds more trainable parameters,
and thus the overall accuracy is slightly higher". With equal shares, the thesis's form, two copies of a unit get equal
gradients and never part; uneven and signed shares part them.

``training``
    Small networks on digits: an epoch, and what is looked at after it.
``arms``
    A narrow network is widened in several ways, from the same weights and on the same batches.
``regularized``
    What widening does to the loss where there is dropout, BatchNorm or weight decay.
``parallel``
    Both, for several seeds at once.
``figure``, ``report``
    The figure, the tests, the tables and the verdicts.

    python -m network_surgery.study.experiments.widening --seeds 20 --out study/docs
"""
