"""The tagger: RAM (Zhang et al., CVPR 2024 workshops) adapted to poor photos by DAPE (SeeSR).

Of RAM only what recognises tags is built: a Swin transformer, one projection, and two layers in
which every tag looks at the picture. The release says nothing of its sizes; the shapes of its
tensors do, so a small checkpoint needs no other code.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from baselines.base import MethodUnavailableError
from baselines.diffusion.sources import DAPE, RAM, TAGS
from baselines.diffusion.state import evaluation, load_strict, read_pickle
from imaging.convert import to_tensor

# Of ImageNet, per channel, on the [0, 1] scale.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEADS = 4  # of the tag layers; the only size that no shape tells
LORA_SCALE = 1 / 8  # alpha 1 over rank 8
TAG_NORM_EPS = 1e-12

# Of RAM's file, and why not: the captioning branch, and what follows from the sizes.
_UNUSED = re.compile(
    r"(tag_encoder|text_decoder|vision_proj|text_proj)\..*|tagging_head\.embeddings\..*"
    r"|tagging_head\.encoder\.layer\.\d+\.attention\..*|.*\.(relative_position_index|attn_mask)"
)
# RAM's names after BERT's, in our own; longest first.
_TAG_NAMES = {
    "crossattention.self.query": "query",
    "crossattention.self.key": "key",
    "crossattention.self.value": "value",
    "crossattention.output.dense": "attended",
    "crossattention.output.LayerNorm": "attended_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm",
}
_TAG_KEY = re.compile(r"tagging_head\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")


_FEED = r"tagging_head\.encoder\.layer\.\d+\.intermediate\.dense\.weight"


@dataclass(frozen=True)
class Perceived:
    """What the tagger made of one photo.

    Attributes:
        tags: names joined with ", " in the order of the list; may be empty.
        tokens: (1, 145, 512) of the picture, the first their mean over it; SeeSR's U-Net reads
            them.
    """

    tags: str
    tokens: Tensor


@dataclass(frozen=True)
class TaggerConfig:
    """Sizes; the defaults are the release's, Swin-L at 384 pixels.

    Attributes:
        image: side in pixels; the last stage is one window.
        embed: width of the first stage, doubled by each later one.
        tokens: width of the image tokens.
        hidden: width of the tag layers.
        inner: width inside their feed-forward.
        tags: of the vocabulary.
    """

    image: int = 384
    embed: int = 192
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (6, 12, 24, 48)
    window: int = 12
    tokens: int = 512
    hidden: int = 768
    inner: int = 3072
    layers: int = 2
    tags: int = 4585

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> "TaggerConfig":
        """The sizes of a RAM state dict, by the shapes of its tensors.

        Raises:
            MethodUnavailableError: it is none.
        """
        try:
            depths: list[int] = []
            heads: list[int] = []
            table = "visual_encoder.layers.{}.blocks.{}.attn.relative_position_bias_table"
            while table.format(len(depths), 0) in state:
                stage = len(depths)
                depths.append(sum(table.format(stage, i) in state for i in range(100)))
                heads.append(state[table.format(stage, 0)].shape[1])
            positions = state[table.format(0, 0)].shape[0]  # (2 window - 1)²
            window = (round(positions**0.5) + 1) // 2
            tags, tokens = state["label_embed"].shape
            feed = [k for k in state if re.fullmatch(_FEED, k)]
            inner, hidden = state[feed[0]].shape
            embed = state["visual_encoder.patch_embed.proj.weight"].shape[0]
        except (KeyError, IndexError, ValueError) as error:
            raise MethodUnavailableError(f"This is no RAM checkpoint: {error}.") from error
        # 4 pixels a patch, halved between stages, one window at the last
        image = window * 4 * 2 ** (len(depths) - 1)
        layers, stages = len(feed), (tuple(depths), tuple(heads))
        return cls(image, embed, *stages, window, tokens, hidden, inner, layers, tags)


class TagLayer(nn.Module):
    """Every tag looks at the image tokens; normalised after each part, as in BERT."""

    def __init__(self, config: TaggerConfig) -> None:
        super().__init__()
        hidden, tokens = config.hidden, config.tokens
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(tokens, hidden)
        self.value = nn.Linear(tokens, hidden)
        self.attended = nn.Linear(hidden, hidden)
        self.attended_norm = nn.LayerNorm(hidden, eps=TAG_NORM_EPS)
        self.up = nn.Linear(hidden, config.inner)
        self.down = nn.Linear(config.inner, hidden)
        self.norm = nn.LayerNorm(hidden, eps=TAG_NORM_EPS)

    def forward(self, tags: Tensor, tokens: Tensor) -> Tensor:
        """Tags (1, K, hidden) and image tokens (1, T, width) to tags."""

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # (1, heads, N, hidden / heads)

        seen = F.scaled_dot_product_attention(
            split(self.query(tags)), split(self.key(tokens)), split(self.value(tokens))
        )
        tags = self.attended_norm(self.attended(seen.transpose(1, 2).flatten(2)) + tags)
        return self.norm(self.down(F.gelu(self.up(tags))) + tags)


class TaggerNetwork(nn.Module):
    """Photo to image tokens and tag logits."""

    def __init__(self, config: TaggerConfig) -> None:
        from timm.models.swin_transformer import SwinTransformer

        super().__init__()
        self.config = config
        self.vision = SwinTransformer(
            img_size=config.image,
            embed_dim=config.embed,
            depths=config.depths,
            num_heads=config.heads,
            window_size=config.window,
            num_classes=0,
            weight_init="skip",
        )
        self.image_proj = nn.Linear(config.embed * 2 ** (len(config.depths) - 1), config.tokens)
        self.label_embed = nn.Parameter(torch.zeros(config.tags, config.tokens))
        self.wordvec_proj = nn.Linear(config.tokens, config.hidden)
        self.layers = nn.ModuleList([TagLayer(config) for _ in range(config.layers)])
        self.fc = nn.Linear(config.hidden, 1)

    def image_tokens(self, image: Tensor) -> Tensor:
        """(1, 3, H, W), normalised, of the network's own size, to (1, 1 + T, width)."""
        features = self.vision.forward_features(image).flatten(1, 2)  # (1, T, C)
        with_mean = torch.cat([features.mean(1, keepdim=True), features], dim=1)
        return self.image_proj(with_mean)

    def tag_logits(self, tokens: Tensor) -> Tensor:
        """Image tokens (1, 1 + T, width) to (K,) logits, one per tag."""
        tags = F.relu(self.wordvec_proj(self.label_embed))[None]  # (1, K, hidden)
        for layer in self.layers:
            tags = layer(tags, tokens)
        return self.fc(tags)[0, :, 0]


class Tagger:
    """A loaded tagger with its vocabulary; always float32, as SeeSR runs it."""

    def __init__(self, network: TaggerNetwork, names: tuple[str, ...], thresholds: Tensor) -> None:
        if not network.config.tags == len(names) == len(thresholds):
            raise MethodUnavailableError(
                f"The tagger knows {network.config.tags} tags; its list has {len(names)} names and "
                f"{len(thresholds)} thresholds."
            )
        self.network = network
        self.names = names
        self.thresholds = thresholds

    @classmethod
    def load(cls, weights: Path) -> "Tagger":
        """RAM with DAPE merged in, from a weights folder, on the CPU.

        Raises:
            MethodUnavailableError: files cannot be read or do not fit each other.
        """
        content = read_pickle(weights / RAM.folder / RAM.files[0])
        if not isinstance(content.get("model"), dict):
            raise MethodUnavailableError(f"{RAM.files[0]} has no tensors under the key 'model'.")
        # loaders of RAM accept this older name, too
        state = {k.replace("vision_multi", "tagging_head"): v for k, v in content["model"].items()}
        state = {k: v for k, v in state.items() if not _UNUSED.fullmatch(k)}
        config = TaggerConfig.of(state)
        state = merged(state, read_pickle(weights / DAPE.folder / DAPE.files[0]))
        network = TaggerNetwork(config)
        load_strict(network, ours(state), RAM.files[0])
        names, thresholds = read_vocabulary(weights / TAGS.folder)
        return cls(evaluation(network, "cpu"), names, thresholds)  # type: ignore[arg-type]  # same module

    @torch.inference_mode()
    def __call__(self, photo: Image.Image) -> Perceived:
        """Tags and tokens of an RGB photo of any size."""
        device = self.network.fc.weight.device
        tokens = self.network.image_tokens(self._prepare(photo).to(device))
        probabilities = self.network.tag_logits(tokens).sigmoid().cpu()
        on = (probabilities > self.thresholds).nonzero()[:, 0].tolist()
        return Perceived(", ".join(self.names[i] for i in on), tokens)

    def _prepare(self, photo: Image.Image) -> Tensor:
        """(1, 3, S, S), normalised.

        Bilinear without antialiasing: torchvision's `Resize` of a tensor at the version the
        published code pins. Newer ones smooth when they shrink.
        """
        side = self.network.config.image
        square = F.interpolate(to_tensor(photo), (side, side), mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        return (square - mean) / std


def read_vocabulary(folder: Path) -> tuple[tuple[str, ...], Tensor]:
    """Names of the tags and from which probability on each counts.

    Raises:
        MethodUnavailableError: a file cannot be read.
    """
    try:
        names, numbers = (
            (folder / file).read_text(encoding="utf-8").splitlines() for file in TAGS.files
        )
        thresholds = torch.tensor([float(number) for number in numbers])
    except (OSError, ValueError) as error:
        raise MethodUnavailableError(f"The tag list in {folder} cannot be read: {error}") from error
    return tuple(names), thresholds


def merged(state: Mapping[str, Tensor], dape: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """RAM's tensors with DAPE's low-rank changes added, in float32.

    Swin's queries and values change, and the tag layers' queries and keys. RAM's captioning branch
    shares the first layers' weights with the tag layers, and the published code adds the changes of
    both names; so do we.

    Raises:
        MethodUnavailableError: a change has no tensor to go to, or parts are missing.
    """
    result = {key: value.float() for key, value in state.items()}
    for key, change in _changes(dape):
        target = re.sub(r"^tag_encoder\.", "tagging_head.", key)
        if target != key and target not in result:
            continue  # deeper layers of the captioning branch, which is not built
        if target not in result or result[target].shape != change.shape:
            found = tuple(result[target].shape) if target in result else "nothing"
            raise MethodUnavailableError(
                f"DAPE changes {target} by {tuple(change.shape)}, RAM has {found} there."
            )
        result[target] = result[target] + change
    return result


def _changes(dape: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names of weights and what DAPE adds to them; nothing for the text decoder."""
    for name in dape:
        match = re.fullmatch(r"(.+)\.lora_(A|B)", name)
        if match is None:
            raise MethodUnavailableError(f"DAPE holds {name}, which is no low-rank tensor.")
        base, half = match.groups()
        if f"{base}.lora_{'B' if half == 'A' else 'A'}" not in dape:
            raise MethodUnavailableError(f"DAPE holds {name} without its other half.")
        if half == "B" or base.startswith("text_decoder."):
            continue
        a, b = dape[f"{base}.lora_A"].float(), dape[f"{base}.lora_B"].float()
        if not base.endswith(".qkv"):
            yield f"{base}.weight", LORA_SCALE * b @ a
            continue
        # two changes in one pair of tensors, for rows of the queries and of the values
        (a_q, a_v), (b_q, b_v) = a.chunk(2), b.chunk(2)
        q, v = b_q @ a_q, b_v @ a_v
        yield f"{base}.weight", LORA_SCALE * torch.cat([q, torch.zeros_like(q), v])


def ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """RAM's tensors by the names of `TaggerNetwork`; unknown ones keep theirs."""
    renamed = {}
    for key, value in state.items():
        if match := re.fullmatch(r"visual_encoder\.(.+)", key):
            name = f"vision.{match[1]}"
            # timm counts the halving to the stage after it
            if shrink := re.fullmatch(r"vision\.layers\.(\d+)\.downsample\.(.+)", name):
                name = f"vision.layers.{int(shrink[1]) + 1}.downsample.{shrink[2]}"
        elif (match := _TAG_KEY.fullmatch(key)) and match[2] in _TAG_NAMES:
            name = f"layers.{match[1]}.{_TAG_NAMES[match[2]]}.{match[3]}"
        else:
            name = key
        renamed[name] = value
    return renamed
