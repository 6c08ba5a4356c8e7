"""Prompts of examples as the client takes them."""

import graftwork

from graftwork_trainer.datasets.prompts import Conversation, Prompt, Text


def client_prompt(prompt: Prompt) -> graftwork.Prompt:
    """What `generate` and `score` take for a prompt."""
    if isinstance(prompt, Text):
        return prompt.text
    if isinstance(prompt, Conversation):
        return graftwork.Conversation(
            [graftwork.Message(turn.role, turn.content) for turn in prompt.messages],
            [graftwork.Document(passage.text, passage.title) for passage in prompt.documents],
        )
    return list(prompt.ids)
