"""Takes an evolved model out of evolve: as plain PyTorch source, weights, a graph, or a folder of transformers."""
