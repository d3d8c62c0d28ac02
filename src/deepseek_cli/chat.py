"""`deepseek chat`: talk to a model in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepseek.attention.policy import DEFAULT_ERROR
from deepseek.config import DEFAULT_MODEL
from deepseek.errors import InvalidRequestError
from deepseek.sampling import SamplingParams

if TYPE_CHECKING:
    from deepseek.llm import LLM

_HELP = """/help   this list
/clear  forget the conversation
/retry  answer the last message again
/exit   leave (or Ctrl-D)
Ctrl-C stops an answer. End a line with \\ to go on in the next one."""


def chat(
    model: Annotated[str, typer.Argument(help="folder, .gguf file, built-in name or Hugging Face id")] = DEFAULT_MODEL,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="answer this one message and exit")] = None,
    system: Annotated[str | None, typer.Option(help="system message")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.7,
    top_p: Annotated[float, typer.Option(help="nucleus sampling")] = 0.9,
    max_tokens: Annotated[int | None, typer.Option(help="longest answer")] = None,
    seed: Annotated[int | None, typer.Option(help="same seed, same answer")] = None,
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16, int8 or int4")] = "auto",
    max_context: Annotated[int | None, typer.Option(help="tokens of conversation kept")] = None,
    rope_scaling: Annotated[
        str, typer.Option(help="a max-context beyond the model's: auto (where documented), none, or yarn for any model")
    ] = "auto",
    attention: Annotated[str, typer.Option(help="how long contexts are read: auto, dense or sparse")] = "auto",
    attention_error: Annotated[
        float, typer.Option(help="relative error that sparse attention aims at; 0 is exactly dense")
    ] = DEFAULT_ERROR,
) -> None:
    """Talk to a model in the terminal. The answer streams; the history is kept until /clear."""
    params = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
    options = {"rope_scaling": rope_scaling, "attention": attention, "attention_error": attention_error}
    session = _Session(_load(model, dtype=dtype, max_context=max_context, **options), system, params)
    if prompt is not None:
        session.ask(sys.stdin.read() if prompt == "-" else prompt)
        return
    typer.secho(f"{session.llm.info.model}, context {session.llm.info.max_context}. /help lists commands.", dim=True)
    while (line := _read()) is not None:
        _handle(session, line)


class _Session:
    """A conversation with one model."""

    def __init__(self, llm: LLM, system: str | None, params: SamplingParams) -> None:
        self.llm = llm
        self.params = params
        self._start: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._start)

    def clear(self) -> None:
        self.messages = list(self._start)

    def ask(self, text: str) -> None:
        """Stream the answer to ``text``. A message that cannot be answered is not kept."""
        self.messages.append({"role": "user", "content": text})
        answer = ""
        try:
            for delta in self.llm.stream_chat(self.messages, self.params):
                sys.stdout.write(delta.text)
                sys.stdout.flush()
                answer += delta.text
        except KeyboardInterrupt:
            typer.secho(" [stopped]", dim=True, nl=False)
        except InvalidRequestError:
            self.messages.pop()
            raise
        sys.stdout.write("\n")
        self.messages.append({"role": "assistant", "content": answer})

    def retry(self) -> None:
        """Answer the last message again."""
        while self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if self.messages and self.messages[-1]["role"] == "user":
            self.ask(self.messages.pop()["content"])


def _handle(session: _Session, line: str) -> None:
    match line.strip():
        case "":
            return
        case "/exit" | "/quit":
            raise typer.Exit
        case "/help" | "/?":
            typer.echo(_HELP)
        case "/clear":
            session.clear()
        case "/retry":
            session.retry()
        case command if command.startswith("/") and " " not in command:
            typer.secho(f"unknown command {command}; /help lists them", fg="red")
        case text:
            try:
                session.ask(text)
            except InvalidRequestError as error:
                typer.secho(f"{error} (/clear starts again)", fg="red", err=True)


def _read() -> str | None:
    """One message from the terminal, with line editing; None at its end."""
    try:
        import readline  # noqa: F401
    except ImportError:
        typer.secho("(no line editing: Python was built without readline)", dim=True)
    lines = []
    try:
        line = input("> ")
        while line.endswith("\\"):
            lines.append(line[:-1])
            line = input(". ")
        return "\n".join([*lines, line])
    except EOFError:
        typer.echo()
        return None
    except KeyboardInterrupt:
        typer.echo()
        return ""


def _load(model: str, **settings: Any) -> LLM:
    from rich.console import Console

    from deepseek.hub.progress import RichProgress
    from deepseek.hub.resolve import resolve
    from deepseek.llm import LLM

    resolve(model, progress=RichProgress())
    with Console(stderr=True).status(f"loading {model}"):
        return LLM(model, max_running=1, **settings)
