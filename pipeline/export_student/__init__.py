"""`python -m pipeline.export_student`: a student as a folder to upload, and as ONNX."""
