"""Weights in and out: `formats` is the table, `families` and `containers` read and write, `download` fetches."""
