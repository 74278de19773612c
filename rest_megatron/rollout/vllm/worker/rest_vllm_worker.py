"""Runs inside vLLM's workers: takes over weights from safetensors files that the trainer has written.

The server finds this file on its PYTHONPATH and imports it for `--worker-extension-cls rest_vllm_worker.Extension`,
which registers the weight transfer backend `rest_files`. It knows nothing of the trainer's own packages.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from safetensors import safe_open
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    get_layerwise_info,
    initialize_layerwise_reload,
)
from vllm.platforms import current_platform

logger = logging.getLogger(__name__)

BACKEND = "rest_files"
READ_BYTES = 8 << 20


class LoadsWeights(Protocol):
    """Any of vLLM's models."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> object:
        """Take over tensors by Hugging Face's names."""


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing has to be agreed on before the first update."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """One file of an update."""

    path: str
    """Safetensors with Hugging Face's names, whole tensors."""
    sha256: str
    """Of the file's bytes, in lower-case hexadecimal digits."""


class FileTransfer(WeightTransferEngine[InitInfo, UpdateInfo]):
    """start, one update per file in any order, finish. After a failed update start again, with all files.

    Nothing is raised: of several workers vLLM reads the replies up to the first error, and takes the others for the
    replies to its next calls. `failure` is the first error's text since the last start, None while all is well; after
    one, everything but a start is left undone.
    """

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False
    failure: str | None = None

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """There is no connection to open."""

    def start_weight_update(self) -> None:
        """Forget what an update that failed has left behind, and expect every tensor."""
        self.failure = None
        self._attempt(self._start)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Load one file and check its bytes meanwhile.

        A failure when it cannot be read, holds other bytes than the trainer wrote, or does not fit the model.
        """
        self._attempt(lambda: _load_checked(self.model, update_info.path, update_info.sha256))

    def finish_weight_update(self) -> None:
        """Put the new weights in place of the old ones."""
        self._attempt(self._finish)

    def shutdown(self) -> None:
        """Nothing is held between updates."""

    def _start(self) -> None:
        _forget_partial_layers(self.model)
        initialize_layerwise_reload(self.model)

    def _finish(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        _repack_tied_heads(self.model)

    def _attempt(self, step: Callable[[], None]) -> None:
        if self.failure is not None:
            return
        try:
            step()
        except Exception as error:
            logger.exception("the weight update failed")
            self.failure = f"{type(error).__name__}: {error}"


class Extension:
    """What vLLM's worker gets in addition: calls for its /collective_rpc."""

    weight_transfer_engine: FileTransfer  # the worker's own

    def abandon_weight_update(self) -> None:
        """Forget an update that nobody finishes; vLLM would refuse to start another."""
        self._weight_update_active = False
        self.weight_transfer_engine.reset_weight_update_target()

    def weight_update_failure(self) -> str | None:
        """Why the update that was started last cannot be used; None when nothing has failed."""
        return self.weight_transfer_engine.failure


def _load_checked(model: LoadsWeights, path: str, sha256: str) -> None:
    failure = None
    with ThreadPoolExecutor(1) as reader:
        digest = reader.submit(_sha256, path)
        try:
            _load(model, path)
        except Exception as error:
            # Raised below: when the bytes are wrong, that is the reason to report.
            failure = error
    try:
        found = digest.result()
    except OSError as error:
        raise RuntimeError(f"weights {path} cannot be read: {error}") from error
    if found != sha256:
        raise RuntimeError(
            f"weights {path} are not those that were written: SHA-256 {found}, expected {sha256}"
        ) from failure
    if failure is not None:
        raise RuntimeError(f"weights {path} cannot be loaded: {type(failure).__name__}: {failure}") from failure


def _load(model: LoadsWeights, path: str) -> None:
    with safe_open(path, framework="pt") as file:
        model.load_weights((name, file.get_tensor(name)) for name in file.keys())


def _sha256(path: str) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(READ_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _forget_partial_layers(model: nn.Module) -> None:
    """vLLM keeps the tensors of a layer until it has as many elements as the layer, whichever they are.

    Left over from an update that failed, they would count again in the next one: the layer would be taken for complete
    while some of its tensors are still missing.
    """
    for layer in model.modules():
        info = get_layerwise_info(layer)
        info.loaded_weights.clear()
        info.load_numel = 0


def _repack_tied_heads(model: nn.Module) -> None:
    """On CPU an output layer that shares the embedding's weights computes with a packed copy of its own.

    No file holds that layer, so vLLM's reload does not pack it again. Other platforms compute with the shared weights.
    """
    if not current_platform.is_cpu():
        return
    layers = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
    embeddings = {id(layer.weight) for layer in layers if not isinstance(layer, ParallelLMHead)}
    for layer in layers:
        if isinstance(layer, ParallelLMHead) and id(layer.weight) in embeddings:
            layer.quant_method.process_weights_after_loading(layer)


WeightTransferEngineFactory.register_engine(BACKEND, FileTransfer)
