"""Low-rank terms for linear layers, ever rarer mutations, and a policy that spreads them over the model."""
