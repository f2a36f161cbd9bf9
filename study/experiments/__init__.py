"""Small experiments, each on one question about surgery and run as a module; results lie in ``study/docs``."""
