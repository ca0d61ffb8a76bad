"""Recording one run of a model: operations, module calls, and what the forward reads."""
