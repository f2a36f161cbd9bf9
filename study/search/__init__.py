"""What is tried (``sources``), where it runs (``tuner``, ``trial``: Ray), and its record (``tracking``: MLflow)."""
