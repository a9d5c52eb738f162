"""Exported artefacts: their sizes, their cards, and the runtimes that step them. Needs no JAX, nor what wrote them."""
