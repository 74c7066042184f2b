"""Published weights into our modules.

A checkpoint is a folder in the released format (config.json, tokenizer.json, one or several
safetensors files) with the VQ tokenizer beside it, a hub id of such a folder, or "nano", the
small checkpoint this project trained and ships. Nothing is renamed and nothing is guessed: a
tensor that is missing, unknown or of another shape is named in one error.
"""

import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pure.belief import TextTokenizer
from pure.grammar import Grammar, GrammarError
from pure.model import Transformer, TransformerConfig
from pure.sampling import SamplingConfig, SamplingError
from pure.vocab import Vocab, VocabularyError
from pure.vq import VQConfig, VQModel

NANO = Path(__file__).parent / "weights" / "nano"
NANO_NAME = "PURE-nano"
RELEASED_ID = "nonwhy/PURE"
RELEASED_PIXELS = 512
VQ_ID, VQ_FILE = "FoundationVision/LlamaGen", "vq_ds8_c2i.pt"
VQ_SAFETENSORS = "vq.safetensors"
INDEX = "model.safetensors.index.json"

# Accepted and not used: Chameleon's own VQ encoder, and training statistics of LlamaGen's.
IGNORED_PREFIXES = ("model.vqmodel.",)
VQ_IGNORED = ("quantize.codebook_used",)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be loaded; the message says what is wrong with it and where."""


@dataclass(frozen=True)
class Tokenizers:
    """What turns text and pictures into tokens of one vocabulary, and back.

    Attributes:
        names: name to id of every token.
    """

    names: Mapping[str, int]
    grammar: Grammar
    text: TextTokenizer
    vq: VQModel


@dataclass(frozen=True)
class Checkpoint:
    """Everything that speaks one vocabulary, loaded.

    Attributes:
        name: what to call it in front of people.
        native: side in pixels of the picture one sequence restores.
        text_limit: tokens of the longest label and caption together.
        photos: photographs it was trained on, if the checkpoint says.
        sampling: how codes are drawn, unless somebody asks for another way.
    """

    name: str
    model: Transformer
    vq: VQModel
    grammar: Grammar
    text: TextTokenizer
    native: int
    text_limit: int
    photos: int | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    @property
    def is_nano(self) -> bool:
        """Whether this is the small embedded checkpoint, not the paper's model."""
        return self.name == NANO_NAME


def load(
    path_or_id: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Checkpoint:
    """Load a checkpoint: "nano", a folder, or a hub id.

    Args:
        path_or_id: where it is.
        device: where the weights go.
        dtype: of the transformer; by default float32 on a CPU and bfloat16 elsewhere. The VQ
            tokenizer is always float32, as published. float16 is refused: residuals of
            Chameleon's last layers exceed its range.

    Raises:
        CheckpointError: it is not there, not complete, or not in the released format.
    """
    device = torch.device(device)
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype is torch.float16:
        raise CheckpointError("float16 overflows in this model; use bfloat16 or float32")
    folder = find(path_or_id)
    config_json = _read_json(folder / "config.json")
    config = transformer_config(config_json)
    with torch.device("meta"):
        model = Transformer(config)
    tokenizers = load_tokenizers(folder, device=device)
    _stream(model, weight_files(folder), device=device, dtype=dtype, ignored=IGNORED_PREFIXES)
    settings = config_json.get("pure", {})
    is_nano = folder.resolve() == NANO.resolve()
    return Checkpoint(
        name=NANO_NAME if is_nano else settings.get("name", str(path_or_id)),
        model=model.eval().requires_grad_(False),
        vq=tokenizers.vq,
        grammar=tokenizers.grammar,
        text=tokenizers.text,
        native=_native(config_json),
        text_limit=int(settings.get("text_limit", 512)),
        photos=settings.get("photos"),
        sampling=own_sampling(folder),
    )


def load_tokenizers(folder: Path, *, device: torch.device | str = "cpu") -> Tokenizers:
    """The vocabulary, text tokenizer and VQ tokenizer of a checkpoint folder, without its weights.

    Raises:
        CheckpointError: a file is missing, or they contradict each other.
    """
    config_json = _read_json(folder / "config.json")
    names = read_names(folder)
    try:
        vocab = Vocab.from_names(names, transformer_config(config_json).vocab_size)
    except VocabularyError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    vq = load_vq(folder, device=device)
    if vq.config.codebook_size != len(vocab.codes):
        raise CheckpointError(
            f"the tokenizer in {folder} has {vq.config.codebook_size} codes, "
            f"the vocabulary {len(vocab.codes)}"
        )
    text = _text(folder / "tokenizer.json", vocab)
    grammar = own_grammar(folder, vocab, vq.factor)
    return Tokenizers(names, grammar, text, vq)


def own_grammar(folder: Path, vocab: Vocab, factor: int) -> Grammar:
    """The grammar of a checkpoint folder, with the form of its own text if it has one.

    Raises:
        CheckpointError: the form names what is no text.
    """
    form = _read_json(folder / "config.json").get("pure", {}).get("text_form")
    names = read_names(folder)
    try:
        ids = None if form is None else [[names[name] for name in place] for place in form]
        return Grammar(vocab, factor, ids)
    except (KeyError, GrammarError) as error:
        raise CheckpointError(f"{folder}: its text_form cannot be used: {error}") from error


def own_sampling(folder: Path) -> SamplingConfig:
    """How a checkpoint folder says codes are to be drawn; as published where it does not.

    Raises:
        CheckpointError: it cannot be done that way.
    """
    settings = _read_json(folder / "config.json").get("pure", {}).get("sampling", {})
    try:
        return SamplingConfig.from_dict(settings)
    except SamplingError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def find(path_or_id: str | Path) -> Path:
    """The folder of a checkpoint; a hub id is downloaded, with the VQ tokenizer, if need be."""
    if str(path_or_id) == "nano":
        return NANO
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    name = str(path_or_id)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            f"there is no checkpoint folder {name}; give an existing folder, a hub id such as "
            f'{RELEASED_ID}, or "nano"'
        )
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - slow, and only for hub ids

    try:
        patterns = ["*.json", "*.safetensors", VQ_FILE]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError, RuntimeError) as error:
        # huggingface_hub raises subclasses of these for a missing repository or no network
        raise CheckpointError(
            f"{name} could not be fetched from the hub ({type(error).__name__}). Check the name "
            "and the connection, or download it elsewhere and give its folder."
        ) from error


def read_config(folder: Path) -> TransformerConfig:
    """The configuration of a checkpoint folder; see `transformer_config`."""
    return transformer_config(_read_json(folder / "config.json"))


def read_native(folder: Path) -> int:
    """Side in pixels of the picture one sequence of a checkpoint folder restores."""
    return _native(_read_json(folder / "config.json"))


def _native(config_json: Mapping[str, Any]) -> int:
    # 512 is what the released model was trained at; ours says in its config.
    return int(config_json.get("pure", {}).get("native_pixels", RELEASED_PIXELS))


def transformer_config(config: Mapping[str, Any]) -> TransformerConfig:
    """Our configuration from a `config.json`; fields we do not use are left alone.

    The ids in it (bos 1, eos 2) are stale in the release and never read.

    Raises:
        CheckpointError: it is of another model, or uses something this one does not have.
    """
    if config.get("model_type") != "chameleon":
        raise CheckpointError(f"model_type is {config.get('model_type')!r}, not 'chameleon'")
    unsupported = {
        "hidden_act": ("silu",),
        "rope_scaling": (None,),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "tie_word_embeddings": (False,),
        "mask_image_logits": (False,),
    }
    for key, known in unsupported.items():
        if key in config and config[key] not in known:
            raise CheckpointError(f"config has {key} = {config[key]!r}; only {known[0]!r} works")
    rope = config.get("rope_parameters") or {}  # where transformers 5 keeps the base
    values = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    values |= {f.name: config[f.name] for f in fields(TransformerConfig) if f.name in config}
    result = TransformerConfig(**values)
    if result.hidden_size % result.num_attention_heads:
        raise CheckpointError(
            f"hidden_size {result.hidden_size} is no multiple of "
            f"{result.num_attention_heads} attention heads"
        )
    if result.num_attention_heads % result.num_key_value_heads:
        raise CheckpointError(
            f"{result.num_attention_heads} attention heads cannot share "
            f"{result.num_key_value_heads} key-value heads"
        )
    return result


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.name} is missing in {path.parent}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return content


def read_names(folder: Path) -> dict[str, int]:
    """Name to id of every token: from the config, else, as newer releases may, the tokenizer.

    Raises:
        CheckpointError: neither lists them.
    """
    if names := _read_json(folder / "config.json").get("vocabulary_map"):
        return names
    tokenizer = _read_json(folder / "tokenizer.json")
    try:
        names = dict(tokenizer["model"]["vocab"])
        return names | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}/tokenizer.json lists no vocabulary") from error


def _text(path: Path, vocab: Vocab) -> TextTokenizer:
    _read_json(path)  # says what is wrong with a missing or broken file
    try:
        return TextTokenizer.from_file(path, vocab.text)
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise CheckpointError(f"{path} is no tokenizer: {error}") from error


def weight_files(folder: Path) -> list[Path]:
    """The weight files, and only those the index names."""
    if (folder / INDEX).exists():
        weight_map = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{folder / INDEX} has no weight_map")
        names = sorted(set(weight_map.values()))
    else:
        names = ["model.safetensors"]
    if missing := [name for name in names if not (folder / name).exists()]:
        raise CheckpointError(f"{folder} lacks the weight files {', '.join(missing)}")
    return [folder / name for name in names]


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a safetensors file, read one at a time."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict, it has no iterator
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _stream(
    module: nn.Module,
    shards: list[Path],
    *,
    device: torch.device,
    dtype: torch.dtype,
    ignored: tuple[str, ...],
) -> None:
    """Fill a module built on the meta device, tensor by tensor.

    Each tensor is cast and moved on its own, so the peak is the target plus one tensor.
    """
    expected = dict(module.named_parameters())
    wrong, unknown, seen = [], [], set()
    for shard in shards:
        for name, tensor in _tensors(shard):
            if name.startswith(ignored):
                continue
            if name not in expected:
                unknown.append(name)
            elif expected[name].shape != tensor.shape:
                want = list(expected[name].shape)
                wrong.append(f"{name} is {list(tensor.shape)}, not {want}")
            else:
                parent, _, leaf = name.rpartition(".")
                moved = tensor.to(device=device, dtype=dtype)
                setattr(module.get_submodule(parent), leaf, nn.Parameter(moved, False))
            seen.add(name)
    missing = sorted(expected.keys() - seen)
    problems = [
        f"{what}: {', '.join(names[:8])}" + (f" and {len(names) - 8} more" * (len(names) > 8))
        for what, names in (("missing", missing), ("unknown", unknown), ("wrong shape", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(f"{shards[0].parent} does not fit the model. " + "; ".join(problems))


def load_vq(folder: Path, *, device: torch.device | str = "cpu") -> VQModel:
    """The VQ tokenizer beside a checkpoint, float32, in evaluation mode.

    `vq.safetensors` carries its configuration; `vq_ds8_c2i.pt` is LlamaGen's release, taken
    from the folder or else from its own hub id. The pickle is read with weights_only.
    """
    if (folder / VQ_SAFETENSORS).exists():
        config, state = _read_vq_safetensors(folder / VQ_SAFETENSORS)
    else:
        config, state = VQConfig(), _read_released_vq(_find_released_vq(folder))
    with torch.device("meta"):
        vq = VQModel(config)
    state = {name: tensor for name, tensor in state.items() if name not in VQ_IGNORED}
    expected = vq.state_dict()
    wrong = [n for n, t in state.items() if n in expected and t.shape != expected[n].shape]
    missing, unknown = (
        sorted(expected.keys() - state.keys()),
        sorted(state.keys() - expected.keys()),
    )
    if missing or unknown or wrong:
        raise CheckpointError(
            f"the VQ tokenizer in {folder} does not fit: missing {missing[:5]}, "
            f"unknown {unknown[:5]}, wrong shape {wrong[:5]}"
        )
    state = {name: tensor.to(device, torch.float32) for name, tensor in state.items()}
    vq.load_state_dict(state, assign=True)
    return vq.eval().requires_grad_(False)


def _read_vq_safetensors(path: Path) -> tuple[VQConfig, dict[str, Tensor]]:
    state = dict(_tensors(path))
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    try:
        config = VQConfig(**json.loads(metadata["config"]))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} carries no VQ configuration: {error!r}") from error
    return replace(config, multipliers=tuple(config.multipliers)), state


def _find_released_vq(folder: Path) -> Path:
    if (folder / VQ_FILE).exists():
        return folder / VQ_FILE
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - slow, and only for hub ids

    try:
        return Path(hf_hub_download(VQ_ID, VQ_FILE))
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} has no {VQ_FILE} and {VQ_ID} could not be fetched from the hub "
            f"({type(error).__name__}). Download {VQ_FILE} and put it into the folder."
        ) from error


def _read_released_vq(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is no LlamaGen tokenizer file: {error}") from error
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(
            f"{path} is no LlamaGen tokenizer file: no tensors under the key model"
        )
    return state
