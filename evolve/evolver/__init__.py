"""The Evolver, the controller that it shares with other training loops, and their configuration."""
