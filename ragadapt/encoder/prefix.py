"""The frozen part of a transformer, computed once per text and kept on disk.

When only the top layers are trained, everything below them gives the same hidden states in every epoch, in
every run and in the final re-encoding. `split` cuts a model in two at that place; `PrefixCache` remembers
what comes out of the lower part.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import shutil
import struct
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from ragadapt.encoder.attention import needed_mask, reads_backwards_only
from ragadapt.encoder.batches import Ids, Padded, token_batches
from ragadapt.profiling import work
from ragadapt.values import Progress, no_progress

log = logging.getLogger(__name__)

Pad = Callable[[list[Ids]], Padded]

_LAYER_LISTS = ("encoder.layer", "transformer.layer", "layers")
_EMBEDDINGS = ("embeddings", "embed_tokens")
_LAST = ("pooler", "final_norm", "norm")  # what follows the layers and belongs to the upper part


def layer_list(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """(dotted name, list) of a transformer's layers; None for a build that is not known here."""
    for name in _LAYER_LISTS:
        try:
            found = model.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList) and len(found):
            return name, found
    return None


class _Given(nn.Module):
    """Stands where the embeddings were and hands on the hidden states that it is given."""

    def forward(self, *inputs: Any, inputs_embeds: Tensor | None = None, **others: Any) -> Tensor:
        if inputs_embeds is not None:
            return inputs_embeds
        return next(value for value in inputs if isinstance(value, Tensor) and value.is_floating_point())


def _view(module: nn.Module, **replaced: nn.Module | None) -> nn.Module:
    """A second face of a module: same children, same weights, except those replaced."""
    view = copy.copy(module)
    view._modules = {**module._modules, **replaced}
    return view


def split(model: nn.Module, top_layers: int) -> tuple[nn.Module, nn.Module] | None:
    """(lower part, upper part) as two models that share this one's layers; None where that cannot be done, or where a
    layer above the cut has weights of one below it: to train the one would change the other.

    The lower takes input_ids and attention_mask, the upper inputs_embeds and attention_mask; run one after the
    other they are the whole. Known to work: BERT, RoBERTa, XLM-R, MPNet, DistilBERT, ModernBERT, Qwen3.
    """
    found = layer_list(model)
    embeddings = next((name for name in _EMBEDDINGS if name in model._modules), None)
    if found is None or embeddings is None or not 0 < top_layers < len(found[1]):
        return None
    name, layers = found
    kinds = getattr(model.config, "layer_types", None)
    if kinds and len(set(kinds)) > 1 and not hasattr(layers[0], "attention_type"):
        return None  # such a model looks up the kind of layer by its position, which a slice would shift
    cut = len(layers) - top_layers
    below = {id(weight) for weight in layers[:cut].parameters()}
    if any(id(weight) in below for weight in layers[cut:].parameters()):
        return None
    last: dict[str, nn.Module | None] = {
        part: (None if part == "pooler" else nn.Identity()) for part in _LAST if part in model._modules
    }
    upper_start = {embeddings: _Given()} if embeddings == "embeddings" else {}
    if name == "layers":
        lower = _view(model, layers=layers[:cut], **last)
        upper = _view(model, layers=layers[cut:], **upper_start)
    else:
        outer, inner = name.split(".")
        stack = model.get_submodule(outer)
        lower = _view(model, **{outer: _view(stack, **{inner: layers[:cut]})}, **last)
        upper = _view(model, **{outer: _view(stack, **{inner: layers[cut:]})}, **upper_start)
    if "pooler" in upper._modules:
        upper._modules["pooler"] = None
    return lower, upper


class Prefix:
    """The two parts of one tower's model, and where the lower part's results are kept."""

    def __init__(self, model: nn.Module, top_layers: int, cache: PrefixCache | None) -> None:
        """Raises ValueError for a model that `split` cannot cut."""
        parts = split(model, top_layers)
        if parts is None:
            raise ValueError(f"{type(model).__name__} cannot be cut {top_layers} layers below its top")
        self.lower, self.upper = parts
        self.top_layers = top_layers
        self.cache = cache
        self.maskless = reads_backwards_only(model) and not getattr(model, "packs", False)

    @torch.no_grad()
    def below(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, T) → (B, T, h): what the upper part reads. Never cached."""
        with work("frozen layers", len(ids)):
            attended = needed_mask(mask, self.maskless)
            hidden: Tensor = self.lower(input_ids=ids, attention_mask=attended).last_hidden_state
        return hidden

    def hidden(self, rows: list[Ids], pad: Pad, device: torch.device) -> tuple[Tensor, Tensor]:
        """((B, T, h) hidden states, (B, T) mask) of token rows, from the cache where they are known."""
        ids_array, mask_array = pad(rows)
        mask = torch.from_numpy(mask_array).to(device)
        if self.cache is None:
            return self.below(torch.from_numpy(ids_array).to(device), mask), mask
        places = [self.cache.find(row) for row in rows]
        missing = [position for position, place in enumerate(places) if place is None]
        if len(missing) == len(rows):
            computed = self.below(torch.from_numpy(ids_array).to(device), mask)
            with work("cache writes", len(rows)):
                self.cache.add(rows, computed)
            return computed, mask
        width = ids_array.shape[1]
        with work("cache reads", len(rows) - len(missing)):
            hidden = self.cache.gather(places, width)
        if missing:
            some = self.below(
                torch.from_numpy(ids_array[missing]).to(device), torch.from_numpy(mask_array[missing]).to(device)
            )
            with work("cache writes", len(missing)):
                self.cache.add([rows[position] for position in missing], some)
            hidden[missing] = some.cpu()
        if device.type == "cuda":
            hidden = hidden.pin_memory()
        return hidden.to(device, non_blocking=True), mask

    def fill(
        self,
        rows: Sequence[Ids],
        pad: Pad,
        device: torch.device,
        budget_tokens: int,
        progress: Progress = no_progress,
    ) -> None:
        """Compute what the cache lacks, in batches of similar length."""
        if self.cache is None or self.cache.full:
            return
        unknown = [row for row in rows if self.cache.find(row) is None]
        lengths = np.fromiter((len(row) for row in unknown), np.int64, len(unknown))
        done = 0
        for batch in token_batches(lengths, budget_tokens):
            self.hidden([unknown[position] for position in batch], pad, device)
            done += len(batch)
            progress("frozen layers", done, len(unknown))
            if self.cache.full:
                return


_RECORD = struct.Struct("<16sqi")  # digest of the token ids, offset in values, tokens


class PrefixCache:
    """Hidden states on disk, found by token ids. Append-only, bounded, shared between runs.

    Two files: `<name>.bin` holds the values one text after the other without padding, `<name>.idx` one record
    per text, written after its values: a killed process leaves at most values that no record points to.
    A second process that opens the same cache reads and does not add.
    """

    def __init__(self, folder: str | Path, key: str, width: int, dtype: torch.dtype, max_bytes: int) -> None:
        """key: everything that decides the values (weights, layer, precision). width: of the hidden states.

        max_bytes: of the values; half of what is free on the disk if that is less.
        """
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(f"{key} {width} {dtype}".encode()).hexdigest()[:24]
        self.values_path = self.folder / f"prefix-{name}.bin"
        self.index_path = self.folder / f"prefix-{name}.idx"
        self.width = width
        self.dtype = dtype
        written = self.values_path.stat().st_size if self.values_path.exists() else 0
        self.max_bytes = min(max_bytes, written + shutil.disk_usage(self.folder).free // 2)
        self._storage = torch.float32 if dtype == torch.float32 else torch.int16  # numpy has no bfloat16
        self._item: np.dtype[Any] = np.dtype(np.float32 if dtype == torch.float32 else np.int16)
        self._known: dict[bytes, tuple[int, int]] = {}
        self._map: npt.NDArray[Any] | None = None
        self._values: FileIO | None = None
        self._index: FileIO | None = None
        self._lock = FileLock(str(self.values_path) + ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            log.info("prefix cache %s is being written by another process: reading only", self.values_path)
        self._open()

    def _open(self) -> None:
        size = self.values_path.stat().st_size // self._item.itemsize if self.values_path.exists() else 0
        records = self.index_path.read_bytes() if self.index_path.exists() else b""
        whole = len(records) - len(records) % _RECORD.size
        self._end = 0
        for digest, offset, tokens in _RECORD.iter_unpack(records[:whole]):
            end = offset + tokens * self.width
            if end > size:
                break
            self._known[digest] = (offset, tokens)
            self._end = max(self._end, end)
        if self._lock.is_locked:
            # Unbuffered: a batch is written whole or, on a full disk, reported at once.
            self._values = self.values_path.open("r+b" if self.values_path.exists() else "w+b", buffering=0)
            self._index = self.index_path.open("r+b" if self.index_path.exists() else "w+b", buffering=0)
            self._index.truncate(len(self._known) * _RECORD.size)
            self._index.seek(0, 2)

    @staticmethod
    def delete(values_path: Path) -> None:
        """Delete a cache by its file of values, if nobody has it open."""
        lock = FileLock(str(values_path) + ".lock")
        try:
            with lock.acquire(timeout=0):
                for path in (values_path.with_suffix(".idx"), values_path):
                    path.unlink(missing_ok=True)
        except (Timeout, OSError):
            log.info("%s is in use: left alone", values_path)

    def close(self) -> None:
        self._map = None
        for file in (self._values, self._index):
            if file is not None:
                file.close()
        self._values = self._index = None
        self._lock.release()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def full(self) -> bool:
        """No room for one more text of 32 tokens, or read-only."""
        return self._values is None or self._end * self._item.itemsize + 64 * self.width > self.max_bytes

    def find(self, row: Ids) -> tuple[int, int] | None:
        """(offset, tokens) of a text's hidden states; None where they are not kept."""
        return self._known.get(_digest(row))

    def add(self, rows: list[Ids], hidden: Tensor) -> None:
        """Keep the hidden states (B, T, h) of these rows, as far as there is room."""
        if self._values is None or self._index is None or self.full:
            return
        values = hidden.detach().to(self.dtype).cpu().contiguous().view(self._storage).numpy()
        data, records = bytearray(), bytearray()
        added: dict[bytes, tuple[int, int]] = {}
        end = self._end
        for position, row in enumerate(rows):
            digest, tokens = _digest(row), len(row)
            after = end + tokens * self.width
            if digest in self._known or digest in added or after * self._item.itemsize > self.max_bytes:
                continue
            data += values[position, :tokens].tobytes()
            records += _RECORD.pack(digest, end, tokens)
            added[digest] = (end, tokens)
            end = after
        try:
            self._values.seek(self._end * self._item.itemsize)
            _write_whole(self._values, data)
            _write_whole(self._index, records)
        except OSError as error:  # what was kept before stays good
            log.warning("the cache of frozen layers stops growing: %s", error)
            self.max_bytes = 0
            return
        self._known |= added
        self._end = end

    def gather(self, places: Sequence[tuple[int, int] | None], width: int) -> Tensor:
        """(B, width, h) on the CPU: each place's values, then zeros; a None place is all zeros."""
        if self._map is None or len(self._map) < self._end:
            self._map = np.memmap(self.values_path, dtype=self._item, mode="r", shape=(self._end,))
        batch = np.zeros((len(places), width, self.width), dtype=self._item)
        for position, place in enumerate(places):
            if place is not None:
                offset, tokens = place
                batch[position, :tokens] = self._map[offset : offset + tokens * self.width].reshape(tokens, -1)
        return torch.from_numpy(batch).view(self.dtype)


def _write_whole(file: FileIO, data: bytearray) -> None:
    """Write all of it: the system takes as much at a time as it likes. Raises OSError where it takes nothing."""
    rest = memoryview(data)
    while rest:
        taken = file.write(rest)
        if not taken:
            raise OSError("the disk is full")
        rest = rest[taken:]


def _digest(row: Ids) -> bytes:
    return hashlib.blake2b(row.tobytes(), digest_size=16).digest()
