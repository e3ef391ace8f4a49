"""What the codes of a tokenizer stand for in some demonstrations: how often each occurs, when, and with which actions.

One window starts at every step, as in training; steps of it past the end of the demonstration count nowhere. Of the windows, only
their codes are held: everything else is gathered again in batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from daps_robot.data.chunks import ChunkDataset
from daps_robot.models.action_tokenizer import ActionTokenizer
from daps_robot.models.fast import FASTTokenizer
from daps_robot.types import ChunkBatch, Demo

BATCH = 512

BINS = 10
"""Parts of a demonstration, of equal length: the phases of a task."""

SHIFTS = 20
"""Of the codes, by chance, that tell how much information about the phase is none."""


@dataclass(frozen=True)
class CodedWindows:
    """The most likely codes of every window of some demonstrations.

    Attributes:
        tokenizer: that encoded them.
        demos: the demonstrations.
        windows: of these.
        codes: (n l) of each window.
        owners, steps: (n) the demonstration that a window is from, by its index, and the step at which it starts.
    """

    tokenizer: ActionTokenizer
    demos: Sequence[Demo]
    windows: ChunkDataset
    codes: Int[np.ndarray, "n l"]
    owners: Int[np.ndarray, " n"]
    steps: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Steps of the demonstration that each window is from."""
        return np.array([len(demo) for demo in self.demos])[self.owners]

    @property
    def phases(self) -> Int[np.ndarray, " n"]:
        """The part of its demonstration in which each window starts, 0 … BINS − 1."""
        return self.steps * BINS // self.lengths

    @property
    def vocabulary(self) -> int:
        """Values of a code, v."""
        return self.tokenizer.config.codes.vocabulary

    @property
    def ending(self) -> int | None:
        """The code that only ends and fills up a sequence; None where sequences are all of one length."""
        return 0 if isinstance(self.tokenizer, FASTTokenizer) else None

    def batches(self, index: Int[np.ndarray, " m"]) -> Iterator[tuple[ChunkBatch, Int[np.ndarray, "b l"]]]:
        """Some windows and their codes, a few at a time."""
        for part in torch.from_numpy(index).split(BATCH):
            yield self.windows.gather(part), self.codes[part.numpy()]

    def decode(self, batch: ChunkBatch, codes: Int[np.ndarray, "b l"]) -> Float[Tensor, "b h a"]:
        """What the tokenizer makes of the codes."""
        return self.tokenizer.decode(torch.from_numpy(codes).long()[:, None], batch.observations[:, -1])[:, 0]


def encode_windows(tokenizer: ActionTokenizer, demos: Sequence[Demo], obs_keys: Sequence[str], where: str) -> CodedWindows:
    """Encode every window of some demonstrations.

    Raises:
        DataError: there is no demonstration, or one is shorter than a chunk; `where` names the file.
        ConfigError: the tokenizer has no codes, or its library is not installed.
    """
    windows = ChunkDataset(demos, obs_keys, tokenizer.horizon, tokenizer.history, where)
    codes = np.empty((len(windows), tokenizer.config.codes.positions), np.int32)
    for part in torch.arange(len(windows)).split(BATCH):
        codes[part.numpy()] = tokenizer.encode(windows.ahead(part)[0])[:, 0].numpy()
    owners = np.repeat(np.arange(len(demos)), [len(demo) for demo in demos])
    return CodedWindows(tokenizer, demos, windows, codes, owners, np.arange(len(windows)) - windows.starts.numpy())


@dataclass(frozen=True)
class PositionUse:
    """How a position of the code sequence is used.

    Attributes:
        counts: (v) windows with each code there.
        entropy: of their frequencies, in bits.
        information: mutual information of the code and the phase, in bits, as the frequencies have it (plug-in).
        chance: the mean of the same when the codes of each demonstration are turned around in time by chance. It is what few
            windows, and neighbours with the same code, make of no relation at all.
    """

    counts: Int[np.ndarray, " v"]
    entropy: float
    information: float
    chance: float

    @property
    def perplexity(self) -> float:
        """As many equally frequent codes would be as varied."""
        return float(2**self.entropy)

    @property
    def unused(self) -> int:
        """Codes that no window has there."""
        return int((self.counts == 0).sum())


def position_uses(coded: CodedWindows) -> list[PositionUse]:
    """Of every position."""
    rng, phases, v = np.random.default_rng(0), coded.phases, coded.vocabulary
    starts, lengths = coded.windows.starts.numpy(), coded.lengths
    chance = np.zeros(coded.codes.shape[1])
    for _ in range(SHIFTS):
        shift = rng.integers([len(demo) for demo in coded.demos])[coded.owners]
        turned = starts + (coded.steps + shift) % lengths
        chance += [information(codes[turned], phases, v) / SHIFTS for codes in coded.codes.T]
    counts = [np.bincount(codes, minlength=v) for codes in coded.codes.T]
    return [
        PositionUse(found, entropy(found), information(codes, phases, v), float(by_chance))
        for found, codes, by_chance in zip(counts, coded.codes.T, chance, strict=True)
    ]


def phase_entropy(coded: CodedWindows) -> float:
    """Bits that would tell the phase for certain."""
    return entropy(np.bincount(coded.phases, minlength=BINS))


def phase_counts(coded: CodedWindows, position: int, codes: Sequence[int]) -> Int[np.ndarray, "c bins"]:
    """Windows with each of these codes at a position, by phase."""
    phases, at = coded.phases, coded.codes[:, position]
    return np.stack([np.bincount(phases[at == code], minlength=BINS) for code in codes])


def entropy(counts: Int[np.ndarray, " c"]) -> float:
    """Of frequencies, in bits."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum()) + 0.0  # + 0.0: not −0


def information(codes: Int[np.ndarray, " n"], phases: Int[np.ndarray, " n"], vocabulary: int) -> float:
    """Mutual information of codes and phases, in bits, by their frequencies."""
    joint = np.bincount(codes * BINS + phases, minlength=vocabulary * BINS).reshape(vocabulary, BINS)
    return entropy(joint.sum(1)) + entropy(joint.sum(0)) - entropy(joint.ravel())


@dataclass(frozen=True)
class Place:
    """A window.

    Attributes:
        owner, demo: index and name of the demonstration that it is from.
        step: at which it starts.
        distance: from the mean of the windows beside it: the root mean square of the differences of all actions, in the
            tokenizer's normalised units. Actions past the end of the demonstration count as others there differ on average.
    """

    owner: int
    demo: str
    step: int
    distance: float


@dataclass(frozen=True)
class CodeGroup:
    """Windows that share a code at a position, or all their codes.

    Attributes:
        codes: the one, or all.
        windows: how many.
        progress: the mean share of the demonstration that is over where they start.
        present: (h) share of them in which the demonstration lasts as long.
        mean, deviation: (h a) of their actions, in action units; NaN where no demonstration lasts as long.
        decoded: (h a) the mean of what their codes decode to, likewise.
        nearest: those nearest to the mean, at most one of each demonstration.
    """

    codes: tuple[int, ...]
    windows: int
    progress: float
    present: Float[np.ndarray, " h"]
    mean: Float[np.ndarray, "h a"]
    deviation: Float[np.ndarray, "h a"]
    decoded: Float[np.ndarray, "h a"]
    nearest: tuple[Place, ...]


def frequent_codes(coded: CodedWindows, position: int, top: int) -> list[int]:
    """The most frequent codes of a position, the most frequent first; without the one that only ends a sequence."""
    counts = np.bincount(coded.codes[:, position], minlength=coded.vocabulary)
    if coded.ending is not None:
        counts[coded.ending] = 0
    return [int(code) for code in np.argsort(-counts, kind="stable")[:top] if counts[code]]


def code_groups(coded: CodedWindows, position: int, top: int, nearest: int) -> list[CodeGroup]:
    """The windows of each of the most frequent codes of a position."""
    at = coded.codes[:, position]
    return [group(coded, (code,), np.flatnonzero(at == code), nearest) for code in frequent_codes(coded, position, top)]


@dataclass(frozen=True)
class Sequences:
    """Whole code sequences.

    Attributes:
        distinct: how many there are.
        recurring: how many of them more than one window has.
        shared: how many windows have one of these.
        groups: the windows of the most frequent of these.
    """

    distinct: int
    recurring: int
    shared: int
    groups: tuple[CodeGroup, ...]


def recurring_sequences(coded: CodedWindows, top: int, nearest: int) -> Sequences:
    """Those that more than one window has."""
    found, which, counts = np.unique(coded.codes, axis=0, return_inverse=True, return_counts=True)
    shown = [i for i in np.argsort(-counts, kind="stable")[:top] if counts[i] > 1]
    which = which.reshape(-1)  # of the shape (n, 1) in one version of numpy
    groups = tuple(group(coded, tuple(map(int, found[i])), np.flatnonzero(which == i), nearest) for i in shown)
    return Sequences(len(found), int((counts > 1).sum()), int(counts[counts > 1].sum()), groups)


def group(coded: CodedWindows, codes: tuple[int, ...], index: Int[np.ndarray, " m"], nearest: int) -> CodeGroup:
    """What some windows have in common."""
    shape = (coded.windows.horizon, coded.tokenizer.action_dim)
    count = torch.zeros(shape[0], 1, dtype=torch.float64)
    total, decoded = torch.zeros(2, *shape, dtype=torch.float64)
    for batch, own in coded.batches(index):
        inside = batch.mask[..., None].double()
        count += inside.sum(0)
        total += (inside * batch.actions).sum(0)
        decoded += (inside * coded.decode(batch, own)).sum(0)
    mean = total / count
    squares, unit = torch.zeros(shape, dtype=torch.float64), coded.tokenizer.scaler.scale.double().square()
    own_squares = []
    for batch, _ in coded.batches(index):
        off = torch.where(batch.mask[..., None], batch.actions - mean, 0.0).square()
        squares += off.sum(0)
        own_squares.append((off / unit).sum((1, 2)))
    variance = squares / count
    typical = (variance.nan_to_num() / unit).sum(1).numpy()
    beyond = typical.sum() - np.append(0.0, typical.cumsum())  # of the steps from each one on
    inside = np.minimum(coded.lengths[index] - coded.steps[index], shape[0])
    distances = np.sqrt((torch.cat(own_squares).numpy() + beyond[inside].clip(0)) / np.prod(shape))
    progress = float((coded.steps[index] / coded.lengths[index]).mean())
    present, places = count[:, 0].numpy() / len(index), near(coded, index, distances, nearest)
    chunks = (mean.numpy(), variance.sqrt().numpy(), (decoded / count).numpy())
    return CodeGroup(codes, len(index), progress, present, *chunks, places)


def near(coded: CodedWindows, index: Int[np.ndarray, " m"], distances: Float[np.ndarray, " m"], count: int) -> tuple[Place, ...]:
    """The nearest of some windows, at most one of each demonstration."""
    order = np.argsort(distances, kind="stable")
    best = order[np.sort(np.unique(coded.owners[index][order], return_index=True)[1])][:count]
    owners, steps = coded.owners[index[best]].tolist(), coded.steps[index[best]].tolist()
    found = zip(owners, steps, distances[best].tolist(), strict=True)
    return tuple(Place(owner, coded.demos[owner].name, step, distance) for owner, step, distance in found)
