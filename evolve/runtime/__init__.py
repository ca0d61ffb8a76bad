"""Devices, random number generators and memory."""
