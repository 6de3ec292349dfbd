"""The words every process speaks. No I/O here, and nothing of the package is imported from above."""
