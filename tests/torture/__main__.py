"""``python tests/torture [evaluation training notebook] [--kills 30]``: kill, start again, compare.

Each campaign makes an undisturbed run, then starts the same command again and again in another folder and kills it:
before a chosen change to a file, inside a chosen write, or from outside at a random moment; everything at once, or one
process while the others are left to notice. After every kill what is on the disk is looked at; at the end the run is
left to finish and compared with the undisturbed one. Interrupted, the same command goes on with the next kill.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from torture import campaigns, victims
from torture.campaigns import CAMPAIGNS, Campaign, Snapshot
from torture.victims import Ending, Plan

DEFAULT_OUT = victims.REPOSITORY / "build" / "torture"
_FAILED_STARTS = 3
"""So many in a row, and the campaign stops."""


def plan_of(rng: np.random.Generator, facts: dict, kills_per_round: int) -> Plan:
    """A moment to kill at, drawn so that a round of kills gets through the whole of an undisturbed run.

    Args:
        facts: of the undisturbed run: ``seconds``, ``first_change_s``, ``num_events``, ``num_writes``.
    """
    # a start makes some changes of its own before it goes on; what a kill lets through is twice its share on average
    share = 2 / kills_per_round
    whole, at_once = bool(rng.random() < 0.6), bool(rng.random() < 0.5)
    kind = rng.choice(["event", "write", "time"], p=[0.4, 0.2, 0.4])
    if kind == "event":
        return Plan("event", int(rng.integers(1, 15 + share * facts["num_events"])), whole=whole, at_once=at_once)
    if kind == "write":
        at, cut = int(rng.integers(1, 4 + share * facts["num_writes"])), int(rng.integers(1, 400))
        return Plan("write", at, cut, whole=whole, at_once=at_once)
    if rng.random() < 0.15:
        return Plan("time", rng.random() * facts["first_change_s"], after_start=True, whole=whole, at_once=at_once)
    working = facts["seconds"] - facts["first_change_s"]
    return Plan("time", rng.random() * (0.3 * working + share * working), whole=whole, at_once=at_once)


class State:
    """What a campaign has done, on disk after every attempt."""

    def __init__(self, folder: Path, asked: dict):
        self.folder, self._path = folder, folder / "state.json"
        there = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        if there.get("asked") != asked or there.get("done"):
            shutil.rmtree(folder, ignore_errors=True)
            there = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.values = there or {"asked": asked, "facts": None, "round": 1, "attempts": 0, "kills": [], "problems": [],
                                "lost_bytes": 0, "whole_bytes": 0, "rounds_compared": 0, "seconds": 0.0}  # fmt: skip

    def __getitem__(self, name: str):
        return self.values[name]

    def update(self, **changes) -> None:
        """Change and save."""
        self.values |= changes
        aside = self._path.with_suffix(".tmp")
        aside.write_text(json.dumps(self.values, indent=1), encoding="utf-8")
        os.replace(aside, self._path)


def run_campaign(campaign: Campaign, kills: int, seed: int, out: Path, short: bool, model: str) -> State:
    """All kills of one campaign; resumes."""
    asked = {"kills": kills, "seed": seed, "short": short}
    state = State(out / campaign.name, asked)
    per_round = min(kills, campaign.kills_per_round)
    began, before_s = time.monotonic(), state["seconds"]

    def start(root: Path, plan: Plan) -> tuple[Ending, Path]:
        number = state["attempts"] + 1
        trace = state.folder / "attempts" / f"{number:03}"
        shutil.rmtree(trace, ignore_errors=True)  # of a try that was interrupted
        arguments = campaign.arguments(root, model)
        if short:
            arguments = [campaign.short.get(word, word) for word in arguments]
        environment = dict(os.environ) | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | campaign.environment(root)
        ending = victims.attempt(campaign.module, arguments, environment, root, trace, plan, warm=campaign.warm)
        state.update(attempts=number, seconds=before_s + time.monotonic() - began)
        return ending, trace

    reference = state.folder / "reference"
    if state["facts"] is None:
        shutil.rmtree(reference, ignore_errors=True)
        _say(campaign, "an undisturbed run ...")
        ending, _ = start(reference, Plan("finish"))
        if ending.status != "finished":
            state.update(problems=[f"undisturbed: {', '.join(ending.problems)}"])
            return state
        facts = {name: getattr(ending, name) for name in ("seconds", "first_change_s", "num_events", "num_writes")}
        state.update(facts=facts)
        _say(campaign, f"{ending.seconds:.0f} s, {ending.num_events} changes to files, "
                       f"{campaigns.summary_of_records(reference)}")  # fmt: skip

    failed, orphans = 0, []
    root = state.folder / f"round-{state['round']}"
    before, _, _ = campaigns.inspect(root, Snapshot())
    while True:
        left = kills - len(state["kills"])
        of_round = sum(kill["round"] == state["round"] for kill in state["kills"])
        finish = left <= 0 or of_round >= per_round
        rng = np.random.default_rng([seed, list(CAMPAIGNS).index(campaign.name), state["attempts"]])
        plan = Plan("finish") if finish else plan_of(rng, state["facts"], per_round)
        ending, trace = start(root, plan)
        problems = list(ending.problems)
        if plan.at_once and ending.status == "killed":
            orphans.append(trace)
        else:
            for earlier in [*orphans, trace]:
                problems += victims.wait_for_orphans(earlier)
            orphans.clear()
        now, found, lost = campaigns.inspect(root, before)
        problems += found
        before = now
        if ending.status == "killed":
            phase = campaigns.phase_of(campaign, ending.phase)
            kill = {
                "round": state["round"],
                "phase": phase,
                "whole": plan.whole,
                "kind": plan.kind,
                "told": ending.phase[:200],
            }
            state.update(kills=[*state["kills"], kill], whole_bytes=max(state["whole_bytes"], now.num_bytes))
            who = "everything" if plan.whole else "one process"
            _say(campaign, f"kill {len(state['kills']):2}/{kills} after {ending.seconds:5.1f} s, {who}: {phase}")
        elif ending.status == "finished":
            different = campaigns.differences(reference, root)
            problems += different
            state.update(rounds_compared=state["rounds_compared"] + 1)
            _say(campaign, f"round {state['round']} finished: "
                           f"{'equal to the undisturbed run' if not different else 'DIFFERENT'}")  # fmt: skip
        for problem in problems:
            _say(campaign, f"VIOLATION: {problem}")
        named = [f"attempt {state['attempts']} ({_told(plan)}): {problem}" for problem in problems]
        state.update(problems=[*state["problems"], *named], lost_bytes=state["lost_bytes"] + lost)
        failed = failed + 1 if ending.status == "failed" else 0
        if failed == _FAILED_STARTS:
            _say(campaign, f"stopped: {failed} starts in a row failed")
            return state
        if ending.status == "finished" or failed:
            if finish and left <= 0 and not failed:
                return state
            if ending.status == "finished":
                if not problems:
                    shutil.rmtree(root)
                state.update(round=state["round"] + 1)
                root, before = state.folder / f"round-{state['round']}", Snapshot()


def _told(plan: Plan) -> str:
    return f"{plan.kind} {plan.at:.4g}" + (f" + {plan.bytes} bytes" if plan.bytes else "")


def _say(campaign: Campaign, text: str) -> None:
    print(f"[{campaign.name}] {text}", flush=True)


def summary(states: dict[str, State]) -> str:
    """Counts of all campaigns, for the terminal."""
    lines = []
    for name, state in states.items():
        kills = state["kills"]
        lines.append(
            f"{name}: {len(kills)} kills survived in {state['rounds_compared']} rounds "
            f"({sum(k['whole'] for k in kills)} of everything at once, {sum(not k['whole'] for k in kills)} of one "
            f"process), bytes lost: {state['lost_bytes'] or 'none'}, violations: {len(state['problems']) or 'none'} "
            f"({state['seconds']:.0f} s)"
        )
        lines += [f"  {count:3}  {phase}" for phase, count in Counter(k["phase"] for k in kills).most_common()]
        lines += [f"  VIOLATION  {problem}" for problem in state["problems"]]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Command line; 1 means a violation, whose evidence is kept."""
    parser = argparse.ArgumentParser(prog="python tests/torture", description=__doc__.split("\n\n")[1])
    parser.add_argument("campaigns", nargs="*", metavar="CAMPAIGN", help=f"{', '.join(CAMPAIGNS)} (default: all)")
    parser.add_argument("--kills", type=int, default=30, metavar="N", help="of each campaign (30)")
    parser.add_argument("--seed", type=int, default=0, help="of the generator that draws the moments (0)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="default: build/torture")
    parser.add_argument("--short", action="store_true", help="smaller runs")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.campaigns if name not in CAMPAIGNS]:
        parser.error(f"unknown campaign {unknown[0]}; there are {', '.join(CAMPAIGNS)}")
    if not sys.platform.startswith("linux"):
        print("error: torture reads /proc: it needs Linux.", file=sys.stderr)
        return 2
    chosen = [replace(CAMPAIGNS[name]) for name in args.campaigns or CAMPAIGNS]
    states: dict[str, State] = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an end that leaves no victim behind
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background of a shell
    try:
        model = _base()
        for campaign in chosen:
            states[campaign.name] = run_campaign(campaign, args.kills, args.seed, args.out, args.short, model)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on with the next kill", file=sys.stderr)
        return 130
    print("\n" + summary(states))
    bad = any(state["problems"] for state in states.values())
    for state in states.values():
        state.update(done=True)
        if not state["problems"]:
            for part in ("attempts", "reference", *(f"round-{n}" for n in range(1, state["round"] + 1))):
                shutil.rmtree(state.folder / part, ignore_errors=True)
    if bad:
        print(f"evidence: {args.out}")
    return int(bad)


def _base() -> str:
    """Folder of the smoke base; made by a child, so that this process stays free of threads and can be forked."""
    import gpg_repro.__main__
    import gpg_repro.trainer  # noqa: F401  what a training imports
    from gpg_repro.paths import cache
    from gpg_repro.tiny.warmup import build_base

    pid = os.fork()
    if pid == 0:
        try:
            build_base(cache(), scale="smoke", progress=False)
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("error: the smoke base could not be made")
    return str(build_base(cache(), scale="smoke", progress=False))


if __name__ == "__main__":
    sys.exit(main())
