"""From frame-wise symbol probabilities to tokens."""
