"""The quality of a recogniser: its error rates, and the places of its errors."""
