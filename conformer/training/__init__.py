"""State, update step and checkpoints of a training run."""
