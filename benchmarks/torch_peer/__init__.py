"""The same model in eager PyTorch, run in the peers' environment (see `benchmarks/peers.py`)."""
