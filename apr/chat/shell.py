"""The conversation at a prompt: questions, commands that begin with `/`, answers as they come.

Lines come from a function and go to two more, so that a terminal, a pipe and a test are the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from apr.atomic import write_text
from apr.chat.conversation import Answer, Conversation
from apr.chat.terminal import Screen
from apr.errors import AprError, UsageError

if TYPE_CHECKING:
    from apr.engine import Sampling

HELP = """\
/set parameter NAME VALUE   temperature, top_k, top_p, min_p, repetition_penalty,
                            presence_penalty, frequency_penalty, seed, max_tokens
/set system TEXT            another system prompt; without TEXT, none
/set verbose, /set quiet    statistics after each answer, or none
/show WHAT                  info, parameters, system, template, history
/clear                      forget the conversation, keep the system prompt
/save FILE                  write the conversation as JSON; FILE must not exist
/bye                        leave (also Ctrl-D)
/?                          this help
\"\"\"                         begins and ends a question of several lines
//TEXT                      a question that begins with /"""
QUOTES = '"""'
_WHOLE = ("top_k", "seed", "max_tokens")
_NAMES = (
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    *_WHOLE,
)  # fmt: skip


class Shell:
    """Reads questions and commands until they end.

    Args:
        conversation: whom to ask.
        screen: where answers appear.
        say: takes a line about them.
        verbose: statistics after each answer.
        patient: after an error or Ctrl-C the conversation goes on; else it ends.
        over: whether it ends all the same (SIGTERM, SIGHUP).
    """

    def __init__(
        self,
        conversation: Conversation,
        screen: Screen,
        say: Callable[[str], None],
        *,
        verbose: bool = False,
        patient: bool = True,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        self.conversation, self.screen, self.say = conversation, screen, say
        self.verbose, self.patient, self.over = verbose, patient, over
        self.answers: list[Answer] = []

    def run(self, read: Callable[[str], str]) -> bool:
        """Answer what `read(prompt)` gives, line by line, until it raises EOFError or `/bye`.

        Returns False if it was interrupted and does not go on.

        Raises:
            AprError: any failure, unless `patient`.
        """
        while True:
            try:
                text = self._question(read)
                if text.startswith("/") and not text.startswith("//"):
                    if not self._command(text):
                        return True
                elif text.strip():
                    answer = self.ask(text.removeprefix("/") if text.startswith("//") else text)
                    if not self._goes_on(answer):
                        return False
            except EOFError:
                return True
            except AprError as error:
                self.screen.end()
                if not self.patient:
                    raise
                self.say(f"error: {error.line()}")
            except KeyboardInterrupt:
                if not self.patient or self.over():
                    return False
                self.say("\nCtrl-D or /bye ends the conversation")

    def _goes_on(self, answer: Answer) -> bool:
        whole = answer.generation.stop_reason != "interrupted"
        return whole or (self.patient and not self.over())

    def ask(self, question: str) -> Answer:
        """One question; its answer appears on the screen."""
        try:
            answer = self.conversation.ask(question, self.screen.write)
        finally:
            self.screen.end()
        self.answers.append(answer)
        if not self.screen.is_terminal:
            self.screen.write("\n")
        if answer.generation.stop_reason == "interrupted":
            kept = "what there is of the answer is kept" if answer.text else "nothing is kept"
            self.say(f"interrupted; {kept}")
        if self.verbose:
            self.say(str(answer.generation))
        return answer

    def _question(self, read: Callable[[str], str]) -> str:
        line = read(">>> ")
        if not line.startswith(QUOTES):
            return line
        lines = [line[len(QUOTES) :]]
        while not lines[-1].endswith(QUOTES):
            lines.append(read("... "))
        return "\n".join(lines)[: -len(QUOTES)]

    def _command(self, line: str) -> bool:
        """Obey a command; whether the conversation goes on."""
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if name in ("/bye", "/exit", "/quit"):
            return False
        if name in ("/?", "/help"):
            self.say(HELP)
        elif name == "/clear":
            self.conversation.reset()
            self.say("the conversation is forgotten")
        elif name == "/save":
            self._save(rest)
        elif name == "/set":
            self._set(*(rest.partition(" ")[::2]))
        elif name == "/show":
            self._show(rest)
        else:
            raise UsageError(name, "is no command", "/? lists them; //TEXT asks what begins with /")
        return True

    def _set(self, what: str, value: str) -> None:
        if what in ("verbose", "quiet"):
            self.verbose = what == "verbose"
            self.say(f"statistics are {'shown' if self.verbose else 'not shown'}")
        elif what == "system":
            self.conversation.instruct(value.strip() or None)
            self.say("the system prompt is set" if value.strip() else "there is no system prompt")
        elif what == "parameter":
            name, _, number = value.strip().partition(" ")
            self._set_parameter(name, number.strip())
        else:
            raise UsageError("/set", f"{what!r} cannot be set", "see /?")

    def _set_parameter(self, name: str, text: str) -> None:
        if name not in _NAMES:
            raise UsageError(
                "/set parameter", f"{name!r} is none", f"there are {', '.join(_NAMES)}"
            )
        try:
            value = int(text) if name in _WHOLE else float(text)
        except ValueError as error:
            kind = "whole number" if name in _WHOLE else "number"
            raise UsageError(name, f"{text!r} is no {kind}", "write one") from error
        if name == "max_tokens":
            if value < 1:
                raise UsageError(name, f"{text} is less than 1", "write 1 or more")
            self.conversation.max_tokens = int(value)
        else:
            settings: Sampling = {**self.conversation.sampling, name: value}  # type: ignore[misc]
            self.conversation.configure(settings)
        self.say(f"{name} is {value}")

    def _show(self, what: str) -> None:
        talk = self.conversation
        if what == "info":
            self.say(f"{talk.model.path}\n{talk.model.engine.plan}")
        elif what == "parameters":
            values = {**talk.sampling, "max_tokens": talk.max_tokens or "up to 1024"}
            values["stop_ids"] = talk.stop_ids
            values["stop_strings"] = list(talk.stop_strings)
            self.say("\n".join(f"{name:20} {value}" for name, value in values.items()))
        elif what == "system":
            self.say(talk.system or "there is no system prompt")
        elif what == "template":
            self.say(talk.template.source)
        elif what == "history":
            self.say("\n".join(f"{m['role']}: {m['content']}" for m in talk.messages) or "empty")
        else:
            what = f"{what!r} cannot be shown" if what else "says not what"
            raise UsageError("/show", what, "info, parameters, system, template, history")

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("/save", "says not where", "write /save FILE")
        text = json.dumps(self.conversation.to_json(self.answers), ensure_ascii=False, indent=1)
        write_text(Path(name).expanduser(), text + "\n")
        self.say(f"{name} is written")
