"""Changes a model and decides nothing: attach blocks, carry optimizer state, verify, roll back, free memory."""
