"""Reads a model and never changes it: sites, shapes, inputs, cost."""
