"""Models behind HTTP, in the form of OpenAI's interface: what `glassgpt serve` runs. An extra: `glassgpt[server]`."""
