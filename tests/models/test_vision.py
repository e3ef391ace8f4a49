"""The front end of pictures: crops that repeat, tokens in order, and policies that are saved with it."""

import numpy as np
import pytest
import torch
from tiny import SETTINGS, TRANSFORMER, demonstrations, tokenizer_config

from daps_robot import parallel
from daps_robot.data.chunks import ChunkDataset
from daps_robot.data.normalize import Scaler
from daps_robot.errors import ConfigError
from daps_robot.models.frontends import ObservationFrontEndConfig
from daps_robot.models.policies import POLICIES, load_policy
from daps_robot.models.policy import DecodingConfig, LatentPolicy, PolicyConfig
from daps_robot.models.vision import PictureFrontEnd, PictureFrontEndConfig
from daps_robot.training.distill import DistillObjective
from daps_robot.types import Demo, plan_request

SMALL = PictureFrontEndConfig(cameras=2, height=24, width=20, margin=4, channels=(4, 4), kept=3, hidden=8, tokens=2)


def with_pictures(count=4, steps=20):
    """The demonstrations of `tiny`, with pictures of two cameras."""
    rng = np.random.default_rng(0)

    def images():
        return {camera: rng.integers(0, 256, (steps, 24, 20, 3), np.uint8) for camera in ("front", "wrist")}

    return [Demo(demo.name, demo.actions, demo.obs, images=images()) for demo in demonstrations(count, steps)]


def windows(history=2, horizon=8):
    return ChunkDataset(with_pictures(), ("state",), horizon, history)


def latent(data):
    torch.manual_seed(0)
    tokenizer = tokenizer_config()
    front_end = ObservationFrontEndConfig(2, 5, tokens_per_step=2, hidden=16, transformer=TRANSFORMER, pictures=SMALL)
    config = PolicyConfig(tokenizer, ("state",), front_end, tokenizer.codes, DecodingConfig("greedy"), cameras=data.cameras)
    return LatentPolicy(config, scaler=Scaler.fit(data.observations.numpy())).eval()


def test_crops_are_of_the_middle_when_acting_and_repeat_in_training():
    front_end = PictureFrontEnd(SMALL, width=16)
    images = torch.randint(0, 256, (5, 3, 2, 24, 20, 3), dtype=torch.uint8)
    cut = front_end.eval().crop(images[:, :, 0], front_end.corners(5, images.device)[:, 0])
    assert torch.equal(cut, images[:, :, 0, 2:22, 2:18])
    front_end.train()
    torch.manual_seed(3)
    corners = front_end.corners(64, images.device)
    assert corners.min() == 0 and corners.max() == SMALL.margin and len(corners.flatten(1).unique(dim=0)) > 20
    torch.manual_seed(3)
    assert torch.equal(front_end.corners(64, images.device), corners)
    torch.manual_seed(3)
    with parallel.rows_of(16, 64):  # the crops of a row do not depend on which process has it
        assert torch.equal(front_end.corners(8, images.device), corners[16:24])
    cut = front_end.crop(images[:, :, 1], corners[:5, 1])
    for row, (y, x) in enumerate(corners[:5, 1].tolist()):
        assert torch.equal(cut[row], images[row, :, 1, y : y + 20, x : x + 16])


def test_every_picture_has_its_tokens_in_the_order_of_steps():
    front_end = PictureFrontEnd(SMALL, width=16).eval()
    images = torch.randint(0, 256, (1, 3, 2, 24, 20, 3), dtype=torch.uint8)
    tokens = front_end(images)
    assert tokens.shape == (1, 3 * 2 * 2, 16)
    for step in range(3):
        for camera in range(2):
            changed = images.clone()
            changed[:, step, camera] = 255 - changed[:, step, camera]
            moved = (front_end(changed) != tokens).any(-1)[0].view(3, 2, 2)
            assert moved[step, camera].all() and moved.sum() == 2
    with pytest.raises(ConfigError, match=r"pictures of shape .* where \(2, 24, 20, 3\) is seen"):
        front_end(images[:, :, :, :20])


@pytest.mark.parametrize(
    "settings",
    [{"cameras": 0}, {"cameras": 2000}, {"channels": (8, 0)}, {"channels": ()}, {"height": 12}, {"margin": -1}, {"width": 5000}],
)
def test_front_ends_that_cannot_be_are_refused(settings):
    with pytest.raises(ConfigError):
        PictureFrontEndConfig(**settings)


@pytest.mark.parametrize("kind", ["policy", "regression"])
def test_policies_see_learn_and_are_saved(kind, tmp_path):
    data = windows()
    torch.manual_seed(0)
    policy = latent(data) if kind == "policy" else untrained(kind, crop_free(data))
    policy.eval()
    index = torch.arange(6)
    request = plan_request(data.gather(index), index)
    plans = policy.plan(request)
    policy.save_pretrained(tmp_path / "model")
    again = load_policy(tmp_path / "model")
    assert (again.cameras, again.picture_size) == (("front", "wrist"), policy.picture_size)
    assert np.array_equal(again.plan(request), plans)
    blind = plan_request(data.gather(index)._replace(images=None), index)
    with pytest.raises(ConfigError, match="pictures of front, wrist, the request has none"):
        policy.plan(blind)
    turned = request.images.copy()
    turned[3] = 255 - turned[3]
    changed = policy.plan(plan_request(data.gather(index)._replace(images=torch.from_numpy(turned)), index))
    assert np.flatnonzero((changed != plans).any((1, 2))).tolist() in ([3], [])  # codes may stay the same; no other row's may not


def untrained(kind, data):
    return POLICIES[kind].for_data(SETTINGS[kind], {"state": 5}, data)


def crop_free(data):
    """The same windows: pictures are 24 × 20, less than the default front end's convolutions need."""
    for i, pictures in enumerate(data.pictures):
        data.pictures[i] = tuple(np.repeat(np.repeat(each, 2, 1), 2, 2) for each in pictures)
    return data


def test_the_loss_reaches_the_cameras_and_repeats():
    data = windows()
    policy = latent(data)
    objective = DistillObjective(policy, data, torch.ones(3)).train()
    losses = []
    for _ in range(2):
        torch.manual_seed(5)
        losses.append(objective(data.gather(torch.arange(8)), 0).value)
    assert losses[0] == losses[1]
    losses[0].backward()
    for name, parameter in policy.front_end.pictures.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    objective.eval()
    assert objective.evaluate() == objective.evaluate()


@pytest.mark.parametrize("kind", ["diffusion", "bc-rnn-gmm"])
def test_policies_without_eyes_refuse_pictures(kind):
    data = crop_free(windows(SETTINGS[kind].history, SETTINGS[kind].horizon))
    with pytest.raises(ConfigError, match=r"sees no pictures|cannot be had"):
        untrained(kind, data)


def test_cameras_and_front_end_must_agree():
    front_end = ObservationFrontEndConfig(2, 5, transformer=TRANSFORMER, pictures=SMALL)
    tokenizer = tokenizer_config()
    with pytest.raises(ConfigError, match="a front end for 2 cameras does not see front"):
        PolicyConfig(tokenizer, ("state",), front_end, tokenizer.codes, cameras=("front",))
