"""`bench.py kernels`: the kernels beside their strongest alternatives, on the device at hand."""
