"""What the page measures and draws, against what the models and the numbers say."""

import re
from pathlib import Path

import numpy as np
import torch
from small_run import HORIZON, SmallRun

from daps_robot.report import plots
from daps_robot.report.curves import phases
from daps_robot.report.measure import CodeUsage, action_deviation, action_names, code_usage, held_out, trace
from daps_robot.report.run import Metrics, read_run
from daps_robot.report.style import PAGE, panel, to_svg
from daps_robot.types import PlanRequest


def test_trace_is_what_tokenizer_and_policy_say(small: SmallRun) -> None:
    demo = held_out(small.demos)[0]
    lines = trace(small.policy, demo)
    assert lines.true.shape == lines.tokenizer.shape == lines.policy.shape == (15, 3)
    assert lines.starts.tolist() == [0, 4, 8, 12]
    chunk = demo.actions[None, HORIZON : 2 * HORIZON]
    rebuilt = small.policy.tokenizer.reconstruct(chunk, np.zeros((1, 1, 0), np.float32), np.zeros(1, int))[0]
    np.testing.assert_allclose(lines.tokenizer[4:8], rebuilt, atol=1e-5)
    seen = demo.obs["state"]
    first = small.policy.plan(PlanRequest(np.stack([seen[0], seen[0]])[None], np.array([0])))[0]
    second = small.policy.plan(PlanRequest(seen[None, 3:5], np.array([0])))[0]
    np.testing.assert_allclose(lines.policy[:8], np.concatenate([first, second]), atol=1e-5)


def test_the_last_chunk_is_cut_where_the_demonstration_ends(small: SmallRun) -> None:
    demo = held_out(small.demos)[0]
    last = np.concatenate([demo.actions[12:], demo.actions[-1:]])[None]
    rebuilt = small.policy.tokenizer.decode(small.policy.tokenizer.encode(torch.from_numpy(last)))[0, 0]
    np.testing.assert_allclose(trace(small.policy, demo).tokenizer[12:], rebuilt[:3], atol=1e-5)


def test_code_usage_counts_every_window(small: SmallRun) -> None:
    used = code_usage(small.policy, held_out(small.demos))
    assert used.windows == 15 + 16
    assert used.counts.shape == (2, 8)
    assert (used.counts.sum(axis=1) == used.windows).all()
    assert ((used.perplexity >= 1) & (used.perplexity <= 8)).all()


def test_unused_share() -> None:
    counts = np.array([[4, 0, 0, 0], [1, 1, 1, 1]])
    assert CodeUsage(counts, np.array([1.0, 4.0]), 4).unused.tolist() == [0.75, 0.0]


def test_deviation_is_over_the_steps_of_all_demonstrations(small: SmallRun) -> None:
    demos = held_out(small.demos)
    steps = np.concatenate([demo.actions for demo in demos])
    np.testing.assert_allclose(action_deviation(demos), np.sqrt(np.mean((steps - steps.mean(0)) ** 2, axis=0)), rtol=1e-5)
    assert action_names(small.demos) == ["action 0", "action 1", "action 2"]


def test_series_has_a_gap_where_a_metric_was_not_logged(small: SmallRun) -> None:
    metrics = read_run(small.out).tokenizer
    steps, values = metrics.series("train", "ess")
    assert steps.tolist() == list(range(2, 21, 2))
    assert np.flatnonzero(np.isnan(values)).tolist() == [0, 1, 2, 3, 4]
    assert metrics.series("valid", "perplexity").tolist() == [[10.0, 20.0], [4.5, 4.5]]
    assert metrics.series("train", "never").shape == (2, 0)


def test_warm_start_is_found(small: SmallRun) -> None:
    assert phases(read_run(small.out).tokenizer) == plots.Phases(end=10, last=20)


def test_no_warm_start() -> None:
    rows = ({"step": 4, "split": "train", "elbo_beta": -2.0, "reconstruction": 1.0},)
    assert phases(Metrics(Path("metrics.jsonl"), rows)) == plots.Phases(last=4)


def test_svg_takes_the_pages_colours_and_keeps_written_numbers() -> None:
    figure, ax = panel(PAGE, "x", "y")
    ax.plot([0.0, 1.0], [0.123456, 0.7654321], color=PAGE.accent)
    ax.annotate("0.0107", (0, 0.5))
    svg = to_svg(figure, "name", 'a "quoted" label')
    assert svg.startswith('<svg viewBox="0 0 316.8 180" role="img" aria-label="a &quot;quoted&quot; label">')
    assert ">0.0107</text>" in svg
    assert "var(--accent)" in svg and "#0a0b" not in svg
    assert not re.search(r'<path[^>]* d="[^"]*\d\.\d{3}', svg)
    assert "xmlns" not in svg and "://" not in svg


def test_a_single_point_and_constant_curves_can_be_drawn() -> None:
    point = np.array([[5.0], [0.01]])
    for log in (False, True):
        to_svg(plots.curve(PAGE, "unit", valid=point, log=log), "a", "a")
    flat = np.array([[1.0, 2.0, 3.0], [2.64, 2.6400001, 2.64]])
    svg = to_svg(plots.curve(PAGE, "unit", train=flat, line=(2.64, "target"), limits=(0.0, 8.0)), "b", "b")
    assert ">target</text>" in svg and "1e" not in "".join(re.findall(r">([^<]*)</text>", svg))


def test_episode_lengths_without_failures_or_successes() -> None:
    for won, lost in (([20, 30], []), ([], [40, 40])):
        svg = to_svg(plots.lengths(PAGE, won, lost, 40), "c", "c")
        assert f">success ({len(won)})</text>" in svg and f">failure ({len(lost)})</text>" in svg
