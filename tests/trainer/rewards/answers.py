from graftwork_trainer.datasets.prompts import Conversation, Message, Text
from graftwork_trainer.rewards.reward import Answer

ASKED = Conversation((Message("user", "Say something nice."),))


def answer(text: str, *, prompt=ASKED, num_tokens: int | None = None) -> Answer:
    return Answer(prompt, text, len(text.split()) if num_tokens is None else num_tokens)


TEXT_PROMPT = Text("Once upon")
