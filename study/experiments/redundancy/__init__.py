"""How redundant are classical networks? Principal components that their layers need, before and after some training.

Rolet 2022, *PCNS: Principal Component Network Shrinking* (draft, section 6), leaves it open: "measure redundancy of
various classical deep networks on standard problems … to see if there is one that would most benefit". Redundancy is
its measure of section 3.1: how many principal components a layer's outputs need for a given share of their variance.

``measure``
    Networks of torchvision, trained for a few epochs; every hidden layer is looked at before and after.
``figure``, ``report``
    The figure, the tests, the tables and the verdicts.

    python -m network_surgery.study.experiments.redundancy --data folder:PATH --seeds 3 --out study/docs
"""
