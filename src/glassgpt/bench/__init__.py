"""Times every way to decode a model on this machine; each measurement is taken in a fresh process.

`plan` says what is timed, `prepare` is what comes before it, `run` lets the contenders take turns, `turn` is one of
these processes, `writers` are the contenders in it; `results` holds what was measured, `report` and `plot` show it.
"""
