"""The measurements of `bench.py`: this project beside its peers, in one run on one machine."""
