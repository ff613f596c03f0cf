"""The gate: what may judge, what may train, and that harm never ships."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ragadapt.config import GateConfig, SplitConfig
from ragadapt.evaluation.gate import (
    DENSE,
    GENTLE,
    PRIOR_QUERIES,
    SEARCH,
    Decision,
    Plan,
    Prior,
    Verdict,
    decide,
    expected,
    labels_needed,
    labels_to_judge,
    likely,
    step_back,
)
from ragadapt.evaluation.gate import plan as any_plan
from ragadapt.values import Evidence, Query


def queries(kind: str, evidence: Evidence, count: int, start: int = 0) -> list[Query]:
    return [
        Query(f"{kind}{number}", f"text {number}", kind, evidence, (f"c{number}",))
        for number in range(start, start + count)
    ]


def plan(*parts: Any, **changes: Any) -> Plan:
    """The plan where labels are judged by those that were held out."""
    return any_plan(*parts, config=GateConfig(cross_fit_below=0), **changes)


LABELLED = queries("label", Evidence.LABELLED, 60)
LINKS = queries("link", Evidence.HUMAN, 60)
QUESTIONS = queries("question", Evidence.HUMAN, 80)
CROPS = queries("sentence", Evidence.CROP, 500)


def test_crops_alone_never_let_a_model_through() -> None:
    made = plan(CROPS, CROPS)
    assert made.train == ()
    assert made.evidence is None
    assert "500 crop" in made.reason


def test_labelled_queries_judge_and_train() -> None:
    made = plan(LABELLED[:40] + CROPS, LABELLED[40:] + CROPS)
    assert made.evidence is Evidence.LABELLED
    assert {query.kind for query in made.train} == {"label"}
    assert {query.kind for query in made.judge} == {"label"}


def test_where_labels_are_enough_to_train_what_people_wrote_in_the_documents_does_not() -> None:
    paraphrases = queries("query", Evidence.PARAPHRASE, 20)
    made = plan(LABELLED[:30] + LINKS + paraphrases + QUESTIONS, LABELLED[30:])
    assert made.train == tuple(LABELLED[:30] + paraphrases)
    assert f"{len(LINKS) + len(QUESTIONS)} found in the documents do not" in made.reason
    few = plan(LABELLED[:5] + LINKS, LABELLED[5:])  # five labels teach nothing: all links train
    assert few.train == tuple(LABELLED[:5] + LINKS)
    assert "do not" not in few.reason


def test_of_what_people_wrote_one_kind_judges_and_the_others_train() -> None:
    made = plan(LINKS + QUESTIONS + CROPS, LINKS + QUESTIONS + CROPS)
    assert made.evidence is Evidence.HUMAN
    assert {query.kind for query in made.judge} == {"question"}
    assert "question" not in {query.kind for query in made.train}
    assert {query.kind for query in made.train} == {"link"}


def test_a_language_models_questions_train_and_judge_before_what_people_wrote_in_the_documents() -> None:
    written = queries("lm-question", Evidence.PARAPHRASE, 120)
    made = any_plan(written[:80] + LINKS + QUESTIONS, written[80:] + LINKS + QUESTIONS)
    assert (made.evidence, made.judge, made.train, made.crossed) == (Evidence.PARAPHRASE, *[tuple(written)] * 2, 2)
    fewer = any_plan(written[:60] + LINKS, QUESTIONS)
    assert (fewer.evidence, fewer.judge) == (Evidence.HUMAN, tuple(QUESTIONS))
    assert fewer.train == tuple(written[:60] + LINKS)
    dense = any_plan(written[:80] + LINKS, written[80:] + QUESTIONS, dense_share=0.7)
    assert (dense.evidence, dense.judge) == (Evidence.HUMAN, tuple(QUESTIONS))
    assert "single passages out so clearly" in any_plan(written[:80], written[80:], dense_share=0.7).reason


def test_nothing_is_trained_where_only_crops_are_left_to_train_on() -> None:
    made = plan(QUESTIONS + CROPS, QUESTIONS + CROPS)
    assert made.train == ()
    assert "only 0 are left" in made.reason


def test_a_handful_of_questions_lets_no_crops_in() -> None:
    made = plan(LABELLED[:5] + CROPS, LABELLED[5:40] + CROPS)
    assert made.train == ()
    assert "only 5 are left" in made.reason


def test_too_few_labelled_queries_cannot_judge() -> None:
    assert plan(LABELLED[:40], LABELLED[40:45]).train == ()


@pytest.mark.parametrize(
    ("trained", "heldout", "split", "needed"),
    [
        (0, 0, {}, 50),  # a fifth of them is held out
        (0, 7, {}, 23),  # and 16 have to train, of seven tenths
        (28, 7, {}, 15),
        (30, 9, {"heldout": 0.5}, 2),
        (10, 10, {"dev": 0.0, "heldout": 0.5}, 12),
        (20, 9, {"heldout": 0.0}, None),
        (16, 10, {}, 0),
    ],
)
def test_the_number_of_labels_that_would_be_enough_follows_from_the_split(
    trained: int, heldout: int, split: dict[str, float], needed: int | None
) -> None:
    assert labels_needed(trained, heldout, SplitConfig.model_validate(split)) == needed


def test_where_nothing_is_trained_the_reason_says_how_many_labels_would_do() -> None:
    few = plan(LABELLED[:29], LABELLED[29:36])
    assert few.train == () and "15 more labelled questions (--queries) would be enough" in few.reason
    none = plan(CROPS, CROPS)
    assert ". 16 labelled questions (--queries) would be enough to judge" in any_plan(CROPS, CROPS).reason
    assert ". 6 more labelled" in any_plan(LABELLED[:5], LABELLED[5:10]).reason
    assert ". 50 labelled questions (--queries) would be enough to judge a trained model;" in none.reason
    enough = plan(LABELLED[:5], LABELLED[5:40])
    assert "16 more labelled questions (--queries) would be enough" in enough.reason


def judged(adapted: np.ndarray, base: np.ndarray, drift: float = 0.05, strength: float = 1.0):  # type: ignore[no-untyped-def]
    return decide(
        strength=strength, dense=(adapted, base), search=(adapted, base), drift=drift, config=GateConfig(), seed=1
    )


@pytest.fixture
def base() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.2, 0.8, 200)


def test_a_clear_gain_ships(base: np.ndarray) -> None:
    decision = judged(base + 0.05, base, strength=0.75)
    assert decision.verdict is Verdict.WIN
    assert decision.strength == 0.75


def test_a_loss_never_ships(base: np.ndarray) -> None:
    decision = judged(base - 0.05, base)
    assert decision.verdict is Verdict.REGRESSION_AVOIDED
    assert decision.strength == 0


def test_a_loss_within_noise_is_no_regression(base: np.ndarray) -> None:
    noise = np.random.default_rng(2).normal(0, 0.2, 200)
    noise -= noise.mean() + 0.002  # of a standard error of .014
    decision = judged(base + noise, base)
    assert (decision.verdict, decision.strength) == (Verdict.NO_GAIN, 0)
    assert "no proof of a gain: the base stays" in decision.reasons


def test_a_gain_within_noise_does_not_ship(base: np.ndarray) -> None:
    noise = np.random.default_rng(1).normal(0.002, 0.2, 200)
    decision = judged(np.clip(base + noise, 0, 1), base)
    assert not decision.adapted


def test_a_gain_that_moved_everything_else_does_not_ship(base: np.ndarray) -> None:
    decision = judged(base + 0.05, base, drift=0.9)
    assert not decision.adapted
    assert "moved by 0.90" in " ".join(decision.reasons)


def test_a_gain_on_known_answers_does_not_hide_a_loss_on_new_ones(base: np.ndarray) -> None:
    met = np.arange(200) < 120
    settings = {"strength": 1.0, "drift": 0.0, "config": GateConfig(), "seed": 1, "met": met.tolist()}
    mixed = base + np.where(met, 0.2, -0.05)
    decision = decide(dense=(mixed, base), search=(mixed, base), **settings)
    assert decision.verdict is Verdict.REGRESSION_AVOIDED
    assert "80 ask for what no training question asked for: dense -0.050" in " ".join(decision.reasons)
    even = base + np.where(met, 0.2, 0.0)
    assert decide(dense=(even, base), search=(even, base), **settings).adapted


def test_where_new_answers_lose_less_of_what_was_learnt_ships_if_it_spares_them(base: np.ndarray) -> None:
    met = (np.arange(200) < 120).tolist()
    settings = {"strength": 1.0, "drift": 0.0, "config": GateConfig(), "seed": 1, "met": met}

    def decided(known: float, new: float) -> Decision:
        mixed = base + np.where(met, known, new)
        return decide(dense=(mixed, base), search=(mixed, base), **settings)

    refused, shipped = decided(0.2, -0.05), replace(decided(0.1, 0.01), strength=0.5)
    assert refused.too_far and not refused.adapted and shipped.spares_new
    assert not decided(0.0, -0.05).too_far and not decided(-0.1, 0.0).too_far and not decided(-0.1, 0.0).spares_new
    assert not decide(dense=(base + 0.1, base), search=(base - 0.1, base), **settings).too_far  # it lost on all
    noisy = base + np.where(met, 0.2, np.random.default_rng(3).normal(0, 0.1, 200))
    noisy -= np.where(met, 0, (noisy - base)[~np.asarray(met)].mean() + 0.018)
    uneasy = decide(dense=(noisy, base), search=(noisy, base), **settings)
    assert uneasy.adapted and uneasy.too_far and not uneasy.spares_new  # the default search lost, not beyond doubt
    assert decide(dense=(noisy, base), search=(base + 0.1, base), **settings).spares_new  # of dense search it is noise

    def stepped(whole: Decision, strength: float, **less: Decision) -> Decision:
        decisions = {float(at): one for at, one in zip(strengths, less.values(), strict=False)}
        return step_back(whole, strength, strengths, decisions.__getitem__)

    strengths = [0.75, 0.5, 0.25]
    less = stepped(refused, 1.0, first=uneasy, second=shipped)
    assert (less.verdict, less.strength) == (Verdict.WIN, 0.5)
    assert less.reasons[:-1] == shipped.reasons
    note = "at strength 1 questions with new answers lost (dense -0.050 "
    assert less.reasons[-1].startswith(note) and less.reasons[-1].endswith("so it ships at 0.5")
    strengths = [0.5, 0.25]
    none = stepped(refused, 1.0, first=refused, second=refused)
    assert (none.verdict, none.strength) == (Verdict.REGRESSION_AVOIDED, 0)
    note = "less of what it learnt (strength 0.5, 0.25) would not spare questions with new answers and gain"
    assert none.reasons == (*refused.reasons, note)
    assert stepped(uneasy, 1.0, first=refused, second=refused).strength == 1  # it ships as it is
    assert stepped(refused, 0.25) is refused and stepped(shipped, 1.0) is shipped


def test_a_dense_gain_ships_unless_the_default_search_loses_more_than_a_standard_error(base: np.ndarray) -> None:
    settings = {"strength": 1.0, "drift": 0.0, "config": GateConfig(), "seed": 1}
    flat = base + np.random.default_rng(2).normal(0, 0.1, 200)
    flat -= (flat - base).mean()
    error = (flat - base).std(ddof=1) / 200**0.5
    for lost, ships in ((-0.001, True), (0.0, True), (0.8 * error, True), (1.2 * error, False), (0.1, False)):
        decision = decide(dense=(base + 0.05, base), search=(flat - lost, base), **settings)
        assert decision.adapted == ships, lost
    assert "did not lose beyond noise" in decide(dense=(base + 0.05, base), search=(flat, base), **settings).reasons[-1]
    assert not decide(dense=(base, base), search=(flat - 0.5 * error, base), **settings).adapted


def test_judges_that_flatter_must_show_a_gain_of_the_default_search_too(base: np.ndarray) -> None:
    settings = {"strength": 1.0, "drift": 0.0, "config": GateConfig(), "seed": 1, "flattering": True}
    better = base + 0.05
    for search, ships in ((better, True), (base, False)):
        decision = decide(dense=(better, base), search=(search, base), **settings)
        assert decision.adapted == ships
    assert (decision.verdict, decision.strength) == (Verdict.NO_GAIN, 0)
    assert "the default search must gain, too" in decision.reasons[-2]
    gentle = settings | {"strength": GENTLE}
    assert decide(dense=(better, base), search=(base, base), **gentle).strength == GENTLE
    noise = np.random.default_rng(2).normal(0, 0.1, 200)
    lost = decide(dense=(better, base), search=(base + noise - noise.mean() - 0.001, base), **gentle)
    assert not lost.adapted
    assert "the default search must not lose" in lost.reasons[-2]


# A gain that is likely


def few_labels(mean: float, spread: float = 0.05, count: int = 50, seed: int = 3) -> np.ndarray:
    """Differences per query with just this mean."""
    noise = np.random.default_rng(seed).normal(0, spread, count)
    return np.asarray(noise - noise.mean() + mean)


def test_few_labels_let_a_likely_gain_ship_and_say_what_it_risks() -> None:
    base = np.full(50, 0.5)
    gain = few_labels(0.008)
    settings = {"strength": 0.5, "drift": 0.0, "seed": 1, "dense": (base + gain, base), "search": (base + gain, base)}
    decision = decide(config=GateConfig(), labelled=True, **settings)
    assert (decision.verdict, decision.strength) == (Verdict.LIKELY_GAIN, 0.5)
    assert "too few questions to prove a gain, but one is likely" in decision.reasons[-1]
    assert decide(config=GateConfig(), **settings).verdict is Verdict.NO_GAIN
    assert decide(config=GateConfig(risk=0.0), labelled=True, **settings).verdict is Verdict.NO_GAIN


@pytest.mark.parametrize(("dense", "search"), [(0.008, -0.004), (-0.001, 0.008), (0.0, 0.0), (-0.02, -0.02)])
def test_what_may_lose_in_either_search_is_no_likely_gain(dense: float, search: float) -> None:
    base = np.full(50, 0.5)
    sides = {"dense": (base + few_labels(dense), base), "search": (base + few_labels(search, seed=4), base)}
    decision = decide(strength=0.5, drift=0.0, config=GateConfig(), seed=1, labelled=True, **sides)
    assert not decision.adapted


def test_queries_that_all_happen_to_change_nothing_are_no_certainty() -> None:
    same = np.full(12, 0.5)
    found = expected(same, same, SEARCH, strength=1.0, tolerance=0.005)
    assert found.mean == 0
    assert found.risk > GateConfig().risk
    assert expected(np.full(2000, 0.5), np.full(2000, 0.5), SEARCH, strength=1.0, tolerance=0.005).risk < 0.01


@pytest.mark.parametrize("prior", [DENSE, SEARCH])
def test_the_expected_gain_is_the_mean_under_the_prior(prior: Prior) -> None:
    """Against a sum over a fine grid of gains."""
    differences, strength = few_labels(0.01), 0.5
    found = expected(differences, np.zeros(50), prior, strength=strength, tolerance=0.005)
    gains = np.linspace(-0.1, 0.1, 20_001)
    squares = ((differences - differences.mean()) ** 2).sum() + PRIOR_QUERIES * (prior.queries * strength) ** 2
    error = (squares / (50 + PRIOR_QUERIES) / 50) ** 0.5
    weights = np.exp(
        -(gains**2) / (2 * (prior.corpora * strength) ** 2) - (gains - differences.mean()) ** 2 / (2 * error**2)
    )
    weights /= weights.sum()
    assert found.mean == pytest.approx((weights * gains).sum(), abs=1e-6)
    assert found.risk == pytest.approx(weights[gains < -0.005].sum(), abs=1e-3)


@pytest.mark.parametrize("prior", [DENSE, SEARCH])
def test_of_the_likely_gains_no_more_lose_than_was_said(prior: Prior) -> None:
    """Ten thousand corpora whose models gain as the prior says, judged by 50 questions each."""
    rng = np.random.default_rng(0)
    config, strength, shipped, lost = GateConfig(), 0.5, 0, 0
    for _ in range(10_000):
        gain = rng.normal(0, prior.corpora * strength)
        seen = gain + rng.normal(0, prior.queries * strength, 50)
        side = expected(seen, np.zeros(50), prior, strength=strength, tolerance=config.tolerance)
        if likely([side, side], config):
            shipped += 1
            lost += gain < -config.tolerance
    assert shipped > 2_000
    assert lost / shipped < config.risk / 2


def test_few_judges_are_said(base: np.ndarray) -> None:
    assert "fewer than 100" in " ".join(judged(base[:30] + 0.05, base[:30]).reasons)


@pytest.mark.parametrize("below", [0, 10, 16, 17, 200])
@pytest.mark.parametrize("heldout", [0.2, 0.5])
def test_so_many_labels_and_no_fewer_let_a_model_be_judged(below: int, heldout: float) -> None:
    split = SplitConfig(heldout=heldout)
    config = GateConfig(cross_fit_below=below)
    needed = labels_to_judge(split, config)
    assert needed is not None

    def trains(count: int) -> bool:
        made = queries("label", Evidence.LABELLED, count)
        held, dev = int(count * heldout), int(count * (1 - heldout) * split.dev)  # no part gets more than its share
        parts = made[held + dev :], made[:held]
        return bool(any_plan(*parts, dev=made[held : held + dev], split=split, config=config).train)

    assert trains(needed)
    if below > needed:  # held-out parts are rounded, so that there a label less may do
        assert not any(trains(count) for count in range(needed))


def test_no_number_of_labels_judges_where_none_is_held_out() -> None:
    assert labels_to_judge(SplitConfig(heldout=0), GateConfig(cross_fit_below=0)) is None
