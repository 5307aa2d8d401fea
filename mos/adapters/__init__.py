"""Methods as tuners of PEFT's, and what they are made of.

PEFT comes first: once it is imported it knows all methods (`mos.__init__`), and for that none of
them may be half imported itself.
"""

import peft  # noqa: F401
