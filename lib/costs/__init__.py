"""What a real profile costs: GPUs and models as numbers, their arithmetic, the expected bill."""
