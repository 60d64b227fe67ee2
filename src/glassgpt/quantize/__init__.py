"""Quantising: small numbers for the matrices of a trained model, and what they cost."""
