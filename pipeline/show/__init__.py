"""`python -m pipeline.show`: a photograph's labels as one picture."""
