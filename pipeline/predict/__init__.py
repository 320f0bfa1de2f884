"""`python -m pipeline.predict`: photographs to depth maps."""
