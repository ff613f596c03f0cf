"""Does what other corpora taught help the next one? Priming, and the library of adapters, one collection left out.

    python examples/benchmarks/priming.py --data DATA [--folder FOLDER] [--parts few,full,library] [--collections …]
        [--adapt query] [--documents N] [--steps N] [--layers N]

For every collection that is left out the others prime the base model, by multi-task learning and by first-order MAML
with as many batches, and fill a library with an adapter each. Of the collection's questions some train and others
measure: `train` and `dev` against `test`, or, where there is `test` alone, a random half each. Then

few      LoRA at the defaults on 16 and 64 of them, three draws, from the plain base and from the primed ones, and
         (--recipes blend) from the plain base, begun with the blend of the library's adapters
full     the same on all that may train (at most --questions)
library  nothing is trained on the collection: the nearest adapter of the others, their blend, the plain base

nDCG@10 of documents, dense and fused with BM25 at equal shares (surprisal fusion, no feedback tuned), no gate: what
training does is measured, not what a fit would ship. ARG is the mean over collections and draws of the relative gain
over the plain base with the same questions, with an interval over draws and questions. Every training and measurement
is kept in FOLDER/cells, so that a run which was stopped goes on; FOLDER/priming.json has the summary, and a Markdown
table is printed. --smoke does a few steps of everything.

For less time: --adapt query trains the questions' side of the collection that is left out, whose passages keep their
vectors; --documents N takes so many of a collection, the judged ones first. --layers N: the base's first N layers are
the base, a weaker one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from beir import QUALITY, check_data, device, load

from ragadapt import profiling
from ragadapt.adapters import AdapterState
from ragadapt.adapters.blending import check_start, softmax_weights
from ragadapt.adapters.library import CorpusStatistics
from ragadapt.adapters.method import takes_large_steps
from ragadapt.config import EncoderConfig, FitConfig, TrainingConfig
from ragadapt.corpus.sources import read_sources
from ragadapt.encoder import Encoder
from ragadapt.encoder.presets import resolve
from ragadapt.pipeline.adapt import known_vectors, make_examples
from ragadapt.pipeline.corpus import EncodedCorpus
from ragadapt.pipeline.fit import FitSteps
from ragadapt.pipeline.fusion import quality
from ragadapt.pipeline.library import blended
from ragadapt.pipeline.prime import prime
from ragadapt.pipeline.queries import Labels, document_grades, narrowed, read_labels
from ragadapt.pipeline.stages import encode_query_texts, searcher_of
from ragadapt.search.fusion import Fusion
from ragadapt.store.workspace import Workspace
from ragadapt.training import Recipe, train, untrained
from ragadapt.training.processes import Processes
from ragadapt.values import Evidence, Query, no_progress

PLAIN, PRIMED, MAML, BLEND = "plain", "multitask", "maml", "blend"
RECIPES = (PRIMED, MAML, "reptile", BLEND)
PARTS = ("few", "full", "library")
Row = dict[str, Any]
Start = AdapterState | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="collections in BEIR layout")
    parser.add_argument("--folder", type=Path, default=Path("priming-results"))
    parser.add_argument("--collections", default=",".join(QUALITY), help="each is left out once")
    parser.add_argument("--left-out", help="measure on these alone; the others still teach")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--model", default="offline", help="the base: a preset, a hub name or a folder")
    parser.add_argument("--recipes", default=f"{PRIMED},{MAML}", help="also blend: few begins with the library's")
    parser.add_argument("--sizes", default="16,64", help="questions of a few-shot training")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--questions", type=int, default=800, help="most that a full training or an adapter gets")
    parser.add_argument("--epochs", type=float, default=1.0, help="of priming")
    parser.add_argument("--lr", type=float, default=3e-5, help="of priming")
    parser.add_argument("--rate", type=float, help="of all other trainings; default: as a fit's")
    parser.add_argument("--steps", type=int, help="batches of a priming at most")
    parser.add_argument("--adapt", choices=("both", "query"), default="both", help="query = the questions' side alone")
    parser.add_argument("--documents", type=int, help="of a collection, the judged ones first; default: all")
    parser.add_argument("--layers", type=int, help="of the base, from below; default: all")
    parser.add_argument("--smoke", action="store_true", help="two steps of every training")
    arguments = parser.parse_args()
    names = arguments.collections.split(",")
    check_data(parser, arguments.data, names)
    if len(names) < 3:
        parser.error("leaving one out needs three collections or more")
    for what, listed, known in (("recipe", arguments.recipes, RECIPES), ("part", arguments.parts, PARTS)):
        if unknown := sorted({one for one in listed.split(",") if one} - set(known)):
            parser.error(f"there is no {what} {unknown[0]!r}: there are {', '.join(known)}")
    if arguments.rate is not None and not arguments.rate > 0:
        parser.error(f"--rate {arguments.rate:g}: a learning rate is above 0")
    bench = Bench(arguments, names)
    for name in (arguments.left_out or arguments.collections).split(","):
        for part in arguments.parts.split(","):
            {"few": bench.few, "full": bench.full, "library": bench.library}[part](name)
    summary = bench.summary()
    print(table(summary))


@dataclass(frozen=True, eq=False)
class Ready:
    """A collection by one base. train: questions that may train; test: those that measure."""

    steps: FitSteps
    encoder: Encoder
    encoded: EncodedCorpus
    grades: dict[str, dict[str, int]]
    train: list[Query]
    test: list[Query]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Adapters of other collections, equally many names, states and distances."""

    names: list[str]
    states: list[AdapterState]
    distances: list[float]

    def order(self) -> list[int]:
        """Their places, the nearest first."""
        return [int(at) for at in np.argsort(self.distances, kind="stable")]

    def blend(self, encoder: Encoder) -> tuple[AdapterState, dict[str, float]]:
        """(the three nearest ones by their softmax, the share of each)."""
        three = self.order()[:3]
        weights = softmax_weights([self.distances[at] for at in three], 0.1)
        shares = {self.names[at]: round(weight, 3) for at, weight in zip(three, weights, strict=True)}
        return blended(encoder, [self.states[at] for at in three], weights), shares


class Bench:
    """Everything that is measured, cell by cell."""

    def __init__(self, arguments: argparse.Namespace, names: Sequence[str]) -> None:
        self.given = arguments
        self.names = list(names)
        self.folder: Path = arguments.folder
        (self.folder / "cells").mkdir(parents=True, exist_ok=True)
        self.sizes = [int(size) for size in arguments.sizes.split(",")]
        self.recipes = [recipe for recipe in arguments.recipes.split(",") if recipe]
        self._encoders: dict[str, Encoder] = {}
        self.data: Path = arguments.data
        if arguments.documents is not None:
            self.data = self.folder / "collections"
            for name in names:
                thin(arguments.data, name, arguments.documents, self.data / name)
        self.model: str = arguments.model
        if arguments.layers is not None:
            self.model = str(cut(self.model, arguments.layers, self.folder / f"base-{arguments.layers}"))

    # What is kept

    def cell(self, name: str, make: Callable[[], Row]) -> Row:
        """A measurement of an earlier call, or made now."""
        path = self.folder / "cells" / f"{name}.json"
        if path.is_file():
            found: Row = json.loads(path.read_text(encoding="utf-8"))
            return found
        started = time.perf_counter()
        made = make()
        made["seconds"] = round(time.perf_counter() - started, 1)
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(made), encoding="utf-8")
        beside.replace(path)
        shown = {key: value for key, value in made.items() if isinstance(value, str | int | float)}
        print(f"{name}: {json.dumps(shown)}", flush=True)
        return made

    def config(self, model: str) -> FitConfig:
        training: Row = {"max_steps": 2, "batch_size": 4} if self.given.smoke else {}
        if self.given.rate is not None:
            training["learning_rate"] = self.given.rate
        adapter = {"adapt": self.given.adapt}
        return FitConfig.build({"encoder": {"model": model}, "training": training, "adapter": adapter})

    # Bases

    def base(self, kind: str, left_out: str) -> str | None:
        """The name or folder of a base; None where the guard let no primed one through."""
        if kind == PLAIN:
            return self.model
        folder = self.folder / "primed" / f"{left_out}-{kind}"

        def make() -> Row:
            config = self.config(self.model)
            pace = {"epochs": self.given.epochs, "learning_rate": self.given.lr}
            if self.given.steps is not None and not self.given.smoke:
                pace["max_steps"] = self.given.steps
            training = config.training.model_copy(update=pace)
            config = FitConfig(encoder=config.encoder, training=training)
            sources = [self.data / name for name in self.names if name != left_out]
            with remembered(self.model):
                result = prime(sources, folder, config, Recipe(kind))  # type: ignore[arg-type]
            return {
                "primed": result.primed, "reason": result.reason, "strength": result.strength, "steps": result.steps,
                "sources": {one.name: [one.before, one.after, one.drift] for one in result.sources},
            }  # fmt: skip

        return str(folder) if self.cell(f"prime-{kind}-{left_out}", make)["primed"] else None

    @contextmanager
    def ready(self, name: str, model: str, kind: str) -> Iterator[Ready]:
        """The collection with vectors and lexical index, which are kept."""
        config = self.config(model)
        if model not in self._encoders:
            self._encoders = {model: Encoder.load(config.encoder)}  # one at a time
        encoder, place = self._encoders[model], self.data / name
        target = self.folder / "work" / f"{name}-{Path(model).name}-{kind}"
        with Workspace.open(target, {"command": "priming"}) as work:
            steps = FitSteps(work, config, profiling.Clock(), Processes(), no_progress, False, {})
            documents, _, _ = read_sources([place / "corpus.jsonl"], config.read, False, no_progress)
            corpus = steps.chunks(documents, None, encoder)
            encoded = steps.encode("base-vectors", corpus, encoder)
            steps.lexical(corpus)
            splits = {path.stem: path for path in sorted((place / "qrels").glob("*.tsv"))}
            labels = [Labels(place / "queries.jsonl", path, "eval") for path in splits.values()]
            read = read_labels(corpus, labels, config)
            asked = {split: found.queries for split, (found, _) in zip(splits, read.sets, strict=True)}
            train = [query for split, queries in asked.items() if split in ("train", "dev") for query in queries]
            test = list(asked["test"])
            if not train:
                order = np.random.default_rng(13).permutation(len(test)).tolist()
                train = [test[at] for at in order[::2]]
                test = [test[at] for at in order[1::2]]
            texts = {query.text for query in test}
            train = [query for query in train if query.text not in texts]
            yield Ready(steps, encoder, encoded, document_grades(read.sets, corpus), train, test)

    # Training and measuring

    def learn(self, ready: Ready, questions: Sequence[Query], start: AdapterState | None = None) -> AdapterState:
        """LoRA at its defaults on these questions, to the end. start: begun with this adapter instead of none."""
        config = ready.steps.config
        adapter = config.adapter if start is None else check_start(config.adapter, start)
        corpus = ready.encoded.corpus
        trainers = narrowed(questions, ready.encoder, ready.encoded, ready.grades, no_progress)
        vectors = encode_query_texts(ready.encoder, trainers, no_progress)
        searcher = searcher_of(ready.encoded, ready.steps.lexical_index())
        examples, _ = make_examples(trainers, searcher, vectors, corpus, config, ready.grades, no_progress)
        large = start is None and takes_large_steps(adapter)
        training: TrainingConfig = config.training.paced(Evidence.LABELLED, large=large)
        known = known_vectors(examples, ready.encoded, adapter)
        return train(
            ready.encoder, examples, None, adapter, training, start=start, known=known, seed=13
        ).encoder.state()

    def measure(self, ready: Ready, state: AdapterState | None) -> Row:
        """nDCG@10 by question of the test questions, dense and fused."""
        encoder, encoded = ready.encoder, ready.encoded
        if state is not None:
            encoder = untrained(ready.encoder, state).encoder.merged()
            if self.given.adapt == "both":
                encoded = EncodedCorpus(encoded.corpus, encoder.encode_passages(encoded.corpus.passages))
        arena = ready.steps.arena(ready.test, encoder, encoded, ready.grades).with_fusion(Fusion(feedback=0.0))
        each = {name: quality(arena, system) for name, system in (("dense", "dense"), ("search", "hybrid"))}
        means = {name: round(float(values.mean()), 4) for name, values in each.items()}
        return {**means, "each": {name: [round(float(v), 4) for v in values] for name, values in each.items()}}

    def drawn(self, ready: Ready, size: int, draw: int) -> list[Query]:
        order = np.random.default_rng([13, draw]).permutation(len(ready.train)).tolist()
        return [ready.train[at] for at in order[:size]]

    def few(self, name: str) -> None:
        for kind in (PLAIN, *self.recipes):
            model = self.base(PLAIN if kind == BLEND else kind, name)
            if model is None:
                continue
            near = self.neighbours(name) if kind == BLEND else None
            with self.ready(name, model, PLAIN if kind == BLEND else kind) as ready:
                start = None if near is None else near.blend(ready.encoder)[0]
                if start is None:
                    self.cell(f"zero-{name}-{kind}", lambda ready=ready: self.measure(ready, None))  # type: ignore[misc]
                for size in self.sizes:
                    for draw in range(self.given.draws):

                        def make(ready: Ready = ready, size: int = size, draw: int = draw, start: Start = start) -> Row:
                            return self.measure(ready, self.learn(ready, self.drawn(ready, size, draw), start))

                        if size <= len(ready.train):
                            self.cell(f"few-{name}-{kind}-{size}-{draw}", make)

    def full(self, name: str) -> None:
        for kind in (PLAIN, *(one for one in self.recipes if one != BLEND)):
            model = self.base(kind, name)
            if model is None:
                continue
            with self.ready(name, model, kind) as ready:

                def make(ready: Ready = ready) -> Row:
                    return self.measure(ready, self.learn(ready, self.drawn(ready, self.given.questions, 0)))

                self.cell(f"full-{name}-{kind}", make)

    def adapter(self, name: str) -> Path:
        """The folder of the adapter that a collection gives, with what it looks like beside it."""
        folder = self.folder / "adapters" / name

        def make() -> Row:
            with self.ready(name, self.model, PLAIN) as ready:
                self.learn(ready, self.drawn(ready, self.given.questions, 0)).write(folder)
            return {"written": f"adapters/{name}"}

        self.cell(f"adapter-{name}", make)
        return folder

    def neighbours(self, name: str) -> Neighbours:
        """The adapters of the other collections, and how far they are from this one."""
        others = [other for other in self.names if other != name]
        states = [AdapterState.read(self.adapter(other)) for other in others]
        statistics: dict[str, CorpusStatistics] = {}
        for other in self.names:
            with self.ready(other, self.model, PLAIN) as ready:
                statistics[other] = CorpusStatistics.of(ready.encoded.vectors, ready.encoder.fingerprint)
        return Neighbours(others, states, [statistics[name].distance(statistics[other]) for other in others])

    def library(self, name: str) -> None:
        """Nearest and blend, zero-shot."""
        near = self.neighbours(name)
        nearest = near.order()[0]
        with self.ready(name, self.model, PLAIN) as ready:
            self.cell(f"zero-{name}-{PLAIN}", lambda: self.measure(ready, None))
            self.cell(
                f"nearest-{name}",
                lambda: {
                    **self.measure(ready, near.states[nearest]), "of": near.names[nearest],
                    "distances": {other: round(d, 3) for other, d in zip(near.names, near.distances, strict=True)},
                },
            )  # fmt: skip

            def mixed() -> Row:
                state, shares = near.blend(ready.encoder)
                return {**self.measure(ready, state), "of": json.dumps(shares)}

            self.cell(f"blend-{name}", mixed)

    # What it comes to

    def found(self, name: str) -> Row | None:
        path = self.folder / "cells" / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def summary(self) -> Row:
        """Means by cell, and ARG of everything against the plain base."""
        rows: list[Row] = []
        kinds = [*self.recipes]
        compared = [("zero", [(f"zero-{{}}-{kind}", "zero-{}-plain", kind) for kind in kinds])]
        compared += [
            (f"few {size}", [(f"few-{{}}-{kind}-{size}-{draw}", f"few-{{}}-plain-{size}-{draw}", kind)
                             for kind in kinds for draw in range(self.given.draws)])
            for size in self.sizes
        ]  # fmt: skip
        compared.append(("full", [(f"full-{{}}-{kind}", "full-{}-plain", kind) for kind in kinds]))
        zero = [(f"{kind}-{{}}", "zero-{}-plain", kind) for kind in ("nearest", "blend")]
        compared.append(("library, zero-shot", zero))
        for task, pairs in compared:
            for kind in dict.fromkeys(kind for _, _, kind in pairs):
                row: Row = {"task": task, "from": kind}
                for system in ("dense", "search"):
                    gains, ours, theirs = [], [], []
                    for one, other, own in pairs:
                        for name in self.names if own == kind else []:
                            now, before = self.found(one.format(name)), self.found(other.format(name))
                            if now is None or before is None:
                                continue
                            gains.append((now[system] - before[system]) / max(before[system], 1e-9))
                            level = max(before[system], 1e-9) * len(now["each"][system])
                            ours.append(np.array(now["each"][system]) / level)
                            theirs.append(np.array(before["each"][system]) / level)
                    if not gains:
                        continue
                    row["cells"] = len(gains)
                    row[f"ARG {system}"] = round(float(np.mean(gains)), 4)
                    row[f"interval {system}"] = arg_interval(ours, theirs, 50 if self.given.smoke else 1000)
                if "cells" in row:
                    rows.append(row)
        cells = {
            path.stem: {key: value for key, value in json.loads(path.read_text()).items() if key != "each"}
            for path in sorted((self.folder / "cells").glob("*.json"))
        }
        about = {"date": date.today().isoformat(), "device": device(), "model": str(self.given.model), "seed": 13,
                 "smoke": self.given.smoke, "epochs": self.given.epochs, "lr": self.given.lr, "steps": self.given.steps,
                 "rate": self.given.rate,
                 "adapt": self.given.adapt, "documents": self.given.documents, "layers": self.given.layers}  # fmt: skip
        summary = {"about": about, "rows": rows, "cells": cells}
        (self.folder / "priming.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        return summary


def thin(data: Path, name: str, documents: int, folder: Path) -> None:
    """A collection of the documents that are judged and, up to so many, others, drawn by the seed."""
    if (folder / "corpus.jsonl").is_file():
        return
    collection = load(data, name)
    judged = {id for qrels in collection.qrels.values() for found in qrels.values() for id in found}
    others = sorted(set(collection.ids) - judged)
    drawn = random.Random(13).sample(others, min(len(others), max(0, documents - len(judged))))
    kept = judged | set(drawn)
    new = folder.with_name(f".{name}.new")
    shutil.copytree(data / name, new, ignore=shutil.ignore_patterns("corpus.jsonl"), dirs_exist_ok=True)
    with collection.corpus.open(encoding="utf-8") as lines:
        rows = [line for line, id in zip(lines, collection.ids, strict=True) if id in kept]
    (new / "corpus.jsonl").write_text("".join(rows), encoding="utf-8")
    new.rename(folder)


def cut(model: str, layers: int, folder: Path) -> Path:
    """The base's folder with its first layers alone."""
    from safetensors.torch import load_file, save_file

    if folder.is_dir():
        return folder
    new = folder.with_name(f".{folder.name}.new")
    shutil.copytree(resolve(EncoderConfig(model=model)).location, new, dirs_exist_ok=True)
    config = json.loads((new / "config.json").read_text(encoding="utf-8"))
    above = tuple(f"encoder.layer.{at}." for at in range(layers, config["num_hidden_layers"]))
    weights = load_file(new / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not any(part in name for part in above)}
    if not 0 < layers < config["num_hidden_layers"] or len(kept) == len(weights):
        raise SystemExit(f"--layers {layers}: {model} has {config['num_hidden_layers']}, or is of another type")
    save_file(kept, new / "model.safetensors", metadata={"format": "pt"})
    (new / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}), encoding="utf-8")
    new.rename(folder)
    return folder


_KNOWN: dict[str, dict[str, np.ndarray]] = {}  # a plain base's vectors, by its name and the text


@contextmanager
def remembered(model: str) -> Iterator[None]:
    """The plain base encodes no passage twice: every priming has most sources in common with the others."""
    whole = Encoder.encode_passages
    base = Encoder.load(EncoderConfig(model=model)).fingerprint
    known = _KNOWN.setdefault(model, {})

    def encode_passages(self: Encoder, texts: Sequence[str], **rest: Any) -> Any:
        if type(self) is not Encoder or self.fingerprint != base or not texts:
            return whole(self, texts, **rest)
        if missing := [text for text in dict.fromkeys(texts) if text not in known]:
            known.update(zip(missing, whole(self, missing, **rest), strict=True))
        return np.stack([known[text] for text in texts])

    Encoder.encode_passages = encode_passages  # type: ignore[method-assign]
    try:
        yield
    finally:
        Encoder.encode_passages = whole  # type: ignore[method-assign]


def arg_interval(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], samples: int = 1000) -> list[float]:
    """95 % of the mean relative gain, over cells and the questions of each. ours, theirs: parts of 1 / before."""
    rng = np.random.default_rng(13)
    sums = []
    for _ in range(samples):
        cells = rng.integers(len(ours), size=len(ours))
        gains = []
        for cell in cells.tolist():
            count = len(ours[cell])
            at = rng.integers(count, size=count)
            gains.append(float((ours[cell][at] - theirs[cell][at]).sum()))
        sums.append(np.mean(gains))
    low, high = np.quantile(sums, [0.025, 0.975]).tolist()
    return [round(low, 4), round(high, 4)]


def table(summary: Row) -> str:
    lines = ["| task | from | cells | ARG dense | ARG search |", "|---|---|---|---|---|"]
    for row in summary["rows"]:
        parts = [
            f"{row[f'ARG {system}']:+.1%} [{row[f'interval {system}'][0]:+.1%}, {row[f'interval {system}'][1]:+.1%}]"
            for system in ("dense", "search")
        ]
        lines.append(f"| {row['task']} | {row['from']} | {row['cells']} | {' | '.join(parts)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
