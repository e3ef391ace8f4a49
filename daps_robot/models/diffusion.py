"""Diffusion Policy (Chi et al. 2023, arXiv 2303.04137), its CNN variant: a chunk is denoised, given the observations.

chunk + noise of step τ, o, τ ──U-Net──► the chunk, or the noise        100 steps in training, 10 when acting
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from daps_robot.data.normalize import Scaler
from daps_robot.errors import ConfigError
from daps_robot.models.blocks import sinusoidal_positions
from daps_robot.models.imitation import (
    ImitationConfig,
    ImitationPolicy,
    PolicySettings,
    check_range,
    keyed_normal,
    missing_extra,
)
from daps_robot.models.unet import UNet
from daps_robot.models.vision import Images
from daps_robot.parallel import noise, uniform


@dataclass(frozen=True)
class DiffusionSettings(PolicySettings):
    """Diffusion Policy.

    Attributes:
        widths: channels of the U-Net's levels; each level has half the steps of the one above.
        step_width: embedding width of the diffusion step.
        prediction: what the network estimates: the chunk ("sample"), which learns much faster on a short budget, or the noise
            in it ("epsilon"), as published.
        diffusion_steps: in training.
        inference_steps: when acting: DDIM over so many of them, or over all of them DDPM.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    step_width: int = 64
    prediction: Literal["sample", "epsilon"] = "sample"
    diffusion_steps: int = 100
    inference_steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, step_width=4096, diffusion_steps=10_000, inference_steps=self.diffusion_steps)
        if self.diffusion_steps % self.inference_steps:
            raise ConfigError(f"inference_steps {self.inference_steps} must divide the {self.diffusion_steps} diffusion steps")


def make_scheduler(prediction: str, diffusion_steps: int, inference_steps: int) -> Any:
    """The library's DDIM scheduler with Diffusion Policy's noise: squared cosine, samples clipped to [−1, 1].

    Raises:
        ConfigError: the library is not installed.
    """
    try:
        from diffusers import DDIMScheduler
    except ImportError as error:
        raise missing_extra("diffusion", error, "diffusion") from error
    # spacing stays "leading", which leaves out the noisiest steps: there an estimate of the noise says nothing of the sample
    scheduler: Any = DDIMScheduler(
        num_train_timesteps=diffusion_steps, beta_schedule="squaredcos_cap_v2", clip_sample=True, prediction_type=prediction
    )
    scheduler.set_timesteps(inference_steps)
    return scheduler


def denoise(scheduler: Any, estimate: Any, x: Float[Tensor, "b s *x"]) -> Float[Tensor, "b *x"]:
    """From noise to samples.

    DDIM of η = 0, or, over all steps, of η = 1: that is DDPM with the posterior's variance (Song et al. 2021, equation 16).

    Args:
        scheduler: of `make_scheduler`.
        estimate: (noisy samples, diffusion step) → what the scheduler's `prediction` says.
        x: standard normal noise: the first of axis s is what to start from, the others are added on the way (of η = 1).
    """
    eta = float(scheduler.num_inference_steps == scheduler.config.num_train_timesteps)
    sample = x[:, 0]
    for i, step in enumerate(scheduler.timesteps.tolist(), start=1):
        more: dict[str, Any] = {"eta": eta, "variance_noise": x[:, i]} if eta else {}
        # the noise in hand is that of the clipped sample, or the step would leave the posterior
        sample = scheduler.step(estimate(sample, step), step, sample, use_clipped_model_output=True, **more).prev_sample
    return sample


class DiffusionPolicy(ImitationPolicy):
    """A chunk drawn from a diffusion model of demonstrated chunks, given the observation history."""

    kind = "diffusion"
    settings_type = DiffusionSettings
    criterion = "loss"  # a drawn plan that has the demonstrations' noise in it is farther from them than one that has none
    step_table: Tensor

    def __init__(self, config: ImitationConfig, scaler: Scaler | None = None, action_scaler: Scaler | None = None) -> None:
        super().__init__(config, scaler, action_scaler)
        assert isinstance(config.settings, DiffusionSettings)
        self.settings = settings = config.settings
        self.scheduler = make_scheduler(settings.prediction, settings.diffusion_steps, settings.inference_steps)
        width = settings.step_width
        self.register_buffer("step_table", sinusoidal_positions(settings.diffusion_steps, width), persistent=False)
        self.embed_step = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        condition = width + settings.history * config.seen_dim
        self.network = UNet(settings.horizon, config.action_dim, settings.widths, condition)

    @classmethod
    def import_extra(cls) -> None:
        make_scheduler("sample", 1, 1)

    def estimate(
        self, observations: Float[Tensor, "b n o"], noisy: Float[Tensor, "b h a"], steps: Int[Tensor, " b"]
    ) -> Float[Tensor, "b h a"]:
        """What `prediction` says of noisy chunks of these diffusion steps."""
        condition = torch.cat([self.embed_step(self.step_table[steps]), observations.flatten(1)], dim=-1)
        return self.network(noisy, condition)

    def loss(
        self,
        observations: Float[Tensor, "b n o"],
        actions: Float[Tensor, "b h a"],
        mask: Bool[Tensor, "b h"],
        images: Images = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """‖estimate − truth‖² at a random diffusion step (of the noise: equation 5 there).

        Steps past the end of a demonstration, which repeat its last action, are learned like any other, as there: all steps
        of a chunk are denoised together, so what is drawn for these has a say in the rest.
        """
        b, device = len(actions), actions.device
        steps = (uniform(b, device=device) * self.settings.diffusion_steps).long()
        added = noise(lambda t: t.normal_(), actions.shape, device)
        noisy = self.scheduler.add_noise(actions, added, steps)
        truth = actions if self.settings.prediction == "sample" else added
        error = (self.estimate(observations, noisy, steps) - truth).square().mean()
        return error, {"mse": error.detach()}

    def sample(
        self, observations: Float[Tensor, "b n o"], keys: Int[np.ndarray, " b"], images: Images = None
    ) -> Float[Tensor, "b h a"]:
        """Chunks drawn by DDIM or DDPM."""
        settings = self.settings
        draws = 1 + (settings.diffusion_steps if settings.inference_steps == settings.diffusion_steps else 0)
        start = keyed_normal(keys, (draws, self.horizon, self.action_dim), observations)

        def estimate(noisy: Tensor, step: int) -> Tensor:
            return self.estimate(observations, noisy, torch.full((len(noisy),), step, device=noisy.device))

        return denoise(self.scheduler, estimate, start)
