"""λ, k and the fusion weight from the ledger alone, by cross-validation over its queries.

The queries are dealt into folds, those that say the same together. Each fold is searched with the feedback of the
others, so every query is judged as one that nobody has answered yet. The gain that is reported, and that the gate
looks at, is cross-validated once more: a fold's setting is the one that is chosen on the other folds. What is chosen
leans to the settings in use: it is the one whose gain over them is largest after two standard errors are taken off. And
it is adopted only where the gain of choosing so lies above 0 beyond doubt (99 %) on average over several deals of the
folds, and above 0 in each.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragadapt.config import PefaConfig
from ragadapt.errors import InvalidInput
from ragadapt.evaluation import Interval, interval, paired_bootstrap
from ragadapt.evaluation.judging import JudgedQuery
from ragadapt.pefa.layer import Pefa
from ragadapt.pefa.state import SHARED, State
from ragadapt.pefa.views import ExtraLargeSearch, ExtraShortSearch
from ragadapt.queries import text_key
from ragadapt.search.fusion import WEIGHTS, Floats, Fusion, normal_surprisal
from ragadapt.search.searcher import Dense, Plain, Searcher
from ragadapt.values import Evidence, Progress, Query, no_progress

log = logging.getLogger(__name__)

LAMBDAS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
NEIGHBOURS = (4, 16, 64)
FOLDS = 5
DEALS = 3  # of the folds, by seeds of their own: all must gain before a setting is changed
SURE = 0.99  # of the interval that must lie above 0: with few questions the bootstrap's are too narrow
LEAN = 2  # standard errors taken off a gain before settings are compared: the curve's best is partly luck
FEWEST = 10  # queries below which nothing can be said: the settings stay
MOST = 1000  # queries judged; the curve is smooth long before. All feedback of the other folds counts
_DEPTH = 100
_ALL_WEIGHTS = (*WEIGHTS, 1.0)  # 1: the lexical side is left out, so that adding it never lowers anything

Setting = tuple[str, int, float]
"""method, k, λ"""


@dataclass(frozen=True, slots=True)
class Tuned:
    """What cross-validation says. values: settings for the ledger; empty where those in use stay.

    helps: feedback, as it is set now, makes search better on average on queries that nobody had answered. curve: (λ,
    mean nDCG@10 with interval) of the chosen method, k and weight, λ = 1 (plain) last. gain: of the default search with
    feedback, as it is set now, over the same search without; dense_gain: of dense search; over_defaults: of what was
    chosen over the settings in use, which decides. plain, chosen: mean nDCG@10 of the search without feedback, and as
    set now. All of it on queries that had no say in the choice.
    """

    values: dict[str, Any]
    helps: bool
    queries: int
    plain: float
    chosen: float
    gain: Interval | None
    dense_gain: Interval | None
    over_defaults: Interval | None
    curve: tuple[tuple[float, Interval], ...]
    reason: str


def tune(
    pefa: Pefa,
    searcher: Searcher | None = None,
    *,
    document_of: Mapping[str, str] | None = None,
    methods: Sequence[str] = ("xs", "xl"),
    seed: int = 13,
    most: int = MOST,
    progress: Progress = no_progress,
) -> Tuned:
    """Cross-validate over the feedback that is for all. Nothing is kept: pass `values` to `Pefa.tune_to`.

    searcher: of the same index, for hybrid search; None = dense search only. document_of: passage id → document id,
    to judge feedback on documents by document. Raises InvalidInput where there is no feedback.
    """
    judged = _judged(pefa, searcher, document_of)
    if not judged:
        raise InvalidInput(
            "There is no positive feedback to tune with; what one tenant said is not tuned on. "
            "Add some for all first: ragadapt refresh --feedback"
        )
    if len(judged) < FEWEST:
        reason = f"only {len(judged)} questions have feedback; with fewer than {FEWEST} the settings stay as they are"
        return Tuned({}, False, len(judged), float("nan"), float("nan"), None, None, None, (), reason)
    texts = [item.query.text for item in judged]
    rng = np.random.default_rng(seed)
    asked = np.sort(rng.permutation(len(judged))[:most])
    tables: list[_Table] = []
    for deal in range(DEALS):
        table = _Table(pefa, searcher, judged, _deal(texts, seed + deal), asked, methods)
        table.fill(progress)
        tables.append(table)
        if not table.gains():  # one that disagrees is enough
            break
    return choose(tables, seed)


class _Table:
    """nDCG@10 by setting, fusion weight and query."""

    def __init__(
        self,
        pefa: Pefa,
        searcher: Searcher | None,
        judged: Sequence[JudgedQuery],
        folds: NDArray[np.int64],
        asked: NDArray[np.int64],
        methods: Sequence[str],
    ) -> None:
        self.pefa = pefa
        self.searcher = searcher
        self.judged = judged
        self.folds = folds
        self.asked = asked
        self.settings: list[Setting] = [("plain", 0, 1.0), _setting(pefa.config)]
        if "xs" in methods:
            self.settings += [("xs", 0, lam) for lam in LAMBDAS]
        if "xl" in methods:
            self.settings += [("xl", k, lam) for k in NEIGHBOURS for lam in LAMBDAS]
        self.settings = list(dict.fromkeys(self.settings))
        self.now = self.settings.index(_setting(pefa.config))
        self.weights = _ALL_WEIGHTS if searcher is not None else (1.0,)
        self.quality = np.zeros((len(self.settings), len(self.weights), len(asked)))
        self.dense = np.zeros((len(self.settings), len(asked)))

    def fill(self, progress: Progress) -> None:
        total, done = FOLDS * len(self.settings), 0
        column_of = {query: column for column, query in enumerate(self.asked.tolist())}
        known = self.pefa.state.queries
        for fold in range(FOLDS):
            items = [at for at in self.asked.tolist() if self.folds[at] == fold]
            if not items:
                done += len(self.settings)
                continue
            held = {known[self.judged[at].query.text] for at in np.flatnonzero(self.folds == fold).tolist()}
            state = without(self.pefa, held)
            vectors = self.pefa.state.query_vectors[[known[self.judged[at].query.text] for at in items]]
            columns = [column_of[at] for at in items]
            for row, (method, k, lam) in enumerate(self.settings):
                dense = self._side(state, method, k, lam)
                for column, at, (mixed, alone) in zip(columns, items, self._ranked(dense, items, vectors), strict=True):
                    judge = self.judged[at]
                    self.quality[row, :, column] = [judge.ndcg(positions) for positions in mixed]
                    self.dense[row, column] = judge.ndcg(alone)
                done += 1
                progress("tune", done, total)
        self.quality[0] = self.quality[0, self.plain_start]  # without feedback the weight is not tuned

    def chosen(self) -> NDArray[np.int64]:
        """(2, n) the setting and weight that each query had from the folds without it."""
        folds = self.folds[self.asked]
        own = np.zeros((2, len(self.asked)), np.int64)
        for fold in np.unique(folds):
            inside = folds == fold
            best = _best(self.quality[:, :, ~inside], (self.now, self.start))
            own[:, inside] = np.array(best)[:, None]
        return own

    def gains(self) -> bool:
        """Whether choosing gains anything over the setting in use, on questions that had no say."""
        return bool(self.gained(self.chosen()).mean() > self.quality[self.now, self.start].mean())

    def gained(self, own: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n,) nDCG@10 of each query under the setting and weight that it had no say in."""
        found: NDArray[np.float64] = self.quality[own[0], own[1], np.arange(len(self.asked))]
        return found

    @property
    def start(self) -> int:
        """The weight in use, as near as the table has it."""
        if self.searcher is None:
            return 0
        wanted = self.pefa.config.fusion_weight
        wanted = self.searcher.fusion.weight if wanted is None else wanted
        return min(range(len(self.weights)), key=lambda at: abs(self.weights[at] - wanted))

    @property
    def plain_start(self) -> int:
        """The weight of the search without feedback."""
        if self.searcher is None:
            return 0
        wanted = self.searcher.fusion.weight
        return min(range(len(self.weights)), key=lambda at: abs(self.weights[at] - wanted))

    def _side(self, state: State, method: str, k: int, lam: float) -> Dense:
        index = self.pefa.index
        if method == "plain":
            return Plain(index)
        if method == "xs":
            return ExtraShortSearch(index, state, lam)
        return ExtraLargeSearch(index, state, lam, k, missing=self.pefa.config.missing)

    def _ranked(
        self, dense: Dense, items: Sequence[int], vectors: Floats
    ) -> Iterator[tuple[list[NDArray[np.int64]], NDArray[np.int64]]]:
        """Per query the ranked positions at each fusion weight, and those of dense search."""
        if self.searcher is None:
            number_of = self.pefa.state.overlays[SHARED].index
            for ids, _ in dense.search(vectors, _DEPTH):
                ranked = np.array([number_of.get(id, -1) for id in ids], np.int64)
                yield [ranked], ranked
            return
        texts = [self.judged[at].query.text for at in items]
        fusion: Fusion = self.searcher.fusion
        for found in self.searcher.candidates(texts, vectors, fusion=fusion, dense=dense):
            side = normal_surprisal(found.dense) if fusion.method == "surprisal" else found.dense
            mixed = [
                found.positions[np.argsort(-(weight * side + (1 - weight) * found.lexical), kind="stable")[:_DEPTH]]
                for weight in self.weights
            ]
            yield mixed, found.positions[np.argsort(-found.dense, kind="stable")[:_DEPTH]]


def without(pefa: Pefa, held: set[int]) -> State:
    """The state with all shared feedback but that on these queries (rows of pefa.state.query_vectors)."""
    whole = pefa.state
    state = State(whole.dim, pefa.config)
    state.now = whole.now
    state.add_queries(list(whole.queries), whole.query_vectors)
    shared = whole.overlays[SHARED]
    touched = []
    for id in shared.ids:
        entries = [entry for entry in whole.entries(id, SHARED) if entry.query not in held]
        state.insert([(entry, SHARED) for entry in entries])
        if entries:
            touched.append(id)
    rows = [shared.index[id] for id in touched]
    state.recompute(dict(zip(touched, shared.plain[rows], strict=True)))
    return state


def _judged(pefa: Pefa, searcher: Searcher | None, document_of: Mapping[str, str] | None) -> list[JudgedQuery]:
    """Every query with positive feedback that is for all, with the passages (or documents) that answer it."""
    pefa.catch_up()
    shared = pefa.state.overlays[SHARED]
    liked: dict[int, dict[str, float]] = {}
    for id in shared.ids:
        for entry in pefa.state.entries(id, SHARED):
            passages = liked.setdefault(entry.query, {})
            passages[id] = passages.get(id, 0.0) + entry.weight
    text_of = {row: text for text, row in pefa.state.queries.items()}
    unit_of, number_of = None, shared.index
    if searcher is not None:
        ids = [id for found in liked.values() for id in found]
        number_of = dict(zip(ids, searcher.positions(ids).tolist(), strict=True))
        if document_of is not None:
            numbers: dict[str, int] = {}
            every = [document_of[id] for id in searcher.lexical.ids()]
            unit_of = np.array([numbers.setdefault(document, len(numbers)) for document in every], np.int64)
    judged = []
    for row, passages in sorted(liked.items()):
        relevant = {number_of[id] for id, weight in passages.items() if weight > 0}
        if unit_of is not None:
            relevant = {int(unit_of[at]) for at in relevant}
        if relevant:
            query = Query(str(row), text_of[row], "feedback", Evidence.LABELLED, tuple(passages))
            judged.append(JudgedQuery(query, dict.fromkeys(relevant, 1), unit_of))
    return judged


def _deal(texts: Sequence[str], seed: int) -> NDArray[np.int64]:
    """A fold for every text, equal for texts that say the same."""
    keys = [text_key(text) for text in texts]
    distinct = sorted(set(keys))
    order = np.random.default_rng(seed).permutation(len(distinct))
    fold_of = {distinct[at]: number % FOLDS for number, at in enumerate(order.tolist())}
    return np.array([fold_of[key] for key in keys], np.int64)


def choose(tables: Sequence[_Table], seed: int) -> Tuned:
    """What one or more deals of the folds say, all over the same queries and settings."""
    first = tables[0]
    mean = np.mean([table.quality for table in tables], axis=0)
    row, weight = _best(mean, (first.now, first.start))
    plain_weight = first.plain_start
    plain = np.mean([table.quality[0, plain_weight] for table in tables], axis=0)
    current = np.mean([table.quality[table.now, table.start] for table in tables], axis=0)
    owns = [table.chosen() for table in tables]
    gained = np.mean([table.gained(own) for table, own in zip(tables, owns, strict=True)], axis=0)
    over = paired_bootstrap(gained, current, seed=seed)
    adopt = (row, weight) != (first.now, first.start) and len(tables) == DEALS
    adopt = adopt and all(table.gains() for table in tables)
    adopt = adopt and paired_bootstrap(gained, current, confidence=SURE, seed=seed).better
    dense_plain = np.mean([table.dense[0] for table in tables], axis=0)
    if adopt:
        quality = gained
        columns = np.arange(len(first.asked))
        in_dense = np.mean([table.dense[own[0], columns] for table, own in zip(tables, owns, strict=True)], axis=0)
    else:
        (row, weight), quality = (first.now, first.start), current
        in_dense = np.mean([table.dense[first.now] for table in tables], axis=0)
    method, k, lam = first.settings[row]
    gain = paired_bootstrap(quality, plain, seed=seed)
    dense_gain = paired_bootstrap(in_dense, dense_plain, seed=seed)
    helps = method != "plain" and gain.delta > 0
    curve: tuple[tuple[float, Interval], ...] = ()
    if method != "plain":
        each_lam = sorted(
            (each[2], at) for at, each in enumerate(first.settings) if each[:2] == (method, k if method == "xl" else 0)
        )
        curve = tuple((each, interval(mean[at, weight], seed=seed)) for each, at in each_lam)
        curve += ((1.0, interval(mean[0, weight], seed=seed)),)
    values: dict[str, Any] = {}
    against = f"{_signed(over)} nDCG@10 over the settings in use, on {over.n} questions held out in turn"
    if not adopt:
        sure = ", beyond doubt" if gain.better else ""
        how = (
            f"feedback as it is set helps new questions{sure}"
            if helps
            else "feedback as it is set does not help new questions"
        )
        reason = f"the settings stay, since no others are better beyond doubt ({against}); {how}: {_signed(gain)}"
    elif method == "plain":
        values = {"lam": 1.0, "fusion_weight": None}
        reason = f"feedback harms new questions: λ = 1, it is kept and switched off ({against})"
    else:
        values = {"method": method, "lam": lam}
        values["fusion_weight"] = first.weights[weight] if first.searcher is not None else None
        if method == "xl":
            values["k"] = k
        sure = "beyond doubt" if gain.better else "though not beyond doubt"
        reason = f"feedback helps, {sure}: {_signed(gain)} nDCG@10; {against}"
    log.info("feedback tuned to %s: %s", values, reason)
    return Tuned(
        values,
        helps,
        len(first.asked),
        float(plain.mean()),
        float(quality.mean()),
        gain,
        dense_gain,
        over,
        curve,
        reason,
    )


def _signed(gain: Interval) -> str:
    return f"{gain.delta:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def _setting(config: PefaConfig) -> Setting:
    """The settings in use as a row of the table."""
    if config.lam == 1:
        return "plain", 0, 1.0
    return config.method, config.k if config.method == "xl" else 0, config.lam


def _best(quality: NDArray[np.float64], now: tuple[int, int]) -> tuple[int, int]:
    """(setting, weight) of quality (settings, weights, queries) with the largest gain over those in use (`now`), less
    LEAN standard errors, paired by query; `now` where none is above 0.

    With few questions nothing moves but by what nearly all of them say; with many the best wins.
    """
    gains = quality - quality[now]
    count = quality.shape[2]
    if count < 2:
        return now
    least = gains.mean(axis=2) - LEAN * gains.std(axis=2, ddof=1) / np.sqrt(count)
    if least.max() <= 0:
        return now
    equal = np.argwhere(least >= least.max() - 1e-9).tolist()  # the nearest of them to the one in use
    row, column = min(equal, key=lambda at: (at[0] != now[0], abs(at[1] - now[1]), abs(at[0] - now[0])))
    return row, column
