"""Experiments on top of jaxprune: data, models, one training loop, comparisons and a demo."""
