"""A run, several, or a search as one page that needs nothing else."""
