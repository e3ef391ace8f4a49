"""What holds for every estimator: it trains what it should, its tokenizer is saved and read, its settings are checked."""

import importlib
import math

import pytest
import torch
from tiny import tokenizer_config

from daps_robot.errors import ConfigError
from daps_robot.estimators import ESTIMATORS
from daps_robot.estimators.relaxed import gumbel_rao, gumbel_softmax, one_hot_of, reinmax
from daps_robot.models.code_model import CodeModel
from daps_robot.models.sampling import relaxed, sample
from daps_robot.models.tokenizer import Inputs, Tokenizer
from daps_robot.presets import preset

NAMES = sorted(ESTIMATORS)
needs_vq = pytest.mark.skipif(
    importlib.util.find_spec("vector_quantize_pytorch") is None, reason="vector-quantize-pytorch is not installed"
)
each = pytest.mark.parametrize("name", [pytest.param(n, marks=needs_vq) if n in ("vq", "rvq") else n for n in NAMES])
TINY = {"k": 4, "warm_start_steps": 0, "draws": 5}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(name, total_steps=400, **settings):
    kind = ESTIMATORS[name]
    tokenizer = Tokenizer(kind.tokenizer_config(tokenizer_config()))
    return tokenizer, kind(tokenizer, kind.configure(**{**TINY, **settings}), total_steps)


def test_they_are_all_there():
    assert {"daps", "daps-published", "daps-na", "gumbel", "gumbel-na", "gr-mck", "gr-mck-na"} <= set(NAMES)
    assert {"reinmax", "rloo", "rws", "rws-1", "ppo", "vq", "fsq", "vae", "rvq", "quest", "oat"} <= set(NAMES)


@each
def test_it_learns(name):
    """Chunks from four prototypes: the loss falls far, and every parameter of the tokenizer that it trains gets a gradient."""
    tokenizer, estimator = make(name, beta_start=0.05, beta_end=0.05)
    prototypes = torch.randn(4, 8, 3)
    optimizer = torch.optim.Adam([p for p in estimator.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(120):
        x = prototypes[torch.randint(4, (32,))] + 0.05 * torch.randn(32, 8, 3)
        optimizer.zero_grad()
        kept = torch.randint(1, 5, (32,)) if tokenizer.config.nested_dropout else None
        loss = estimator.loss(Inputs(x, kept=kept), step)
        loss.value.backward()
        optimizer.step()
        losses.append(loss.metrics["reconstruction"].item())
        assert math.isfinite(loss.value.item())
    unused = set() if isinstance(tokenizer.posterior, CodeModel) else {"embedding.weight"}
    for key, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None or key in unused, key
    share = 0.9 if name in ("daps-published", "ppo") else 0.6  # η stalls at 100; one sample and a clipped step
    assert sum(losses[-10:]) / 10 < share * sum(losses[:3]) / 3


@each
def test_its_tokenizer_is_saved_and_read(name, tmp_path):
    tokenizer, estimator = make(name)
    estimator.loss(Inputs(torch.randn(16, 8, 3)), 0).value.backward()
    estimator.settle(1)
    tokenizer.eval().save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    x = torch.randn(5, 8, 3)
    with torch.no_grad():
        first, second = (t.encoded(t.prepare(Inputs(x))).embedded for t in (tokenizer, again))
    torch.testing.assert_close(first, second)
    if name == "vae":
        assert again.bits == math.inf
        with pytest.raises(ConfigError, match="no codes"):
            again.encode(x)
    else:
        assert again.encode(x).max() < again.config.codes.vocabulary


@each
def test_encoders_have_the_same_size(name):
    """Within 5% of the autoregressive encoder, at the networks of the chunk16 preset; of four layers, within 7%."""
    networks = preset("chunk16").tokenizer
    sizes = []
    for kind in (ESTIMATORS["daps"], ESTIMATORS[name]):
        tokenizer = Tokenizer(kind.tokenizer_config(networks))
        sizes.append(sum(p.numel() for part in (tokenizer.front_end, tokenizer.posterior) for p in part.parameters()))
    assert abs(sizes[1] / sizes[0] - 1) < (0.07 if ESTIMATORS[name].own_networks else 0.05)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("rloo", {"k": 1}),
        ("daps-published", {"k": 1}),
        ("gumbel", {"temperature_end": 0.0}),
        ("reinmax", {"temperature_start": 0.5}),
        ("gr-mck", {"draws": 0}),
        ("ppo", {"clip_ratio": 0.0}),
        ("vq", {"codebook_decay": 1.0}),
        ("rvq", {"codebook_decay": 1.0}),
        ("vae", {"beta_end": 0.0}),
        ("rws", {"beta_start": float("inf")}),
    ],
)
def test_impossible_settings_are_refused(name, settings):
    with pytest.raises(ConfigError):
        ESTIMATORS[name].configure(**settings)


@pytest.mark.parametrize("relax", [gumbel_softmax, reinmax, lambda logits, t: gumbel_rao(logits, t, 4)])
def test_a_relaxed_draw_is_a_fair_one_hot_code(relax):
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0]).repeat(20_000, 1)
    drawn = relax(logits, 0.8)
    assert torch.allclose(drawn.max(-1).values, torch.ones(()), atol=1e-5) and torch.allclose(
        drawn.sum(-1), torch.ones(()), atol=1e-5
    )
    torch.testing.assert_close(drawn.mean(0), logits[0].softmax(-1), atol=0.015, rtol=0)


def test_reinmax_is_its_published_formula():
    """Algorithm 2 of arXiv 2304.08612, its Jacobian by hand: 2 J(π1) − J(π0)/2 for a fixed code."""
    logits = torch.randn(1, 5, requires_grad=True)
    torch.manual_seed(4)
    drawn = reinmax(logits, 1.3)
    weights = torch.randn(1, 5)
    (gradient,) = torch.autograd.grad((drawn * weights).sum(), logits)

    def jacobian(p):
        return torch.diag(p) - torch.outer(p, p)

    code = drawn.detach().argmax(-1)
    p0 = logits.detach().softmax(-1)[0]
    p1 = (one_hot_of(code, logits)[0] + (logits.detach() / 1.3).softmax(-1)[0]) / 2
    torch.testing.assert_close(gradient[0], weights[0] @ (2 * jacobian(p1) - jacobian(p0) / 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("autoregressive", [True, False])
def test_relaxed_drawing_follows_the_model(autoregressive):
    """Logits along a relaxed draw are the teacher-forced ones of its codes; the gradient reaches the memory."""
    config = tokenizer_config()
    kind = ESTIMATORS["gumbel" if autoregressive else "gumbel-na"]
    tokenizer = Tokenizer(kind.tokenizer_config(config))
    posterior = tokenizer.posterior
    assert isinstance(posterior, CodeModel) and posterior.config.autoregressive == autoregressive
    x = torch.randn(6, 8, 3)
    memory = tokenizer.prepare(Inputs(x))
    drawn, logits = relaxed(posterior, memory, lambda logits: gumbel_softmax(logits, 0.7))
    codes = drawn.argmax(-1)[:, None]
    torch.testing.assert_close(logits, posterior.logits(memory, codes)[:, 0], rtol=1e-4, atol=1e-5)
    first = drawn[:, -1] @ torch.randn(drawn.shape[-1])
    (gradient,) = torch.autograd.grad(first.sum(), memory[0][1])
    assert gradient.abs().max() > 0
    assert sample(posterior, memory, torch.rand(6, 2, 4)).codes.shape == (6, 2, 4)
