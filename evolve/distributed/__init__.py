"""Several devices: one decides, all follow, and they are held against each other."""
