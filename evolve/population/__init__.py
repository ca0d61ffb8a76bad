"""Evolutionary search: populations of models whose children inherit their weights."""
