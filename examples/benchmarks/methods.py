"""Methods of training on collections with human judgements, at equal budgets: which of them finds more.

    python examples/benchmarks/methods.py --data DATA --folder FOLDER [--methods all] [--budgets 0.5%,6.7%]
        [--collections scifact,stackfaq,cosqa] [--seeds 3] [--rates 4] [--steps N] [--questions N] [--looks 8]
        [--adapt query]
    python examples/benchmarks/methods.py --data DATA --folder FOLDER --speed 20 [--device cuda]

Trains on judged queries that are not the test's (stackfaq and scifact: train, cosqa: dev); a tenth of them chooses each
method's learning rate and is its dev part, and nothing of the test split is read before the end. Full tuning has no
size to choose and takes part in every budget as the reference above. The comparisons are those of `ragadapt compare`:
each leaves its page in FOLDER, and a run that was killed goes on. --questions takes only so many queries of either
split, drawn by the seed: a small run, to see that all is in place. --adapt query: passages keep the base's vectors, so
that a training takes a small part of the time. Results go to FOLDER/methods.json as they come, a table to stdout.

--speed: nothing is compared but how long a step takes, and what it holds; every method trains so many steps alone, LoRA
first and last. Results go to FOLDER/steps.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from beir import check_data, device, load, write_labels
from quality import BASE, LABELS

from ragadapt import FitConfig, Labels
from ragadapt.errors import RagadaptError
from ragadapt.pipeline.compare import Budget, compare_methods
from ragadapt.report import MethodMeasured, Report
from ragadapt.report.build import library_versions
from ragadapt.report.methods import BASE as UNTUNED
from ragadapt.report.methods import DENSE, SEARCH

SEED = 13


def labels_of(data: Path, name: str, folder: Path, questions: int | None) -> tuple[Path, list[Labels]]:
    """A collection's documents, the queries that train and steer, and those of the test, which judge."""
    collection = load(data, name)
    made = []
    for split, use in ((LABELS[name], "train"), ("test", "eval")):
        ids = sorted(collection.qrels[split])
        if questions is not None:
            ids = sorted(random.Random(SEED).sample(ids, min(questions, len(ids))))
        made.append(Labels(*write_labels(collection, split, ids, folder / split), use=use))
    return collection.corpus, made


def rows_of(name: str, budget: str, report: Report) -> list[dict[str, Any]]:
    """A row for each method of one comparison, and one for the untuned model."""
    found = report.methods
    assert found is not None
    untuned = report.system(UNTUNED)
    assert untuned is not None
    shared = {"collection": name, "budget": budget}
    rows = [{**shared, "method": UNTUNED, **{metric: untuned.metrics[metric].value for metric in (SEARCH, DENSE)}}]
    for method in found.measured:
        gains = {
            f"{metric}, over {against}": [delta.interval.low, delta.interval.delta, delta.interval.high, delta.p]
            for delta in report.deltas
            if delta.system == method.name
            for metric, against in [(delta.metric, delta.against)]
        }
        rows.append({**shared, **figures_of(method), **gains})
    return rows


def speed(data: Path, folder: Path, methods: Sequence[str], budget: str, steps: int, config: FitConfig) -> None:
    """The median step of every method, in one process, warm, on the first collection's labelled questions."""
    import torch

    from ragadapt import Encoder
    from ragadapt.adapters.budget import nearest_size, whole_size
    from ragadapt.adapters.method import METHODS, settings_for
    from ragadapt.training import Example, train

    collection = load(data, "scifact")
    texts = dict(zip(collection.ids, collection.texts, strict=True))
    pairs = [(id, next(iter(found))) for id, found in sorted(collection.qrels["train"].items())]
    examples = [Example(collection.queries[id], texts[document]) for id, document in pairs]
    encoder = Encoder.load(config.encoder)
    on_gpu = encoder.precision.device.startswith("cuda")
    wanted = Budget.of(budget).wanted(whole_size(encoder))
    assert wanted is not None
    names = list(METHODS) if methods == ["all"] else [name for name in methods if name != "lora"]
    training = config.training.model_copy(update={"max_steps": steps, "epochs": 100.0, "prefix_cache": False})
    rows: list[dict[str, Any]] = []
    for name in ["lora", *(name for name in names if name != "lora"), "lora"]:
        try:
            size = nearest_size(encoder, settings_for(name, config.adapter), wanted)
            if on_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            result = train(encoder, examples, None, size.config, training, seed=SEED)
        except (RagadaptError, ImportError) as error:
            print(f"{name}: {error}")
            continue
        ends = [point.seconds for point in result.history]
        taken = sorted(after - before for before, after in itertools.pairwise(ends[2:]))
        peak = int(torch.cuda.max_memory_allocated()) if on_gpu else None
        rows.append(
            {"method": name, "parameters": size.parameters, "step": taken[len(taken) // 2], "peak_memory_bytes": peak}
        )
        against = f"{rows[-1]['step'] / rows[0]['step']:.2f} of LoRA's"
        print(f"{name}: {1000 * rows[-1]['step']:.1f} ms a step, {against}, {size.parameters:,} parameters", flush=True)
    machine = {"device": device(), "precision": encoder.precision.dtype, "versions": library_versions()}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"date": date.today().isoformat(), "budget": budget, **machine, "rows": rows}, indent=1)
    (folder / "steps.json").write_text(text, encoding="utf-8")


def figures_of(method: MethodMeasured) -> dict[str, Any]:
    """Means over the seeds, and how far these lie apart."""
    names = ("area", "steps_to_gain", "seconds", "peak_memory_bytes", "drift")
    return {
        "method": method.name,
        "options": method.options,
        "parameters": method.parameters,
        "share": method.share,
        "meets": method.meets,
        "rate": method.rate,
        "rates": {f"{point.x:g}": point.y for point in method.rates},
        "steps": method.steps,
        "seeds": [run.seed for run in method.runs],
        SEARCH: method.mean("search"),
        DENSE: method.mean("dense"),
        "between seeds": {SEARCH: method.spread("search"), DENSE: method.spread("dense")},
        **{name: method.mean(name) for name in names},
    }


def about(report: Report, data: Path, folder: Path) -> dict[str, Any]:
    """What the figures come from; the two folders by what they are."""
    named = {str(data): "DATA", str(folder): "FOLDER"}
    return {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "examples/benchmarks/methods.py", *(named.get(w, w) for w in sys.argv[1:])]),
        "machine": f"{platform.machine()}, {platform.system()}, python {platform.python_version()}",
        "processors": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "device": device(),
        "precision": report.machine.get("precision"),
        "base": "all-MiniLM-L6-v2",
        "versions": library_versions(),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown, best default search first within a collection and budget. ±: between seeds; area, steps: of
    the dev score over the steps, its mean, and when nine tenths of the method's own gain are there."""
    lines = [
        "| collection | budget | method | share | rate | dense | over LoRA | default search | over LoRA | "
        "area | steps | seconds | memory |"
    ]
    lines.append("|" + "---|" * 13)
    for row in sorted(rows, key=lambda row: (row["collection"], row["budget"], -row[SEARCH])):
        share = f"{100 * row['share']:.2g} %" if "share" in row else ""
        seconds = f"{row['seconds']:.0f}" if "seconds" in row else ""
        memory = f"{row['peak_memory_bytes'] / 1e6:.0f} MB" if row.get("peak_memory_bytes") else ""
        rate = f"{row['rate']:g}" if "rate" in row else ""
        area = f"{row['area']:.3f}" if row.get("area") is not None else ""
        steps = f"{row['steps_to_gain']:.0f}" if row.get("steps_to_gain") is not None else ""
        figures = []
        for metric in (DENSE, SEARCH):
            spread = row.get("between seeds", {}).get(metric)
            over = row.get(f"{metric}, over lora")
            figures.append(f"{row[metric]:.3f}" + (f" ± {spread:.3f}" if spread is not None else ""))
            figures.append("" if over is None else f"{over[1]:+.3f} [{over[0]:+.3f}, {over[2]:+.3f}], p {over[3]:.2g}")
        lines.append(
            f"| {row['collection']} | {row['budget']} | {row['method']} | {share} | {rate} | {' | '.join(figures)} | "
            f"{area} | {steps} | {seconds} | {memory} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of collections in BEIR layout")
    parser.add_argument(
        "--folder", type=Path, required=True, help="where comparisons and results go; a run goes on there"
    )
    parser.add_argument("--methods", default="all")
    parser.add_argument("--collections", default=",".join(LABELS))
    parser.add_argument("--budgets", default="0.5%,6.7%", help="shares of the parameters; own = each method's own size")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=int, default=4)
    parser.add_argument("--steps", type=int, help="of every training; default: three epochs")
    parser.add_argument("--questions", type=int, help="queries of either split; default: all")
    parser.add_argument("--looks", type=int, default=8, help="at the dev part in a training: the points of its curve")
    parser.add_argument("--adapt", choices=("both", "query"), default="both", help="query = the questions' side alone")
    parser.add_argument("--jobs", type=int, help="trainings at a time")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--speed", type=int, metavar="STEPS", help="only time so many steps of every method")
    arguments = parser.parse_args()
    base = {
        **BASE, "encoder": {**BASE["encoder"], "device": arguments.device}, "adapter": {"adapt": arguments.adapt},
        "seed": SEED,
    }  # fmt: skip
    if arguments.speed:
        check_data(parser, arguments.data, ["scifact"])
        budget, methods = arguments.budgets.split(",")[0], arguments.methods.split(",")
        speed(arguments.data, arguments.folder, methods, budget, arguments.speed, FitConfig.build(base))
        return
    names = arguments.collections.split(",")
    check_data(parser, arguments.data, names)
    if unknown := set(names) - set(LABELS):
        parser.error(f"no queries to train on in {', '.join(sorted(unknown))}; there are some in {', '.join(LABELS)}")
    rows: list[dict[str, Any]] = []
    for name in names:
        corpus, labels = labels_of(arguments.data, name, arguments.folder / name / "labels", arguments.questions)
        for budget in arguments.budgets.split(","):
            found = compare_methods(
                [corpus],
                arguments.folder / name,  # one for all budgets: they share vectors, queries and negatives
                arguments.methods.split(","),
                FitConfig.build({**base, "training": {"evaluations": arguments.looks}}),
                labels=labels,
                budget=Budget.of(None if budget == "own" else budget, arguments.steps),
                seeds=arguments.seeds,
                rates=arguments.rates,
                jobs=arguments.jobs,
            )
            page = arguments.folder / f"{name}-{budget.strip('%')}.html"
            (found.path / "report.html").replace(page)
            rows += rows_of(name, budget, found.report)
            text = json.dumps({"about": about(found.report, arguments.data, arguments.folder), "rows": rows}, indent=1)
            (arguments.folder / "methods.json").write_text(text, encoding="utf-8")
            print(f"{name}, {budget}: {found.sentence}\n  {page}", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
