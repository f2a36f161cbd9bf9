"""How-to pages, and the script that makes ``api.md`` from docstrings: ``python -m network_surgery.study.guide``."""
