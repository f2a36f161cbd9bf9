"""How a task is trained: augmentation, and how the steps are computed."""
