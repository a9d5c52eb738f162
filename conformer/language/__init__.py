"""Language models of words or units: what is counted, estimated, pruned, stored and asked."""
