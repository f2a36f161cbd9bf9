"""How a task is trained: optimizer, learning rate, augmentation, and how the steps are computed."""
