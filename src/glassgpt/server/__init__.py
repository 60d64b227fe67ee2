"""A server for a model directory, and its page in the browser. Needs the extra `server`."""
