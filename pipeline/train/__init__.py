"""`python -m pipeline.train`: train a student from a run's labels."""
