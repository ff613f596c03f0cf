"""Training: examples in, an encoder with a trained adapter out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ragadapt.adapters import AdaptedEncoder, AdapterState, attach
from ragadapt.adapters.method import Method, config_of
from ragadapt.config import AdapterConfig, TrainingConfig
from ragadapt.encoder import Encoder
from ragadapt.encoder.batches import Ids, lacks_memory
from ragadapt.encoder.loading import tensors_sha256
from ragadapt.encoder.prefix import Prefix, PrefixCache
from ragadapt.errors import InvalidConfiguration, InvalidInput, LossDiverged, TrainingFailed
from ragadapt.profiling import work
from ragadapt.training import losses
from ragadapt.training.checkpoint import load_checkpoint, save_checkpoint
from ragadapt.training.examples import Batch, Example, TrainingSet
from ragadapt.training.gradients import Row, backward
from ragadapt.training.processes import Processes
from ragadapt.values import Progress, no_progress

log = logging.getLogger(__name__)

Trained = TypeVar("Trained")
Dev = Callable[[Encoder], float]

_CHUNK_TOKENS = {"cpu": 2048, "cuda": 65_536, "mps": 8192}  # run at once; fits the caches of a CPU
_HELD_TOKENS = {"cpu": 24_576, "cuda": 262_144, "mps": 24_576}  # whose activations may be kept
MAX_GRADIENT_NORM = 1.0
_CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Point:
    """One step of the run. dev: score on the dev part after it, None where it was not looked at."""

    step: int
    loss: float
    learning_rate: float
    seconds: float
    dev: float | None = None


@dataclass(frozen=True)
class Course:
    """How a training went.

    best_step: the step whose weights were kept: of the best dev score, or the last without a dev part.
    dev_before: dev score of the base; None without a dev part. seconds: over all sittings, dev looks included;
    step_seconds and examples_per_second: without them. held_tokens: whose activations memory allowed to keep.
    """

    history: tuple[Point, ...]
    steps: int
    planned_steps: int
    best_step: int
    best_dev: float | None
    dev_before: float | None
    stopped_early: bool
    resumed_from: int
    seconds: float
    step_seconds: float
    examples_per_second: float
    held_tokens: int


@dataclass(frozen=True)
class TrainingResult(Course):
    """The trained encoder, at its best weights, and how it came about."""

    encoder: AdaptedEncoder


def train(
    encoder: Encoder,
    examples: Sequence[Example],
    dev: Dev | None,
    adapter: AdapterConfig,
    training: TrainingConfig,
    *,
    start: AdapterState | None = None,
    known: Mapping[str, npt.NDArray[np.float32]] | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress = no_progress,
) -> TrainingResult:
    """Fit a fresh adapter on the encoder, or go on from what another learnt. The encoder itself stays as it is.

    dev: looked at before the first step and `training.evaluations` times; larger is better; None = train to the end.
    known: passage → vector (d,) by the encoder, of passages that need not be encoded where only the query side is
    trained. checkpoint: a file; a killed run called again with the same arguments goes on from it and ends with the
    same weights as an uninterrupted one. Of several processes that train together, the first one looks at the dev part
    and keeps the checkpoint. Raises InvalidInput, InvalidConfiguration, TrainingFailed.
    """
    run = EncoderRun(encoder, examples, adapter, training, seed, start, known)
    log.info("method %s trains %s", adapter.method, run.encoder.share)
    return TrainingResult(encoder=run.encoder, **vars(run.follow(dev, checkpoint, progress)))


def untrained(encoder: Encoder, start: AdapterState) -> TrainingResult:
    """The encoder with what another adapter learnt, as a training of no steps would leave it."""
    made = attach(encoder, start.config, seed=start.seed)
    made.begin_at(start)
    return TrainingResult((), 0, 0, 0, None, None, False, 0, 0.0, 0.0, 0.0, 0, encoder=made)


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear from 0 to the peak over the share `warmup` of the steps, then linear to 0; step counts from 1."""
    warm = max(1, round(warmup * steps))
    if step <= warm:
        return peak * step / warm
    return peak * (steps - step + 1) / (steps - warm + 1)


def _dev_steps(steps: int, looks: int) -> set[int]:
    return {max(1, round(steps * look / looks)) for look in range(1, looks + 1)}


class _State:
    """What a run must remember to go on."""

    def __init__(self) -> None:
        self.step = 0
        self.examples = 0
        self.seconds = 0.0
        self.step_seconds = 0.0
        self.history: list[Point] = []
        self.dev_before: float | None = None
        self.best: dict[str, Tensor] = {}
        self.best_step = 0
        self.best_dev: float | None = None
        self.without_gain = 0
        self.finished = False
        self.resumed_from = 0

    def judge(self, score: float, weights: dict[str, Tensor], patience: int) -> None:
        """Remember the best weights; finish after `patience` looks without gain."""
        if self.best_dev is None or score > self.best_dev:
            self.best, self.best_step, self.best_dev = weights, self.step, score
            self.without_gain = 0
        else:
            self.without_gain += 1
            self.finished = self.without_gain >= patience


class Run(ABC, Generic[Trained]):
    """One training at work, whatever is trained: optimizer, steps, looks at the dev part, memory of the run.

    model: what is trained and what a dev function looks at. What its batches are and what they cost, a subclass says.
    """

    def __init__(
        self,
        model: Trained,
        method: Method,
        parameters: Mapping[str, torch.nn.Parameter],
        device: torch.device,
        training: TrainingConfig,
        seed: int,
    ) -> None:
        """parameters: all that are trained, by name."""
        self.model = model
        self.method = method
        self.training = training
        self.epochs, self.peak_rate = training.pace()
        self.seed = seed
        self.device = device
        self.held_tokens = training.micro_batch_tokens or _HELD_TOKENS.get(device.type, 24_576)
        self.chunk_tokens = min(_CHUNK_TOKENS.get(device.type, 8192), self.held_tokens)
        self.processes = Processes.join(device.type)
        self.parameters = list(parameters.values())
        self.names = list(parameters)
        self.optimizer = _optimizer(parameters, method.learning_rates(), self.peak_rate, training.weight_decay)
        self.steps = 0

    # What a subclass says

    identity: str  # of everything that must be equal for a run to go on

    @abstractmethod
    def plan(self) -> list[list[int]]:
        """The examples of every step."""

    @abstractmethod
    def prepared(self, checkpoint: Path | None, progress: Progress) -> contextlib.AbstractContextManager[None]:
        """Whatever is made once for all steps; undone at the end."""

    @abstractmethod
    def gradient(self, items: list[int], step: int) -> float:
        """Add the gradient of one batch to the parameters; returns the loss."""

    @abstractmethod
    def longest(self) -> int:
        """Tokens of the longest row that is read."""

    @abstractmethod
    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the parameters, by name."""

    # ------------------------------------------------------------------ the run

    def follow(self, dev: Callable[[Trained], float] | None, checkpoint: Path | None, progress: Progress) -> Course:
        """Train to the end, or go on from the checkpoint; the best weights are set then. As `train`."""
        plan = self.plan()
        self.steps = len(plan)
        looks = _dev_steps(len(plan), self.training.evaluations) if dev is not None else set()
        state = self.resume(checkpoint)
        started = time.perf_counter() - state.seconds
        saved_at = time.perf_counter()
        with contextlib.nullcontext() if state.finished else self.prepared(checkpoint, progress):
            if dev is not None and state.dev_before is None:
                state.dev_before = self.look(dev)
            for step in range(state.step + 1, len(plan) + 1):
                if state.finished:
                    break
                rate = learning_rate(step, len(plan), self.peak_rate, self.training.warmup)
                began = time.perf_counter()
                loss = self.step(plan[step - 1], step, rate)
                state.step_seconds += time.perf_counter() - began
                if not np.isfinite(loss):
                    raise LossDiverged(
                        f"The loss became {loss} at step {step} (learning rate {rate:.1e}). Lower the learning rate, "
                        "or train with precision = 'float32'."
                    )
                state.step = step
                state.examples += len(plan[step - 1])
                score = self.look(dev) if dev is not None and step in looks else None
                state.seconds = time.perf_counter() - started
                state.history.append(Point(step, loss, rate, state.seconds, score))
                if score is not None:
                    state.judge(score, self.weights(), self.training.patience)
                state.finished = state.finished or step == len(plan)
                if checkpoint is not None and (
                    score is not None or state.finished or time.perf_counter() - saved_at > _CHECKPOINT_SECONDS
                ):
                    self.save(checkpoint, state)
                    saved_at = time.perf_counter()
                progress("training", step, len(plan))
            if state.best:
                self.set_tensors(state.best)
        return Course(
            history=tuple(state.history),
            steps=state.step,
            planned_steps=len(plan),
            best_step=state.best_step if state.best else state.step,
            best_dev=state.best_dev,
            dev_before=state.dev_before,
            stopped_early=state.step < len(plan),
            resumed_from=state.resumed_from,
            seconds=state.seconds,
            step_seconds=state.step_seconds,
            examples_per_second=state.examples / max(state.step_seconds, 1e-9),
            held_tokens=self.held_tokens,
        )

    @contextlib.contextmanager
    def in_training(self) -> Iterator[None]:
        """The method's own dropout and noise on; the frozen model stays in eval mode, as its cached part must."""
        self.method.training(True)
        try:
            yield
        finally:
            self.method.training(False)

    def backward(
        self,
        embed: Callable[[list[Row], int], Tensor],
        rows: Sequence[Row],
        loss_of: Callable[[Tensor], Tensor],
        tasks: Sequence[str | None] | None,
    ) -> float:
        """The gradient of a batch as `gradients.backward` adds it, within this run's limits; returns the loss."""
        with self.in_training():  # for the gradient alone: what the dev part looks at drops nothing
            try:
                return backward(
                    embed,
                    rows,
                    loss_of,
                    chunk_tokens=self.chunk_tokens,
                    held_tokens=self.held_tokens,
                    processes=self.processes,
                    tasks=tasks,
                    tell=self.method.tell,
                )
            finally:
                self.method.tell(None)

    def step(self, items: list[int], step: int, rate: float) -> float:
        """Gradient of one batch, one optimizer step; returns the loss."""
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                loss = self.gradient(items, step) + self._penalty()
                break
            except (MemoryError, RuntimeError) as error:
                self._back_off(error)
            if torch.cuda.is_available():  # here the error, and with it what the failed try held, is gone
                torch.cuda.empty_cache()
        if not np.isfinite(loss):
            return loss
        with work("optimizer"):
            self.processes.sum_gradients(self.parameters)
            torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["times"]
            self.optimizer.step()
            self.method.after_backward(step, self.steps)
        return loss

    def seeded(self, step: int, number: int) -> contextlib.AbstractContextManager[None]:
        """Within: the same dropout for the same step and micro-batch, which may be run twice."""
        return _seeded(self.seed, step, number, self.device, needed=self.method.stochastic)

    def _penalty(self) -> float:
        """The loss of the method's own, with its gradient, which one of several processes adds."""
        if self.processes.index != 0:
            return 0.0
        penalty = self.method.penalty()
        if penalty is None:
            return 0.0
        torch.autograd.backward(penalty)
        return float(penalty.detach())

    def _back_off(self, error: BaseException) -> None:
        """Halve what is kept in memory, or give up with advice; other errors pass."""
        if not lacks_memory(error):
            raise error
        longest = self.longest()
        if self.held_tokens <= longest or self.processes.count > 1:
            raise TrainingFailed(
                f"Memory ran out with {self.held_tokens} tokens in one pass. Lower max_length, layers or batch_size, "
                "or set micro_batch_tokens."
            ) from error
        self.held_tokens = max(longest, self.held_tokens // 2)
        self.chunk_tokens = min(self.chunk_tokens, self.held_tokens)
        log.warning("memory is short: going on with %d tokens per pass", self.held_tokens)

    def look(self, dev: Callable[[Trained], float]) -> float:
        """The dev score of the present weights, by the first process."""
        score = 0.0
        if self.processes.index == 0:
            with torch.no_grad():
                score = float(dev(self.model))
        score = float(self.processes.broadcast(score))
        if not np.isfinite(score):
            raise InvalidInput(f"The dev function returned {score}; it must return a finite number.")
        return score

    # ------------------------------------------------------------------ memory of the run

    def weights(self) -> dict[str, Tensor]:
        """Copies of the trainable parameters."""
        pairs = zip(self.names, self.parameters, strict=True)
        return {name: parameter.detach().cpu().clone() for name, parameter in pairs}

    def save(self, path: Path, state: _State) -> None:
        if self.processes.index != 0:
            return
        tensors = {f"now/{name}": tensor for name, tensor in self.weights().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in state.best.items()}
        tensors |= {f"memory/{name}": tensor for name, tensor in self.method.memory().items()}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
        plain = {key: value for key, value in vars(state).items() if key not in ("best", "history", "resumed_from")}
        plain["history"] = [asdict(point) for point in state.history]
        save_checkpoint(path, self.identity, plain, tensors)

    def resume(self, path: Path | None) -> _State:
        """The state of an earlier sitting, with weights and optimizer set; a fresh one otherwise."""
        state = _State()
        found = load_checkpoint(path, self.identity) if path is not None and self.processes.index == 0 else None
        found = self.processes.broadcast(found)
        if found is None:
            return state
        plain, tensors = found
        for key, value in plain.items():
            setattr(state, key, value)
        state.history = [Point(**point) for point in plain["history"]]
        state.resumed_from = state.step
        state.best = {name[5:]: tensor for name, tensor in tensors.items() if name.startswith("best/")}
        self.set_tensors({name[4:]: tensor for name, tensor in tensors.items() if name.startswith("now/")})
        self.method.remember({name[7:]: tensor for name, tensor in tensors.items() if name.startswith("memory/")})
        for name, parameter in zip(self.names, self.parameters, strict=True):
            end = f"/{name}"
            for key, tensor in tensors.items():
                if key.startswith("optimizer/") and key.endswith(end):
                    entry = key[len("optimizer/") : -len(end)]
                    # The step counter stays where AdamW keeps it, on the CPU unless fused on a GPU.
                    place = parameter.device if entry != "step" or parameter.is_cuda else "cpu"
                    self.optimizer.state[parameter][entry] = tensor.to(place)
        log.info("resumed at step %d (weights %s…)", state.step, tensors_sha256(self.weights())[:8])
        return state


class EncoderRun(Run[AdaptedEncoder]):
    """The training of an encoder: vectors of queries and passages, the loss between them."""

    def __init__(
        self,
        base: Encoder,
        examples: Sequence[Example],
        adapter: AdapterConfig,
        training: TrainingConfig,
        seed: int,
        start: AdapterState | None = None,
        known: Mapping[str, npt.NDArray[np.float32]] | None = None,
    ) -> None:
        distil, contrast = training.loss != "infonce", training.loss in ("infonce", "both")
        self.data = TrainingSet(examples, distil=distil, contrast=contrast)
        self.encoder = attach(base, adapter, seed=seed)
        method = self.encoder.method
        method.learn_tasks(self.data.tasks)
        if start is not None:
            self.encoder.begin_at(start)
        if training.compile and self.encoder.watches_layers:
            raise InvalidConfiguration(
                "compile and reweight = 'tokens' do not go together: a compiled model hides what its layers receive. "
                "Choose another re-weighting, or compile = false."
            )
        self.tower = self.encoder.tower
        super().__init__(self.encoder, method, self.encoder.trainable(), self.tower.device, training, seed)
        self.query_rows: list[Ids] = []
        self.passage_rows: list[Ids] = []
        self.known = known or {}
        self.fixed_passages: Tensor | None = None  # (all passages, d) where only the query side is trained
        self.identity = self._identity(base, adapter, start)

    def _identity(self, base: Encoder, adapter: AdapterConfig, start: AdapterState | None) -> str:
        digest = hashlib.sha256()
        settings = [adapter.deciding(), self.training.deciding()]
        begun = [] if start is None else [start.spec.sha256]
        for part in (base.fingerprint, base.precision.dtype, *settings, self.seed, *begun):
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        for example in self.data.examples:
            digest.update(json.dumps(asdict(example)).encode())
        return digest.hexdigest()

    def plan(self) -> list[list[int]]:
        batches = list(self.data.batches(self.epochs, self.seed, self.training.batch_size))
        batches = batches[: self.training.max_steps]
        self.steps = len(batches)
        return batches

    # ------------------------------------------------------------------ preparation

    @contextlib.contextmanager
    def prepared(self, checkpoint: Path | None, progress: Progress) -> Iterator[None]:
        """Tokens made, the frozen layers' results computed; undone at the end."""
        spec = self.encoder._spec
        self.query_rows = self._tokens(self.data.queries, spec.query_prompt)
        self.query_front = self.tower.prompt_length(spec.query_prompt) if spec.query_prompt else 0
        self.passage_front = self.tower.prompt_length(spec.passage_prompt) if spec.passage_prompt else 0
        if not self.tower.prompt_pooled and self.query_front != self.passage_front:
            raise InvalidConfiguration(
                "This model leaves its prompt out of the pooling, and its two prompts differ in length: such a model "
                "cannot be trained here. Set equal prompts, or choose another base model."
            )
        if self.encoder.adapter_config.adapt == "query":
            texts, base = self.data.passages, self.encoder.base
            unknown = [text for text in texts if text not in self.known]
            made = {**self.known, **dict(zip(unknown, base.encode_passages(unknown, progress=progress), strict=True))}
            vectors = np.array([made[text] for text in texts], np.float32).reshape(len(texts), base.dim)
            self.fixed_passages = torch.from_numpy(vectors).to(self.tower.device)
        else:
            self.passage_rows = self._tokens(self.data.passages, spec.passage_prompt)
        with self._prefix(checkpoint), self._compiled():
            if self.tower.prefix is not None:
                rows = [*self.query_rows, *self.passage_rows]
                self.tower.prefix.fill(rows, self.tower.pad, self.tower.device, self.chunk_tokens, progress)
            yield

    def _tokens(self, texts: list[str], prompt: str) -> list[Ids]:
        rows: list[Ids] = []
        for start in range(0, len(texts), 8192):
            piece = texts[start : start + 8192]
            with work("tokenise", len(piece)):
                rows += self.tower.tokenize([prompt + text for text in piece])[0]
        return rows

    @contextlib.contextmanager
    def _prefix(self, checkpoint: Path | None) -> Iterator[None]:
        """The encoder's own prefix cache, or one that lives as long as the run."""
        model, top = self.tower.model, self.encoder.layers
        wanted = self.training.prefix_cache and self.training.prefix_cache_bytes > 0
        if self.tower.prefix is not None or not wanted or not self.tower.can_be_cut(top, self.parameters):
            yield
            return
        place = checkpoint.parent if checkpoint is not None else None
        if place is not None:
            place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="ragadapt-", dir=place, ignore_cleanup_errors=True) as folder:
            width = config_of(model).hidden_size
            limit = self.training.prefix_cache_bytes
            cache = PrefixCache(folder, f"run {self.processes.index}", width, self.tower.dtype, limit)
            self.tower.prefix = Prefix(model, self.encoder.layers, cache)
            try:
                yield
            finally:
                self.tower.prefix = None
                cache.close()

    @contextlib.contextmanager
    def _compiled(self) -> Iterator[None]:
        """The trained layers through torch.compile, if the configuration asks for it."""
        if not self.training.compile:
            yield
            return
        prefix = self.tower.prefix
        model = self.tower.model if prefix is None else prefix.upper
        model.compile(dynamic=True)
        try:
            yield
        finally:
            model._compiled_call_impl = None

    # ------------------------------------------------------------------ one step

    def longest(self) -> int:
        return max(len(row) for row in [*self.query_rows, *self.passage_rows])

    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.encoder.set_tensors(tensors)

    def gradient(self, items: list[int], step: int) -> float:
        return self._gradient(self.data.batch(items), step)

    def _gradient(self, batch: Batch, step: int) -> float:
        queries = len(batch.queries)
        rows = [self.query_rows[i] for i in batch.queries]
        if self.fixed_passages is None:
            rows += [self.passage_rows[i] for i in batch.passages]
        tasks = None
        if self.method.TASKS:
            tasks = [self.data.task_of[i] for i in batch.queries] + [None] * (len(rows) - queries)
        front = self.query_front  # matters only where prompts are not pooled; then both sides agree

        def embed(some: list[Ids], number: int) -> Tensor:
            with self.seeded(step, number):
                return self.tower.vectors(some, front)

        def loss_of(vectors: Tensor) -> Tensor:
            fixed = self.fixed_passages
            passages = vectors[queries:] if fixed is None else fixed[torch.from_numpy(batch.passages)]
            return self.loss(vectors[:queries], passages, batch)

        return self.backward(embed, rows, loss_of, tasks)

    def loss(self, queries: Tensor, passages: Tensor, batch: Batch) -> Tensor:
        """The configured mix; queries (Q, d), passages (P, d) of the batch."""

        def on_device(array: npt.NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(array).to(queries.device)

        scores = queries @ passages.T  # (Q, d) x (P, d) -> (Q, P)
        weights = on_device(batch.weights)
        settings = self.training
        parts: list[tuple[float, Tensor]] = []
        if settings.loss in ("infonce", "both"):
            positives, excluded = on_device(batch.positives), on_device(batch.excluded)
            contrast = losses.info_nce(scores, positives, excluded, weights, settings.temperature)
            parts.append((1.0 if settings.loss == "infonce" else settings.infonce_weight, contrast))
        if settings.loss != "infonce":
            listed = scores.gather(1, on_device(batch.candidates))  # (Q, C)
            teacher, present = on_device(batch.teacher), on_device(batch.present)
            if settings.loss == "margin_mse":
                parts.append((1.0, losses.margin_mse(listed, teacher, present, weights)))
            else:
                distilled = losses.distillation(listed, teacher, present, weights, settings.temperature)
                parts.append((settings.distill_weight, distilled))
        return losses.combined(parts)


def _optimizer(
    parameters: Mapping[str, torch.nn.Parameter], rates: Mapping[str, float], rate: float, decay: float
) -> torch.optim.Optimizer:
    """rates: of some parameters, in units of the run's rate; the group of each of them knows it as "times"."""
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(rates.get(name, 1.0), []).append(parameter)
    grouped = [{"params": group, "times": times} for times, group in groups.items()]
    try:
        return torch.optim.AdamW(grouped, lr=rate, weight_decay=decay, fused=True)
    except RuntimeError:  # no fused kernel for this device
        return torch.optim.AdamW(grouped, lr=rate, weight_decay=decay)


@contextlib.contextmanager
def _seeded(seed: int, step: int, number: int, device: torch.device, *, needed: bool) -> Iterator[None]:
    """The same dropout for the same (seed, step, micro-batch), which is run twice at times."""
    if not needed:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((seed * 1_000_003 + step) * 1009 + number)
        yield
