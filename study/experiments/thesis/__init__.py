"""Is the thesis's application study right? Graham 2019, *Applied HOSVD*, chapter 4, and its published code.

It is a study like any other: the presets here name its search space (``space``) and its page (``page``), and the space
names the operations of the published code (``operations``).
"""
