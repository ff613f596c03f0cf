"""Priming: several corpora teach one base model; each keeps questions that steer and guard; a plain model results."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from ragadapt_cli.main import run
from sentence_transformers import SentenceTransformer
from small_retriever import fit_pages
from tiny_models import sentences, write_tiny_model
from torch import Tensor
from trained_retriever import fit_trained

from ragadapt.adapters import attach
from ragadapt.config import AdapterConfig, EncoderConfig, FitConfig, TrainingConfig
from ragadapt.encoder import Encoder
from ragadapt.errors import InvalidConfiguration, InvalidInput, StoreError
from ragadapt.pipeline import prime as prime_module
from ragadapt.pipeline.adapt import DevPool
from ragadapt.pipeline.prime import FACTS, prime
from ragadapt.pipeline.queries import DividedQueries
from ragadapt.retriever import Retriever
from ragadapt.training import Example, Recipe, prime_encoder, train
from ragadapt.training.loop import EncoderRun
from ragadapt.training.priming import PrimingRun

TEXTS = sentences(90, words=12, seed=3)


def questions(texts: list[str]) -> list[Example]:
    """Some words of a passage ask for it."""
    return [Example(" ".join(text.split()[1:4]), text, group=at) for at, text in enumerate(texts)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    model = write_tiny_model(tmp_path_factory.mktemp("base"))
    return Encoder.load(EncoderConfig(model=str(model), precision="float32"))


def settings(**training: object) -> TrainingConfig:
    return TrainingConfig.model_validate({"batch_size": 4, "learning_rate": 1e-3, "epochs": 1, **training})


LORA = AdapterConfig(rank=2)


# The run


def test_a_step_is_of_one_corpus_and_the_temperature_evens_them_out(base: Encoder) -> None:
    corpora = [questions(TEXTS[:64]), questions(TEXTS[64:80])]
    shares = {}
    for temperature in (1.0, 1e6):
        recipe = Recipe(temperature=temperature)
        run = PrimingRun(base, corpora, LORA, settings(epochs=20), recipe, seed=0)
        steps = [{item < 64 for item in step} for step in run.plan()]
        assert len(steps) == 400 and all(len(of) == 1 for of in steps)
        shares[temperature] = np.mean([of == {False} for of in steps])
    assert shares[1.0] == pytest.approx(16 / 80, abs=0.05)
    assert shares[1e6] == pytest.approx(0.5, abs=0.07)


def test_groups_of_different_corpora_are_different(base: Encoder) -> None:
    run = PrimingRun(base, [questions(TEXTS[:4]), questions(TEXTS[4:8])], LORA, settings(), Recipe(), seed=0)
    assert max(Counter(example.group for example in run.data.examples).values()) == 1


def test_priming_with_one_corpus_is_training(base: Encoder) -> None:
    examples = questions(TEXTS[:16])
    primed = prime_encoder(base, [examples], None, LORA, settings(epochs=2), seed=1)
    # Groups only say what belongs together, so that their names do not matter.
    trained = train(base, examples, None, LORA, settings(epochs=2), seed=1)
    for name, tensor in trained.encoder.method.tensors().items():
        assert torch.equal(primed.encoder.method.tensors()[name], tensor)


def by_hand(base: Encoder, corpora: list[list[Example]], batches: list[list[int]], rate: float) -> list[Tensor]:
    """The weights after plain steps of clipped gradient descent on these batches."""
    run = PrimingRun(base, corpora, LORA, settings(), Recipe(), seed=0)
    with run.prepared(None, lambda *_: None):
        for batch in batches:
            for parameter in run.parameters:
                parameter.grad = None
            EncoderRun.gradient(run, batch, 1)
            norm = torch.sqrt(sum((p.grad.square().sum() for p in run.parameters), torch.tensor(0.0)))  # type: ignore[union-attr]
            with torch.no_grad():
                for parameter in run.parameters:
                    parameter -= rate * parameter.grad / max(1.0, float(norm))  # type: ignore[operator]
        gradients = []
        for parameter in run.parameters:
            parameter.grad = None
        EncoderRun.gradient(run, [8, 9, 10, 11], 1)
        gradients = [p.grad.clone() for p in run.parameters]  # type: ignore[union-attr]
    return [*(p.detach().clone() for p in run.parameters), *gradients]


@pytest.mark.parametrize("name", ["maml", "reptile"])
def test_looking_ahead_gives_the_gradient_that_it_says_and_leaves_the_weights(base: Encoder, name: str) -> None:
    corpora, inner, last = [questions(TEXTS[:12])], [[0, 1, 2, 3], [4, 5, 6, 7]], [8, 9, 10, 11]
    recipe = Recipe(name, inner_steps=2, inner_rate=0.05)  # type: ignore[arg-type]
    run = PrimingRun(base, corpora, LORA, settings(), recipe, seed=0)
    run.ahead = [[*inner, last]]
    start = [parameter.detach().clone() for parameter in run.parameters]
    with run.prepared(None, lambda *_: None):
        run.gradient([*inner[0], *inner[1], *last], 1)
    found = [parameter.grad for parameter in run.parameters]
    assert all(torch.equal(now, then) for now, then in zip(run.parameters, start, strict=True))
    count = len(start)
    if name == "maml":
        expected = by_hand(base, corpora, inner, 0.05)[count:]
    else:
        ended = by_hand(base, corpora, [*inner, last], 0.05)[:count]
        expected = [(then - now) / (0.05 * 3) for then, now in zip(start, ended, strict=True)]
    assert any(gradient.abs().max() > 1e-3 for gradient in expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None and torch.allclose(ours, theirs, atol=1e-5)


def test_all_recipes_cost_as_many_batches(base: Encoder) -> None:
    corpora = [questions(TEXTS[:48])]
    for name, steps in (("multitask", 12), ("maml", 4), ("reptile", 4)):
        recipe = Recipe(name)  # type: ignore[arg-type]
        assert len(PrimingRun(base, corpora, LORA, settings(), recipe, seed=0).plan()) == steps
        assert len(PrimingRun(base, corpora, LORA, settings(max_steps=6), recipe, seed=0).plan()) == steps // 2


@pytest.mark.parametrize("name", ["multitask", "maml", "reptile"])
def test_a_killed_priming_goes_on_to_the_same_weights(base: Encoder, tmp_path: Path, name: str) -> None:
    corpora = [questions(TEXTS[:24]), questions(TEXTS[24:48])]
    recipe, looks = Recipe(name, inner_steps=1), settings(evaluations=6)  # type: ignore[arg-type]

    def dev(_: Encoder) -> float:
        return 0.0

    def killed(stage: str, done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    looks = looks.model_copy(update={"patience": 99})
    whole = prime_encoder(base, corpora, dev, LORA, looks, recipe)
    with pytest.raises(KeyboardInterrupt):
        prime_encoder(base, corpora, dev, LORA, looks, recipe, checkpoint=tmp_path / "c", progress=killed)
    again = prime_encoder(base, corpora, dev, LORA, looks, recipe, checkpoint=tmp_path / "c")
    assert again.resumed_from > 0
    for before, after in zip(whole.encoder.trainable().values(), again.encoder.trainable().values(), strict=True):
        assert torch.equal(before, after)


def test_recipes_and_corpora_that_cannot_be_are_refused(base: Encoder) -> None:
    for wrong in ({"name": "mamal"}, {"temperature": 0}, {"inner_steps": 0}, {"inner_rate": 0}):
        with pytest.raises(InvalidInput):
            Recipe(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"corpora\[1\] has 1"):
        prime_encoder(base, [questions(TEXTS[:4]), questions(TEXTS[:1])], None, LORA, settings())


# The whole of it


def write_collection(folder: Path, texts: list[str], splits: tuple[str, ...] = ("train",)) -> Path:
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": f"d{at}", "title": "", "text": text} for at, text in enumerate(texts)]
    asked = [{"_id": f"q{at}", "text": " ".join(text.split()[1:4])} for at, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    for number, split in enumerate(splits):
        own = range(number, len(texts), len(splits))
        judged = "".join(f"q{at}\td{at}\t1\n" for at in own)
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    texts = sentences(130, words=12, seed=7)
    one, two = write_collection(folder / "one", texts[:60]), write_collection(folder / "two", texts[60:], ("test",))
    (one / "SOURCE.md").write_text("# One\n- Licence: CC BY 4.0 (the authors')\n")
    return [one, two]


def config_of(base: Encoder, **training: object) -> FitConfig:
    return FitConfig.build(
        {
            "encoder": {"model": base.config.model, "precision": "float32"},
            "chunk": {"max_tokens": 40, "min_tokens": 4},
            "training": {"epochs": 3, "learning_rate": 1e-3, "batch_size": 8, **training},
            "mining": {"negatives": 1},
        }
    )


@pytest.fixture(scope="module")
def primed(base: Encoder, sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> prime_module.PrimeResult:
    target = tmp_path_factory.mktemp("primed") / "model"
    return prime(sources, target, config_of(base), licences={"two": "CC0"})


def test_what_comes_out_is_a_plain_model_that_gained(base: Encoder, primed: prime_module.PrimeResult) -> None:
    assert primed.path is not None, primed.reason
    assert primed.strengths[primed.strength] > primed.strengths[0.0]
    assert {path.name for path in primed.path.iterdir()}.isdisjoint({"adapter", "ragadapt_encoder.json"})
    plain = SentenceTransformer(str(primed.path), device="cpu")
    opened = Encoder.load(EncoderConfig(model=str(primed.path), precision="float32"))
    assert np.allclose(plain.encode(TEXTS[:5]), opened.encode_queries(TEXTS[:5]), atol=1e-5)
    assert not np.allclose(plain.encode(TEXTS[:5]), base.encode_queries(TEXTS[:5]), atol=1e-2)
    attach(opened, LORA)  # it can be adapted as any base
    assert [path.name for path in primed.path.parent.iterdir()] == ["model"]


def test_every_source_kept_its_parts_and_none_is_below_its_base(primed: prime_module.PrimeResult) -> None:
    assert [(one.name, one.kind, one.evidence) for one in primed.sources] == [
        ("one", "collection", "labelled"), ("two", "collection", "labelled"),
    ]  # fmt: skip
    for one, count in zip(primed.sources, (60, 70), strict=True):
        assert one.train + one.dev + one.heldout == one.passages == count
        assert abs(one.dev - one.heldout) <= 1
        assert min(one.dev, one.heldout) >= 8
        assert one.after >= one.before and one.drift > 1e-4


def test_card_lists_sources_licences_and_figures(primed: prime_module.PrimeResult) -> None:
    assert primed.path is not None
    card = (primed.path / "README.md").read_text(encoding="utf-8")
    assert "- one: CC BY 4.0 (the authors')" in card and "- two: CC0" in card
    for one in primed.sources:
        assert f"| {one.before:.3f} → {one.after:.3f} | {one.drift:.3f} |" in card
    facts = json.loads((primed.path / FACTS).read_text(encoding="utf-8"))
    assert (facts["recipe"]["name"], facts["adapter"]["method"], facts["training"]["epochs"]) == (
        "multitask",
        "full",
        3,
    )


def test_guard_writes_nothing_where_a_source_would_lose(
    base: Encoder, sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = DevPool.score
    lost: list[DevPool] = []

    def scored(pool: DevPool, encoder: Encoder, *rest: object) -> float:
        """As it is, but that one source's held-out questions lose by whatever is learnt."""
        real = score(pool, encoder)
        return real - (0.5 if pool in lost and encoder is not base_of[0] else 0.0)

    base_of: list[Encoder] = []
    train_all = prime_module._train

    def watched(work: object, found: list[prime_module._Prepared], encoder: Encoder, *rest: object) -> object:
        base_of.append(encoder)
        lost.append(found[1].heldout)
        return train_all(work, found, encoder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(prime_module, "_train", watched)
    monkeypatch.setattr(DevPool, "score", scored)
    result = prime(sources, tmp_path / "model", config_of(base))
    assert not result.primed and not (tmp_path / "model").exists()
    assert "ends below its base (at" in result.reason and "two 0." in result.reason


def test_a_killed_priming_keeps_its_stages(base: Encoder, sources: list[Path], tmp_path: Path) -> None:
    def killed(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == total - 1:
            raise KeyboardInterrupt

    config = config_of(base)
    with pytest.raises(KeyboardInterrupt):
        prime(sources, tmp_path / "model", config, progress=killed)
    seen: list[str] = []
    result = prime(sources, tmp_path / "model", config, progress=lambda stage, *_: seen.append(stage))
    assert result.primed
    assert not any("encode passages" in stage for stage in seen)  # the vectors were kept
    assert seen.count("training") < result.steps


def test_retriever_brings_the_questions_of_its_fit_and_its_feedback(
    base: Encoder, sources: list[Path], tmp_path: Path
) -> None:
    retriever = fit_trained(tmp_path)
    kept = DividedQueries.read(retriever / "report" / "questions")
    assert {query.kind for part in (kept.train, kept.dev, kept.heldout) for query in part} >= {"label"}
    steps = []
    read = prime_module._SourceSteps.kept_queries

    def watched(self: prime_module._SourceSteps, *given: object) -> DividedQueries:
        steps.append(read(self, *given))  # type: ignore[arg-type]
        return steps[-1]

    config = config_of(base, max_steps=1)
    config = config.model_copy(
        update={"encoder": config.encoder.model_copy(update={"model": str(tmp_path / "base/model")})}
    )
    with Retriever.open(retriever) as opened:
        for at in range(4):
            hit = opened.search(f"asked {at}", k=1, mode="lexical") or opened.search("page", k=1)
            opened.add_feedback(f"what was asked {at}", hit[0].chunk.id)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prime_module._SourceSteps, "kept_queries", watched)
        patch.setattr(prime_module, "FEWEST_DEV", 2)
        patch.setattr("ragadapt.pipeline.adapt.FEWEST_DEV", 2)
        prime([retriever, sources[0]], tmp_path / "model", config)
    texts = {query.text for part in (steps[0].train, steps[0].dev, steps[0].heldout) for query in part}
    assert texts >= {f"what was asked {at}" for at in range(4)}
    assert texts >= {query.text for query in kept.train}


def test_source_without_questions_is_told_by_name(base: Encoder, sources: list[Path], tmp_path: Path) -> None:
    docs = tmp_path / "plain"
    docs.mkdir()
    (docs / "page.md").write_text("# Page\n\n" + ". ".join(TEXTS[:20]))
    with pytest.raises(InvalidInput, match=r"plain has 0 questions to train on.*--generator"):
        prime([sources[0], docs], tmp_path / "model", config_of(base))


def test_a_retriever_without_enough_questions_is_told_before_its_passages_are_encoded(
    base: Encoder, sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = fit_pages(tmp_path)

    def encode(*_: object, **__: object) -> None:
        raise AssertionError("encoded in vain")

    monkeypatch.setattr(prime_module._SourceSteps, "encode", encode)
    with pytest.raises(InvalidInput, match="retriever has 0 questions to train on"):
        prime([retriever, sources[0]], tmp_path / "primed", config_of(base))


def test_what_cannot_be_primed_is_refused_at_once(base: Encoder, sources: list[Path], tmp_path: Path) -> None:
    for method in ("none", "houlsby"):
        config = config_of(base).model_copy(update={"adapter": AdapterConfig(method=method)})  # type: ignore[arg-type]
        with pytest.raises(InvalidConfiguration):
            prime(sources, tmp_path / "model", config)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("mine")
    with pytest.raises(StoreError, match="no priming wrote"):
        prime(sources, tmp_path / "mine", config_of(base))
    with pytest.raises(InvalidInput, match="'three', which is no source"):
        prime(sources, tmp_path / "model", config_of(base), licences={"three": "MIT"})


def test_command_primes_and_says_what_came_of_it(
    base: Encoder, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(base, max_steps=6)
    toml = tmp_path / "prime.toml"
    toml.write_text(
        f'[encoder]\nmodel = "{config.encoder.model}"\nprecision = "float32"\n[chunk]\nmax_tokens = 40\n'
        "min_tokens = 4\n[training]\nmax_steps = 6\nlearning_rate = 1e-3\nbatch_size = 8\n"
    )
    places = [str(place) for place in sources]
    asked = ["prime", *places, "-o", str(tmp_path / "model"), "--config", str(toml), "--method", "lora"]
    code = run([*asked, "--recipe", "maml", "--licence", "one=MIT", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == (0 if found["path"] else 3)
    assert {one["name"]: one["licence"] for one in found["sources"]}["one"] == "MIT"
    assert found["steps"] == 2
    assert run(["prime", *places, "-o", str(tmp_path / "model"), "--licence", "one"]) == 2


# The benchmark


def test_benchmark_leaves_each_collection_out_and_goes_on_where_it_stopped(
    base: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
    benchmark = importlib.import_module("priming")
    texts = sentences(200, words=12, seed=9)
    for at, name in enumerate(("a", "b", "c")):
        own = texts[66 * at : 66 * at + 66]
        write_collection(tmp_path / "data" / name, own, ("train", "test") if name == "a" else ("test",))
    given = ["priming.py", "--data", str(tmp_path / "data"), "--collections", "a,b,c", "--left-out", "a"]
    given += ["--folder", str(tmp_path / "out"), "--model", base.config.model, "--sizes", "4", "--draws", "1"]
    given += ["--smoke", "--recipes", "maml,blend"]
    monkeypatch.setattr("sys.argv", given)
    benchmark.main()
    cells = {path.stem: path.read_bytes() for path in (tmp_path / "out" / "cells").glob("*.json")}
    assert cells.keys() >= {
        "prime-maml-a", "zero-a-plain", "few-a-plain-4-0", "few-a-blend-4-0", "full-a-plain", "adapter-b",
        "adapter-c", "nearest-a", "blend-a",
    }  # fmt: skip
    assert not {"few-b-plain-4-0", "adapter-a", "full-a-blend"} & cells.keys()
    assert cells["few-a-blend-4-0"] != cells["few-a-plain-4-0"]
    assert "| library, zero-shot | nearest | 1 |" in capsys.readouterr().out
    benchmark.main()
    assert capsys.readouterr().out.startswith("| task")  # nothing was made anew
    assert cells == {path.stem: path.read_bytes() for path in (tmp_path / "out" / "cells").glob("*.json")}
    summary = json.loads((tmp_path / "out" / "priming.json").read_text())
    plain, nearest = (summary["cells"][f"{name}"]["dense"] for name in ("zero-a-plain", "nearest-a"))
    row = next(row for row in summary["rows"] if row["from"] == "nearest")
    assert row["ARG dense"] == pytest.approx((nearest - plain) / plain, abs=1e-3)


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--recipes", "multitask,nope", "'nope': there are multitask, maml, reptile, blend"),
        ("--parts", "fwe", "'fwe': there are few, full, library"),
        ("--rate", "-1", "above 0"),
    ],
)
def test_benchmark_says_what_is_wrong_before_it_works(
    option: str,
    value: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
    benchmark = importlib.import_module("priming")
    for name in ("a", "b", "c"):
        write_collection(tmp_path / "data" / name, sentences(4), ("test",))
    given = [
        "--data",
        str(tmp_path / "data"),
        "--collections",
        "a,b,c",
        "--folder",
        str(tmp_path / "out"),
        option,
        value,
    ]
    monkeypatch.setattr("sys.argv", ["priming.py", *given])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
