"""The search: what to try (Optuna, ``sampler``), where it runs (Ray, ``tuner``), what is recorded (MLflow, ``tracking``)."""
