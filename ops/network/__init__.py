"""What belongs to a network beside its layers: optimizer state, masks, attention, files, wrappers."""
