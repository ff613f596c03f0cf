"""Queries from any OpenAI-compatible endpoint, through the openai client (extra `openai`).

The client itself retries on 408, 409, 429, 5xx, time-outs and broken connections, with exponential back-off
and jitter, and waits as long as Retry-After says. Here: what to ask, several requests at a time, and when to give up.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from ragadapt.config import QueryConfig
from ragadapt.errors import GeneratorFailed, InvalidConfiguration, MissingExtra
from ragadapt.queries.generators.cache import Answer
from ragadapt.queries.generators.prompts import CHAT_TEMPERATURE, Prompt, chat_text
from ragadapt.secrets import redacted, secret_in_url, without_keys
from ragadapt.text import encodable

if TYPE_CHECKING:
    import openai

log = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 5  # one request may fail for good; this many together mean that the endpoint is gone
ODD_AT_FIRST = 25  # answers of no use before any of use: what speaks there is no language model
MAX_ANSWER_CHARACTERS = 50_000  # of what is kept; a thousand queries
CHECK_SECONDS = 10.0  # for the first look whether anybody answers at all
_KEY_VARIABLES = ("RAGADAPT_API_KEY", "OPENAI_API_KEY")
_NOT_KNOWN = re.compile(
    r"support|unknown|unrecogni[sz]ed|unexpected|not permitted|not allowed|does not accept|invalid parameter|extra",
    re.IGNORECASE,
)
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1", "host.docker.internal")


def endpoint_url(url: str) -> str:
    """The base address that the client wants. Raises InvalidConfiguration if this is no http(s) address."""
    if secret := secret_in_url(url):
        raise InvalidConfiguration(
            f"generator_url carries {secret}, which would end up in saved settings, reports and logs. Leave it out of "
            f"the address and put the key into the environment variable {_KEY_VARIABLES[0]}: it is sent as a header."
        )
    try:
        parts = urlsplit(url.strip())
        named = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        named = False
    if not named:
        raise InvalidConfiguration(
            f"generator_url = {url!r} is no web address. Give the endpoint's base address, e.g. http://localhost:8000/v1."
        )
    path = parts.path.rstrip("/").removesuffix("/completions").removesuffix("/chat").rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def endpoint_id(config: QueryConfig) -> str:
    """What tells this generator from others in the cache."""
    url = endpoint_url(config.generator_url or "")
    return f"endpoint:{url}:{config.generator_model or ''}:t{config.generator_temperature}{token_limit_id(config)}"


def token_limit_id(config: QueryConfig) -> str:
    """What tells a token limit of one's own in the cache: an answer that a lower one cut off must not be reused."""
    return "" if config.generator_max_tokens is None else f":m{config.generator_max_tokens}"


class Endpoint:
    """An OpenAI-compatible server that answers prompts. Raises GeneratorFailed if it cannot be used at all."""

    def __init__(self, config: QueryConfig) -> None:
        try:
            import openai
        except ImportError as error:
            raise MissingExtra("Writing queries through an endpoint", "openai") from error
        import httpx

        from ragadapt.queries.generators.wire import REFUSED, BoundedTransport

        self._openai, self._refused_reason = openai, REFUSED
        self._config = config
        self.url = endpoint_url(config.generator_url or "")
        self.failed = 0
        variable = next((name for name in _KEY_VARIABLES if os.environ.get(name)), None)
        self._key = os.environ[variable].strip() if variable else ""
        parts = urlsplit(self.url)
        if self._key and parts.scheme == "http" and parts.hostname not in _LOCAL_HOSTS:
            log.warning("the key in %s goes unencrypted to %s: use https if it can be had", variable, parts.hostname)
        # The transport looks for proxies itself.
        client: Any = httpx.Client(
            transport=BoundedTransport(config.generator_concurrency), follow_redirects=False, trust_env=False
        )
        self._client: openai.OpenAI = openai.OpenAI(
            base_url=self.url,
            api_key=self._key or "none",  # a server without keys ignores it; the client insists on one
            timeout=config.generator_timeout_seconds,
            max_retries=config.generator_retries,
            http_client=client,
        )
        self._accepted: tuple[str, ...] = ("temperature", "max_tokens", "seed")
        self.model = self._check()

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[list[Answer]]:
        """The answers, in the order in which they come, as lists of what came together; a passage whose request
        failed for good, or whose answer is of no use, is left out and counted in `failed`. Raises GeneratorFailed
        after several failed requests in a row, and where of many answers none was of use."""
        in_a_row = good = odd = 0
        outcomes: queue.Queue[Answer | Exception] = queue.Queue()
        stop = threading.Event()
        self._start(prompts, outcomes, stop)
        left = len(prompts)
        try:
            while left:
                came: list[Answer] = []
                give_up: GeneratorFailed | None = None
                for outcome in _all_waiting(outcomes):
                    left -= 1
                    if isinstance(outcome, Answer):
                        came.append(outcome)
                        in_a_row, good = 0, good + 1
                    elif isinstance(outcome, GeneratorFailed):
                        give_up = give_up or outcome
                    elif isinstance(outcome, (_RequestFailedError, _OddAnswerError)):
                        self.failed += 1
                        log.warning("one passage skipped: %s", outcome)
                        if isinstance(outcome, _OddAnswerError):
                            in_a_row, odd = 0, odd + 1  # somebody answers there
                        else:
                            in_a_row += 1
                        if in_a_row >= FAILURES_IN_A_ROW and give_up is None:
                            give_up = self._gone(in_a_row, outcome)
                        elif odd >= ODD_AT_FIRST and not good and give_up is None:
                            give_up = GeneratorFailed(
                                f"{self.url} answered {odd} times, and never with a chat completion; the last time "
                                f"{outcome}. Check the address, which mostly ends with /v1."
                            )
                    else:
                        raise outcome
                if came:
                    yield came
                if give_up is not None:
                    raise give_up
        finally:
            stop.set()

    def _start(
        self, prompts: Sequence[Prompt], outcomes: queue.Queue[Answer | Exception], stop: threading.Event
    ) -> None:
        """Ask with as many threads as configured. They are daemons: a program that gives up or is interrupted does
        not wait for requests under way, as it would with a ThreadPoolExecutor."""
        waiting: queue.SimpleQueue[Prompt] = queue.SimpleQueue()
        for prompt in prompts:
            waiting.put(prompt)

        def work() -> None:
            while not stop.is_set():
                try:
                    prompt = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    outcomes.put(self._ask(prompt))
                except GeneratorFailed as error:
                    stop.set()  # true for every other passage as well
                    outcomes.put(error)
                except self._openai.OpenAIError as error:
                    # Without the client's own error, which holds request and answer, and with them the key.
                    outcomes.put(_RequestFailedError(self._tell(error)))
                except Exception as error:  # told to the thread that collects
                    outcomes.put(error)

        for number in range(min(self._config.generator_concurrency, len(prompts))):
            threading.Thread(target=work, name=f"generate-{number}", daemon=True).start()

    def _gone(self, in_a_row: int, last: Exception) -> GeneratorFailed:
        return GeneratorFailed(
            f"{self.url} failed {in_a_row} times in a row, each after {self._config.generator_retries} retries; "
            f"the last time: {last}. Answers so far are kept: run the same command again once the "
            "endpoint is well, and it goes on from there."
        )

    def _ask(self, prompt: Prompt) -> Answer:
        started = time.monotonic()
        message: Any = [{"role": "user", "content": chat_text(prompt)}]
        limit = self._config.generator_max_tokens or answer_tokens(len(prompt.kinds))
        temperature = self._config.generator_temperature
        settings = {
            "temperature": CHAT_TEMPERATURE if temperature is None else temperature,
            "max_tokens": limit,
            "max_completion_tokens": limit,
            "seed": prompt.seed % 2**31,
        }
        while True:
            sent = self._accepted
            options: dict[str, Any] = {name: settings[name] for name in sent}
            failed: GeneratorFailed | None = None
            try:
                raw: Any = self._client.chat.completions.with_raw_response.create(
                    model=self.model, messages=message, **options
                )
                break
            except (self._openai.AuthenticationError, self._openai.PermissionDeniedError):
                failed = self._refused()
            except self._openai.NotFoundError as error:
                failed = self._unknown_model(error)
            except self._openai.RateLimitError as error:
                if error.code != "insufficient_quota":
                    raise
                failed = GeneratorFailed(
                    f"{self.url} says that the account's quota is used up. Answers so far are kept: top it up "
                    "and run the same command again."
                )
            except (self._openai.BadRequestError, self._openai.UnprocessableEntityError) as error:
                if not self._adapt(str(error), sent):
                    raise
            if failed is not None:  # raised out here, not as a consequence: servers repeat the key in what they answer
                raise failed
        if reason := raw.http_response.extensions.get(self._refused_reason):
            raise _OddAnswerError(reason)
        text, cut_off, usage = _read(raw.http_response.content)
        return Answer(
            key=prompt.key,
            chunk=prompt.chunk.id,
            text=without_keys(text[:MAX_ANSWER_CHARACTERS], self._key),
            cut_off=cut_off or len(text) > MAX_ANSWER_CHARACTERS,
            input_tokens=_number(usage.get("prompt_tokens")),
            output_tokens=_number(usage.get("completion_tokens")),
            seconds=(time.monotonic() - started) / self._config.generator_concurrency,
        )

    def _adapt(self, complaint: str, sent: tuple[str, ...]) -> bool:
        """Drop or rename the option that the server does not know; False if the complaint is about something else.

        Newer OpenAI models want max_completion_tokens and no temperature; many local servers know only max_tokens.
        Each call takes something away, so asking again comes to an end.
        """
        if not _NOT_KNOWN.search(complaint):
            return False
        unwanted = next((name for name in sent if name in complaint), None)
        if unwanted is None:
            return False
        renamed = (
            ("max_completion_tokens",) if unwanted == "max_tokens" and "max_completion_tokens" in complaint else ()
        )
        log.info("%s does not accept %s: %s", self.url, unwanted, f"sending {renamed[0]}" if renamed else "left out")
        self._accepted = tuple(name for name in sent if name != unwanted) + renamed
        return True

    def _check(self) -> str:
        """The model's name, after a look whether the server is there; so a wrong address costs seconds, not retries."""
        wanted = self._config.generator_model
        offered: list[str] | None = None
        failed: GeneratorFailed | None = None
        try:
            offered = self._offered()
        except (self._openai.AuthenticationError, self._openai.PermissionDeniedError):
            failed = self._refused()
        except self._openai.APITimeoutError:
            log.info("%s is slow to list its models; going on", self.url)
        except self._openai.APIConnectionError as error:
            failed = GeneratorFailed(
                f"Nothing answers at {self.url} ({self._tell(error)}). Check the address and that the server runs."
            )
        except Exception as error:  # this list is a courtesy, whatever a server says in its place
            if reason := self._redirects(error):
                failed = GeneratorFailed(
                    f"{self.url}: {reason}. Passages go to the host that you name alone; if you trust that one, name "
                    "its address as generator_url."
                )
            log.info("%s does not list its models; going on", self.url)
        if failed is not None:
            raise failed
        if wanted:
            return wanted
        if offered and len(offered) == 1:
            return offered[0]
        choice = f" It offers: {', '.join(offered[:12])}." if offered else ""
        raise InvalidConfiguration(
            f"generator_url is {self.url}, but generator_model is not set and cannot be guessed.{choice} "
            "Name one with --generator-model."
        )

    def _offered(self) -> list[str]:
        client = self._client.with_options(
            max_retries=1, timeout=min(CHECK_SECONDS, self._config.generator_timeout_seconds)
        )
        return [self._clean(str(model.id))[:80] for model in client.models.list().data]

    def _refused(self) -> GeneratorFailed:
        if self._key:
            return GeneratorFailed(
                f"{self.url} refused the key. Check {' or '.join(_KEY_VARIABLES)} (the first that is set is sent)."
            )
        return GeneratorFailed(f"{self.url} wants a key. Set the environment variable {_KEY_VARIABLES[0]}.")

    def _unknown_model(self, error: Exception) -> GeneratorFailed:
        try:
            offered = self._offered()
        except Exception:  # whatever goes wrong here, the 404 is what the user must hear of
            offered = []
        if offered and self.model not in offered:
            return GeneratorFailed(f"{self.url} knows no model {self.model!r}. It offers: {', '.join(offered[:12])}.")
        return GeneratorFailed(
            f"{self.url} answered 404 for model {self.model!r} ({self._tell(error)}). Check the model's name, and that "
            "the address is the base address, which mostly ends with /v1."
        )

    def _redirects(self, error: Exception) -> str:
        """Why a redirect was not followed; "" where the error is none."""
        response: Any = getattr(error, "response", None)
        if response is None or not 300 <= response.status_code < 400:
            return ""
        return str(response.extensions.get(self._refused_reason) or "it redirects")

    def _tell(self, error: Exception) -> str:
        """The error in a line, without the key."""
        if reason := self._redirects(error):
            return reason
        cause = error.__cause__
        said = f"{error}" if cause is None or not str(cause) else f"{error} {cause}"
        return self._clean(said)[:300]  # cut at the end: half a key is not found any more

    def _clean(self, said: str) -> str:
        """What a server said, in one line, without secrets."""
        return redacted(" ".join(encodable(said).split()), self._key)


class _RequestFailedError(Exception):
    """A request failed for good; what is told of it holds no secret."""


class _OddAnswerError(Exception):
    """The server answered something that is no chat completion."""


def _read(body: bytes) -> tuple[str, bool, dict[str, Any]]:
    """(text, whether it was cut off, usage) of a chat completion. Raises _OddAnswerError for anything else."""
    try:
        completion = json.loads(body)
    except (ValueError, RecursionError):
        raise _OddAnswerError("its answer is not JSON") from None
    try:
        choice = completion["choices"][0]
        content = choice["message"].get("content")
        ended = choice.get("finish_reason")
    except (AttributeError, IndexError, TypeError, KeyError):
        raise _OddAnswerError("its answer is not in the shape of OpenAI's chat completions") from None
    if isinstance(content, list):  # in parts, of which some are thoughts
        parts = [part for part in content if isinstance(part, dict) and part.get("type") in ("text", "output_text")]
        content = "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str)) or content
    if content is not None and not isinstance(content, str):
        raise _OddAnswerError("its answer's content is not text")
    usage = completion.get("usage")
    return encodable(content or ""), ended in ("length", "content_filter"), usage if isinstance(usage, dict) else {}


def _all_waiting(outcomes: queue.Queue[Answer | Exception]) -> list[Answer | Exception]:
    """What has come since; waits for the first."""
    while True:
        try:
            came = [outcomes.get(timeout=0.5)]  # not for ever: an endless wait hears no Ctrl-C on Windows
            break
        except queue.Empty:
            continue
    while not outcomes.empty():
        came.append(outcomes.get_nowait())
    return came


def answer_tokens(queries: int) -> int:
    """The token limit for so many queries: thrice a usual query's length each, and room for talk around them."""
    return 48 * queries + 64


def _number(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0
