"""robomimic's BC-RNN-GMM (Mandlekar et al. 2021, arXiv 2108.03298): an LSTM with a mixture of Gaussians, by robomimic itself.

o_{t-9} … o_t ──LSTM──► p(a | …) at every step in training; when acting, a_t from the last
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from daps_robot.data.chunks import ChunkDataset, ObservedSteps
from daps_robot.data.hdf5 import short
from daps_robot.data.normalize import Scaler
from daps_robot.errors import ConfigError
from daps_robot.models.imitation import ImitationConfig, ImitationPolicy, PolicySettings, check_range, missing_extra
from daps_robot.models.vision import Images

OBSERVATION = "observation"
"""robomimic's observation key for all keys side by side, which is what its encoder makes of low-dimensional ones."""


@dataclass(frozen=True)
class BCRNNSettings(PolicySettings):
    """robomimic's BC-RNN-GMM; the defaults are its published ones for low-dimensional observations.

    Attributes:
        width: of the LSTM's hidden state.
        layers: of the LSTM.
        modes: Gaussians of the mixture.
    """

    history: int = 10
    horizon: int = 1
    execute: int = 1
    width: int = 400
    layers: int = 2
    modes: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, width=16384, layers=64, modes=1024)
        if self.horizon != 1:
            raise ConfigError(f"BC-RNN-GMM plans one action at a time, not {self.horizon}: leave out --horizon and --execute")


def import_robomimic() -> tuple[Any, Any, Any]:
    """`algo_factory`, `config_factory` and `obs_utils` of robomimic.

    Raises:
        ConfigError: robomimic, or torchvision which its networks import, is not installed or does not work.
    """
    try:
        _import_torchvision()
        with contextlib.redirect_stdout(io.StringIO()):  # it warns of a file of macros that nobody needs
            from robomimic.algo import algo_factory
            from robomimic.config import config_factory
            from robomimic.utils import obs_utils
    except (ImportError, RuntimeError) as error:
        if "torchvision" in str(error):
            raise ConfigError(
                f"a bc-rnn-gmm policy cannot be had here ({short(error)}): pip install --no-deps torchvision, of the version "
                "that goes with the installed torch (docs/policies.md)"
            ) from error
        raise missing_extra("bc-rnn-gmm", error, "robomimic") from error
    return algo_factory, config_factory, obs_utils


def _import_torchvision() -> None:
    """Import torchvision even where its operators do not load, as beside a torch for CPUs only: none of them is called here."""
    try:
        import torchvision
    except RuntimeError:
        _declare_operators()
        import torchvision  # noqa: F401


@functools.cache  # they last as long as what declared them
def _declare_operators() -> torch.library.Library:
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return operators


def make_networks(config: ImitationConfig, settings: BCRNNSettings) -> nn.ModuleDict:
    """The networks of robomimic's BC_RNN_GMM, with its defaults for everything that is not a setting here."""
    algo_factory, config_factory, obs_utils = import_robomimic()
    robomimic = config_factory("bc")
    with robomimic.values_unlocked():
        robomimic.observation.modalities.obs.low_dim = [OBSERVATION]
        robomimic.algo.actor_layer_dims = ()
        robomimic.algo.gmm.enabled, robomimic.algo.gmm.num_modes = True, settings.modes
        robomimic.algo.rnn.enabled, robomimic.algo.rnn.horizon = True, settings.history
        robomimic.algo.rnn.hidden_dim, robomimic.algo.rnn.num_layers = settings.width, settings.layers
    with contextlib.redirect_stdout(io.StringIO()):
        obs_utils.initialize_obs_utils_with_config(robomimic)
        shapes = OrderedDict({OBSERVATION: [config.seen_dim]})
        algo = algo_factory("bc", robomimic, shapes, config.action_dim, torch.device("cpu"))
    algo.nets["policy"].nets.pop("decoder")  # a second name for a part of its RNN; a saved tensor has one name
    return algo.nets


class BCRNNPolicy(ImitationPolicy):
    """A mixture of Gaussians over the next action, from the last n observations; it carries no state from plan to plan."""

    kind = "bc-rnn-gmm"
    settings_type = BCRNNSettings

    def __init__(self, config: ImitationConfig, scaler: Scaler | None = None, action_scaler: Scaler | None = None) -> None:
        super().__init__(config, scaler, action_scaler)
        assert isinstance(config.settings, BCRNNSettings)
        self.nets = make_networks(config, config.settings)

    @classmethod
    def import_extra(cls) -> None:
        import_robomimic()

    def windows(self, data: ChunkDataset) -> ObservedSteps:
        """The actions of the observed steps: it learns at every step of a sequence."""
        return ObservedSteps(data)

    def mixtures(self, observations: Float[Tensor, "b n o"]) -> Any:
        """The distribution of the action at every step; not in training mode, with standard deviations of 1e-4."""
        policy: Any = self.nets["policy"]
        return policy.forward_train(obs_dict={OBSERVATION: observations})

    def loss(
        self,
        observations: Float[Tensor, "b n o"],
        actions: Float[Tensor, "b n a"],
        mask: Bool[Tensor, "b n"],
        images: Images = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """−log p(a_t | o_…t) in nats a step, by the deviations of training also where it is held out."""
        training = self.training
        self.nets.train()
        with torch.autocast(observations.device.type, enabled=False):  # standard deviations of 1e-4 need float32
            nll = -(self.mixtures(observations.float()).log_prob(actions.float()) * mask).sum() / mask.sum()
        self.nets.train(training)
        return nll, {"nll": nll.detach()}

    def sample(
        self, observations: Float[Tensor, "b n o"], keys: Int[np.ndarray, " b"], images: Images = None
    ) -> Float[Tensor, "b 1 a"]:
        """The last step's action: a mode, drawn by its weight, and noise of its standard deviation."""
        mixtures = self.mixtures(observations)
        modes, weights = mixtures.component_distribution.base_dist, mixtures.mixture_distribution.probs[:, -1]
        generators = [np.random.default_rng(int(key)) for key in keys]
        uniforms = torch.tensor([[g.random()] for g in generators], dtype=weights.dtype, device=weights.device)
        drawn = (weights.cumsum(-1) <= uniforms).sum(-1).clamp(max=weights.shape[-1] - 1)
        normal = np.stack([g.standard_normal((1, self.action_dim), dtype=np.float32) for g in generators])
        rows = torch.arange(len(drawn), device=drawn.device)
        mean, deviation = modes.loc[rows, -1, drawn][:, None], modes.scale[rows, -1, drawn][:, None]
        return mean + deviation * torch.from_numpy(normal).to(mean.device)
