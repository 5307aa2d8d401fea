"""Run a benchmark's untrusted programs, each in a process of its own that cannot forge its verdict.

The reference executes solution and test in one interpreter, where a solution can rewrite the test,
the builtins or the result. Here they are apart: the *solution process* (inside/solution.py) holds
only the solution and is cut off from the machine; the *referee* (inside/referee.py) runs the test,
with `candidate` a call to that process. Arguments and results cross as plain data, so every
comparison is made by the referee on values of built-in types. All that a solution can do is answer.

What this costs in fidelity: a result counts by its content (objects of a class of the solution's
equal nothing; iterators are drawn), names that a test takes from its program are the prompt's, and
arguments that a solution changes do not change in the test. No HumanEval test sees a difference:
the canonical solutions and the reference's recorded results agree.

Walls, by what the kernel grants (`Sandbox.isolation` says which are in force): namespaces with a
file system of libraries only, made by us or by bubblewrap; or else Landlock, which leaves the size
of a program's folder unbounded and lets it learn which paths exist. Always: a system call filter
without processes and sockets, limits, an empty environment, a private folder, for root another
user where that one can reach the interpreter.
"""

from .inside.limits import Limits
from .launch import Program, Sandbox, Verdict, check, check_many

__all__ = ["Limits", "Program", "Sandbox", "Verdict", "check", "check_many"]
