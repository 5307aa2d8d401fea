"""What the prompts of all benchmarks have in common: the chat text, a bound on their length."""

from __future__ import annotations

from mos.data.chat import Message, render_chat


def chat_prompt(content: str, cue: str) -> str:
    """A user turn in the Tulu chat text, the assistant's header, and the start of its answer."""
    turn = Message(role="user", content=content)
    return render_chat([turn], add_generation_prompt=True) + cue


def may_exceed(text: str, tokens: int) -> bool:
    """Whether `text` might encode to more than so many tokens; False is certain.

    A token covers at least one byte; a BOS, an EOS and a sentencepiece space may come on top.
    """
    return len(text.encode("utf-8", "surrogatepass")) + 3 > tokens
