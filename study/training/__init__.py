"""Training without Ray or MLflow: the loop, the theatre that operates and measures, checkpoints, whole runs."""
