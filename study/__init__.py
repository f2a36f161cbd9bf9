"""Does surgery pay? Train, operate, measure, search, compare, show."""
