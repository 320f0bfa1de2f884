"""`python -m pipeline.report RUN STUDENT`: what became of a run and its student, as one page."""
