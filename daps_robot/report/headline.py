"""The top of the page: the success rate, what bounds it, and the other numbers, each with how it was measured."""

from __future__ import annotations

from html import escape

import numpy as np

from daps_robot.data.demos import DemoSet
from daps_robot.models.fast import FASTTokenizer
from daps_robot.models.policy import LatentPolicy
from daps_robot.report.html import Format, fact, grid, missing, number, paragraph, percent, short, whole
from daps_robot.report.run import Run
from daps_robot.types import SizedPolicy

NO_ROLLOUTS = "Not measured: the evaluation found no simulator for this data set, or was run without rollouts."
_DECODING = {
    "expected": "predicts a short sequence of codes, decodes the mean of their embeddings under its prediction",
    "greedy": "predicts a short sequence of codes, decodes the most likely one",
    "sample": "draws a short sequence of codes, decodes it",
    "consensus": "draws short sequences of codes, decodes the one that is nearest to the mean of all",
    "beam": "searches for the most likely short sequence of codes, decodes it",
}
NO_CEILING = "Not measured: the evaluation was run without an expert's episodes (--ceiling-episodes 0), or could not."


def task_name(run: Run, demos: DemoSet) -> str:
    """ "Lift" for daps_robot/Lift-v0, or the name of the data set's file."""
    env = run.get("rollouts.env_id")
    return str(env).rpartition("/")[2].rpartition("-v")[0] or str(env) if env else demos.path.stem


def title(run: Run, name: str, latent: bool) -> str:
    """The one sentence that the page is about."""
    if run.get("success_rate") is None and run.get("policy_error") is not None:
        return f"{escape(name)}: plans miss {number(run, 'policy_error', percent)} of the actions' variance"
    if run.get("success_rate") is None:
        return f"{escape(name)}: how well {'the codes keep the actions' if latent else 'the policy plans the actions'}"
    if run.graded:
        return f"{escape(name)}: mean score {number(run, 'mean_score')} on {number(run, 'episodes', whole)} unseen starts"
    return f"{escape(name)}: {number(run, 'successes', whole)} of {number(run, 'episodes', whole)} unseen starts solved"


def lead(run: Run) -> str:
    """What was measured, in plain words."""
    if run.get("success_rate") is None:
        held_out = (
            "Measured on held-out demonstrations: the policy plans chunks from what was observed, and the squared error of the "
            "planned actions is divided by their variance, in the mean of all dimensions. 0% is exact, 100% no better than "
            "always the mean action"
        )
        if run.get("reconstruction_error") is not None:
            held_out += f"; through the codes alone, without a policy, {number(run, 'reconstruction_error', percent)} is lost"
        none = missing("No episodes were played, so there is no success rate on this page. " + NO_ROLLOUTS)
        return (paragraph(f"{held_out}.", "lead") if run.get("policy_error") is not None else "") + none
    settings, decoding = "rollouts.settings", run.get("decoding")
    plans = f"{_DECODING[decoding]} into" if decoding else "plans"
    score = (
        f"Mean score {number(run, 'mean_score')}; with 95% confidence the true mean lies between "
        f"{number(run, 'score_ci95.0')} and {number(run, 'score_ci95.1')} (interval of Learned-Miller and Thomas). "
        "An episode's score is the best that it reached at any step. "
    )
    return paragraph(
        f"{score if run.graded else ''}"
        f"Success rate {number(run, 'success_rate', percent)}; with 95% confidence the true rate lies between "
        f"{number(run, 'ci95.0', percent)} and {number(run, 'ci95.1', percent)} (Wilson interval). Every episode starts from a "
        f"state that no demonstration started from, ends after {number(run, f'{settings}.max_steps', whole)} steps at the "
        "latest, and counts as solved if the task was done at any step. At each decision the policy reads the last "
        f"observations, {plans} {number(run, f'{settings}.horizon', whole)} "
        f"actions, and executes {number(run, f'{settings}.execute', whole)} of them.",
        "lead",
    )


_RATES = (
    ("policy", "success_rate", "ci95", "main"),
    ("policy, one code sequence a plan", "codes_success_rate", "codes_ci95", ""),
    ("expert through the codes (ceiling)", "tokenizer_ceiling", "tokenizer_ceiling_ci95", ""),
    ("expert through wrong codes", "other_codes_ceiling", "other_codes_ceiling_ci95", ""),
    ("replay, through the codes", "replay_success.tokenized", "", ""),
    ("replay, as recorded", "replay_success.plain", "", ""),
)
_SCORES = (
    ("policy", "mean_score", "score_ci95", "main"),
    ("policy, one code sequence a plan", "codes_mean_score", "codes_score_ci95", ""),
    ("replay, through the codes", "replay_score.tokenized", "", ""),
    ("replay, as recorded", "replay_score.plain", "", ""),
)


def rates(run: Run, latent: bool) -> str:
    """All success rates on one scale, with intervals where there are any; above them the mean scores where there are such."""
    scores = _scale(run, _SCORES, "mean score", short) if run.graded else ""
    rates = _scale(run, _RATES, "success rate", percent)
    if not rates:
        return ""
    text = f"Dots are {'mean scores and ' if scores else ''}success rates, bars their 95% intervals."
    if latent:
        text += (
            " The ceiling is what a perfect policy could reach with these codes: what is missing above it, the codes lose; what "
            "is missing between it and the policy, the policy loses."
        )
    return f"{scores}{rates}" + paragraph(text, "muted")


def _scale(run: Run, rows: tuple[tuple[str, str, str, str], ...], title: str, form: Format) -> str:
    """Values from 0 to 1 (name, key, key of the interval, kind), each on a line."""
    lines = []
    for name, key, interval, kind in rows:
        if (rate := run.get(key)) is None:
            continue
        low, high = run.get(f"{interval}.0"), run.get(f"{interval}.1")
        band = f'<i class="ci" style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></i>' if low is not None else ""
        dot = f'<i class="dot" style="left:{100 * rate:.2f}%"></i>'
        value = f'<span class="value">{number(run, key, form)}</span>'
        lines.append(f'<span>{name}</span>{value}<div class="track {kind}">{band}{dot}</div>')
    if not lines:
        return ""
    scale = f'<div class="scale"><span>{form(0)}</span><span>{title}</span><span>{form(1)}</span></div>'
    return f'<div class="rates">{"".join(lines)}{scale}</div>'


def facts(run: Run, policy: SizedPolicy) -> str:
    """The numbers, each with how it was measured."""
    first = _code_facts(run, policy) if isinstance(policy, LatentPolicy) else [_planning_fact(run, policy)]
    return grid([*first, *_running_facts(run, policy)], "facts")


def _code_facts(run: Run, policy: LatentPolicy) -> list[str]:
    codes = policy.tokenizer.config.codes
    ceiling, other = run.get("ceiling_in_short_episodes"), run.get("other_codes_ceiling")
    right, wrong = run.get("reconstruction_rmse"), run.get("other_codes_rmse")
    gain = f"{100 * (ceiling - other):.0f} <small>points of success</small>" if None not in (ceiling, other) else ""
    rmse = f"{_mean(right):.3f} <small>against {_mean(wrong):.3f}</small>" if right and wrong else ""
    rebuilt = f"; rebuilt actions are off by {_mean(right):.3f} against {_mean(wrong):.3f} (RMSE)" if right and wrong else ""
    return [
        fact(
            "Tokenizer ceiling",
            number(run, "tokenizer_ceiling", percent) if run.get("tokenizer_ceiling") is not None else "",
            "The scripted expert drives, but each chunk of actions that it plans is turned into codes and back before it is "
            f"executed. 95% interval {number(run, 'tokenizer_ceiling_ci95.0', percent)} to "
            f"{number(run, 'tokenizer_ceiling_ci95.1', percent)}.",
            NO_CEILING,
        ),
        fact(
            "Code gain",
            gain or rmse,
            (
                f"Solved within {number(run, 'short_episode_steps', whole)} steps (twice a demonstration, or the limit): "
                f"{number(run, 'ceiling_in_short_episodes', percent)} of the expert's episodes with the "
                f"right codes, {number(run, 'other_codes_ceiling', percent)} with those of another, random chunk{rebuilt}. "
                if gain
                else "Error (RMSE) of actions rebuilt from their own codes, against those of another, random chunk. "
            )
            + "Near nothing would mean that the decoder does without its codes.",
            NO_CEILING,
        ),
        *_malformed_facts(run),
        *_replay_facts(run),
        fact(
            "Bits per chunk",
            f"{number(run, 'bits_per_chunk')} <small>bits</small>" if run.get("bits_per_chunk") is not None else "",
            f"{_capacity(policy)}, each one of {codes.vocabulary}, for {policy.horizon} actions of {policy.action_dim} numbers.",
            "The report does not say.",
        ),
        fact(
            "Codes in use (perplexity)",
            f"{number(run, 'code_perplexity')} <small>of {codes.vocabulary}</small>"
            if run.get("code_perplexity") is not None
            else "",
            "So many equally frequent codes would be as varied as those in use; at each position over the held-out chunks, "
            "then averaged. Near 1, the codes say nothing.",
            "The report does not say.",
        ),
    ]


def _capacity(policy: LatentPolicy) -> str:
    """What the bits of a chunk are."""
    positions = policy.tokenizer.config.codes.positions
    if isinstance(policy.tokenizer, FASTTokenizer):
        return f"Mean of the training chunks, which take different numbers of codes, up to {positions}"
    return f"Capacity of {positions} codes"


def _malformed_facts(run: Run) -> list[str]:
    """Of FAST alone."""
    if run.get("malformed_codes") is None:
        return []
    how = (
        "Of the code sequences that the policy predicts for held-out observations, those that do not hold exactly the numbers of "
        "a chunk: the published FAST cannot decode them. Here what they lack is zero, and what they have too much is left out."
    )
    return [fact("Malformed codes", number(run, "malformed_codes", percent), how)]


def _replay_facts(run: Run) -> list[str]:
    measure, form = ("replay_score", short) if run.graded else ("replay_success", percent)
    tokenized, plain = f"{measure}.tokenized", f"{measure}.plain"
    recorded = f"<small>against {number(run, plain, form)}</small>"
    return [
        fact(
            "Open-loop replay",
            f"{number(run, tokenized, form)} {recorded}" if None not in (run.get(tokenized), run.get(plain)) else "",
            "Held-out demonstrations played again from their own start states without looking: through the codes, against as "
            "recorded. Small errors add up here as they do not when a policy looks again.",
            NO_CEILING,
        )
    ]


def _planning_fact(run: Run, policy: SizedPolicy) -> str:
    return fact(
        "Error of a plan",
        f"{number(run, 'chunk_error')} <small>squared error / scale²</small>" if run.get("chunk_error") is not None else "",
        f"Over the {policy.horizon} actions of a chunk, from every step of the held-out demonstrations; mean over the action "
        "dimensions.",
        "The report does not say.",
    )


def _running_facts(run: Run, policy: SizedPolicy) -> list[str]:
    p50, overhead, clipped = (
        run.get(k) for k in ("policy_latency_ms.p50", "rollouts.overhead", "rollouts.clipped_action_values")
    )
    executed = sum(record["length"] for record in run.get("rollouts.records", [])) * policy.action_dim
    share = f"{clipped / executed:.2%} of the {executed:,} values sent" if clipped is not None and executed else ""
    latency = f"{number(run, 'policy_latency_ms.p50')} ms <small>p99 {number(run, 'policy_latency_ms.p99')} ms</small>"
    return [
        fact(
            "Time of a decision",
            latency if p50 is not None else "",
            "Observations in, a chunk of actions out, for one robot on one core: the median, and the time that 99 of 100 "
            "decisions stay under (p99).",
            NO_ROLLOUTS,
        ),
        fact(
            "Overhead",
            number(run, "rollouts.overhead", percent) if overhead is not None else "",
            "Time that policy and bookkeeping add to the bare simulator's during the rollouts, on a machine that does nothing "
            "else. Good: little beside the simulator.",
            NO_ROLLOUTS,
        ),
        fact(
            "Clipped actions",
            number(run, "rollouts.clipped_action_values", whole) if clipped is not None else "",
            f"Action values that lay outside the robot's range and were cut off: {share}. Should be none, or next to none.",
            NO_ROLLOUTS,
        ),
    ]


def _mean(values: list[float]) -> float:
    return float(np.mean(values))
