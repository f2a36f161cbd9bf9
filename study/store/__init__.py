"""What a study keeps: its cells and how each ended, the folder that they lie in, and the words for a schedule."""
