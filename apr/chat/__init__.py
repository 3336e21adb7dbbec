"""Text in, text out: a prompt continued, a conversation through the model's own chat template."""

from __future__ import annotations

from apr.chat.completion import Completion, complete, read_prompt
from apr.chat.conversation import Answer, Conversation
from apr.chat.opening import TextModel, open_text_model
from apr.chat.templates import BUILT_IN, ChatTemplate

__all__ = [
    "BUILT_IN", "Answer", "ChatTemplate", "Completion", "Conversation", "TextModel", "complete",
    "open_text_model", "read_prompt",
]  # fmt: skip
