"""What speed.py measured, as Markdown: its bars, and what 10 million and 1 billion passages cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from synthetic import PRESET_SHAPES

DEFAULT, BF16 = "sentence-transformers float32 (default)", "sentence-transformers bf16 weights"
ONNX, OPENVINO = "sentence-transformers ONNX", "sentence-transformers OpenVINO"
GIB = 1024**3
ENCODING = ("base-vectors", "adapted-vectors")  # stages of a fit
MEMORY_BOUND = 6 * 10**9  # bytes, of a whole fit over 100,000 chunks

GPU_ROWS = ("gpu-encode", "gpu-train", "gpu-shapes-encode", "gpu-shapes-train")
GPU_TRAINERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ragadapt": ("train-ours", {"precision": "auto"}),
    DEFAULT: ("train-peer", {"precision": "float32"}),
    "sentence-transformers bf16": ("train-peer", {"precision": "bfloat16"}),
    BF16: ("train-peer", {"precision": "bfloat16", "weights": "bfloat16"}),
    "sentence-transformers bf16, cached": ("train-peer", {"precision": "bfloat16", "cached": True}),
}
"""Its name → what speed_workers.py runs, and with what."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One line of the table. met: None = not measured."""

    what: str
    bar: str
    measured: str = "not measured"
    met: bool | None = None


def lines(rows: Sequence[Row]) -> list[Line]:
    """Every bar with what was measured."""
    return [
        *_encode_lines(rows),
        *_train_lines(rows),
        *_architecture_lines(rows),
        *_cache_lines(rows),
        *_mining_lines(rows),
        *_growth_lines(rows),
        *_cli_lines(rows),
        *_gpu_lines(rows),
    ]


def _pick(rows: Sequence[Row], part: str, what: str, **wanted: Any) -> Row | None:
    found = [
        row
        for row in rows
        if row["part"] == part and row["what"] == what and all(row.get(key) == value for key, value in wanted.items())
    ]
    return found[-1] if found else None


def _encode_lines(rows: Sequence[Row]) -> list[Line]:
    made = []
    ours, theirs = (_pick(rows, "encode", "quality", side=side) for side in ("ragadapt auto", DEFAULT))
    for texts, against, factor in (
        ("passages", DEFAULT, 3.0),
        ("mixed lengths", "sentence-transformers bf16 weights", 1.2),
    ):
        what = f"encode, {texts}, against {against}"
        bar = f"≥ {factor:g}×" + (", nDCG@10 within .002" if factor == 3 else "")
        mine = _pick(rows, "encode", "speed", side="ragadapt auto", texts=texts)
        other = _pick(rows, "encode", "speed", side=against, texts=texts)
        if mine is None or other is None or (factor == 3 and (ours is None or theirs is None)):
            made.append(Line(what, bar))
            continue
        ratio = mine["per_second"] / other["per_second"]
        text = f"{ratio:.2f}× ({mine['per_second']:.1f} and {other['per_second']:.1f} passages/s)"
        met = ratio >= factor
        if factor == 3 and ours is not None and theirs is not None:
            text += f", nDCG@10 {ours['ndcg']:.4f} and {theirs['ndcg']:.4f}"
            met = met and abs(ours["ndcg"] - theirs["ndcg"]) <= 0.002
        made.append(Line(what, bar, text, met))
    return made


def _train_lines(rows: Sequence[Row], part: str = "train", bars: bool = True) -> list[Line]:
    made = []
    for against, factor in ((DEFAULT, 4.0), ("sentence-transformers bf16", 2.5)):
        for layers in ("all", "upper"):
            what = f"LoRA training, {'upper half' if layers == 'upper' else 'all layers'}, against {against}"
            bar = f"≥ {factor:g}×, memory ≤ half" if bars else "reported"
            mine = _pick(rows, part, "speed", side="ragadapt", layers=layers)
            other = _pick(rows, part, "speed", side=against, layers=layers)
            if mine is None or other is None:
                made.append(Line(what, bar))
                continue
            ratio = mine["per_second"] / other["per_second"]
            memory = mine["peak_bytes"] / other["peak_bytes"]
            text = f"{ratio:.2f}× ({mine['per_second']:.2f} and {other['per_second']:.2f} examples/s)"
            text += f", peak {mine['peak_bytes'] / GIB:.2f} and {other['peak_bytes'] / GIB:.2f} GiB ({memory:.2f})"
            met = (ratio >= factor and memory <= 0.5) if bar != "reported" else None
            made.append(Line(what, bar, text, met))
    found = _pick(rows, part, "quality", side="ragadapt")
    what, bar = "LoRA training, all layers, quality", "0 within the interval, or better"
    if found is None:
        made.append(Line(what, bar))
    else:
        low, delta, high = found["over_default"]
        text = f"nDCG@10 {found['ndcg']:.4f}, {delta:+.4f} [{low:+.4f}, {high:+.4f}] over the default's"
        made.append(Line(what, bar, text, high >= 0))
    return made


def _architecture_lines(rows: Sequence[Row]) -> list[Line]:
    """Ours against the quickest peer, in float32 and in 16 bits: median, least and largest ratio of the repeats."""
    made = []
    for shape in PRESET_SHAPES:
        for task in ("encode, passages", "encode, mixed lengths", "LoRA training"):
            for precision in ("float32", "bfloat16"):
                what = f"{shape}, {task}, {precision}, against its quickest peer"
                mine = _pick(
                    rows, "architectures", "speed", shape=shape, task=task, precision=precision, side="ragadapt"
                )
                peers = [
                    row for row in rows
                    if row["part"] == "architectures" and row.get("shape") == shape and row.get("task") == task
                    and row.get("precision") == precision and row["side"] != "ragadapt"
                ]  # fmt: skip
                if mine is None or not peers:
                    made.append(Line(what, "≤ 1.1× its time"))
                    continue
                best = min(peers, key=lambda row: median(row["cpu_seconds"]))
                ratios = [ours / its for ours, its in zip(mine["cpu_seconds"], best["cpu_seconds"], strict=True)]
                text = f"{median(ratios):.2f}× [{min(ratios):.2f}, {max(ratios):.2f}] of {best['side']}"
                made.append(Line(what, "≤ 1.1× its time", text, median(ratios) <= 1.1))
    return made


def _cache_lines(rows: Sequence[Row]) -> list[Line]:
    made = []
    for layers, label in ((3, "half of the layers trained"), (2, "a third of the layers trained")):
        found = _pick(rows, "cache", "speed", layers=layers)
        bar = "≥ 1.5× the first epoch" if layers == 3 else "reported"
        for key, name in (("second_epoch", "second epoch"), ("second_run", "second run, other settings")):
            what = f"{name}, {label}"
            if found is None:
                made.append(Line(what, bar))
                continue
            text = f"{found[key]:.2f}× ({found['first_epoch_seconds']:.1f} s and {found[f'{key}_seconds']:.1f} s)"
            made.append(Line(what, bar, text, found[key] >= 1.5 if layers == 3 else None))
    return made


def _mining_lines(rows: Sequence[Row]) -> list[Line]:
    theirs = _pick(rows, "mining", "speed", side="sentence-transformers mine_hard_negatives")
    made = []
    for side in ("ragadapt, dense", "ragadapt, hybrid"):
        mine = _pick(rows, "mining", "speed", side=side)
        bar = "faster, memory ≤ half"
        if mine is None or theirs is None:
            made.append(Line(f"mining, {side}", bar))
            continue
        memory = mine["peak_bytes"] / theirs["peak_bytes"]
        text = f"{mine['seconds']:.0f} s and {theirs['seconds']:.0f} s, peak {mine['peak_bytes'] / GIB:.2f} and "
        text += f"{theirs['peak_bytes'] / GIB:.2f} GiB ({memory:.2f}), same negatives {mine['same_as_peer'] or 0:.3f}"
        what = f"mining {mine['chunks']:,} × {mine['queries']:,}, {side}"
        made.append(Line(what, bar, text, mine["seconds"] < theirs["seconds"] and memory <= 0.5))
    return made


def _growth_lines(rows: Sequence[Row]) -> list[Line]:
    made = []
    for method, label in (("none", "fit --method none"), ("lora", "fit with training")):
        for measure, word in (("seconds", "time"), ("peak_bytes", "memory")):
            what, bar = f"growth, {label}, {word}", "exponent ≤ 1.1"
            found = _pick(rows, "growth", "exponent", method=method, measure=measure)
            if found is None:
                made.append(Line(what, bar))
                continue
            text = f"{found['overall']:.2f} over all sizes, {found['last']:.2f} between the last two"
            made.append(Line(what, bar, text, max(found["overall"], found["last"]) <= 1.1))
        found = _pick(rows, "growth", "fit", method=method, size=100_000)
        what, bar = f"{label} over 100,000 documents", "< 6 GB"
        if found is None:
            made.append(Line(what, bar))
            continue
        text = f"{found['peak_bytes'] / 1e9:.2f} GB, {found['seconds'] / 60:.1f} minutes, {found['chunks']:,} passages"
        made.append(Line(what, bar, text, found["peak_bytes"] < MEMORY_BOUND))
    return made


def _cli_lines(rows: Sequence[Row]) -> list[Line]:
    made = []
    alone = _pick(rows, "cli", "speed", side="python alone")
    for side, bound in (("ragadapt --help", 0.3), ("import ragadapt", 0.2), ("ragadapt search", 3.0)):
        found = _pick(rows, "cli", "speed", side=side)
        if found is None:
            made.append(Line(side, f"≤ {bound:g} s"))
            continue
        text = f"{found['seconds']:.2f} s" + (f" (python alone {alone['seconds']:.2f} s)" if alone else "")
        made.append(Line(side, f"≤ {bound:g} s", text, found["seconds"] <= bound))
    return made


def _gpu_lines(rows: Sequence[Row]) -> list[Line]:
    """Everything of ours beside everything of the peer's, by shape of the model."""
    made = []
    part_of = {row["shape"]: row["part"].rpartition("-")[0] for row in rows if row["part"] in GPU_ROWS}
    shapes = [shape for shape in part_of if _pick(rows, f"{part_of[shape]}-encode", "speed", shape=shape)]
    for shape in shapes or [""]:
        part = f"{part_of.get(shape, 'gpu')}-encode"
        mine = _pick(rows, part, "speed", side="ragadapt auto", shape=shape)
        for against in (DEFAULT, BF16):
            other = _pick(rows, part, "speed", side=against, shape=shape)
            what = f"GPU, encode, {shape or 'any model'}, against {against}"
            if mine is None or other is None:
                made += [] if shapes else [Line(what, "reported")]
                continue
            ratio = mine["per_second"] / other["per_second"]
            text = f"{ratio:.2f}× ({mine['per_second']:,.0f} and {other['per_second']:,.0f} passages/s)"
            made.append(Line(what, "reported", text + _of_peak(mine, other)))
    trained = dict.fromkeys(
        (row["shape"], row["batch"]) for row in rows if row["part"] in GPU_ROWS and row["part"].endswith("train")
    )
    for shape, batch in trained or [("", 0)]:
        part = f"{part_of.get(shape, 'gpu')}-train"
        mine = _pick(rows, part, "speed", side="ragadapt", shape=shape, batch=batch)
        for against in GPU_TRAINERS:
            other = _pick(rows, part, "speed", side=against, shape=shape, batch=batch)
            what = f"GPU, LoRA training, {shape or 'any model'}" + (f", batch {batch}" if batch else "")
            if against == "ragadapt":
                continue
            if mine is None or other is None:
                made += [] if trained else [Line(f"{what}, against {against}", "reported")]
                continue
            ratio = mine["per_second"] / other["per_second"]
            text = f"{ratio:.2f}× ({mine['per_second']:,.0f} and {other['per_second']:,.0f} examples/s)"
            if mine.get("gpu_peak_bytes") and other.get("gpu_peak_bytes"):
                text += f", peak {mine['gpu_peak_bytes'] / GIB:.2f} and {other['gpu_peak_bytes'] / GIB:.2f} GiB"
            made.append(Line(f"{what}, against {against}", "reported", text + _of_peak(mine, other)))
    peak = _pick(rows, "gpu", "peak")
    text = f"{peak['bfloat16_per_second'] / 1e12:,.0f} Tflop/s" if peak else "not measured"
    made.append(Line("GPU, bf16 matrix products", "reported", text))
    for side in ("exact", "faiss", "faiss on the GPU"):
        found = _pick(rows, "gpu", "mining", side=side)
        text = f"not measured: {found['reason']}" if found and "reason" in found else "not measured"
        if found and "seconds" in found:
            text = f"{found['seconds']:.1f} s for {found['queries']:,} queries over {found['chunks']:,} passages"
        made.append(Line(f"GPU, search of the mining, {side}", "reported", text))
    fitted = _pick(rows, "gpu-fit", "fit")
    text = f"{fitted['seconds']:.0f} s, nDCG@10 {fitted['ndcg']['hybrid']:.4f}" if fitted else "not measured"
    return [*made, Line("GPU, fit with labels", "reported", text)]


def _of_peak(mine: Row, other: Row) -> str:
    """How much of the matrix peak both reach, where it is known."""
    if not mine.get("share_of_peak") or not other.get("share_of_peak"):
        return ""
    return f", {mine['share_of_peak']:.1%} and {other['share_of_peak']:.1%} of the bf16 peak"


def table(rows: Sequence[Row]) -> str:
    """The bars as Markdown."""
    words = {True: "yes", False: "**no**", None: ""}
    made = ["| what | bar | measured | met |", "|---|---|---|---|"]
    made += [f"| {line.what} | {line.bar} | {line.measured} | {words[line.met]} |" for line in lines(rows)]
    return "\n".join(made)


def estimate(rows: Sequence[Row], cores: int, price: float) -> str:
    """10 million and 1 billion passages, by the formulas of docs/speed.md over the measured rates, as Markdown.

    cores: of the machine that was measured. price: of a core for an hour.
    """
    rate = _pick(rows, "encode", "speed", side="ragadapt auto", texts="passages")
    on_gpu = next((row for row in rows if row["part"] == "gpu-encode" and row["side"] == "ragadapt auto"), None)
    fits = [row for row in rows if row["part"] == "growth" and row["what"] == "fit" and row["method"] == "none"]
    largest = max(fits, key=lambda row: row["chunks"], default=None)
    header = ["| what | engine | 10 million passages | 1 billion passages |", "|---|---|---|---|"]

    def line(what: str, engine: str, value: Callable[[float], str] | None) -> str:
        cells = [value(count) if value else "not measured" for count in (1e7, 1e9)]
        return f"| {what} | {engine} | {cells[0]} | {cells[1]} |"

    def core_hours(per_core_second: float) -> Callable[[float], str]:
        def text(count: float) -> str:
            hours = count / per_core_second / 3600
            return f"{hours:,.0f} core-hours ({hours * price:,.0f} at {price:g} each)"

        return text

    def size(bytes_each: float) -> Callable[[float], str]:
        return lambda count: f"{count * bytes_each / 1e9:,.0f} GB"

    encode_cpu = core_hours(rate["per_second"] / cores) if rate else None
    encode_gpu = (lambda count: f"{count / on_gpu['per_second'] / 3600:,.1f} GPU-hours") if on_gpu else None
    made = [
        line("encode on CPUs", "`ragadapt encode --engine ray`", encode_cpu),
        line("encode on GPUs", "`ragadapt encode --engine ray`", encode_gpu),
        line("vectors, float32, 384 wide", "shards of .npy", size(4 * 384)),
        line("Qdrant in memory, float32", "Qdrant cluster", size(1.5 * 4 * 384)),
        line("Qdrant in memory, int8, originals on disk", "Qdrant cluster", size(1.5 * 384)),
        line("BM25", "one folder a shard", size(largest["sizes"]["lexical"] / largest["chunks"]) if largest else None),
        line(
            "passages (SQLite)",
            "one file a shard",
            size(largest["sizes"]["chunks.sqlite"] / largest["chunks"]) if largest else None,
        ),
        line("all but encoding", "`fit`, one machine", _rest(fits, cores, core_hours)),
    ]
    trained = _pick(rows, "train", "speed", side="ragadapt", layers="all")
    if trained is not None:
        hours = 3 * 20_000 / (trained["per_second"] / cores) / 3600
        text = f"{hours:,.0f} core-hours, whatever the size (3 epochs, 20,000 queries)"
        made.append(f"| train | `accelerate launch` | {text} | the same |")
    return "\n".join(header + made)


def _rest(fits: Sequence[Row], cores: int, core_hours: Callable[[float], Callable[[float], str]]) -> Any:
    """What each further passage costs beside its encoding: the slope between the two largest fits."""
    if len(fits) < 2:
        return None
    small, large = sorted(fits, key=lambda row: row["chunks"])[-2:]

    def without_encoding(row: Row) -> float:
        return float(row["seconds"] - sum(row["stages"].get(stage, 0.0) for stage in ENCODING))

    seconds = (without_encoding(large) - without_encoding(small)) / (large["chunks"] - small["chunks"])
    return core_hours(1 / seconds / cores) if seconds > 0 else None
