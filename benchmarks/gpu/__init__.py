"""What one CUDA machine does: teachers, workers, students and losses at full size, with random weights and no download."""
