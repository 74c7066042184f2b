import copy

import pytest
import torch
import torch.nn.functional as F

from baselines import stablesr, tiny
from baselines.diffusion import ldm
from baselines.diffusion.structure import (
    Modulation,
    StructureEncoder,
    add_structure,
    modulated,
)


@pytest.fixture
def unet(weights):
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel(**tiny.STABLESR["unet"])
    state = tiny.random_state({k: v.shape for k, v in network.state_dict().items()}, 0)
    network.load_state_dict(state)
    return network.eval()


@torch.inference_mode()
def test_modulation_scales_and_shifts_what_is_normalised():
    module = Modulation(64, 32)
    shapes = {k: v.shape for k, v in module.state_dict().items()}
    module.load_state_dict(tiny.random_state(shapes, 0))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 64, 4, 5, generator=generator)
    features = torch.randn(2, 32, 4, 5, generator=generator)
    state = module.state_dict()

    def conv(name, y):
        return F.conv2d(y, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    groups = x.reshape(2, 32, -1)
    spread = (groups.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    normal = ((groups - groups.mean(2, keepdim=True)) / spread).reshape(x.shape)
    norm = "param_free_norm"
    normal = normal * state[f"{norm}.weight"].view(-1, 1, 1) + state[f"{norm}.bias"].view(-1, 1, 1)
    shared = conv("mlp_shared.0", features).relu()
    expected = normal * (1 + conv("mlp_gamma", shared)) + conv("mlp_beta", shared)
    torch.testing.assert_close(module(x, features), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_every_residual_block_sees_the_features_of_its_size(unet):
    """Blocks one by one, the stock ones with their second convolution's output replaced by hand."""
    stock = copy.deepcopy(unet)
    seen = add_structure(unet, 32)
    own = {k: v.shape for k, v in unet.state_dict().items() if ".spade." in k}
    assert len({key.split(".spade.")[0] for key in own}) == 22  # 8 down, 2 in the middle, 12 up
    unet.load_state_dict(tiny.random_state(own, 1), strict=False)
    generator = torch.Generator().manual_seed(0)
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3)]
    features = {size: torch.randn(1, 32, *size, generator=generator) for size in sizes}
    modules = dict(unet.named_modules())
    for name, module in stock.named_modules():
        if name.endswith(".conv2"):
            spade = modules[name].spade
            module.register_forward_hook(
                lambda _, __, out, spade=spade: spade(out, features[tuple(out.shape[-2:])])
            )
    x = torch.randn(1, 4, 16, 24, generator=generator)
    context = torch.randn(1, 77, tiny.TEXT_WIDTH, generator=generator)
    seen.update(features)
    found = unet(x, 7, encoder_hidden_states=context).sample
    assert torch.equal(found, stock(x, 7, encoder_hidden_states=context).sample)
    seen.clear()
    with pytest.raises(KeyError):
        unet(x, 7, encoder_hidden_states=context)


@torch.inference_mode()
def test_the_encoder_gives_features_at_four_sizes_that_depend_on_the_time(structured):
    latents = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    early, late = (structured.encoder(latents, torch.tensor(t)) for t in (999, 10))
    assert list(early) == [(16, 24), (8, 12), (4, 6), (2, 3)]
    for size, features in early.items():
        assert features.shape == (1, 32, *size)
        assert (features - late[size]).abs().max() > 0.1


def test_every_released_name_has_its_place_at_full_size(weights):
    from diffusers import UNet2DConditionModel

    sizes = stablesr.SIZES
    with torch.device("meta"):
        unet = UNet2DConditionModel(**sizes["unet"])
        add_structure(unet, sizes["encoder"]["features"])
        encoder = StructureEncoder(**sizes["encoder"])

        def empty(shapes):
            return {key: torch.empty(shape) for key, shape in shapes.items()}

        released = empty(tiny.ldm_unet_shapes(sizes["unet"], modulation=256))
        found = modulated(ldm.unet(released))
        ours = ldm.split_qkv(ldm.unet(empty(tiny.structure_shapes(sizes["encoder"]))), 4)
    for state, network in ((found, unet), (ours, encoder)):
        assert {k: v.shape for k, v in state.items()} == {
            k: v.shape for k, v in network.state_dict().items()
        }
