"""What holds for all tests."""

import gc

# Tokenizers of 150,000 texts and torch's own millions of objects are walked through by each full
# collection; with Python's thresholds that was a fifth of the time of whole folders.
gc.set_threshold(200_000, 50, 100)
