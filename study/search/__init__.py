"""What is tried (``sources``: Optuna), where it runs (``tuner``, ``trial``: Ray), what is kept (``tracking``: MLflow)."""
