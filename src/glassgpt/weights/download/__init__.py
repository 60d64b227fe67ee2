"""Weights from the network: one file that can be trusted, OpenAI's models, Hugging Face's, and a model by its name."""
