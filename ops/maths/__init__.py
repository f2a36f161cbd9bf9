"""Decompositions and statistics of plain tensors; nothing here knows a network."""
