"""The sides of scale_encode.py: each is a process that stays open, and measures when a line asks for it.

    python examples/benchmarks/scale_encode_sides.py NAME OPTIONS-AS-JSON

options: threads, place (a folder: texts.json in it is read, models are exported into it), smoke. A line of stdin names
the task, and where vectors are saved, as JSON; each is answered by a line of stdout.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
Encode = Callable[[list[str]], np.ndarray]

DEFAULT = "sentence-transformers float32 (default)"
TRAINING = "ragadapt's LoRA step"
RANK = 16
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_SHAPES = [(n, n, n) for n in (1024, 2048, 4096)] + [
    (4096, 384, 384), (4096, 384, 1152), (4096, 384, 1536), (4096, 1536, 384),  # MiniLM's, of 16 passages
]  # fmt: skip


def _ours(options: Row, precision: Any = "auto", batched: bool = False) -> tuple[Encode, str]:
    """batched: attention by batched products where the CPU has AMX, too."""
    from ragadapt import Encoder, EncoderConfig
    from ragadapt.encoder import attention

    if batched:
        attention.has_amx = lambda: False
    encoder = Encoder.load(EncoderConfig(model="offline", device="cpu", precision=precision))
    return encoder.encode_passages, encoder.precision.dtype


def _library(options: Row, dtype: str = "float32", **backend: Any) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    given = backend or {"model_kwargs": {"dtype": getattr(torch, dtype)}}
    return SentenceTransformer(location(), device="cpu", **given)


def _by_library(model: Any, note: str = "") -> tuple[Encode, str]:
    return lambda texts: model.encode(texts, normalize_embeddings=True, show_progress_bar=False), note


def _onnx(options: Row, file: str) -> tuple[Encode, str]:
    """sentence-transformers over ONNX Runtime."""
    import onnxruntime

    _limit_onnxruntime(options["threads"])
    settings = {"provider": "CPUExecutionProvider", "export": True}
    why = "quantised by ONNX Runtime as the backend's avx512_vnni"
    if file == "model.onnx":
        try:
            return _by_library(_library(options, backend="onnx", model_kwargs=settings), "its ONNX backend")
        except Exception as error:  # optimum lags behind transformers
            why = f"its ONNX backend: {_reason(error)}"
    path = str(_exported(options) / file)
    session = onnxruntime.InferenceSession(path, onnxruntime.SessionOptions(), providers=["CPUExecutionProvider"])
    return _around(options, lambda inputs: session.run(None, inputs)[0], why)


def _openvino(options: Row, hint: str, file: str = "model.onnx") -> tuple[Encode, str]:
    """sentence-transformers over OpenVINO. hint: the precision of what stays in floating point."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": options["threads"]}
    why = "static ranges and weights by NNCF"
    if file == "model.onnx":
        try:
            given = {"ov_config": dict(settings), "export": True}
            return _by_library(_library(options, backend="openvino", model_kwargs=given), "its OpenVINO backend")
        except Exception as error:
            why = f"its OpenVINO backend: {_reason(error)}"
        path = _exported(options) / file
    else:
        path = _calibrated(options) / file
    network = openvino.Core().compile_model(str(path), "CPU", {**settings, "PERFORMANCE_HINT": "LATENCY"})
    return _around(options, lambda inputs: network(inputs)[0], why)


def _light(options: Row, file: str) -> tuple[Encode, str]:
    """light-embed over the same ONNX file."""
    import light_embed

    _limit_onnxruntime(options["threads"])
    given = {"onnx_file": file, "pooling_mode": "mean", "normalize": True}
    model = light_embed.TextEmbedding(str(_exported(options)), device="cpu", model_config=given)
    return lambda texts: model.encode(texts), ""


def _around(options: Row, network: Callable[[Row], np.ndarray], why: str) -> tuple[Encode, str]:
    """sentence-transformers' own tokens, batches and pooling around a network that something else runs."""
    import torch

    model = _library(options)

    def forward(**given: Any) -> Row:
        return {"last_hidden_state": torch.from_numpy(network({name: given[name].numpy() for name in _INPUTS}))}

    model[0].model.forward = forward
    return _by_library(model, f"{why}; its pipeline around the exported network")


def _limit_onnxruntime(threads: int) -> None:
    """It reads no variable, and light-embed has no setting for it."""
    import onnxruntime

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.intra_op_num_threads = threads

    onnxruntime.SessionOptions = Options


def location() -> str:
    from ragadapt import EncoderConfig
    from ragadapt.encoder.presets import resolve

    return resolve(EncoderConfig(model="offline")).location


def _exported(options: Row) -> Path:
    """The folder of the packaged weights as ONNX, in float32 and in 8 bits, with what light-embed reads beside it."""
    folder = Path(options["place"]) / "onnx"
    if (folder / "int8.onnx").exists():
        return folder
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folder.mkdir(exist_ok=True)
    model = _library(options)
    inner = model[0].model
    inner.set_attn_implementation("eager")  # the fused kernels cannot be traced

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *given: Any) -> Any:
            return self.inner(**dict(zip(_INPUTS, given, strict=True))).last_hidden_state

    example = model.tokenizer(["a few words", "some more words than that"], padding=True, return_tensors="pt")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # notes on traced constants; the vectors are compared
        torch.onnx.export(
            Network().eval(), tuple(example[name] for name in _INPUTS), str(folder / "model.onnx"),
            input_names=list(_INPUTS), output_names=["last_hidden_state"], opset_version=17, dynamo=False,
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in (*_INPUTS, "last_hidden_state")},
        )  # fmt: skip
    model.tokenizer.save_pretrained(str(folder))
    inner.config.save_pretrained(str(folder))
    shutil.copyfile(Path(location()) / "special_tokens_map.json", folder / "special_tokens_map.json")
    # per_channel and signed weights: optimum's AutoQuantizationConfig.avx512_vnni
    quantize_dynamic(folder / "model.onnx", folder / "int8.onnx", per_channel=True, weight_type=QuantType.QInt8)
    return folder


def _calibrated(options: Row) -> Path:
    """The folder of the network in 8 bits for OpenVINO, its ranges seen on passages that are not timed."""
    folder = Path(options["place"]) / "openvino"
    if not (folder / "int8.xml").exists():
        import nncf
        import openvino

        tokens = _library(options).tokenizer
        texts = json.loads((Path(options["place"]) / "texts.json").read_text(encoding="utf-8"))["calibration"]
        seen = [dict(tokens([text], truncation=True, max_length=256, return_tensors="np")) for text in texts]
        network = openvino.convert_model(str(_exported(options) / "model.onnx"))
        small = nncf.quantize(network, nncf.Dataset(seen), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(seen))
        openvino.save_model(small, str(folder / "int8.xml"), compress_to_fp16=False)
    return folder


SIDES: dict[str, Callable[[Row], tuple[Encode, str]]] = {
    "ragadapt": _ours,
    "ragadapt float32": lambda options: _ours(options, "float32"),
    "ragadapt bfloat16": lambda options: _ours(options, "bfloat16"),
    "ragadapt bfloat16, batched attention": lambda options: _ours(options, "bfloat16", batched=True),
    DEFAULT: lambda options: _by_library(_library(options)),
    "sentence-transformers bf16 weights": lambda options: _by_library(_library(options, "bfloat16")),
    "ONNX Runtime float32": lambda options: _onnx(options, "model.onnx"),
    "ONNX Runtime int8": lambda options: _onnx(options, "int8.onnx"),
    "OpenVINO float32": lambda options: _openvino(options, "f32"),
    "OpenVINO bf16": lambda options: _openvino(options, "bf16"),
    "OpenVINO int8": lambda options: _openvino(options, "f32", "int8.xml"),
    "light-embed float32": lambda options: _light(options, "model.onnx"),
    "light-embed int8": lambda options: _light(options, "int8.onnx"),
}
"""Contender → what makes its function, and says how. What is not installed is imported first, to end at once."""


def _encoding(name: str, options: Row) -> tuple[Callable[..., Row], Row]:
    encode, note = SIDES[name](options)
    import torch

    torch.set_num_threads(options["threads"])
    texts = json.loads((Path(options["place"]) / "texts.json").read_text(encoding="utf-8"))

    def measure(task: str, save: str | None) -> Row:
        begin, used = time.perf_counter(), time.process_time()
        vectors = encode(texts[task])
        found = {"wall": time.perf_counter() - begin, "processor": time.process_time() - used}
        if save:
            np.save(save, np.asarray(vectors, dtype=np.float32))
        return found

    return measure, {"note": note}


def _training(options: Row) -> tuple[Callable[..., Row], Row]:
    """Steps of ragadapt's loop, from the end of one to the end of the next; the batch fits what is kept in memory, so
    that nothing is run twice."""
    from ragadapt import Encoder, EncoderConfig
    from ragadapt.config import AdapterConfig, TrainingConfig
    from ragadapt.training import Example, train

    encoder = Encoder.load(EncoderConfig(model="offline", device="cpu"))
    texts = json.loads((Path(options["place"]) / "texts.json").read_text(encoding="utf-8"))[TRAINING]
    half = len(texts) // 2
    examples = [Example(query, passage) for query, passage in zip(texts[:half], texts[half:], strict=True)]
    steps = TrainingConfig(epochs=2 if options["smoke"] else 4, batch_size=half, prefix_cache=False)

    def measure(task: str, save: str | None) -> Row:
        marks: list[tuple[float, float]] = []

        def mark(stage: str, done: int, total: int) -> None:
            if stage == "training":
                marks.append((time.perf_counter(), time.process_time()))

        train(encoder, examples, None, AdapterConfig(rank=RANK, reweight="none"), steps, progress=mark)
        wall, used = np.median(np.diff(marks, axis=0), axis=0)
        return {"wall": wall, "processor": used}

    return measure, {"note": f"{encoder.precision.dtype}, rank {RANK}, {half} pairs"}


def _products(options: Row) -> tuple[Callable[..., Row], Row]:
    """Rates of products by kind, size and what makes them; in float, also with weights in oneDNN's own layout."""
    import torch

    torch.set_num_threads(options["threads"])
    own: Any = torch.ops.mkldnn
    eight: Any = torch.ops.onednn

    def ways(rows: int, inner: int, columns: int) -> Iterator[tuple[str, Callable[[], Any]]]:
        for kind, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
            x, w = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
            packed = own._reorder_linear_weight(w, None)
            yield f"{kind}: torch.matmul", partial(torch.matmul, x, w.T)
            yield f"{kind}: oneDNN, packed", partial(own._linear_pointwise, x, packed, None, "none", [], "")
        left, signed = (torch.randint(-127, 127, size, dtype=torch.int8) for size in ((rows, inner), (inner, columns)))
        yield "int8: torch._int_mm", partial(torch._int_mm, left, signed)
        x = torch.randint(0, 255, (rows, inner), dtype=torch.uint8)
        packed = eight.qlinear_prepack(signed.T.contiguous(), [rows, inner])
        ones, zeros = torch.full((columns,), 0.01), torch.zeros(columns, dtype=torch.int64)
        given: Any = (x, 0.1, 128, packed, ones, zeros, None, 0.5, 0, torch.uint8, "none", [], "")
        yield "int8: oneDNN, u8 by s8, packed", partial(eight.qlinear_pointwise, *given)

    def measure(task: str, save: str | None) -> Row:
        found = {}
        for shape in [(64, 64, 64)] if options["smoke"] else _SHAPES:
            for label, run in ways(*shape):
                times = []
                for _ in range(4):
                    begin, used = time.perf_counter(), time.process_time()
                    run()
                    times.append((time.perf_counter() - begin, time.process_time() - used))
                wall, spent = np.min(times[1:], axis=0)  # the first one chooses kernels
                found[f"{label}, {' x '.join(map(str, shape))}"] = 2 * np.prod(shape) / np.array([wall, spent])
        return {label: list(rates) for label, rates in found.items()}

    return measure, {}


def _reason(error: BaseException) -> str:
    """Kind and first line, without the files that Python names in brackets."""
    first = re.sub(r" \((/|[A-Z]:)[^)]*\)", "", str(error)).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"[:160]


def main() -> None:
    """Answer one line a line asked, the first one before any is: {"reason": …} where that is not possible."""
    name, options = sys.argv[1], json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to the log
    work = {"peak": _products, TRAINING: _training}
    try:
        measure, answer = work[name](options) if name in work else _encoding(name, options)
        print(json.dumps(answer), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(measure(**json.loads(line)), default=float), file=answers, flush=True)
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"reason": _reason(error)}), file=answers, flush=True)


if __name__ == "__main__":
    main()
