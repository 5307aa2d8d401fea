"""All code that runs beyond the sandbox's door: standard library only, imports nothing of ours.

`server` (one clean process per worker) forks a `referee` per program, which forks a `solution`
process before it reads the program. Text and values pass between them by `wire`.
"""
