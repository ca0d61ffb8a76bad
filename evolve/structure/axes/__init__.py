"""Following the axes of tensors through a recorded run, to groups that change together."""
