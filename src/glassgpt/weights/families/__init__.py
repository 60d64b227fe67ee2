"""Families of files: whose names and layout a model's tensors have, to ours and back."""
