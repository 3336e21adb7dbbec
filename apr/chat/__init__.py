"""Text in, text out: a prompt continued, a conversation through the model's own chat template."""

from __future__ import annotations

from apr.chat.completion import Completion, complete
from apr.chat.conversation import Answer, Conversation
from apr.chat.templates import BUILT_IN, ChatTemplate

__all__ = ["BUILT_IN", "Answer", "ChatTemplate", "Completion", "Conversation", "complete"]
