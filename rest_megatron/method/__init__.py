"""The method (arXiv 2509.21826) as pure functions: regions, weights, curriculum, advantages, loss weights."""
