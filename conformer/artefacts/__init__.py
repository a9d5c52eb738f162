"""Runs exported models (artefacts): their sizes, their cards, their runtimes. Needs neither JAX nor a converter."""
