"""`python -m pipeline.demo`: the whole pipeline on rendered scenes."""
