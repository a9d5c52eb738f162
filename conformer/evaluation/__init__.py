"""How good a recogniser is: error rates, and where the errors are."""
