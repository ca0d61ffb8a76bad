"""Small models on a shared machine: one thread is quickest, and steadiest."""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)
