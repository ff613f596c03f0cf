"""One side of a bi-encoder: token ids → unit vectors; the transformer in any precision, the rest in float32."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ragadapt.encoder.attention import needed_mask, reads_backwards_only
from ragadapt.encoder.batches import Ids, Padded, pad
from ragadapt.encoder.packed import PackedBert, packed
from ragadapt.encoder.precision import PROBE_PASSAGES
from ragadapt.encoder.prefix import Prefix, split
from ragadapt.encoder.tokens import encode
from ragadapt.text import searchable

log = logging.getLogger(__name__)

_SAME_PACKED = 0.9995  # least cosine of two ways to round to bfloat16 on the way; each is within .0002 of float32


class Tower(nn.Module):
    """The transformer and what follows it (pooling, projections), without prompt and without text.

    model: a transformers encoder, in the precision that was chosen. head: sentence-transformers modules after
    it, always float32, so that pooling and normalisation lose nothing.
    """

    def __init__(self, model: nn.Module, head: Sequence[nn.Module], tokenizer: Any, max_length: int) -> None:
        super().__init__()
        self.model = model
        self.head = nn.ModuleList(head)
        self.tokenizer = tokenizer
        self.max_length = max_length
        pad_id = getattr(tokenizer, "pad_token_id", None)
        self.pad_id: int = 0 if pad_id is None else int(pad_id)
        self.autocast: torch.dtype | None = None  # set: float32 weights among those of this precision
        self.prefix: Prefix | None = None  # set: the lower layers are frozen and their results kept
        self.path = "transformers' forward"  # which code runs the model, in words
        self._packs: bool | None = None  # whether packed weights give the same vectors; None = not tried yet
        self.stateless = False  # whether several threads may run it at once: nothing in it remembers a batch
        self.causal = reads_backwards_only(model)
        self.maskless = self.causal and not getattr(model, "packs", False)
        self.prompt_pooled = all(getattr(module, "include_prompt", True) for module in head)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def clone(self) -> Self:
        """A tower of its own modules that shares every weight with this one: adding an adapter to the clone
        leaves the original as it was, and costs no memory for what stays frozen."""
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        shared[id(self.tokenizer)] = self.tokenizer
        shared[id(self.prefix)] = None
        twin = copy.deepcopy(self, shared)
        twin.stateless = False  # nothing is known of what it is made for
        if self.prefix is not None:
            twin.prefix = Prefix(twin.model, self.prefix.top_layers, self.prefix.cache)
        return twin

    def tokenize(self, texts: Sequence[str]) -> tuple[list[Ids], int]:
        """(token ids per text, cut at max_length, special tokens included; how many texts were cut).

        Texts are read as `searchable` makes them: queries and passages, in training and in search.
        """
        if not texts:
            return [], 0
        read = [searchable(text) for text in texts]
        details = encode(self.tokenizer, read, max_length=self.max_length)
        if details is not None:
            cut = sum(1 for one in details if one.overflowing)
            return [np.asarray(one.ids, dtype=np.int32) for one in details], cut
        encoded = self.tokenizer(
            read,
            truncation=True,
            max_length=self.max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        rows = [np.asarray(row, dtype=np.int32) for row in encoded["input_ids"]]
        details = getattr(encoded, "encodings", None)
        if details:
            cut = sum(1 for one in details if one.overflowing)
        else:
            cut = sum(1 for row in rows if len(row) >= self.max_length)
        return rows, cut

    def prompt_length(self, prompt: str) -> int:
        """Tokens that a prompt takes at the front, the leading special token included."""
        ids = self.tokenizer(prompt)["input_ids"]
        return len(ids) - (1 if ids and ids[-1] in set(self.tokenizer.all_special_ids) else 0)

    def pad(self, rows: list[Ids]) -> Padded:
        """(ids, mask), (B, T) each, of one batch of token rows."""
        return pad(rows, self.pad_id, self.max_length)

    def to_tensors(self, rows: list[Ids]) -> tuple[Tensor, Tensor]:
        """Padded (ids, mask), (B, T) each, on the tower's device."""
        ids, mask = (torch.from_numpy(array) for array in self.pad(rows))
        device = self.device
        if device.type == "cuda":
            ids, mask = (tensor.pin_memory().to(device, non_blocking=True) for tensor in (ids, mask))
        elif device.type != "cpu":
            ids, mask = ids.to(device), mask.to(device)
        return ids, mask

    def forward(self, ids: Tensor, mask: Tensor, prompt_length: int = 0) -> Tensor:
        """(B, T) ids and mask → (B, d) float32, unit length."""
        with self._precision():
            hidden = self.model(input_ids=ids, attention_mask=needed_mask(mask, self.maskless)).last_hidden_state
        return self.pool(hidden, mask, prompt_length)

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast)

    def pool(self, hidden: Tensor, mask: Tensor, prompt_length: int = 0) -> Tensor:
        """(B, T, h) hidden states → (B, d) float32, unit length."""
        features: dict[str, Any] = {"token_embeddings": hidden.float(), "attention_mask": mask}
        if prompt_length and not self.prompt_pooled:
            features["prompt_length"] = prompt_length
        for module in self.head:
            features = module(features)
        return nn.functional.normalize(features["sentence_embedding"].float(), dim=-1)

    def vectors(self, rows: list[Ids], prompt_length: int = 0) -> Tensor:
        """(B, d) float32 unit vectors of one batch of token rows; gradients reach the trained layers."""
        if self.prefix is None:
            return self(*self.to_tensors(rows), prompt_length)  # type: ignore[no-any-return]
        return self._above(self.prefix, *self.prefix.hidden(rows, self.pad, self.device), prompt_length)

    def _above(self, prefix: Prefix, hidden: Tensor, mask: Tensor, prompt_length: int = 0) -> Tensor:
        """(B, T, h) of the lower part, (B, T) mask → (B, d) float32, unit length."""
        with self._precision():
            attended = needed_mask(mask, self.maskless)
            above = prefix.upper(inputs_embeds=hidden, attention_mask=attended).last_hidden_state  # (B, T, h)
        return self.pool(above, mask, prompt_length)

    @torch.no_grad()
    def can_be_cut(self, top_layers: int, trained: Iterable[nn.Parameter] = ()) -> bool:
        """Whether the layers below the top ones may be computed once and kept: nothing in them is trained, and what
        they gave earlier leads to the very bits of the whole model."""
        parts = split(self.model, top_layers)
        if parts is None:
            return False
        moving = {id(parameter) for parameter in trained}
        if any(id(parameter) in moving for parameter in parts[0].parameters()):
            return False
        rows, others = self.tokenize(PROBE_PASSAGES[:4])[0], self.tokenize(PROBE_PASSAGES[4:7])[0]
        prefix = Prefix(self.model, top_layers, None)
        above = set(parts[1].modules()) - set(parts[0].modules())
        dropping = [module for module in above if module.training]  # an adapter's own dropout, which may be on
        try:
            for module in dropping:
                module.training = False
            whole = self(*self.to_tensors(rows))
            given = prefix.hidden(rows, self.pad, self.device)
            prefix.hidden(others, self.pad, self.device)  # what layers remember of the last batch must not matter
            return bool(torch.equal(whole, self._above(prefix, *given)))
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            log.info("%s cannot be cut: %s", type(self.model).__name__, error)
            return False
        finally:
            for module in dropping:
                module.training = True

    def packed(self) -> PackedBert | None:
        """For a long run, which gives it to `embed`: packed weights, where there are any that give the same vectors."""
        if self._packs is False or self.prefix is not None or self.autocast is not None:
            return None
        made = packed(self.model)
        if made is not None and self._packs is None:
            self._packs = self._same_packed(made)
        return made if self._packs else None

    @torch.no_grad()
    def _same_packed(self, model: PackedBert) -> bool:
        """Whether packed weights give this model's vectors of the probe; where they fail, they don't."""
        ids, mask = self.to_tensors(self.tokenize(PROBE_PASSAGES)[0])
        try:
            cosines = (self(ids, mask) * self.pool(model(ids, mask), mask)).sum(-1)
            least = float(cosines.min())
        except RuntimeError as error:
            log.info("weights are not packed: %s", error)
            return False
        if not least >= _SAME_PACKED:
            log.warning("packed weights give other vectors (least cosine %.5f): not used", least)
            return False
        return True

    @torch.no_grad()
    def embed(
        self, rows: list[Ids], prompt_length: int = 0, packed: PackedBert | None = None
    ) -> npt.NDArray[np.float32]:
        """(B, d) float32 unit vectors of one batch of token rows. packed: as `packed` gave them for this run."""
        if packed is not None:
            ids, mask = self.to_tensors(rows)
            found = self.pool(packed(ids, mask), mask, prompt_length)
        else:
            found = self.vectors(rows, prompt_length)
        made: npt.NDArray[np.float32] = found.cpu().numpy()
        return made
