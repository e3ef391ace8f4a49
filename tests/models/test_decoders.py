"""Front ends and decoders: shapes for every size that is allowed, and no sample that depends on another."""

import pytest
import torch
from tiny import TRANSFORMER

from daps_robot.errors import ConfigError
from daps_robot.models.blocks import sinusoidal_positions
from daps_robot.models.decoders import ChunkDecoderConfig, ConvDecoderConfig, MLPDecoderConfig, make_decoder
from daps_robot.models.frontends import (
    ChunkFrontEndConfig,
    ObservationFrontEndConfig,
    PatchFrontEndConfig,
    Resample1d,
    make_front_end,
)

DECODERS = {
    "chunk": (ChunkDecoderConfig(8, 3, 0, TRANSFORMER), 4, (8, 3)),
    "conditioned": (ChunkDecoderConfig(8, 3, 5, TRANSFORMER), 4, (8, 3)),
    "mlp": (MLPDecoderConfig(6, 5, 2, (8, 12)), 4, (6, 5, 2)),
    "conv": (ConvDecoderConfig(16, 3, 16, 2), 4, (16, 16, 3)),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_reconstruction_does_not_depend_on_the_rest_of_the_batch(name, mode):
    """Without batch statistics, in training mode too: there the reward of one sample would depend on the others."""
    config, positions, shape = DECODERS[name]
    decoder = make_decoder(config, positions, 16, outputs=1).train(mode == "train")
    embedded, observation = torch.randn(6, positions, 16), torch.randn(6, 5) if name == "conditioned" else None
    together = decoder(embedded, observation)
    assert together.shape == (6, *shape)
    for row in range(6):
        alone = decoder(embedded[row : row + 1], None if observation is None else observation[row : row + 1])
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-5)
    embedded[1:] *= 100
    torch.testing.assert_close(decoder(embedded, observation)[0], together[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_two_outputs_a_channel(name):
    config, positions, shape = DECODERS[name]
    decoder = make_decoder(config, positions, 16, outputs=2)
    observation = torch.randn(2, 5) if name == "conditioned" else None
    assert decoder(torch.randn(2, positions, 16), observation).shape == (2, *shape[:-1], 2 * shape[-1])


@pytest.mark.parametrize("name", DECODERS)
def test_every_code_and_the_observation_matter(name):
    config, positions, _ = DECODERS[name]
    decoder = make_decoder(config, positions, 16, outputs=1)
    embedded = torch.randn(2, positions, 16, requires_grad=True)
    observation = torch.randn(2, 5, requires_grad=True) if name == "conditioned" else None
    (decoder(embedded, observation) ** 2).sum().backward()
    assert (embedded.grad.abs().amax(-1) > 0).all()
    assert observation is None or (observation.grad.abs() > 0).all()


def test_a_conditioned_decoder_asks_for_the_observation():
    decoder = make_decoder(ChunkDecoderConfig(8, 3, 5, TRANSFORMER), 4, 16, 1)
    with pytest.raises(ConfigError, match="observation"):
        decoder(torch.randn(2, 4, 16))


@pytest.mark.parametrize("size, positions", [(32, 5), (24, 16), (4, 16), (10, 4)])
def test_codes_that_form_no_grid_are_refused(size, positions):
    with pytest.raises(ConfigError, match="square"):
        make_decoder(ConvDecoderConfig(size), positions, 16, 1)


def test_another_width_than_the_codes_is_refused():
    with pytest.raises(ConfigError, match="width"):
        make_decoder(ChunkDecoderConfig(8, 3, 0, TRANSFORMER), 4, 32, 1)


@pytest.mark.parametrize("long", [4, 6, 8, 12, 15, 16, 24, 32, 40])
def test_resampling_between_any_multiples(long):
    for short in (s for s in range(1, long + 1) if long % s == 0):
        assert Resample1d(3, 5, long, short)(torch.randn(2, long, 3)).shape == (2, short, 5), (long, short)
        assert Resample1d(3, 5, short, long)(torch.randn(2, short, 3)).shape == (2, long, 5), (short, long)


def test_resampling_reads_every_step():
    for long, short in ((16, 8), (12, 4), (15, 3), (24, 8), (8, 8)):
        x = torch.randn(1, long, 2, requires_grad=True)
        (Resample1d(2, 4, long, short)(x) ** 2).sum().backward()
        assert (x.grad.abs().sum(-1) > 0).all(), (long, short)


def test_lengths_that_are_no_multiples_are_refused():
    with pytest.raises(ConfigError, match="multiple"):
        Resample1d(3, 5, 16, 6)


@pytest.mark.parametrize(
    "config, shape, tokens",
    [
        (ChunkFrontEndConfig(8, 3, 4, TRANSFORMER), (8, 3), 4),
        (ChunkFrontEndConfig(8, 3, 16, TRANSFORMER), (8, 3), 16),
        (PatchFrontEndConfig(8, 6, 2, 4, 3, TRANSFORMER), (8, 6, 2), 4),
        (ObservationFrontEndConfig(3, 5, 2, 8, TRANSFORMER), (3, 5), 6),
    ],
)
def test_front_ends(config, shape, tokens):
    front_end = make_front_end(config)
    x = torch.randn(4, *shape, requires_grad=True)
    memory = front_end(x)
    assert memory.shape == (4, tokens, 16)
    torch.testing.assert_close(front_end(x[1:2])[0], memory[1], rtol=0, atol=1e-5)
    (memory[0] ** 3).sum().backward()
    assert (x.grad[0].abs() > 0).all()
    assert (x.grad[1:] == 0).all()


def test_patches_that_do_not_tile_are_refused():
    with pytest.raises(ConfigError, match="tile"):
        PatchFrontEndConfig(28, 28, 1, 5, 7)


def test_sinusoidal_positions():
    table = sinusoidal_positions(10, 8).double()
    for position in range(10):
        for i in range(4):
            angle = torch.tensor(position / 10_000 ** (i / 3), dtype=torch.float64)
            assert table[position, i].item() == pytest.approx(angle.sin().item(), abs=1e-5)
            assert table[position, 4 + i].item() == pytest.approx(angle.cos().item(), abs=1e-5)
