"""`python -m pipeline.export`: a run's labels as files that other trainers read."""
