"""What is computed, and how it may be arranged."""
