"""Mutations in other people's training loops: Lightning, the Hugging Face Trainer, Accelerate. One file a library."""
