from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pure.vq import CONFIGS, Codebook, Downsample, Upsample, VQModel

# Keys and shapes of `vq_ds8_c2i.pt`, from LlamaGen's published code.
RELEASED_KEYS = {
    "encoder.conv_in.weight": (128, 3, 3, 3),
    "encoder.conv_blocks.0.res.0.norm1.weight": (128,),
    "encoder.conv_blocks.0.downsample.conv.weight": (128, 128, 3, 3),
    "encoder.conv_blocks.1.res.0.nin_shortcut.weight": (256, 128, 1, 1),
    "encoder.conv_blocks.2.downsample.conv.bias": (256,),
    "encoder.conv_blocks.3.res.0.nin_shortcut.bias": (512,),
    "encoder.conv_blocks.3.attn.1.proj_out.weight": (512, 512, 1, 1),
    "encoder.mid.0.conv2.weight": (512, 512, 3, 3),
    "encoder.mid.1.q.weight": (512, 512, 1, 1),
    "encoder.norm_out.bias": (512,),
    "encoder.conv_out.weight": (256, 512, 3, 3),
    "quant_conv.weight": (8, 256, 1, 1),
    "quantize.embedding.weight": (16384, 8),
    "post_quant_conv.weight": (256, 8, 1, 1),
    "decoder.conv_in.weight": (512, 256, 3, 3),
    "decoder.mid.1.norm.weight": (512,),
    "decoder.conv_blocks.0.attn.2.v.weight": (512, 512, 1, 1),
    "decoder.conv_blocks.0.upsample.conv.weight": (512, 512, 3, 3),
    "decoder.conv_blocks.1.res.0.nin_shortcut.weight": (256, 512, 1, 1),
    "decoder.conv_blocks.2.upsample.conv.bias": (256,),
    "decoder.conv_blocks.3.res.0.nin_shortcut.weight": (128, 256, 1, 1),
    "decoder.conv_blocks.3.res.2.conv1.weight": (128, 128, 3, 3),
    "decoder.conv_out.weight": (3, 128, 3, 3),
}
RELEASED_ABSENT = (
    "encoder.conv_blocks.3.downsample.conv.weight",
    "decoder.conv_blocks.3.upsample.conv.weight",
    "encoder.conv_blocks.2.res.0.nin_shortcut.weight",
    "decoder.conv_blocks.0.res.0.nin_shortcut.weight",
    "encoder.conv_blocks.0.attn.0.q.weight",
    "decoder.conv_blocks.1.attn.0.q.weight",
)


@pytest.fixture(scope="module")
def pictures():
    """Two pictures, 24 wide and 16 high."""
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def vq8():
    with torch.device("meta"):
        return VQModel(CONFIGS["vq8"])


def test_vq8_has_the_published_parameter_count(vq8):
    count = sum(p.numel() for p in vq8.parameters())
    assert count == 70_109_835
    assert count + 65_536 == 70_175_371  # with the usage buffer of the released file


def test_vq8_has_the_released_tensors(vq8):
    state = vq8.state_dict()
    assert len(state) == 299
    assert {key: tuple(state[key].shape) for key in RELEASED_KEYS} == RELEASED_KEYS
    assert not any(key in state for key in RELEASED_ABSENT)


def test_encoding_is_the_nearest_unit_code_of_each_cell(vq, pictures):
    latents = vq.quant_conv(vq.encoder(pictures * 2 - 1)).double()  # (B, D, h, w)
    book = [row / row.norm() for row in vq.quantize.embedding.weight.double()]
    codes = vq.encode(pictures)
    assert codes.shape == (2, 2, 3)
    for b in range(2):
        for row in range(2):
            for column in range(3):
                z = latents[b, :, row, column]
                distances = [float((z / z.norm() - e).pow(2).sum()) for e in book]
                assert distances[codes[b, row, column]] <= min(distances) + 1e-5


def test_the_random_tokenizer_uses_several_codes(vq):
    """Or the test above would hold for a constant."""
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert len(vq.encode(noise).unique()) >= 4


def test_a_tie_goes_to_the_lower_code():
    book = Codebook(6, 2)
    rows = [[0, 1], [1, 0], [-1, 0], [1, 0], [0, 1], [5, 0]]
    book.embedding.weight.data = torch.tensor(rows, dtype=torch.float32)
    queries = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    assert book.nearest(queries).tolist() == [1, 0, 2]


def test_codes_compare_by_direction_alone():
    book = Codebook(8, 4)
    z = F.normalize(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    before = book.nearest(z)
    book.embedding.weight.data *= torch.rand(8, 1) * 4 + 0.25
    assert torch.equal(book.nearest(z), before)


def test_decoding_is_the_decoder_of_unit_codes(vq):
    codes = torch.arange(12).view(2, 2, 3)
    rows = vq.quantize.embedding.weight[codes]  # (B, h, w, D)
    unit = rows / rows.norm(dim=-1, keepdim=True)
    y = vq.decoder(vq.post_quant_conv(unit.permute(0, 3, 1, 2)))
    expected = (y.clamp(-1, 1) + 1) / 2
    decoded = vq.decode(codes)
    assert decoded.shape == (2, 3, 16, 24)
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-6)


def test_decoding_clamps(vq):
    loud = VQModel(CONFIGS["tiny"])
    loud.load_state_dict(vq.state_dict())
    loud.decoder.conv_out.weight.data *= 100
    y = loud.decode(torch.arange(4).view(1, 2, 2))
    assert (y.min(), y.max()) == (0, 1)


def test_decoded_pictures_are_truncated_to_8_bit(vq):
    codes = torch.arange(6).view(2, 3)
    expected = np.floor(vq.decode(codes[None])[0].double().numpy() * 255)
    pixels = np.asarray(vq.decode_image(codes)).transpose(2, 0, 1)
    # float32 and float64 products may fall on two sides of a whole number
    assert np.abs(pixels - expected).max() <= 1
    assert np.mean(pixels == expected) > 0.999


def test_encode_image_scales_in_float64(vq, photo):
    x = torch.from_numpy(np.asarray(photo).astype(np.float64) / 255 * 2 - 1)
    z = vq.latents(x.permute(2, 0, 1)[None].float())
    expected = vq.quantize.nearest(z[0].flatten(1).T).view(2, 3)
    assert torch.equal(vq.encode_image(photo), expected)


def test_encode_and_encode_image_agree(vq, photo):
    x = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None] / 255
    # The scaling differs in the last place; no cell of this photo is that close to a tie.
    assert torch.equal(vq.encode(x)[0], vq.encode_image(photo))


def test_high_and_wide_pictures_are_not_mixed_up(vq, photo):
    assert vq.encode_image(photo).shape == (2, 3)  # rows, columns
    assert vq.decode_image(torch.zeros(2, 3, dtype=torch.long)).size == (24, 16)


def test_a_batch_is_its_pictures_one_by_one(vq, pictures):
    each = torch.cat([vq.encode(picture[None]) for picture in pictures])
    assert torch.equal(vq.encode(pictures), each)


@pytest.mark.parametrize(("height", "width"), [(15, 24), (16, 25), (0, 8), (8, 0), (4, 4)])
def test_sides_that_are_no_multiple_of_a_cell_are_refused(vq, height, width):
    with pytest.raises(ValueError, match=rf"multiples of 8, got {width} × {height}"):
        vq.encode(torch.zeros(1, 3, height, width))


def test_encode_image_refuses_such_sides_too(vq):
    with pytest.raises(ValueError, match="multiples of 8"):
        vq.encode_image(Image.new("RGB", (25, 16)))


@pytest.mark.parametrize("code", [-1, 16])
def test_codes_outside_the_codebook_are_refused(vq, code):
    with pytest.raises(ValueError, match=r"codes must lie in 0\.\.15"):
        vq.decode(torch.full((1, 2, 2), code))


def test_downsampling_pads_right_and_bottom_only():
    layer = Downsample(1)
    layer.conv.weight.data.zero_()
    layer.conv.weight.data[0, 0, 0, 0] = 1  # reads the top left pixel of its window
    layer.conv.bias.data.zero_()
    x = torch.arange(24.0).view(1, 1, 4, 6)
    assert torch.equal(layer(x), x[..., ::2, ::2])
    layer.conv.weight.data.zero_()
    layer.conv.weight.data[0, 0, 2, 2] = 1  # the bottom right one: padding at the end
    assert torch.equal(layer(x), F.pad(x, (0, 1, 0, 1))[..., 2::2, 2::2])


def test_upsampling_repeats_pixels():
    layer = Upsample(1)
    layer.conv.weight.data.zero_()
    layer.conv.weight.data[0, 0, 1, 1] = 1
    layer.conv.bias.data.zero_()
    x = torch.arange(6.0).view(1, 1, 2, 3)
    expected = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_cell_size_follows_the_levels(levels):
    config = replace(CONFIGS["tiny"], multipliers=(1,) * levels)
    model = VQModel(config)
    assert model.factor == 2 ** (levels - 1)
    assert model.decode(model.encode(torch.rand(1, 3, 8, 12))).shape == (1, 3, 8, 12)
