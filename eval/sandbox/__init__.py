"""Run a benchmark's untrusted programs, each in a process of its own that cannot forge its verdict.

The reference executes solution and test in one interpreter, where a solution can rewrite the test,
the builtins or the result. Here they are apart: the *solution process* (inside/solution.py) holds
only the solution; the *referee* (inside/referee.py) runs the test, with `candidate` a call to that
process. Arguments and results cross as plain data, so every comparison is made by the referee on
values of built-in types. All that a solution can do is answer.

What this costs in fidelity: a result counts by its content (objects of a class of the solution's
equal nothing; iterators are drawn; numpy's numbers are Python's), names that a test takes from its
program are the prompt's, and arguments that a solution changes do not change in the test.
HumanEval's tests see no difference: the canonical solutions and the reference's recorded results
agree.

Walls around both processes, in either isolation: a list of the system calls that they may make
(neither processes nor sockets), resource limits, no capability, an empty environment, and a
private folder, of which a look every few milliseconds bounds the size.

`namespaces` (the default) is bubblewrap: a file system of libraries only, no network, no other
process in sight, for root another user. `restricted` is for machines that forbid it and is used
only if asked for: Landlock limits which files can be opened. Then threads have no bound but the
memory, named semaphores (`multiprocessing.Lock`, `ThreadPool`) are refused, and a program can find
out which paths exist.
"""

from .inside.confine import Limits
from .launch import Isolation, Program, Sandbox, Verdict, check_isolation

__all__ = ["Isolation", "Limits", "Program", "Sandbox", "Verdict", "check_isolation"]
