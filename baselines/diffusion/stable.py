"""The parts of Stable Diffusion the methods build on: VAE, text encoder, noise schedule.

Built from the configurations beside the weights, never from a hub.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from baselines.base import MethodUnavailableError
from baselines.diffusion.sizes import CELL
from baselines.diffusion.state import (
    Network,
    evaluation,
    load_strict,
    read_json,
    read_safetensors,
)

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
# Attention of the VAE as diffusers called it before 0.15, still in files of that time.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(rf"(.*\.attentions\.0)\.({'|'.join(_OLD_ATTENTION)})\.(weight|bias)")


def network_config(folder: Path, ignored: Iterable[str] = ()) -> dict[str, Any]:
    """`config.json` of a diffusers network without diffusers' notes and the `ignored` keys."""
    config = read_json(folder / "config.json")
    return {k: v for k, v in config.items() if not k.startswith("_") and k not in set(ignored)}


class VAE:
    """Pictures to latents and back.

    Pictures with a side above `tile` pixels go through in tiles that fade into each other over a
    quarter of a tile. Differs from upstream above that size: its tiles share the statistics of the
    normalisation layers, ours are diffusers' own and normalise each for itself.
    """

    def __init__(self, module: Network, *, tile: int) -> None:
        self.module = module
        self.scaling: float = module.config.scaling_factor
        module.enable_tiling()
        module.tile_sample_min_size = tile
        module.tile_latent_min_size = tile // CELL

    @classmethod
    def load(cls, folder: Path, *, tile: int, edit: Mapping[str, Tensor] | None = None) -> "VAE":
        """The VAE of a folder with `config.json` and its weights, float32.

        Args:
            folder: as diffusers saves it.
            tile: as of the class.
            edit: tensors to add to the loaded ones, by name.
        """
        from diffusers import AutoencoderKL

        module = AutoencoderKL.from_config(network_config(folder))
        state = vae_state(read_safetensors(folder / WEIGHTS_FILE), dict(module.state_dict()))
        load_strict(module, added(state, edit or {}, str(folder)), str(folder))
        return cls(module, tile=tile)

    def encode(self, image: Tensor, noise: torch.Generator) -> Tensor:
        """A draw from the posterior of pictures (B, 3, H, W) in [0, 1]: scaled latents, float32."""
        return self.encode_signed(2 * image - 1, noise)

    def encode_signed(self, image: Tensor, noise: torch.Generator | None) -> Tensor:
        """The same of pictures in [-1, 1], for methods that compute there; its mean without noise.

        Where colours are flat, normalisation would blow up the rounding of a way there and back.
        """
        weight = next(self.module.parameters())
        posterior = self.module.encode(image.to(weight.device, weight.dtype)).latent_dist
        drawn = posterior.mean.float()
        if noise is not None:
            drawn = drawn + posterior.std.float() * draw(drawn.shape, noise, drawn.device)
        return drawn * self.scaling

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1], float32, of scaled latents."""
        return (self.decode_signed(latents) / 2 + 0.5).clamp(0, 1)

    def decode_signed(self, latents: Tensor) -> Tensor:
        """The same about [-1, 1], not clamped."""
        dtype = next(self.module.parameters()).dtype
        return self.module.decode((latents / self.scaling).to(dtype)).sample.float()


def vae_state(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's tensors by today's names.

    Args:
        state: by today's names or those before diffusers 0.15.
        own: the module's, for shapes: attention was a 1 × 1 convolution for a time.
    """
    renamed = {}
    for key, value in state.items():
        if match := _OLD_NAME.fullmatch(key):
            key = f"{match[1]}.{_OLD_ATTENTION[match[2]]}.{match[3]}"
            if key in own and value.numel() == own[key].numel():
                value = value.reshape(own[key].shape)
        renamed[key] = value
    return renamed


def added(state: Mapping[str, Tensor], edit: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """`state` + `edit` where both have a tensor, in float32; `state` elsewhere.

    Raises:
        MethodUnavailableError: `edit` names a tensor that is not there or of another shape.
    """
    for key, change in edit.items():
        if key not in state or state[key].shape != change.shape:
            found = tuple(state[key].shape) if key in state else "nothing"
            raise MethodUnavailableError(
                f"A change of {key}, {tuple(change.shape)}, does not fit {what}: found {found}."
            )
    return {k: v.float() + edit[k] if k in edit else v for k, v in state.items()}


class TextEncoder:
    """CLIP's text tower: prompts to hidden states."""

    def __init__(self, tokenizer: Any, module: Network) -> None:  # Any: as for `Network`
        self.tokenizer = tokenizer
        self.module = module

    @classmethod
    def load(cls, base: Path) -> "TextEncoder":
        """The `tokenizer` and `text_encoder` of a Stable Diffusion folder, float32.

        Raises:
            MethodUnavailableError: files cannot be read or tensors do not fit.
        """
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

        try:
            tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer", local_files_only=True)
        except (OSError, ValueError) as error:
            raise MethodUnavailableError(f"{base / 'tokenizer'} cannot be read: {error}") from error
        folder = base / "text_encoder"
        module = CLIPTextModel(CLIPTextConfig.from_dict(read_json(folder / "config.json")))
        # Versions of transformers differ in this prefix; positions follow from the length alone.
        prefix = "text_model." if "text_model.final_layer_norm.bias" in module.state_dict() else ""
        state = {
            prefix + key.removeprefix("text_model."): value
            for key, value in read_safetensors(folder / "model.safetensors").items()
            if not key.endswith(".position_ids")
        }
        load_strict(module, state, str(folder))
        return cls(tokenizer, module)

    @torch.inference_mode()
    def __call__(self, prompts: list[str]) -> Tensor:
        """Hidden states (B, 77, C) of the last layer, normalised; longer prompts are cut."""
        ids = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        device = next(self.module.parameters()).device
        return self.module(ids.to(device)).last_hidden_state


def load_schedule(
    base: Path, kind: Literal["DDPMScheduler", "UniPCMultistepScheduler"] = "DDPMScheduler"
) -> Any:  # Any: a scheduler, and diffusers is optional
    """A schedule of diffusers with the settings of a Stable Diffusion folder."""
    import diffusers

    config = read_json(base / "scheduler" / "scheduler_config.json")
    known = {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"}
    known |= {"variance_type", "clip_sample", "prediction_type", "steps_offset"}
    known |= {"timestep_spacing", "rescale_betas_zero_snr"}
    return getattr(diffusers, kind).from_config({k: v for k, v in config.items() if k in known})


def draw(shape: Iterable[int], noise: torch.Generator, device: torch.device | str) -> Tensor:
    """Normal noise, drawn where the generator lives, the CPU, so that a seed is one everywhere."""
    return torch.randn(tuple(shape), generator=noise).to(device)


@contextmanager
def on_device(module: nn.Module, device: str, *, offload: bool) -> Iterator[None]:
    """Have a network on `device` for a while; with `offload` it waits on the CPU otherwise."""
    if offload:
        module.to(device)
    try:
        yield
    finally:
        if offload:
            module.to("cpu")


def placed(module: nn.Module, device: str, dtype: torch.dtype, *, offload: bool) -> nn.Module:
    """A network ready to run, where it waits between uses."""
    return evaluation(module, "cpu" if offload else device, dtype)
