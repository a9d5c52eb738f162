"""Language models of words or units: counting, estimating, pruning, storing, looking up."""
