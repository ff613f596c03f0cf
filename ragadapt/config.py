"""One frozen value per stage. Unknown keys are errors; every default has a reason beside it.

A configuration comes from TOML (`load_config`), from flags (the CLI), or from Python. The whole of it is
saved in the manifest of every retriever.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from ragadapt.checks import checked_path, shown
from ragadapt.errors import InvalidConfiguration
from ragadapt.values import Evidence


class Settings(BaseModel):
    # What was typed may hold a key, and pydantic's own message would show it.
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=True, allow_inf_nan=False
    )

    HOW: ClassVar[frozenset[str]] = frozenset()  # settings that change how it is computed, and the result by rounding

    def deciding(self) -> dict[str, Any]:
        """The settings that decide what comes out, as JSON values. A change of the others lets finished work stand."""
        return self.model_dump(mode="json", exclude=set(self.HOW))


class ReadConfig(Settings):
    """Which files are read, and how."""

    include: tuple[str, ...] = ()  # .gitignore syntax; empty = everything readable
    exclude: tuple[str, ...] = ()  # the same syntax; wins over include
    hidden: bool = False  # also names that begin with a dot
    gitignore: bool = True  # leave out what .gitignore files leave out
    follow_links: bool = False  # also links that lead out of the files and folders that were named
    max_file_bytes: int = Field(default=50_000_000, gt=0)  # larger files are nearly always data, not documents
    seconds_per_file: float = Field(default=60, gt=0)  # and as many again for every 5 MB; then the file is skipped
    memory_per_file_bytes: int = Field(default=2_000_000_000, ge=200_000_000)  # where the system can limit it (Linux)
    encoding: str | None = None  # None = detect
    id_field: str | None = None  # columns of jsonl and csv; None = the usual names (_id, id, …)
    text_field: str | None = None  # None = the usual names (text, content, …)
    title_field: str | None = None  # None = the usual names (title, name, …)

    def seconds_for(self, size: int) -> float:
        """How long a file of so many bytes may take to be read."""
        return self.seconds_per_file * (1 + size / 5_000_000)


class ChunkConfig(Settings):
    """How documents are cut. Sizes are in the encoder's own tokens."""

    max_tokens: int | None = Field(
        default=None, ge=16
    )  # None = the encoder's max length less special tokens and passage prompt, at most 256
    min_tokens: int = Field(default=24, ge=0)  # smaller pieces join a neighbour under the same heading
    overlap_tokens: int = Field(default=0, ge=0)  # repeated from the chunk before; structure makes it needless


class QueryConfig(Settings):
    """Where training and evaluation queries come from."""

    HOW = frozenset(
        f"generator_{name}"
        for name in ["batch", "device", "concurrency", "timeout_seconds", "retries", "input_price", "output_price"]
    )

    kinds: tuple[str, ...] = ()  # empty = all that the documents' structure offers
    per_chunk: int = Field(3, ge=1)  # queries of a passage that are kept; more say the same again
    max_queries: int = Field(20_000, ge=1)  # beyond, training grows slower and hardly better
    max_overlap: float = Field(0.8, gt=0, le=1)  # share of a query's content words found in its passage
    round_trip_k: int = Field(20, ge=0)  # 0 = no round-trip filter
    generator: str | None = None  # a local Hugging Face model, or a .gguf file
    generator_url: str | None = None  # an OpenAI-compatible endpoint
    generator_model: str | None = None  # the model's name at that endpoint
    generator_queries: int = Field(default=1000, ge=1)  # about so many are asked for; fewer are left after cleaning
    generator_temperature: float | None = Field(default=None, ge=0, le=2)  # None = .7; .4 for a model not tuned to chat
    generator_max_tokens: int | None = Field(default=None, ge=8)  # of an answer; None = by the number of queries asked
    generator_batch: int = Field(default=8, ge=1)  # passages at a time in a local model; halved when memory ends
    generator_device: str = "auto"  # auto, cpu, cuda, mps
    generator_concurrency: int = Field(default=4, ge=1, le=256)  # requests at a time to an endpoint
    generator_timeout_seconds: float = Field(default=120, gt=0)  # of one request
    generator_retries: int = Field(
        default=6, ge=0
    )  # with back-off, about 25 seconds in all, unless the server asks for longer
    generator_input_price: float | None = Field(default=None, ge=0)  # per million tokens, for the estimate
    generator_output_price: float | None = Field(default=None, ge=0)  # in the same currency; None = no estimate of cost


class SplitConfig(Settings):
    """Held-out part: by document, near-duplicates together."""

    heldout: float = Field(0.2, ge=0, lt=1)  # share of the documents that judges; never trained on
    dev: float = Field(
        0.1, ge=0, lt=1
    )  # of what remains; early stopping looks at it; of 40 labelled questions or more it gets 8 at least


class MiningConfig(Settings):
    """Hard negatives and the candidates that the teacher scores."""

    negatives: int = Field(2, ge=0)  # for each query
    candidates: int = Field(20, ge=2)  # list length of the distillation loss
    teacher: str | None = None  # a re-ranker, by preset, name or folder; None = BM25 with the base
    depth: int = Field(100, ge=2)  # how far down the rankings negatives are looked for
    skip_top: int = Field(0, ge=0)  # best candidates passed over; the margin already keeps out likely answers
    margin: float = Field(0.95, gt=0, le=1)  # a negative's score stays below this share of the positive's


class EncoderConfig(Settings):
    """The base model and how it runs."""

    model: str = "small"  # a preset, a hub name, or a folder
    revision: str | None = None  # of the model on the hub; None = the newest
    max_length: int | None = Field(None, ge=8)  # tokens read of a text; None = the model's own, or the preset's cap
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto = bfloat16 where it is faster and safe
    device: str = "auto"  # auto = cuda, else mps, else cpu
    query_prompt: str | None = None  # None = what the model or the preset table says
    passage_prompt: str | None = None  # as query_prompt
    token_budget: int | None = Field(None, ge=64)  # tokens per encoding batch; None = by device
    trust_remote_code: bool = False  # runs code that comes with the model: only for authors that you trust


# fmt: off
MethodName = Literal[
    "lora", "rslora", "lora+", "dora", "pissa", "adalora", "vera", "randlora", "loha", "lokr", "miss", "ia3",
    "loftq", "qlora", "mora", "melora", "mtl-lora", "flat-lora", "lora-sp", "full", "bitfit", "houlsby", "prefix",
    "mam", "iaa-s", "iaa-l", "iaa-m", "trf", "trf-linear", "none",
]
# fmt: on


class AdapterConfig(Settings):
    """What is trained."""

    method: MethodName = "lora"  # `ragadapt methods` tells what each is; none trains nothing
    adapt: Literal["auto", "both", "query"] = "auto"  # query leaves passages and an index as they are; auto = by labels
    rank: int | None = Field(None, ge=0)  # of the low-rank matrices, or width of bottlenecks; None = the method's own
    alpha: float | None = Field(None, gt=0)  # scales what they add; None = the method's own, 2 * rank for lora
    dropout: float = Field(0.0, ge=0, lt=1)  # on the adapter's input; early stopping guards better
    layers: int | None = Field(None, ge=1)  # top N transformer layers; None = all of them
    targets: tuple[str, ...] = ()  # names of linear layers; empty = all of a layer
    lr_ratio: float | None = Field(None, gt=0)  # lora+: learning rate of B in units of A's; None = 16
    parts: int | None = Field(None, ge=1)  # melora: slices of a layer, None = 4; mtl-lora: matrices B, None = 3
    noise: float | None = Field(None, ge=0)  # flat-lora: of the weights, at the end, in units of theirs; None = .05
    aside_rank: int | None = Field(None, ge=1)  # iaa: width of the modules aside; None = 8, 12 or 24 (s, l, m)
    prefix_length: int | None = Field(None, ge=1)  # learnt keys and values of a layer; None = 32, with mam 16
    filter_rank: int | None = Field(None, ge=1)  # trf: of the filters; None = 8
    reweight: Literal["none", "vector", "vector-learnt", "tokens", "dims"] = "vector"  # of the vector, by a LoRA pair
    gamma: float = 1.0  # strength of the re-weighting; 0 = ablation; vector-learnt begins with it

    @property
    def trains(self) -> bool:
        """Whether anything is trained at all."""
        return self.method != "none"

    def settled(self, side: Literal["both", "query"] = "both") -> Self:
        """The same on this side, where none was chosen."""
        return self if self.adapt != "auto" else self.model_copy(update={"adapt": side})


class TrainingConfig(Settings):
    """The optimisation."""

    HOW = frozenset({"micro_batch_tokens", "prefix_cache", "prefix_cache_folder", "prefix_cache_bytes", "compile"})

    loss: Literal["infonce", "distill", "both", "margin_mse"] = "infonce"  # the last three follow a teacher
    epochs: float | None = Field(None, gt=0)  # passes over the queries; None = 3 where labels judge, else 1
    max_steps: int | None = Field(None, ge=1)  # None = by epochs
    batch_size: int = Field(32, ge=2)  # queries; the other ones' passages are negatives
    micro_batch_tokens: int | None = Field(None, ge=64)  # None = by device; gradients are cached across micro-batches
    learning_rate: float | None = Field(None, gt=0)  # of AdamW; None = by evidence, side and method
    weight_decay: float = Field(0.0, ge=0)  # of AdamW
    warmup: float = Field(0.1, ge=0, lt=1)  # share of the steps
    temperature: float = Field(0.05, gt=0)  # of the softmax over scores
    distill_weight: float = Field(1.0, ge=0)  # of the teacher's part of the loss
    infonce_weight: float = Field(0.1, ge=0)  # beside distillation (methods: a small contrastive term helps)
    patience: int = Field(3, ge=1)  # evaluations on the dev part without gain before stopping
    evaluations: int = Field(4, ge=1)  # looks at the dev part over the whole run
    prefix_cache: bool = True  # keep the activations below the trained layers
    prefix_cache_folder: str | None = None  # None = with the build, deleted after it; a folder is kept and shared
    prefix_cache_bytes: int = Field(4_000_000_000, ge=0)  # on disk; about 200 kB per 256-token passage at width 384
    compile: bool = False  # torch.compile: slow to start; it lost on a CPU, and was not measured on a GPU

    def pace(self, evidence: Evidence = Evidence.LABELLED) -> tuple[float, float]:
        """(epochs, learning rate). Left open, they follow the evidence: what users asked is learnt thoroughly, what
        was written from the passages gently, for its style is not the users'."""
        epochs, rate = _PACE[evidence is Evidence.LABELLED]
        return (
            epochs if self.epochs is None else self.epochs,
            rate if self.learning_rate is None else self.learning_rate,
        )

    def paced(self, evidence: Evidence, *, large: bool = False) -> Self:
        """The same with epochs and learning rate filled in. large: labels are learnt in larger steps."""
        epochs, rate = self.pace(evidence)
        if large and self.learning_rate is None and evidence is Evidence.LABELLED:
            rate = _LARGE_STEP
        return self.model_copy(update={"epochs": epochs, "learning_rate": rate})


_PACE = {True: (3.0, 5e-4), False: (1.0, 2e-4)}
"""Whether users asked it → epochs and learning rate (docs/decisions.md)."""
_LARGE_STEP = 3e-3


Strength = Annotated[float, Field(gt=0, le=1)]
"""Share of the way from the base (0) to what was trained (1)."""


class LibraryConfig(Settings):
    """Adapters of other corpora, from which a training can begin."""

    folder: str | None = None  # a library of adapters (`ragadapt library`)
    start: str | None = None  # nearest, blend (the nearest ones, summed), or an adapter's name; None = from the base
    train: bool = True  # false = what the library has is judged as it is, and nothing is trained
    nearest: int = Field(3, ge=1)  # adapters of a blend
    weights: Literal["softmax", "least-squares"] = "softmax"  # of a blend: by distance, or by the mix of the means
    temperature: float = Field(0.1, gt=0)  # of the softmax over distances; the smaller, the more the nearest counts


class GateConfig(Settings):
    """When the adapted model ships."""

    confidence: float = Field(0.95, gt=0.5, lt=1)  # of the paired bootstrap interval
    bootstrap_samples: int = Field(2000, ge=100)  # more move the interval's ends by less than .001
    min_queries: int = Field(100, ge=1)  # with fewer held-out queries the report warns
    risk: float = Field(0.1, ge=0, lt=0.5)  # chance of a loss at which labels that prove nothing let it ship; 0 = never
    tolerance: float = Field(0.005, ge=0, lt=1)  # nDCG@10 that may be lost before that is a loss
    max_drift: float = Field(0.35, gt=0)  # mean 1 − cosine by which ordinary passages may move
    most_dense: float = Field(0.5, ge=0, le=1)  # neutral weight up to which a language model's questions may train
    fold_strengths: tuple[Strength, ...] = Field((0.5, 1.0), min_length=1)  # tried by cross-fitting
    folds: int = Field(3, ge=2)  # of cross-fitting: each query is judged by a model that saw only the other folds
    cross_fit_below: int = Field(200, ge=0)  # labelled queries; of more, a held-out part judges well enough
    interpolation: tuple[Strength, ...] = (0.75, 0.5, 0.25)  # strengths tried between base (0) and adapted (1)

    def strengths(self, evidence: Evidence) -> tuple[float, ...]:
        """What cross-fitting tries, ascending. Queries that were written from the passages always ask for more, so
        they choose nothing: their training is gentle as it is."""
        return tuple(sorted(self.fold_strengths)) if evidence is Evidence.LABELLED else (1.0,)


AUTO = "auto"
ENGINES = {
    "exact": "ragadapt.index.exact:ExactIndex",
    "faiss": "ragadapt.index.faiss:FaissIndex",
    "qdrant": "ragadapt.index.qdrant:QdrantIndex",
    "qdrant-edge": "ragadapt.index.edge:EdgeIndex",
}
"""Kind of index → module and class, which is loaded when it is used."""


def _known_kind(kind: str) -> str:
    if kind != AUTO and kind not in ENGINES:
        raise PydanticCustomError("index_kind", "Input should be {kinds}", {"kinds": " or ".join((AUTO, *ENGINES))})
    return kind


IndexKind = Annotated[str, AfterValidator(_known_kind), Field(json_schema_extra={"enum": [AUTO, *ENGINES]})]


class IndexConfig(Settings):
    """Where vectors live."""

    HOW = frozenset({"upload_workers"})

    kind: IndexKind = AUTO  # faiss where it is installed, else exact; qdrant is a server, the others files
    structure: Literal["auto", "flat", "disk", "hnsw", "ivf"] = (
        "auto"  # of FAISS: flat (exact) below a million vectors, then disk, which may be larger than memory
    )
    url: str | None = None  # the server of kind "qdrant", such as http://localhost:6333; None = in the folder
    collection: str = "ragadapt"  # name at the Qdrant server
    upload_workers: int = Field(4, ge=1, le=64)  # requests at a time to a Qdrant server while an index is built
    lexical: Literal["auto", "engine", "folder"] = (
        "auto"  # where BM25 is: beside the vectors (qdrant-edge, a Qdrant server), or in files of the folder
    )
    shards: int | None = Field(None, ge=1)  # of a Qdrant server's collection; None = one a node, and by size
    replicas: int = Field(1, ge=1)  # copies of every shard on a Qdrant cluster; 2 survive the loss of a node
    quantisation: Literal["auto", "none", "int8", "binary"] = (
        "auto"  # on a Qdrant server, rescored by the vectors themselves; auto = int8 beyond 1 GB of vectors
    )
    on_disk: bool | None = None  # vectors and words on a Qdrant server's disk; None = beyond 1 GB of vectors
    tenant_field: str | None = None  # of the metadata: a Qdrant server keeps passages of one value together
    indexed_fields: tuple[str, ...] | None = (
        None  # of the metadata, by which a Qdrant server or Qdrant Edge looks filters up; None = up to 32 by themselves
    )


class FusionConfig(Settings):
    """How dense and lexical scores are mixed."""

    weight: float | None = Field(None, ge=0, le=1)  # share of the dense side; None = learnt per corpus
    feedback: bool | None = None  # pseudo-relevance feedback; None = learnt per corpus
    depth: int = Field(200, ge=1)  # candidates taken from each side


RerankLoss = Literal["listwise", "pointwise"]


class RerankConfig(Settings):
    """The second stage of a search."""

    model: str | None = None  # a re-ranker by preset, hub name or folder; None = no second stage
    weight: float | None = Field(None, ge=0, le=1)  # its share of the score; None = learnt per corpus, 0 = it stays out
    depth: int | None = Field(None, ge=1)  # passages that it reads of a query; None = 20 on a CPU, 50 elsewhere
    max_length: int | None = Field(None, ge=8)  # tokens of a pair (multi-vector: a passage); None = the model's own
    method: MethodName = "lora"  # by which it is trained where `stage` says so; settings of the method: adapter.…
    loss: RerankLoss = "listwise"  # softmax over an answer and others; pointwise = binary cross-entropy of each
    negatives: int = Field(7, ge=1)  # beside an answer, drawn anew every time from what the first stage finds
    epochs: float = Field(2.0, gt=0)  # passes over the questions
    batch_size: int = Field(16, ge=2)  # questions
    learning_rate: float = Field(2e-4, gt=0)  # of AdamW; full training wants less

    TRAINING: ClassVar[tuple[str, ...]] = ("method", "loss", "negatives", "epochs", "batch_size", "learning_rate")


class PefaConfig(Settings):
    """What feedback does to search. `ragadapt refresh --tune` sets method, lam, k and the fusion weight anew."""

    method: Literal["xs", "xl"] = "xs"  # xs costs what plain search costs; xl also searches the past queries
    lam: float = Field(0.5, ge=0, le=1)  # λ: share of the plain retriever; 1 = feedback off
    k: int = Field(16, ge=1)  # past queries that xl looks at
    missing: Literal["exact", "zero"] = "exact"  # xl: score of a passage that only past queries brought in
    half_life_days: float | None = Field(None, gt=0)  # feedback counts half after so long; None = never fades
    user_cap: float = Field(1.0, gt=0)  # most that one named user's feedback on one passage may weigh in all
    fusion_weight: float | None = Field(None, ge=0, le=1)  # of hybrid search with feedback; None = as without
    negative: float = Field(0.5, ge=0)  # how hard negative feedback pushes (Rocchio's γ; ours, not the paper's)


class FitConfig(Settings):
    """Everything that decides what `fit` makes of a corpus."""

    seed: int = 13  # of everything random
    stage: Literal["retrieve", "rerank", "both"] = "retrieve"  # what is trained: the encoder, the re-ranker, both
    read: ReadConfig = ReadConfig()
    chunk: ChunkConfig = ChunkConfig()
    query: QueryConfig = QueryConfig()
    split: SplitConfig = SplitConfig()
    mining: MiningConfig = MiningConfig()
    encoder: EncoderConfig = EncoderConfig()
    adapter: AdapterConfig = AdapterConfig()
    library: LibraryConfig = LibraryConfig()
    training: TrainingConfig = TrainingConfig()
    gate: GateConfig = GateConfig()
    index: IndexConfig = IndexConfig()
    fusion: FusionConfig = FusionConfig()
    rerank: RerankConfig = RerankConfig()
    pefa: PefaConfig = PefaConfig()

    @property
    def trains_retriever(self) -> bool:
        """Whether the encoder of the first stage is trained."""
        return self.stage != "rerank" and self.adapter.trains

    @property
    def reranks(self) -> bool:
        """Whether there is a second stage to judge."""
        return self.rerank.model is not None or self.trains_reranker

    @property
    def trains_reranker(self) -> bool:
        """Whether the second stage is trained."""
        return self.stage != "retrieve" and self.rerank.method != "none"

    @classmethod
    def build(cls, values: dict[str, Any]) -> Self:
        """Validate plain nested values. Raises InvalidConfiguration with the key, the value and the rule."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InvalidConfiguration(_explain(error)) from error


def load_config(path: str | Path) -> FitConfig:
    """Read a TOML file whose tables are the stages of FitConfig."""
    path = checked_path(path, "The configuration file")
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except FileNotFoundError as error:
        raise InvalidConfiguration(f"There is no configuration file at {path}.") from error
    except OSError as error:
        raise InvalidConfiguration(f"{path} cannot be read ({error}). Name a TOML file.") from error
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8
        raise InvalidConfiguration(f"{path} is not valid TOML: {error}.") from error
    return FitConfig.build(values)


def _explain(error: ValidationError) -> str:
    lines, problems = [], error.errors()
    inner = {problem["loc"][:-1] for problem in problems}
    for problem in problems:
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "too_short" and problem["loc"] in inner:
            continue  # items that are not accepted are not counted either
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown setting {key!r}")
        else:
            lines.append(f"{key} = {shown(problem['input'])}: {problem['msg']}")
    return "Configuration not accepted: " + "; ".join(lines) + ". See docs/configuration.md for every setting."
