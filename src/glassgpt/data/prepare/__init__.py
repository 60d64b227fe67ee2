"""From any amount of text to shards of tokens: planned in pieces, encoded by several processes, joined in order.

`inputs` lists files and cuts them into tasks, `plan` fixes what is to be done, `worker` encodes tasks into `parts`,
`duplicates` compares the sections of all parts, `join` writes the shards, `run` is what users call.
"""
