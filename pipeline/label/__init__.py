"""`python -m pipeline.label`: label photographs with the teachers."""
