"""`python -m pipeline.browse`: a run's labels as a gallery, to look through in a browser."""
