"""How a plan becomes a network, the optimizer's state with it, and whether that is what the plan promised."""
