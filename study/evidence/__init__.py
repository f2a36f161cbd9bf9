"""What a study found: its stored results, the comparison and its statistics, figures and the report."""
