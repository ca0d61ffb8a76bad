"""Modules that end up inside users' models: their paths are written into pickles and must not move."""
