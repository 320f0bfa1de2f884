"""`python -m pipeline.evaluate`: score models on benchmarks and rendered scenes."""
