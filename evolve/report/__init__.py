"""Lineage and metrics as tables for the terminal."""
