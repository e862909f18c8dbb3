"""What a judge of TouchStone is asked: a picture described in words, a question, two answers.

The words are our own, in the order of parts that TouchStone describes, and not those that its
published scores were made with: scores are comparable where the prompt's digest and the judge are
the same. `read_template` reads a file of one's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Template

from model_store.canonical import canonical_digest
from verification.errors import JudgePromptError

SYSTEM = "You compare two answers to a question about a picture, and grade both fairly."
PARTS = ("description", "question", "first", "second")
_TEXT = """\
[What the picture shows]
$description

[What was asked]
$question

[Answer 1 begins]
$first
[Answer 1 ends]

[Answer 2 begins]
$second
[Answer 2 ends]

[Your task]
You cannot see the picture: take the description above as true. Give each answer a grade from 1 \
(useless) to 10 (could not be better). Weigh whether it helps the person who asked, keeps to the \
question, is right about the picture, understands what was meant, and leaves nothing out. Which \
answer comes first, and how long it is, must not count.
Your first line holds nothing but the two grades, that of answer 1 and that of answer 2, with one \
space between them. Give your reasons after it.
"""


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """A system message, and a template in which $description, $question, $first, $second stand."""

    text: str = _TEXT
    system: str = SYSTEM

    def __post_init__(self) -> None:
        template = Template(self.text)
        if not template.is_valid():
            raise JudgePromptError("a $ is not followed by a name; write $$ for the sign itself")
        found, wanted = set(template.get_identifiers()), set(PARTS)
        for name in sorted(found ^ wanted):
            what = "does not use" if name in wanted else "uses an unknown"
            raise JudgePromptError(f"the template {what} ${name}")

    @property
    def digest(self) -> str:
        """What a record names this prompt by."""
        return canonical_digest({"system": self.system, "template": self.text})

    def messages(
        self, *, description: str, question: str, first: str, second: str
    ) -> list[dict[str, str]]:
        """Fill the template in, as messages of a chat completion."""
        text = Template(self.text).substitute(
            description=description, question=question, first=first, second=second
        )
        return [{"role": "system", "content": self.system}, {"role": "user", "content": text}]


def read_template(path: Path) -> JudgePrompt:
    """Read a template of the user's own.

    Raises:
        JudgePromptError: no text in UTF-8, or not the four parts.
    """
    try:
        return JudgePrompt(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise JudgePromptError(f"{path} cannot be read: {error}") from error
