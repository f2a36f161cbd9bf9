"""What layers hold and gradients say on a batch, and the scores that are made of it."""
