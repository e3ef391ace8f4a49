"""What demonstrations hold, in numbers, and what in them a person should look at before training."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from daps_robot.data.demos import DemoSet
from daps_robot.data.env_args import env_differences, named_env
from daps_robot.data.normalize import near_binary
from daps_robot.errors import DataError
from daps_robot.types import Demo

ACTIONS = "actions"
HORIZON = 16
"""Steps of a chunk by default."""
STUCK = 5
"""Steps in a row with exactly the same observations that are worth a look."""
FAR = 10.0
"""Standard deviations (as half the quartiles' distance gives them) from the median at which a value is an outlier."""
RARE = 1e-3
"""Share of the values up to which they are called outliers: more of them are the tails of a column that mostly stays put."""
LEAP = 5.0
"""Times the 99th percentile of the changes from step to step at which a change is a jump."""
_SIGMAS_BETWEEN_QUARTILES = 1.349
_MAX_ROWS = 20_000


@dataclass(frozen=True)
class Dimension:
    """A column of the actions or of an observation, over all steps; the figures are those of its finite values.

    Attributes:
        key: "actions", or the observation's.
        index: of the column in it.
        kind: "binary" for two values up to rare exceptions, as of a gripper.
        figures: minimum, 1%, median, 99% and maximum, mean, standard deviation.
        bad: values that are NaN or infinite.
    """

    key: str
    index: int
    kind: Literal["continuous", "binary", "constant"]
    figures: tuple[float, float, float, float, float, float, float]
    bad: int

    @property
    def name(self) -> str:
        return f"{self.key}[{self.index}]"

    @property
    def std(self) -> float:
        return self.figures[-1]


@dataclass(frozen=True)
class Finding:
    """Something worth a look.

    Attributes:
        title: what it is.
        places: where, the worst first.
        advice: what to do.
        refused: whether training refuses the data for it.
    """

    title: str
    places: tuple[str, ...]
    advice: str
    refused: bool = False


@dataclass(frozen=True)
class Motion:
    """What an action dimension follows among the observed columns: an absolute target their values, a relative one their changes.

    Attributes:
        index: of the action.
        verdict: by the correlations; "unclear" where neither is strong.
        value: column of the next step's observation that correlates most, and the correlation.
        change: the same of the change to the next step.
    """

    index: int
    verdict: Literal["absolute", "relative", "unclear"]
    value: tuple[str, float]
    change: tuple[str, float]


@dataclass(frozen=True)
class Inspection:
    """All that `inspect` finds out."""

    lengths: tuple[int, ...]
    dimensions: tuple[Dimension, ...]
    motions: tuple[Motion, ...]
    findings: tuple[Finding, ...]

    def of(self, key: str) -> tuple[Dimension, ...]:
        """The columns of the actions or of an observation."""
        return tuple(d for d in self.dimensions if d.key == key)


def inspect(demos: DemoSet, horizon: int = HORIZON) -> Inspection:
    """Of demonstrations that were read with `finite=False`, to be cut into chunks of so many steps."""
    keys = (ACTIONS, *demos.obs_keys)
    dimensions = tuple(d for key in keys for d in _dimensions(key, np.concatenate([rows(demo, key) for demo in demos.demos])))
    findings = [
        *_not_finite(demos, keys),
        *_unfit(demos),
        *_short(demos, horizon),
        *_same(demos),
        *_stuck(demos),
        *_outliers(demos, dimensions),
        *_jumps(demos, dimensions),
        *_quaternions(demos),
        *_scales(dimensions),
        *_constant(dimensions),
    ]
    return Inspection(tuple(map(len, demos.demos)), dimensions, _motions(demos, dimensions), tuple(findings))


def rows(demo: Demo, key: str) -> Float[np.ndarray, "t _"]:
    """The actions, or an observation."""
    return demo.actions if key == ACTIONS else demo.obs[key]


def _dimensions(key: str, values: Float[np.ndarray, "n d"]) -> Iterator[Dimension]:
    for i, column in enumerate(values.astype(np.float64).T):
        finite = column[np.isfinite(column)]
        if not len(finite):
            yield Dimension(key, i, "constant", (float("nan"),) * 7, len(column))
            continue
        low, high = finite.min(), finite.max()
        constant = high - low <= 1e-6 * max(1.0, abs(high))
        kind: Literal["continuous", "binary", "constant"] = "constant" if constant else "continuous"
        if near_binary(finite[:, None]):
            kind = "binary"
        quantiles = np.quantile(finite, [0, 0.01, 0.5, 0.99, 1])
        figures = (*map(float, quantiles), float(finite.mean()), float(finite.std()))
        yield Dimension(key, i, kind, figures, len(column) - len(finite))  # type: ignore[arg-type]


def _not_finite(demos: DemoSet, keys: Sequence[str]) -> Iterator[Finding]:
    places = []
    for demo in demos.demos:
        for key in keys:
            bad = ~np.isfinite(rows(demo, key))
            if bad.any():
                columns = ", ".join(str(i) for i in np.flatnonzero(bad.any(0))[:4])
                step = int(np.argmax(bad.any(1)))
                places.append((int(bad.sum()), f"{demo.name}, {key}[{columns}]: {bad.sum()} values, the first at step {step}"))
    yield from _listed("NaN or infinity", places, "Remove or repair these demonstrations.", refused=True)


def _unfit(demos: DemoSet) -> Iterator[Finding]:
    """What is wrong with the data set as a whole."""
    if not demos.valid:
        advice = "Training needs two demonstrations or more, or some named in mask/valid."
        yield Finding("No demonstration is held out", (f"{len(demos)} in all, {len(demos.train)} to train on",), advice, True)
    try:
        _ = demos.action_units
    except DataError as error:
        yield Finding("Units that are not those of the actions", (str(error),), "Correct env_args, or leave them out.", True)
    if differences := env_differences(demos.env_args):
        named = named_env(demos.env_args)
        advice = f"Train with --env none to do with the held-out error, or with --env {named} to roll out all the same."
        yield Finding(f"Recorded in another set-up than {named} has here", tuple(differences), advice, True)


def _short(demos: DemoSet, horizon: int) -> Iterator[Finding]:
    """A demonstration that is shorter than a chunk cannot be trained on."""
    places = [(-len(demo), f"{demo.name}: {len(demo)} steps") for demo in demos.demos if len(demo) < horizon]
    advice = f"Take chunks of so few steps (--horizon, here {horizon}), or leave these demonstrations out."
    yield from _listed("Shorter than a chunk", places, advice, refused=True)


def _same(demos: DemoSet) -> Iterator[Finding]:
    """Demonstrations with the same actions and observations, byte by byte."""
    groups = defaultdict(list)
    for demo in demos.demos:
        digest = hashlib.sha256(demo.actions.tobytes())
        for key in demos.obs_keys:
            digest.update(demo.obs[key].tobytes())
        groups[digest.digest()].append(demo.name)
    held_out = set(demos.valid)
    places = []
    for names in (names for names in groups.values() if len(names) > 1):
        both = 0 < len(held_out & set(names)) < len(names)
        places.append((len(names) + 10**6 * both, ", ".join(names) + (": in training and held out" if both else "")))
    yield from _listed("The same demonstration again", places, "Leave copies out: a held-out copy flatters every error.")


def _stuck(demos: DemoSet) -> Iterator[Finding]:
    places = []
    for demo in demos.demos:
        seen = demo.flat_obs(demos.obs_keys)
        start, length = _longest_run((seen[1:] == seen[:-1]).all(1))
        if length + 1 >= STUCK:
            places.append((length + 1, f"{demo.name}: steps {start} to {start + length}"))
    advice = "The recording hung, or nothing moved: cut these stretches out where a policy should not learn to wait."
    yield from _listed(f"Observations that stand still for {STUCK} steps or more", places, advice)


def _longest_run(flags: Bool[np.ndarray, " n"]) -> tuple[int, int]:
    """Start and length of the longest run of True; length 0 where there is none."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    if not len(edges):
        return 0, 0
    lengths = edges[1::2] - edges[::2]
    return int(edges[::2][np.argmax(lengths)]), int(lengths.max())


def _outliers(demos: DemoSet, dimensions: Sequence[Dimension]) -> Iterator[Finding]:
    """Values far from the median, in spreads that the outliers themselves have no part in."""
    places = []
    for d in (d for d in dimensions if d.kind == "continuous"):
        column = np.concatenate([rows(demo, d.key)[:, d.index] for demo in demos.demos]).astype(np.float64)
        finite = column[np.isfinite(column)]
        low, median, high = np.quantile(finite, [0.25, 0.5, 0.75])
        spread = (high - low) / _SIGMAS_BETWEEN_QUARTILES or d.std  # more than half of the values may be the same
        far = np.abs(np.where(np.isfinite(column), column, median) - median) / spread
        if 0 < (count := int((far > FAR).sum())) <= max(3, RARE * len(far)):
            name, step = _place(demos, int(np.argmax(far)))
            what = f"{d.name}: {column[np.argmax(far)]:.4g} in {name} at step {step}, the median is {median:.4g}"
            places.append((float(far.max()), f"{what} ({count} such values)" if count > 1 else what))
    advice = f"More than {FAR:.0f} standard deviations away: wrong readings shrink everything else when actions are normalised."
    yield from _listed("Outliers", places, advice)


def _jumps(demos: DemoSet, dimensions: Sequence[Dimension]) -> Iterator[Finding]:
    """Changes of an action between two steps that are far larger than nearly all others."""
    places = []
    for d in (d for d in dimensions if d.key == ACTIONS and d.kind == "continuous"):
        changes = [
            np.nan_to_num(np.abs(np.diff(demo.actions[:, d.index].astype(np.float64))), posinf=0.0) for demo in demos.demos
        ]
        if not any(map(len, changes)):
            return
        usual = float(np.quantile(np.concatenate(changes), 0.99))
        if usual > 0 and (total := sum(int((change > LEAP * usual).sum()) for change in changes)):
            worst = max(range(len(changes)), key=lambda i: changes[i].max(initial=0.0))
            step = int(np.argmax(changes[worst]))
            size = changes[worst][step]
            place = f"{d.name}: by {size:.4g} in {demos.demos[worst].name} after step {step}, 99% are below {usual:.4g}"
            places.append((size / usual, f"{place} ({total} jumps)" if total > 1 else place))
    yield from _listed("Actions that jump", places, "Look for dropped frames, angles that wrap round, and changes of units.")


def _quaternions(demos: DemoSet) -> Iterator[Finding]:
    """In the keys that end in _quat."""
    flips, lengths = [], []
    for key in (key for key in demos.obs_keys if key.endswith("_quat") and demos.obs_dims[key] == 4):
        for demo in demos.demos:
            q = demo.obs[key].astype(np.float64)
            turned = (q[1:] * q[:-1]).sum(1) < 0
            off = np.abs(np.linalg.norm(q, axis=1) - 1)
            if turned.any():
                flips.append(
                    (int(turned.sum()), f"{demo.name}, {key}: {turned.sum()} times, first after step {np.argmax(turned)}")
                )
            if (worst := np.nanmax(off, initial=0.0)) > 0.01:
                lengths.append((worst, f"{demo.name}, {key}: length off by {worst:.3g} at step {int(np.nanargmax(off))}"))
    advice = "The same rotation with the other sign is a jump for a network: distill the policy with --obs-rotation 6d."
    yield from _listed("Quaternions that change sign", flips, advice)
    yield from _listed("Quaternions that are not of unit length", lengths, "Are these x y z w? --obs-rotation 6d refuses them.")


def _scales(dimensions: Sequence[Dimension]) -> Iterator[Finding]:
    moving = sorted((d for d in dimensions if d.key == ACTIONS and d.kind == "continuous"), key=lambda d: d.std)
    if len(moving) > 1 and moving[-1].std > 10 * moving[0].std:
        place = f"standard deviation {moving[-1].std:.3g} of {moving[-1].name}, {moving[0].std:.3g} of {moving[0].name}"
        advice = "If the units differ, train the tokenizer with --scaling per-dimension, or it attends to the large ones alone."
        yield Finding("Actions of very different scale", (place,), advice)


def _constant(dimensions: Sequence[Dimension]) -> Iterator[Finding]:
    places = [(0.0, f"{d.name}: always {d.figures[2]:.4g}") for d in dimensions if d.kind == "constant" and d.bad == 0]
    yield from _listed("Columns that never change", places, "They do no harm; is something missing in the recording?")


def _listed(title: str, places: Sequence[tuple[float, str]], advice: str, refused: bool = False) -> Iterator[Finding]:
    if places:
        worst_first = sorted(places, key=lambda place: -place[0])
        yield Finding(title, tuple(text for _, text in worst_first), advice, refused)


def _place(demos: DemoSet, row: int) -> tuple[str, int]:
    """Demonstration and step of a row of all of them after one another."""
    ends = np.cumsum([len(demo) for demo in demos.demos])
    i = int(np.searchsorted(ends, row, side="right"))
    return demos.demos[i].name, row - int(ends[i] - len(demos.demos[i]))


def _motions(demos: DemoSet, dimensions: Sequence[Dimension]) -> tuple[Motion, ...]:
    """For each continuous action, over an even selection of the steps that have a next one."""
    names = [f"{key}[{i}]" for key in demos.obs_keys for i in range(demos.obs_dims[key])]
    actions = np.concatenate([demo.actions[:-1] for demo in demos.demos])
    flat = [demo.flat_obs(demos.obs_keys) for demo in demos.demos]
    after, change = np.concatenate([o[1:] for o in flat]), np.concatenate([np.diff(o, axis=0) for o in flat])
    good = np.flatnonzero(np.isfinite(actions).all(1) & np.isfinite(after).all(1) & np.isfinite(change).all(1))
    good = good[:: 1 + len(good) // _MAX_ROWS]
    chosen = [d.index for d in dimensions if d.key == ACTIONS and d.kind == "continuous"]
    if len(good) < 3 or not chosen:
        return ()
    motions = []
    values, changes = (_correlations(actions[good][:, chosen], seen[good]) for seen in (after, change))
    for i, by_value, by_change in zip(chosen, values, changes, strict=True):
        best, moved = int(np.argmax(np.abs(by_value))), int(np.argmax(np.abs(by_change)))
        r, s = float(by_value[best]), float(by_change[moved])
        absolute, relative = abs(r) >= 0.9 and abs(r) > abs(s), abs(s) >= 0.5 and abs(s) > abs(r)
        verdict: Literal["absolute", "relative", "unclear"] = "absolute" if absolute else "relative" if relative else "unclear"
        motions.append(Motion(i, verdict, (names[best], r), (names[moved], s)))
    return tuple(motions)


def _correlations(x: Float[np.ndarray, "n a"], y: Float[np.ndarray, "n o"]) -> Float[np.ndarray, "a o"]:
    """Pearson's, 0 with what does not vary."""
    x, y = (v.astype(np.float64) - v.mean(0, dtype=np.float64) for v in (x, y))
    norms = np.linalg.norm(x, axis=0)[:, None] * np.linalg.norm(y, axis=0)
    return np.divide(x.T @ y, norms, out=np.zeros_like(norms), where=norms > 1e-12 * len(x))
