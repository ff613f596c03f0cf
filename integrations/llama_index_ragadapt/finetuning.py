"""LoRAFinetuneEngine: fit from question-passage pairs in the form that LlamaIndex keeps them in."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llama_index_ragadapt.embedding import LoRAEmbedding
from llama_index_ragadapt.retriever import LoRARetriever
from ragadapt.config import FitConfig
from ragadapt.errors import InvalidInput, InvalidLabels
from ragadapt.pipeline.fit import FitResult, fit
from ragadapt.pipeline.queries import Labels
from ragadapt.values import Chunk

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Pairs:
    queries: Mapping[str, str]
    corpus: Mapping[str, str]
    relevant: Mapping[str, list[str]]


class LoRAFinetuneEngine:
    """Fit a retriever to an EmbeddingQAFinetuneDataset.

        engine = LoRAFinetuneEngine("train.json", model_id="offline", model_output_path="./retriever")
        engine.finetune()
        embed_model = engine.get_finetuned_model()

    train_dataset, val_dataset: the JSON file that the data set's `save_json` writes, the same as a dict, or any object
    with `queries`, `corpus` and `relevant_docs`. The passages of both are fitted; val_dataset's questions only judge.
    Where both call different texts by one id, that of val_dataset becomes "val:" and the id.
    As everywhere, the adapted model ships only if it is better on held-out questions: `result` says so.
    """

    def __init__(
        self,
        train_dataset: Any,
        model_id: str | None = None,
        model_output_path: str | Path = "finetuned",
        *,
        val_dataset: Any = None,
        config: FitConfig | None = None,
    ) -> None:
        """model_id: the base model, None = the configuration's. Raises InvalidLabels for what is no such data set."""
        self._train = _read(train_dataset, "train_dataset")
        self._val = None if val_dataset is None else _apart(self._train, _read(val_dataset, "val_dataset"))
        self.model_output_path = Path(model_output_path)
        config = config if config is not None else FitConfig()
        if model_id is not None:
            config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"model": model_id})})
        self.config = config
        self.result: FitResult | None = None

    def finetune(self, **train_kwargs: Any) -> None:
        """Fit, and write the retriever to `model_output_path`. train_kwargs: settings of training, e.g. epochs=2.

        Raises InvalidConfiguration for a setting that is not known, and what `fit` raises.
        """
        config = self.config
        if train_kwargs:
            values = config.model_dump(mode="json")
            values["training"] |= train_kwargs
            config = FitConfig.build(values)
        texts = dict(self._train.corpus) | dict(self._val.corpus if self._val else {})
        # A passage is its own document: these data sets don't say which passages belong together.
        chunks = [Chunk(id, id, text, end=len(text), source=id) for id, text in texts.items() if text.strip()]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            labels = [_write(self._train, folder, "train", "both" if self._val is None else "train")]
            if self._val is not None:
                labels.append(_write(self._val, folder, "val", "eval"))
            self.result = fit(chunks, self.model_output_path, config, labels=labels, chunked=True)

    def get_finetuned_model(self, **model_kwargs: Any) -> LoRAEmbedding:
        """The model that was fitted, as an embedding. model_kwargs: as for LoRAEmbedding. Raises NotARetriever."""
        return LoRAEmbedding(str(self.model_output_path), **model_kwargs)

    def get_finetuned_retriever(self, **settings: Any) -> LoRARetriever:
        """The whole retriever that was fitted: model, passages and learnt mix."""
        return LoRARetriever.from_pretrained(self.model_output_path, **settings)


def _read(dataset: Any, what: str) -> _Pairs:
    if isinstance(dataset, str | Path):
        try:
            dataset = json.loads(Path(dataset).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InvalidLabels(
                f"{what}: {dataset} cannot be read ({error}). Give the file that save_json wrote."
            ) from error
    get = dataset.get if isinstance(dataset, Mapping) else lambda name, default=None: getattr(dataset, name, default)
    parts: dict[str, Any] = {name: get(name) for name in ("queries", "corpus", "relevant_docs")}
    for name, value in parts.items():
        if not isinstance(value, Mapping):
            raise InvalidLabels(f"{what} has no dict {name!r}: an EmbeddingQAFinetuneDataset holds {', '.join(parts)}.")
    if get("mode", "text") not in (None, "text"):
        raise InvalidLabels(f"{what} has mode {get('mode')!r}; only texts can be fitted.")
    queries, corpus = (_named(parts[name], f"{what}: {name}") for name in ("queries", "corpus"))
    relevant = {
        id: _listed(ids, what, id) for id, ids in _named(parts["relevant_docs"], f"{what}: relevant_docs").items()
    }
    if not queries or not corpus:
        raise InvalidLabels(f"{what} holds {len(queries)} queries and {len(corpus)} passages; some of both are needed.")
    for id, passages in relevant.items():
        if id not in queries:
            raise InvalidLabels(f"{what}: relevant_docs names the query {id!r}, which is not among its queries.")
        missing = [passage for passage in passages if passage not in corpus]
        if missing:
            raise InvalidLabels(f"{what}: query {id!r} names the passage {missing[0]!r}, which is not in its corpus.")
    if any(not isinstance(text, str) for values in (queries, corpus) for text in values.values()):
        raise InvalidInput(f"{what}: queries and corpus hold texts only.")
    if unanswered := sum(not relevant.get(id) for id in queries):
        log.warning("%s: %d of %d queries have no relevant passage and are left out", what, unanswered, len(queries))
    return _Pairs(queries, corpus, relevant)


def _named(values: Mapping[Any, Any], what: str) -> dict[str, Any]:
    """The same under ids that are text, as JSON would keep them. Raises InvalidLabels."""
    named = {str(id): value for id, value in values.items()}
    if len(named) < len(values):
        raise InvalidLabels(f"{what} has ids that are equal as text, such as 1 and '1'. Give each an id of its own.")
    for id in named:
        if id != id.strip() or "\t" in id or len(id.splitlines()) != 1:
            raise InvalidLabels(
                f"{what} has the id {id!r}: an id has one character or more, without tabs, line breaks, or blanks at "
                "its ends."
            )
    return named


def _listed(ids: Any, what: str, query: str) -> list[str]:
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise InvalidLabels(
            f"{what}: relevant_docs of query {query!r} is {ids!r:.60}; a list of passage ids is needed."
        )
    return [str(id) for id in ids]


def _apart(train: _Pairs, val: _Pairs) -> _Pairs:
    """val, with another id for each passage whose id stands for another text in train."""
    taken, ids = {*train.corpus, *val.corpus}, dict[str, str]()
    for id, text in val.corpus.items():
        ids[id] = id
        if train.corpus.get(id, text) != text:
            while ids[id] in taken:
                ids[id] = f"val:{ids[id]}"
            taken.add(ids[id])
    corpus = {ids[id]: text for id, text in val.corpus.items()}
    return _Pairs(val.queries, corpus, {query: [ids[id] for id in found] for query, found in val.relevant.items()})


def _write(pairs: _Pairs, folder: Path, name: str, use: Literal["both", "train", "eval"]) -> Labels:
    queries, qrels = folder / f"{name}.jsonl", folder / f"{name}.tsv"
    with queries.open("w", encoding="utf-8", newline="\n") as file:
        for id, text in pairs.queries.items():
            file.write(json.dumps({"_id": id, "text": text}, ensure_ascii=False) + "\n")
    with qrels.open("w", encoding="utf-8", newline="\n") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        for id, passages in pairs.relevant.items():
            file.writelines(f"{id}\t{passage}\t1\n" for passage in passages)
    return Labels(queries, qrels, use)
