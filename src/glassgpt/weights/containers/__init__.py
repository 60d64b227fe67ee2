"""Containers: files of tensors by name, read without running or believing anything in them."""
