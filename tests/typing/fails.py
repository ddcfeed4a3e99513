"""What a user may get wrong: each line marked as an error is one for the type checker, and no other is."""

from __future__ import annotations

from contextwrap import track_context


@track_context(user_id="{user}")
def answer(user: str, *, page: int = 1) -> str:
    """Answers."""
    return user * page


@track_context
async def later(user: str) -> str:
    """Answers later."""
    return user


@track_context(user_id="{self}")
class Desk:
    """A plain class."""

    def answer(self, question: str) -> str:
        """A method."""
        return question


answer(5)  # error
answer("u", page="1")  # error
answer("u", 1)  # error
answer()  # error
number: int = answer("u")  # error
text: str = later("u")  # error
Desk().answer(question=5)  # error
Desk().nothing()  # error
track_context(user_id=5)  # error
track_context(capture="words")  # error
track_context(tags=5)  # error
track_context(metadata={"page": 5})  # error
track_context(user="u")  # error
track_context(5)  # error
