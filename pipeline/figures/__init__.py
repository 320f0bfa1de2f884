"""`python -m pipeline.figures`: the paper's figures 2 and 5 for one's own models and pictures."""
