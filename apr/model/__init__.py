"""The torch modules that every family's model is made of, for training and inference alike."""
