"""The networks of rival tokenizers: what may see what, and residual codes that add up."""

import importlib

import pytest
import torch
from tiny import TRANSFORMER, tokenizer_config

from daps_robot.errors import ConfigError
from daps_robot.estimators import ESTIMATORS
from daps_robot.models.frontends import ChunkFrontEndConfig, ObservationFrontEndConfig, make_front_end
from daps_robot.models.policy import DecodingConfig, LatentPolicy, PolicyConfig
from daps_robot.models.posteriors import ResidualPosterior
from daps_robot.models.quantizers import ResidualVQ
from daps_robot.models.tokenizer import Inputs, Tokenizer
from daps_robot.presets import preset

needs_vq = pytest.mark.skipif(
    importlib.util.find_spec("vector_quantize_pytorch") is None, reason="vector-quantize-pytorch is not installed"
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def rival(name, **changes):
    return Tokenizer(ESTIMATORS[name].tokenizer_config(tokenizer_config(**changes))).eval()


@pytest.mark.parametrize(("steps", "tokens"), [(8, 4), (8, 8), (16, 2), (12, 2), (6, 2)])
def test_a_causal_token_sees_its_own_steps_and_those_before(steps, tokens):
    front_end = make_front_end(ChunkFrontEndConfig(steps, 3, tokens, TRANSFORMER, "causal")).eval()
    x = torch.randn(1, steps, 3)
    before = front_end(x)
    for step in range(steps):
        moved = x.clone()
        moved[:, step] += 1
        changed = (front_end(moved) - before).abs().amax(-1)[0] > 1e-6
        assert not changed[: step * tokens // steps].any()
        assert changed[step * tokens // steps]  # every step is seen


def test_a_causal_front_end_needs_equal_parts():
    with pytest.raises(ConfigError, match="equal parts"):
        make_front_end(ChunkFrontEndConfig(8, 3, 3, TRANSFORMER, "causal"))


def test_a_register_sees_all_steps_and_the_registers_before():
    front_end = make_front_end(ChunkFrontEndConfig(6, 3, 4, TRANSFORMER, "registers")).eval()
    x = torch.randn(1, 6, 3)
    before = front_end(x)
    for step in range(6):
        moved = x.clone()
        moved[:, step] += 1
        assert ((front_end(moved) - before).abs().amax(-1) > 1e-6).all()
    for i in range(4):
        with torch.no_grad():
            front_end.registers[i].neg_()
        changed = (front_end(x) - before).abs().amax(-1)[0] > 1e-6
        assert changed.tolist() == [j >= i for j in range(4)]
        with torch.no_grad():
            front_end.registers[i].neg_()


def test_quests_codes_are_causal():
    """The first half of a chunk has the same codes whatever comes after it."""
    tokenizer = rival("quest")
    x = torch.randn(40, 8, 3)
    other = torch.cat([x[:, :4], torch.randn(40, 4, 3)], dim=1)
    assert torch.equal(tokenizer.encode(x)[..., :2], tokenizer.encode(other)[..., :2])
    assert not torch.equal(tokenizer.encode(x), tokenizer.encode(other))


def test_oat_is_ordered_and_quest_is_not():
    codes = torch.randint(16, (3, 1, 2))
    assert rival("oat").decode(codes).shape == (3, 1, 8, 3)
    with pytest.raises(ConfigError, match="4 codes"):
        rival("quest").decode(codes)


@pytest.mark.parametrize("name", ["quest", "oat", "rvq"])
def test_rivals_are_of_action_chunks(name):
    with pytest.raises(ConfigError, match="action chunks"):
        ESTIMATORS[name].tokenizer_config(preset("mnist").tokenizer)


@pytest.mark.parametrize("name", ["quest", "oat", "rvq"])
def test_a_rivals_decoder_may_see_the_observation(name):
    tokenizer = rival(name, observation=5, obs_keys=("state",))
    codes, observation = torch.randint(8, (2, 1, 4)), torch.randn(2, 5)
    assert not torch.equal(tokenizer.decode(codes, observation), tokenizer.decode(codes, observation + 1))


# -- residual codes ------------------------------------------------------------------------------------------------------------


def test_residual_codes_by_hand():
    quantizer = ResidualVQ(2, 3, 1)
    quantizer.vectors.copy_(torch.tensor([[[-1.0], [0.0], [1.0]], [[-0.3], [0.0], [0.4]]]))
    z = torch.tensor([[1.35], [-0.75], [0.1]])
    assert quantizer(z).tolist() == [[2, 2], [0, 2], [1, 1]]


@needs_vq
def test_residual_codes_are_those_of_the_library():
    from vector_quantize_pytorch import ResidualVQ as Library

    library = Library(dim=5, num_quantizers=3, codebook_size=7, kmeans_init=False).eval()
    own = ResidualVQ(3, 7, 5)
    own.vectors.copy_(library.codebooks)
    z = torch.randn(200, 5)
    assert torch.equal(own(z), library(z[:, None])[1][:, 0])


@needs_vq
def test_few_vectors_start_all_codebooks_all_the_same():
    """Of a batch smaller than the codebooks k-means leaves nothing to the levels after the first; revival mends that."""
    tokenizer = rival("rvq")
    estimator = ESTIMATORS["rvq"](tokenizer, ESTIMATORS["rvq"].configure(), 100)
    zero = []
    for step in range(20):
        estimator.loss(Inputs(torch.randn(4, 8, 3)), step)
        zero.append(int((tokenizer.posterior.quantizer.vectors.norm(dim=-1) < 1e-6).sum()))
    assert zero[0] > 16 and zero[-1] == 0


def test_each_position_has_a_codebook_of_its_own():
    tokenizer = rival("rvq")
    posterior = tokenizer.posterior
    assert isinstance(posterior, ResidualPosterior)
    posterior.write_table(tokenizer.embedding)
    x = torch.randn(20, 8, 3)
    with torch.no_grad():
        embedded, codes = posterior.quantize(tokenizer.prepare(Inputs(x)))
    torch.testing.assert_close(tokenizer.embed(codes[:, None])[:, 0], embedded, rtol=0, atol=1e-5)
    assert tokenizer.tables.shape == (4, 16, 16)
    swapped = codes.flip(1)
    assert not torch.equal(tokenizer.decode(codes[:, None]), tokenizer.decode(swapped[:, None]))


def test_the_sum_of_the_levels_has_the_gradient_once():
    posterior = rival("rvq").posterior
    latents = torch.randn(6, 16, requires_grad=True)
    embedded, _ = posterior.quantize_latents(latents)
    weights = torch.randn(6, 16)
    (gradient,) = torch.autograd.grad((embedded.sum(1) * weights).sum(), latents)
    torch.testing.assert_close(gradient, weights @ posterior.project_out.weight, rtol=1e-4, atol=1e-5)
    embedded, _ = posterior.quantize_latents(latents)
    (of_prefix,) = torch.autograd.grad((embedded[:, :2].sum(1) * weights).sum(), latents)
    torch.testing.assert_close(of_prefix, gradient)  # under nested dropout too


def test_a_policy_mixes_embeddings_position_by_position():
    tokenizer = rival("rvq")
    front_end = ObservationFrontEndConfig(2, 4, 2, 16, TRANSFORMER)
    config = PolicyConfig(tokenizer.config, ("state",), front_end, tokenizer.config.codes, DecodingConfig("expected"))
    policy = LatentPolicy(config, tokenizer).eval()
    observations = torch.randn(5, 2, 4)
    codes = policy.codes(observations)
    with torch.no_grad():
        probs = policy.code_model.logits(policy.prepare(observations), codes[:, None])[:, 0].softmax(-1)
    embedded = torch.einsum("blv,lvd->bld", probs, tokenizer.tables)
    torch.testing.assert_close(policy.chunks(observations), tokenizer.decode_embedded(embedded[:, None])[:, 0])
