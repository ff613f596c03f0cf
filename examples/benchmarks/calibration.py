"""What the gate saw against the truth: trained models judged out of fold by what trained them, and by people.

    python examples/benchmarks/calibration.py --data DATA [--folder FOLDER] [--signals labels,model,cut]
        [--collections scifact,…] [--documents 500] [--strengths 0.25,0.5,1] [--write docs/calibration.json]
    python examples/benchmarks/calibration.py --data DATA [--folder FOLDER] --drawn 50 [--draws 0,1] [--truth]
    python examples/benchmarks/calibration.py --data DATA --signals model --collections cosqa,scifact --documents 10000
        --test 1000 --strengths 0.5,1

A part of every collection: what its test questions, its labels and a language model's questions are about, and other
documents at random up to `--documents`. Three signals train:

- labels: 36 and 100 judged questions of the train or dev split (of collections that have them), in three folds;
- model: a strong language model's questions (lm_queries.jsonl), in two folds by document;
- cut: titles, headings, sentences and keywords of the documents, as if they were as good as a model's questions. `fit`
  never trains on them; the rows show what would happen.

Each is judged and decided by the same code as in `fit`, at each strength; `chosen` is the one that `fit` would take,
which after questions of a model is the whole, or the half where that is refused. The truth is what people judged: up to
--test test questions, adapted − base, dense and default search, intervals of 95 %. One case = signal × collection ×
strength. Cases are kept in FOLDER/cases.json and not run again; parts of another size need a folder of their own. No
default was chosen by this table, except `gate.most_dense`.

--drawn: few labels. Of every collection so many of the --test questions, at most half of them, are labels, which train
and judge as in `fit`; the others say what that was worth, at each strength. --truth leaves the folds out: what a
training does before anything has judged it. Rows are kept in FOLDER/drawn.json. The gate's priors, DENSE and SEARCH,
come from them.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from beir import Collection, check_data, device, load

from ragadapt import Encoder, EncoderConfig, FitConfig
from ragadapt.corpus import internal_links
from ragadapt.evaluation import gate, paired_bootstrap
from ragadapt.evaluation.significance import Interval
from ragadapt.pipeline.adapt import drift
from ragadapt.pipeline.corpus import Corpus, EncodedCorpus
from ragadapt.pipeline.crossfit import CrossFitted, CrossJudged, judge_folds
from ragadapt.pipeline.fit import Base, FitSteps
from ragadapt.pipeline.fusion import quality
from ragadapt.pipeline.queries import DividedQueries, _round_trip, answer_was_trained, with_folds
from ragadapt.pipeline.stages import searcher_of
from ragadapt.profiling import Clock
from ragadapt.queries import clean_queries, structural_queries
from ragadapt.store.workspace import Workspace
from ragadapt.training.processes import Processes
from ragadapt.values import Document, Evidence, Query, no_progress

COLLECTIONS = (
    "stackfaq", "cranfield", "handbook", "cosqa", "scifact", "cisi", "cacm", "clapnq-dev", "covidqa-chunks",
)  # fmt: skip
LABELS = {"scifact": "train", "stackfaq": "train", "cosqa": "dev"}
SIGNALS: dict[str, tuple[tuple[str, int], ...]] = {
    "labels": (("labels", 36), ("labels", 100)),
    "model": (("model", 1000),),
    "cut": (("cut", 300),),
}
SHIPS = (gate.Verdict.WIN, gate.Verdict.LIKELY_GAIN)
_BELOW = 0.003  # a loss that would be worth telling


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a collection, its base model and its questions by signal."""

    steps: FitSteps
    corpus: Corpus
    encoder: Encoder
    encoded: EncodedCorpus
    test: list[Query]
    grades: dict[str, dict[str, int]]
    signals: dict[str, list[Query]]
    cut: list[Query]


def part_of(
    collection: Collection, documents: int, tests: int, config: FitConfig, encoder: Encoder, steps: FitSteps
) -> Part:
    """Choose the documents and so many of the test's questions, cut and encode, and gather the other questions."""
    draw = random.Random(config.seed)
    rows = [json.loads(line) for line in collection.corpus.open(encoding="utf-8")]
    every = {row["_id"]: Document(row["_id"], row["text"], row.get("title") or "", {}, row["_id"]) for row in rows}
    chosen = draw.sample(sorted(collection.qrels["test"]), min(tests, len(collection.qrels["test"])))
    labels = sorted(collection.qrels.get(LABELS.get(collection.name, ""), {}))
    labels = draw.sample(labels, min(100, len(labels)))
    judged = {f"test {id}": collection.qrels["test"][id] for id in chosen}
    judged |= {f"label {id}": collection.qrels[LABELS[collection.name]][id] for id in labels}

    asked: dict[str, list[tuple[str, str]]] = {}
    file = collection.folder / "lm_queries.jsonl"
    if file.exists():
        for line in file.open(encoding="utf-8"):
            row = json.loads(line)
            asked[_words(row["passage"])] = row["queries"]
    whole = steps.chunks(list(every.values()), None, encoder)
    wanted = {id for found in judged.values() for id in found}
    wanted |= {chunk.document_id for chunk in whole.chunks if _words(chunk.passage) in asked}
    others = sorted(set(every) - wanted)
    draw.shuffle(others)
    wanted |= set(others[: max(0, documents - len(wanted))])
    corpus = steps.chunks([document for id, document in every.items() if id in wanted], None, encoder)
    encoded = steps.encode("base-vectors", corpus, encoder)
    lexical = steps.lexical(corpus)

    chunks_of: dict[str, list[str]] = {}
    for chunk in corpus.chunks:
        chunks_of.setdefault(chunk.document_id, []).append(chunk.id)

    def question(id: str) -> Query:
        answers = tuple(chunk for document in judged[id] for chunk in chunks_of.get(document, ()))
        return Query(id, collection.queries[id.split(" ", 1)[1]], "label", Evidence.LABELLED, answers)

    questions = [
        Query(f"model {at} {number}", text, f"lm-{kind}", Evidence.PARAPHRASE, (chunk.id,))
        for at, chunk in enumerate(corpus.chunks)
        for number, (kind, text) in enumerate(asked.get(_words(chunk.passage), ()))
    ]
    links = internal_links(corpus.documents, corpus.chunks)
    cut = structural_queries(corpus.documents, corpus.chunks, links, config.query, seed=config.seed)
    cut = [q for q in clean_queries(cut, corpus.chunks, config.query, seed=config.seed) if q.evidence is Evidence.CROP]
    written = clean_queries(questions, corpus.chunks, config.query, seed=config.seed)
    searcher = searcher_of(encoded, lexical)
    signals = {
        "labels": [question(f"label {id}") for id in labels],
        "model": _round_trip(written, encoder, searcher, config.query.round_trip_k, no_progress),
        "cut": [replace(q, evidence=Evidence.PARAPHRASE) for q in draw.sample(cut, min(300, len(cut)))],
    }
    grades = {id: dict(found) for id, found in judged.items()}
    test = [question(f"test {id}") for id in chosen]
    return Part(steps, corpus, encoder, encoded, test, grades, signals, cut)


def cases(
    part: Part,
    own: Sequence[Query],
    test: Sequence[Query],
    config: FitConfig,
    *,
    barred: bool = False,
    folds: bool = True,
) -> list[dict[str, Any]]:
    """Train on all of `own`, and by cross-fitting, and measure with `test`; a case for each strength. barred: `fit`
    never trains on these. folds: judge, too; else the base's mix is searched with."""
    started = time.perf_counter()
    steps, encoder, encoded = part.steps, part.encoder, part.encoded
    if len(own) < gate.FEWEST_TO_TRAIN:
        return []
    ids = {query.id for query in own}
    queries = DividedQueries(
        tuple(own), tuple(part.cut), (), {id: found for id, found in part.grades.items() if id in ids}, {}, {}, {}, ()
    )
    searcher = searcher_of(encoded, steps.lexical(part.corpus))
    with steps.stage("queries", ("base-vectors", "lexical"), asked=sorted(ids)) as stage:
        queries.write(stage.path)
    neutral = steps.neutral(queries, encoder, searcher)
    shipped = gate.plan(queries.train, (), split=config.split, config=config.gate, dense_share=neutral.weight)
    plan = gate.plan(queries.train, (), split=config.split, config=config.gate)
    if not plan.train:
        return []
    evidence = plan.evidence or Evidence.LABELLED
    base = Base(encoder, encoded, searcher, steps.fusion(plan, queries, encoder, encoded, neutral))
    steps._mined = None
    judged: dict[float, CrossJudged] = {}
    chosen: float | None = None
    if folds:
        plan = with_folds(plan, part.corpus, config)
        arena = steps.arena(plan.judge, encoder, encoded, queries.grades)
        found = steps.out_of_fold(plan, queries, base, arena, "folds", config.gate.fold_strengths)
        met = answer_was_trained(plan, queries.grades) if evidence is Evidence.LABELLED else None

        def judge(*strengths: float) -> CrossJudged:
            return judge_folds(_at(found, strengths), base.fusion, config, evidence, met)

        judged = {strength: judge(strength) for strength in found.adapted}
        chosen = judge(*config.gate.strengths(evidence)).strength
        half = judged.get(gate.GENTLE)
        if evidence is Evidence.PARAPHRASE and half and half.decision.adapted and not judged[chosen].decision.adapted:
            chosen = gate.GENTLE

    examples, _ = steps.examples(plan, queries, base)
    result = steps.train_on(base, examples, plan, None, steps.work.path / "checkpoint")
    (steps.work.path / "checkpoint").unlink(missing_ok=True)
    before = steps.arena(test, encoder, encoded, part.grades).with_fusion(base.fusion.fusion)
    made = []
    for strength in config.gate.fold_strengths:
        result.encoder.scale(strength)
        model = result.encoder.merged()
        adapted = EncodedCorpus(part.corpus, model.encode_passages(part.corpus.passages))
        moved = drift(encoded.vectors, adapted.vectors, seed=config.seed)
        mix = judged[strength].fusion if folds else base.fusion
        after = steps.arena(test, model, adapted, part.grades).with_fusion(mix.fusion)
        case: dict[str, Any] = {
            "strength": strength, "questions": len(plan.judge), "examples": len(examples), "neutral": neutral.weight,
            "drift": round(moved, 4),
        }  # fmt: skip
        if folds:
            decision = gate.within_drift(judged[strength].decision, moved, config.gate)
            case |= {
                "chosen": strength == chosen, "refused": not shipped.train or barred, "verdict": decision.verdict.value,
                "seen dense": _rounded(decision.dense), "seen search": _rounded(decision.search),
            }  # fmt: skip
        for name, system in (("dense", "dense"), ("search", "hybrid")):
            old, new = quality(before, system), quality(after, system)
            case |= {
                f"base {name}": round(float(old.mean()), 4),
                f"truth {name}": _rounded(paired_bootstrap(new, old, seed=config.seed)),
                f"spread {name}": round(float(np.std(new - old)), 4),
            }
        made.append(case)
    about = {
        "test questions": len(test), "documents": len(part.corpus.documents),
        "seconds of all strengths": round(time.perf_counter() - started),
    }  # fmt: skip
    return [case | about for case in made]


def _at(found: CrossFitted, strengths: Sequence[float]) -> CrossFitted:
    """At these strengths alone."""
    adapted = {strength: found.adapted[strength] for strength in strengths}
    return replace(found, adapted=adapted, drift={strength: found.drift[strength] for strength in strengths})


def _rounded(interval: Interval | None) -> list[float]:
    """[difference, low, high]."""
    assert interval is not None
    return [round(value, 4) for value in (interval.delta, interval.low, interval.high)]


def _words(text: str) -> str:
    return " ".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Wrong WINs, missed gains and the share of the gain that is taken; as shipped and had nothing been refused."""

    def lost(row: Mapping[str, Any]) -> bool:
        return bool(row["truth dense"][2] < 0 or row["truth search"][2] < 0)

    def gained(row: Mapping[str, Any]) -> bool:
        one_error = (row["truth search"][2] - row["truth search"][1]) / (2 * 1.96)
        better = row["truth dense"][1] > 0 and row["truth search"][0] > -one_error
        return bool(row["truth search"][1] > 0 or better)

    def share(part: Sequence[Any], of: Sequence[Any]) -> str:
        return f"{len(part)} of {len(of)}" + (f" ({len(part) / len(of):.0%})" if of else "")

    def told(rows: Sequence[Mapping[str, Any]], refuses: bool) -> dict[str, Any]:
        wins = [row for row in rows if row["verdict"] in SHIPS and not (refuses and row["refused"])]
        shipped = {id(row) for row in wins}
        real = [row for row in rows if gained(row)]
        groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        for row in rows:
            groups.setdefault((row["collection"], row["signal"], row["size"]), []).append(row)
        taken = oracle = 0.0
        for group in groups.values():
            oracle += max(0.0, *(row["truth dense"][0] for row in group))
            taken += sum(row["truth dense"][0] for row in group if row["chosen"] and id(row) in shipped)
        return {
            "cases": len(rows),
            "wins": len(wins),
            "wrong wins: worse beyond doubt": share([row for row in wins if lost(row)], wins),
            f"wins with dense or default search below the base by more than {_BELOW}": share(
                [row for row in wins if min(row["truth dense"][0], row["truth search"][0]) < -_BELOW], wins
            ),
            "missed gains": share([row for row in real if id(row) not in shipped], real),
            "mean dense gain of the models that ship": _mean([row["truth dense"][0] for row in wins if row["chosen"]]),
            "mean default gain of the models that ship": _mean(
                [row["truth search"][0] for row in wins if row["chosen"]]
            ),
            "share of the dense gain at the best strength": round(taken / oracle, 2) if oracle else None,
        }

    made = {"as fit decides": told(rows, True), "had the plan refused nothing": told(rows, False)}
    for signal in SIGNALS:
        made[f"{signal}, had the plan refused nothing"] = told([r for r in rows if r["signal"] == signal], False)
    return made


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """All cases as a Markdown table."""

    def cell(value: Sequence[float]) -> str:
        return f"{value[0]:+.3f} [{value[1]:+.3f}, {value[2]:+.3f}]"

    columns = ("seen dense", "seen search", "truth dense", "truth search")
    lines = [f"| collection | signal | strength | verdict | {' | '.join(columns)} |", "|" + "---|" * 8]
    for row in rows:
        verdict = row["verdict"] + (", refused" if row["refused"] else "") + (" *" if row["chosen"] else "")
        cells = [row["collection"], f"{row['signal']} {row['questions']}", f"{row['strength']:g}", verdict]
        lines.append("| " + " | ".join([*cells, *(cell(row[column]) for column in columns)]) + " |")
    return "\n".join(lines)


def run_drawn(arguments: argparse.Namespace, collections: Sequence[str], folder: Path, config: FitConfig) -> None:
    """Rows that are not known yet, collection by collection."""
    kept = folder / "drawn.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
    encoder = Encoder.load(EncoderConfig(model="offline"))
    for name in collections:
        known = {(row["collection"], row["asked"], row["draw"]) for row in rows}
        todo = [draw for draw in arguments.draws if (name, arguments.drawn, draw) not in known]
        if not todo:
            continue
        with Workspace.open(folder / f"drawn-{name}", {"command": "calibration"}) as work:
            steps = FitSteps(work, config, Clock(), Processes.join("cpu"), no_progress, False, {})
            part = part_of(load(arguments.data, name), arguments.documents, arguments.test, config, encoder, steps)
            for draw in todo:
                mixed = random.Random(draw).sample(part.test, len(part.test))
                size = min(arguments.drawn, len(mixed) // 2)
                for case in cases(part, mixed[:size], mixed[size:], config, folds=not arguments.truth):
                    about = {"collection": name, "asked": arguments.drawn, "draw": draw, "device": device()}
                    rows.append({**about, **case})
                    print(json.dumps(rows[-1]), flush=True)
                kept.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if arguments.write:
        write(arguments, rows, f"python examples/benchmarks/calibration.py --data DATA --drawn {arguments.drawn}", {})


def write(
    arguments: argparse.Namespace, rows: Sequence[Mapping[str, Any]], command: str, found: Mapping[str, Any]
) -> None:
    """Rows, their summary and what they are, as JSON."""
    about = {
        "command": command,
        "documents": arguments.documents,
        "seed": arguments.seed,
        "date": date.today().isoformat(),
        "devices": sorted({row["device"] for row in rows}),
        "base": "all-MiniLM-L6-v2",
        "intervals": "[adapted − base, low, high] of nDCG@10, 95 %, paired bootstrap",
    }
    made = {"about": about, **({"summary": found} if found else {}), "cases": rows}
    arguments.write.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def strengths(text: str) -> list[float]:
    found = [float(number) for number in text.split(",")]
    if not all(0 < number <= 1 for number in found):
        raise ValueError
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of collections in BEIR layout")
    parser.add_argument("--folder", type=Path, help="keeps cases and what was encoded (default: a temporary one)")
    parser.add_argument("--signals", default=",".join(SIGNALS))
    parser.add_argument("--collections", default=",".join(COLLECTIONS))
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--strengths", default="0.25,0.5,1", type=strengths, help="above 0, 1 at most")
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--test", type=int, default=200, help="test questions at most")
    parser.add_argument("--drawn", type=int, help="only so many of the test's questions as labels")
    parser.add_argument("--draws", default="0,1", type=numbers, help="which draws, by number")
    parser.add_argument("--truth", action="store_true", help="of --drawn: nothing judges")
    parser.add_argument("--write", type=Path, help="a JSON file for the cases and their summary")
    arguments = parser.parse_args()
    collections, signals = arguments.collections.split(","), arguments.signals.split(",")
    check_data(parser, arguments.data, collections)
    if unknown := set(signals) - set(SIGNALS):
        parser.error(f"unknown signals {', '.join(sorted(unknown))}; there are {', '.join(SIGNALS)}")
    if arguments.drawn is not None and arguments.drawn < gate.FEWEST_TO_TRAIN:
        parser.error(f"--drawn {arguments.drawn}: fewer than {gate.FEWEST_TO_TRAIN} labels train nothing")
    if arguments.truth and arguments.drawn is None:
        parser.error("--truth leaves out the folds of --drawn: give both")
    if arguments.write and not arguments.write.absolute().parent.is_dir():
        parser.error(f"--write {arguments.write}: there is no folder {arguments.write.absolute().parent}")
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="ragadapt-calibration-"))
    folder.mkdir(parents=True, exist_ok=True)
    config = FitConfig.build(
        {"encoder": {"model": "offline"}, "seed": arguments.seed, "gate": {"fold_strengths": arguments.strengths}}
    )
    if arguments.drawn:
        run_drawn(arguments, collections, folder, config)
        return
    kept = folder / "cases.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
    encoder = Encoder.load(EncoderConfig(model="offline"))
    for name in collections:
        todo = [
            (signal, size)
            for signal in signals
            for signal, size in SIGNALS[signal]
            if not any((row["collection"], row["signal"], row["size"]) == (name, signal, size) for row in rows)
        ]
        if not todo:
            continue
        with Workspace.open(folder / name, {"command": "calibration"}) as work:
            steps = FitSteps(work, config, Clock(), Processes.join("cpu"), no_progress, False, {})
            part = part_of(load(arguments.data, name), arguments.documents, arguments.test, config, encoder, steps)
            for signal, size in todo:
                own = part.signals[signal][:size]
                for case in cases(part, own, part.test, config, barred=signal == "cut"):
                    rows.append({"collection": name, "signal": signal, "size": size, "device": device(), **case})
                    print(table(rows[-1:]).splitlines()[-1], flush=True)
                kept.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    found = summary(rows)
    print(table(rows))
    print(json.dumps(found, indent=1))
    if arguments.write:
        write(arguments, rows, "python examples/benchmarks/calibration.py --data DATA", found)
    if arguments.folder is None:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
