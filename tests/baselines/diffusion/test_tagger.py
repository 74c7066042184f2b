import re

import pytest
import torch
import torch.nn.functional as F

from baselines import tiny
from baselines.base import MethodUnavailableError
from baselines.diffusion.tagger import (
    Tagger,
    TaggerConfig,
    TaggerNetwork,
    TagLayer,
    merged,
    ours,
    read_vocabulary,
)
from imaging.convert import to_tensor


def on_meta(shapes):
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def test_sizes_are_read_off_the_shapes():
    for config in (tiny.TAGGER, TaggerConfig()):
        assert TaggerConfig.of(on_meta(tiny.ram_shapes(config))) == config


def test_another_file_is_no_ram_checkpoint():
    with pytest.raises(MethodUnavailableError, match="no RAM checkpoint"):
        TaggerConfig.of({"conv.weight": torch.zeros(1)})


def test_the_released_size_has_the_released_parameters():
    """Of the published classes at full size: 469,148,785 in all, 270,421,052 of them captioning."""
    pytest.importorskip("timm")
    with torch.device("meta"):
        network = TaggerNetwork(TaggerConfig())
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert {
        k: tuple(v.shape) for k, v in ours(on_meta(tiny.ram_shapes(TaggerConfig()))).items()
    } == (shapes)
    heads = sum(p.numel() for p in network.layers.parameters())
    total = sum(p.numel() for p in network.parameters())
    # the published count has the tag layers under the captioning branch, which shares them
    assert total - heads == 469_148_785 - 270_421_052


def test_changes_go_to_queries_and_values_of_swin_and_queries_and_keys_of_tags():
    generator = torch.Generator().manual_seed(0)
    config = tiny.TAGGER
    state = tiny.random_state(tiny.ram_shapes(config), 1)
    dape = {
        key: torch.randn(shape, generator=generator)
        for key, shape in tiny.dape_shapes(config).items()
    }
    result = merged(state, dape)
    for key, before in state.items():
        change = result[key] - before
        base = key.removesuffix(".weight")
        if key.endswith("attn.qkv.weight"):
            a, b = dape[f"{base}.lora_A"], dape[f"{base}.lora_B"]
            n = before.shape[1]
            torch.testing.assert_close(change[:n], b[:n] @ a[:8] / 8, rtol=1e-4, atol=1e-5)
            assert not change[n : 2 * n].any()
            torch.testing.assert_close(change[2 * n :], b[n:] @ a[8:] / 8, rtol=1e-4, atol=1e-5)
        elif re.search(r"self\.(query|key)\.weight", key):
            shared = base.replace("tagging_head", "tag_encoder")
            expected = sum(dape[f"{k}.lora_B"] @ dape[f"{k}.lora_A"] for k in (base, shared)) / 8
            torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5)
        else:
            assert not change.any(), key


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x.lora_A": torch.zeros(8, 3)}, "without its other half"),
        ({"x.weight": torch.zeros(8, 3)}, "no low-rank tensor"),
        ({"x.lora_A": torch.zeros(8, 3), "x.lora_B": torch.zeros(2, 8)}, "found nothing|nothing"),
        ({"fc.lora_A": torch.zeros(8, 3), "fc.lora_B": torch.zeros(2, 8)}, r"changes fc.weight"),
    ],
)
def test_changes_without_a_place_are_refused(change, sentence):
    with pytest.raises(MethodUnavailableError, match=sentence):
        merged({"fc.weight": torch.zeros(5, 5)}, change)


def test_tag_layers_attend_as_the_formula_says():
    config = tiny.TAGGER
    layer = TagLayer(config).double()
    generator = torch.Generator().manual_seed(0)
    for p in layer.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.3
    tags = torch.randn(1, 3, config.hidden, generator=generator, dtype=torch.float64)
    tokens = torch.randn(1, 5, config.tokens, generator=generator, dtype=torch.float64)
    query, key, value = layer.query(tags)[0], layer.key(tokens)[0], layer.value(tokens)[0]
    size = config.hidden // 4
    heads = []
    for head in range(4):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / size**0.5
        heads.append(scores.softmax(-1) @ value[:, part])
    attended = layer.attended(torch.cat(heads, -1)) + tags[0]
    attended = F.layer_norm(
        attended, (config.hidden,), layer.attended_norm.weight, layer.attended_norm.bias, 1e-12
    )
    up = layer.up(attended)
    inner = layer.down(up * 0.5 * (1 + torch.erf(up / 2**0.5)))
    expected = F.layer_norm(
        inner + attended, (config.hidden,), layer.norm.weight, layer.norm.bias, 1e-12
    )
    torch.testing.assert_close(layer(tags, tokens)[0], expected)


@pytest.fixture(scope="module")
def tagger(weights):
    return Tagger.load(weights)


def test_the_first_token_is_the_projected_mean_of_the_others(tagger, lq):
    tokens = tagger(lq).tokens
    assert tokens.shape == (1, 1 + 9, tiny.TAGGER.tokens)  # 96 pixels, 32 a token
    torch.testing.assert_close(tokens[:, 0], tokens[:, 1:].mean(1), rtol=1e-4, atol=1e-4)


def test_a_tag_is_on_above_its_own_threshold(tagger, lq):
    perceived = tagger(lq)
    with torch.inference_mode():
        logits = tagger.network.tag_logits(perceived.tokens)
    on = [
        name
        for name, logit, threshold in zip(
            tiny.TAGS, logits.tolist(), tagger.thresholds.tolist(), strict=True
        )
        if logit > torch.tensor(threshold).logit()
    ]
    assert 0 < len(on) < len(tiny.TAGS)
    assert perceived.tags == ", ".join(on)


def test_shrinking_is_bilinear_without_smoothing(tagger, draw_wave):
    """Halving reads four pixels' mean, which smoothing would mix with their neighbours."""
    photo = draw_wave(192, 192)
    pixels = to_tensor(photo)
    mean = (pixels[..., 0::2, :] + pixels[..., 1::2, :])[..., 0::2] / 4
    mean += (pixels[..., 0::2, :] + pixels[..., 1::2, :])[..., 1::2] / 4
    expected = (mean[0] - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    torch.testing.assert_close(tagger._prepare(photo)[0], expected, rtol=1e-4, atol=1e-4)


def test_a_list_of_another_length_is_refused(tagger):
    with pytest.raises(MethodUnavailableError, match="knows 13 tags; its list has 2 names"):
        Tagger(tagger.network, ("a", "b"), torch.zeros(13))


def test_an_unreadable_list_is_refused(tmp_path):
    (tmp_path / "ram_tag_list.txt").write_text("a\n")
    (tmp_path / "ram_tag_list_threshold.txt").write_text("high\n")
    with pytest.raises(MethodUnavailableError, match="tag list"):
        read_vocabulary(tmp_path)
