"""What experiments share: rows that are kept, claims that are put to the test, tables, panels, and the page."""
