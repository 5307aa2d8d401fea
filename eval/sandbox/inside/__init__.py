"""All code that runs inside the sandbox: standard library only, imports nothing of ours.

`server` (one clean process per worker) forks two processes per program before it is read:
`referee` and `solution`. Text and values pass between them by `wire`.
"""
