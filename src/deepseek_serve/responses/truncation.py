"""``truncation: auto``: a conversation that is too long loses its beginning."""

from __future__ import annotations

from deepseek_serve.prompt import prompt_length
from deepseek_serve.protocol.chat import ChatRequest
from deepseek_serve.state import ServerState


async def shortened(state: ServerState, chat: ChatRequest) -> ChatRequest:
    """``chat`` without its oldest turns, as few of them as possible, so that prompt and answer fit the context.

    What is cut ends where somebody asks something, so that no call loses its result. System messages at the beginning
    stay, and so does the last question, whether it fits or not. Raises as
    :func:`prompt_length`.
    """
    info, _ = state.model(chat.model).generating()
    room = info.max_context - (chat.token_limit() or 1)
    head = next((i for i, turn in enumerate(chat.messages) if turn.role not in ("system", "developer")), 0)
    cuts = [head, *(i for i, turn in enumerate(chat.messages) if i > head and turn.role == "user")]
    low, high = 0, len(cuts) - 1  # the least cut that fits is among these, if any is
    while low < high:
        middle = (low + high) // 2 if low else 0  # most conversations fit as they are
        if await prompt_length(state, _without(chat, head, cuts[middle])) <= room:
            high = middle
        else:
            low = middle + 1
    return _without(chat, head, cuts[low])


def _without(chat: ChatRequest, begin: int, end: int) -> ChatRequest:
    return chat.model_copy(update={"messages": [*chat.messages[:begin], *chat.messages[end:]]})
