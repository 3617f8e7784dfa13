"""A voter's talks, as the chat page needs them: the steps of a turn, and how a conversation stands after each.

The server's record is the only truth. A step changes it, then the page shows the `Scene` that follows from it; a
reload, a second tab and a vote in the middle of an answer all lead to the same picture. A step that means something
shown names it by its id, for a page may show what another tab has left behind.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from serve.errors import AlreadyVoted, Conflict, InvalidInput
from serve.limits import SamplingRequest
from serve.live import LiveAnswers, LiveComparison
from serve.records import Comparison, Message
from serve.service import Service
from serve.truncation import Truncation

if TYPE_CHECKING:
    from serve.feedback.entries import ConversationTurn

AskMe = Literal["always", "sometimes", "never"]

GONE_ON = "This talk has gone on in another tab. Here it is as it stands."
ON_ITS_WAY = "Your last message is still on its way. Send this one once it is there."


@dataclass(frozen=True)
class Scene:
    """A conversation as it stands."""

    conversation_id: str | None = None
    turns: tuple[ConversationTurn, ...] = ()
    asked: Comparison | None = None
    """Two answers that wait for a vote."""
    writing: LiveAnswers | None = None
    """What is still being written."""
    branches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Message id → the ids of all that stand in its place."""
    judged: Comparison | None = None
    """The voter's last word, where nothing was said since: it can be taken back, or added to."""
    earlier: str | None = None
    """Where the last turn has no answer: the id of one that it had before."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was said, as far as it has words: the prompt that the next turn goes on from."""
        return tuple(turn.message for turn in self.turns if turn.message.content.strip())

    @property
    def said(self) -> tuple[ConversationTurn, ...]:
        """The same as it is shown: without the system prompt."""
        return tuple(turn for turn in self.turns if turn.message.content.strip() and turn.message.role != "system")

    @property
    def system(self) -> str:
        """What the assistant keeps in mind."""
        return next((turn.message.content for turn in self.turns if turn.message.role == "system"), "")

    @property
    def stuck(self) -> bool:
        """The last turn has no answer, and none is on its way."""
        return not self.busy and self.messages[-1:] != () and self.messages[-1].role == "user"

    @property
    def settled(self) -> bool:
        """The last turn is answered, and nothing is asked."""
        return not self.busy and self.messages[-1:] != () and self.messages[-1].role == "assistant"

    @property
    def busy(self) -> bool:
        """Something is being written or waits for a vote."""
        return self.asked is not None or self.writing is not None

    @property
    def twins(self) -> bool:
        """Both answers are complete and say the same: there is nothing to choose."""
        asked = self.asked
        return asked is not None and self.writing is None and len({c.answer.text for c in asked.candidates}) == 1


class Talks:
    """The steps of a talk. One per server; belongs to one event loop."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._sending: set[tuple[str, str | None, str]] = set()  # voter, conversation, words

    async def scene(self, voter: str, conversation_id: str | None) -> Scene:
        """How it stands. Raises NotFound when the conversation is not the voter's."""
        if not conversation_id:
            return Scene()
        turns = tuple(await self.service.conversation(conversation_id, voter))
        asked = await self.service.open_comparison(voter, conversation_id)
        writing = self.service.writing_in(conversation_id)
        if asked and len(asked.candidates) != 2:
            asked = None  # made elsewhere, for more than two panes
        if isinstance(writing, LiveComparison) and len(writing.drafts) != 2:
            writing = None
        if asked and writing is None and not any(c.answer.text for c in asked.candidates):
            asked = None  # broken off before the first word
        judged = None if asked else await self.service.judged_last(voter, conversation_id)
        branches = await self.service.branches(voter, conversation_id)
        scene = Scene(conversation_id, turns, asked, writing, branches, judged)
        if not scene.stuck:
            return scene
        return replace(scene, earlier=await self.service.answered_before(voter, conversation_id))

    async def latest(self, voter: str) -> str | None:
        """The conversation that a voter returns to."""
        talks = await self.service.conversations(voter)
        return talks[0].id if talks else None

    async def say(
        self,
        voter: str,
        text: str,
        conversation_id: str | None,
        how: AskMe,
        *,
        system: str | None = None,
        sampling: SamplingRequest | None = None,
        truncation: Truncation = "disabled",
    ) -> LiveAnswers | None:
        """The voter's next turn. Typing on stops what is being written; the record skips what waits for a vote.

        `system` stands before the first turn of a new talk. A turn that is refused leaves the vote open. None while
        the same words are still on their way in: the same keystroke, twice. Raises Conflict while others are.
        """
        if not text.strip():
            raise InvalidInput("Write a message first.")
        turn = (voter, conversation_id, text)
        if turn in self._sending:
            return None
        if conversation_id and any(other[:2] == turn[:2] for other in self._sending):
            raise Conflict(ON_ITS_WAY)
        self._sending.add(turn)
        try:
            if conversation_id:
                await self.stop(voter, conversation_id)
            scene = await self.scene(voter, conversation_id)
            asking, probability = self.service.should_ask(how)
            before = scene.messages or ((Message("system", system),) if system and system.strip() else ())
            messages = (*before, *_any_answer(scene), Message("user", text))
            return await self._ask(
                voter,
                messages,
                conversation_id,
                asking=asking,
                probability=probability,
                sampling=sampling,
                truncation=truncation,
            )
        finally:
            self._sending.discard(turn)

    async def retry(
        self,
        voter: str,
        conversation_id: str,
        last: str,
        *,
        sampling: SamplingRequest | None = None,
        truncation: Truncation = "disabled",
    ) -> LiveAnswers:
        """Two new answers to the last turn; what it was answered before stays, in another branch.

        `last` is the id of the last message shown. Raises InvalidInput while it is being answered or waits for a vote,
        Conflict where another one is the last by now.
        """
        scene = await self.at_rest(voter, conversation_id, last)
        messages = scene.messages if scene.stuck else scene.messages[:-1]
        return await self._ask(
            voter,
            messages,
            conversation_id,
            asking=True,
            probability=1.0,
            sampling=sampling,
            truncation=truncation,
        )

    async def ask_instead(
        self,
        voter: str,
        conversation_id: str,
        message_id: str,
        text: str,
        how: AskMe,
        *,
        sampling: SamplingRequest | None = None,
        truncation: Truncation = "disabled",
    ) -> LiveAnswers:
        """Another turn in the place of one that was said; what followed stays, too.

        Raises InvalidInput where nothing changes, or it is not the voter's turn, and Conflict where the talk stands in
        another branch by now.
        """
        if not text.strip():
            raise InvalidInput("Write a message first.")
        turns = (await self.scene(voter, conversation_id)).turns
        place = next((i for i, turn in enumerate(turns) if turn.message_id == message_id), None)
        if place is None:
            raise Conflict(GONE_ON)
        said = turns[place].message
        if said.role != "user":
            raise InvalidInput("This is none of your turns. Reload the page, and try again.")
        if said.content == text:
            raise InvalidInput("That is what you said. Change it, or cancel.")
        await self.stop(voter, conversation_id)
        asking, probability = self.service.should_ask(how)
        before = [turn.message for turn in turns[:place] if turn.message.content.strip()]
        return await self._ask(
            voter,
            (*before, Message("user", text)),
            conversation_id,
            asking=asking,
            probability=probability,
            sampling=sampling,
            truncation=truncation,
        )

    async def stop(self, voter: str, conversation_id: str) -> None:
        """End what is being written; what is there is kept."""
        live = (await self.scene(voter, conversation_id)).writing
        if live is not None:
            live.cancel()
            await live.wait()

    async def undo(self, voter: str, conversation_id: str, vote_id: str) -> None:
        """Take the last vote back: its answers wait for another one. Raises Conflict where another is the last."""
        judged = (await self.scene(voter, conversation_id)).judged
        if judged is None or judged.vote is None or judged.vote.id != vote_id:
            raise Conflict(GONE_ON)
        await self.stop(voter, conversation_id)
        await self.service.withdraw(voter, vote_id)

    async def settle_twins(self, voter: str, scene: Scene) -> Scene:
        """Answers that came out the same become one, unasked."""
        if not scene.twins or scene.asked is None:
            return scene
        with suppress(AlreadyVoted):  # another tab has watched them, too
            await self.service.settle(voter, scene.asked.id)
        return await self.scene(voter, scene.conversation_id)

    async def revise(self, voter: str, conversation_id: str, last: str, text: str) -> None:
        """The last answer in the voter's own words: a demonstration, and the history from here on.

        `last` and what is raised are as in `retry`.
        """
        scene = await self.at_rest(voter, conversation_id, last)
        if scene.messages[-1].content == text:
            raise InvalidInput("That is the answer as it was. Change it, or cancel.")
        prompt = scene.messages if scene.stuck else scene.messages[:-1]
        await self.service.demonstrate(voter, prompt, text, conversation_id=conversation_id)

    async def at_rest(self, voter: str, conversation_id: str, last: str) -> Scene:
        """How it stands where `last` is the last message and nothing is asked or being written. Raises as `retry`."""
        scene = await self.scene(voter, conversation_id)
        if not scene.said or scene.said[-1].message_id != last:
            raise Conflict(GONE_ON)
        if scene.busy:
            raise InvalidInput("Choose between the two answers first.")
        return scene

    async def _ask(
        self,
        voter: str,
        messages: Sequence[Message],
        conversation_id: str | None,
        *,
        asking: bool,
        probability: float,
        sampling: SamplingRequest | None,
        truncation: Truncation,
    ) -> LiveAnswers:
        share = (await self.service.consent(voter)).share
        if asking:
            return await self.service.compare(
                voter,
                messages,
                sampling=sampling,
                conversation_id=conversation_id,
                share=share,
                asked=probability,
                truncation=truncation,
            )
        return await self.service.answer(
            voter,
            messages,
            sampling=sampling,
            conversation_id=conversation_id,
            share=share,
            truncation=truncation,
        )


def _any_answer(scene: Scene) -> list[Message]:
    """One of the answers that wait for a vote, at random: what the talk goes on from when nobody votes."""
    answers = [c.answer for c in scene.asked.candidates] if scene.asked else []
    sound = [a.text for a in answers if a.text.strip() and a.finish_reason != "error"]
    return [Message("assistant", secrets.choice(sound))] if sound else []


def shown(scene: Scene) -> list[Message]:
    """The history as it reads now, with what is being written where nobody is asked about it."""
    live = scene.writing
    said = list(scene.messages)
    if live is None or (isinstance(live, LiveComparison) and scene.asked is not None):
        return said
    drafts = {draft.answer_id: draft for draft in live.drafts}
    last = scene.turns[-1]
    if last.answer_id in drafts:  # the chosen one, on its way to its end
        words = drafts[last.answer_id].text
        return [*(said[:-1] if said[-1].role == "assistant" else said), Message("assistant", words or "…")]
    if last.message.role == "user" and not isinstance(live, LiveComparison):
        return [*said, Message("assistant", live.drafts[0].text or "…")]
    return said
