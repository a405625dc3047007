"""A script for TRL's GRPOTrainer does the same under GPGTrainer, or is refused by name; each run on both trainers."""

from __future__ import annotations

import dataclasses
import itertools
import re
from fractions import Fraction
from pathlib import Path

import pytest
import scripted
import torch
from datasets import Dataset, IterableDataset
from scripted import QUIET, completion_of, make_model, make_tokenizer, prompt_of
from test_distributed import relative_difference
from test_packing import small_vision_model
from trl import GRPOTrainer

from gpg_repro.objective import valid_groups
from gpg_repro.tiny.vision_model import build_processor
from gpg_repro.trainer import REFUSED_METHODS, GPGConfig, GPGTrainer, total_rewards

ROOT = Path(__file__).resolve().parent.parent
REWARDS = ((1, 1, 0, 0), (1, 1, 1, 1), (0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 1, 1))
SAME = {
    GPGTrainer: {"normalization": "batch", "f_norm": "group", "age": False},
    GRPOTrainer: {"loss_type": "dapo", "beta": 0.0, "scale_rewards": "group"},
}
"""Settings under which both have one gradient."""


def on_both(tmp_path, change=lambda trainer: trainer, rewards=REWARDS, layout=(20, 1), ours=(), **settings):
    """Gradients of one script on both trainers; `change` makes a subclass of each."""
    found = {}
    for trainer, same in SAME.items():
        more = dict(ours) if trainer is GPGTrainer else {}
        folder = tmp_path / trainer.__name__
        found[trainer] = scripted.train(folder, change(trainer), rewards, layout, **same | settings | more)
    return found[GPGTrainer], found[GRPOTrainer]


def test_the_settings_are_those_of_one_gradient(tmp_path):
    (_, ours), (_, theirs) = on_both(tmp_path)
    assert relative_difference(ours[0], theirs[0]) < 1e-5


# Extension points ---------------------------------------------------------------------------------------------------


def test_altered_rewards_are_trained_on(tmp_path):
    def change(trainer):
        class Negated(trainer):
            def _calculate_rewards(self, *args, **kwargs):
                return -super()._calculate_rewards(*args, **kwargs)

        return Negated

    (trainer, ours), (_, theirs) = on_both(tmp_path, change)
    assert relative_difference(ours[0], theirs[0]) < 1e-5
    assert [log["batch/reward"] for log in trainer.state.log_history if "loss" in log] == [-0.5]  # 10 of 20 are right


def test_edited_advantages_are_trained_on(tmp_path):
    def change(trainer):
        class Edited(trainer):
            def _generate_and_score_completions(self, inputs):
                batch = super()._generate_and_score_completions(inputs)
                batch["advantages"] = batch["advantages"] * torch.linspace(-1, 1, 20) + 0.1
                return batch

        return Edited

    (trainer, ours), (_, theirs) = on_both(tmp_path, change)
    assert relative_difference(ours[0], theirs[0]) < 1e-5
    (log,) = [log for log in trainer.state.log_history if "loss" in log]
    assert log["batch/num_valid_groups"] == 5  # all of them have a gradient now


def test_edited_advantages_of_a_wrong_shape_are_refused(tmp_path):
    class Edited(GPGTrainer):
        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            return batch | {"advantages": batch["advantages"].unsqueeze(1)}

    with pytest.raises(ValueError, match=r"advantages of shape \(20, 1\): expected one for each of its 20 completions"):
        scripted.train(tmp_path, Edited, REWARDS, (20, 1))


def test_the_hook_for_advantages_decides_alpha(tmp_path):
    """Only group 0 keeps its advantages: alpha = 5 / 1."""

    class First(GPGTrainer):
        def adjust_advantages(self, advantages, rewards, lengths):
            assert advantages.shape == rewards.shape == lengths.shape == (20,)
            return advantages * (torch.arange(20) < 4)

    trainer, gradients = scripted.train(tmp_path, First, REWARDS, (20, 1))
    assert [log["alpha_applied"] for log in trainer.state.log_history if "loss" in log] == [5]
    _, alone = scripted.train(tmp_path, GPGTrainer, REWARDS[:1], (4, 1))  # alpha = 1, one group of one
    assert relative_difference(gradients[0], alone[0]) < 1e-6


def test_the_hook_for_the_order_of_prompts(tmp_path):
    """An order of its own, in every epoch another one, and where a resumed run goes on."""
    seen = []

    class Curriculum(GPGTrainer):
        def prompt_order(self, epoch):
            return [4, 3, 2, 1, 0] if epoch == 0 else [0, 2, 4, 1, 3]

        def _generate_and_score_completions(self, inputs):
            seen.append([scripted.group_of(row["prompt"]) for row in inputs[::4]])
            return super()._generate_and_score_completions(inputs)

    settings = {"rewards": REWARDS, "layout": (4, 2), "save_strategy": "steps", "save_steps": 1}
    scripted.train(tmp_path, Curriculum, max_steps=3, **settings)
    assert seen == [[4, 3], [2, 1], [0, 2]]  # the last incomplete draw of an epoch is left out
    seen.clear()
    scripted.train(tmp_path / "b", Curriculum, max_steps=3, resume=str(tmp_path / "checkpoint-2"), **settings)
    assert seen == [[0, 2]]


def test_an_order_that_does_not_fit_is_refused(tmp_path):
    class Short(GPGTrainer):
        def prompt_order(self, epoch):
            return [0, 7]

    with pytest.raises(ValueError, match="epoch 0 has 2 rows from 0 to 7: expected at least 4, each from 0 to 4"):
        scripted.train(tmp_path, Short, REWARDS, (4, 2))


@pytest.mark.parametrize("name", REFUSED_METHODS)
def test_methods_that_are_never_called_cannot_be_overridden(tmp_path, name):
    subclass = type("Mine", (GPGTrainer,), {name: lambda self, *args, **kwargs: None})
    with pytest.raises(TypeError, match=rf"Mine\.{name}: .*; override|Mine\.{name}: .*; mask"):
        scripted.train(tmp_path, subclass, REWARDS, (20, 1))


HONOURED = {
    "_set_signature_columns_if_needed", "_get_eval_sampler", "get_eval_dataloader", "training_step",
    "_log_completion_extra", "_log_metric", "_calculate_rewards", "_tokenize_prompts", "_generate_single_turn",
    "_get_tool_suffix_ids", "_tool_call_loop", "_generate", "_generate_and_score_completions", "compute_loss",
    "_compute_loss", "prediction_step", "log", "_save_checkpoint", "_load_optimizer_and_scheduler", "__init__",
}  # fmt: skip


def test_every_method_of_trls_trainer_is_honoured_or_refused():
    """A new version of TRL shows here what is new."""
    methods = {name for name, value in vars(GRPOTrainer).items() if callable(value)}
    assert methods == HONOURED | set(REFUSED_METHODS)


# Rows ---------------------------------------------------------------------------------------------------------------


def test_every_completion_has_a_row_of_its_own(tmp_path):
    """A grader that changes a column changes that of no sibling."""
    found = {}
    for trainer in SAME:
        lengths = found[trainer] = []

        def grade(completion_ids, notes, lengths=lengths, **columns):
            for own in notes:
                own["seen"].append(1)
                lengths.append(len(own["seen"]))
            return scripted.accuracy_reward(completion_ids)

        config = {"max_steps": 1, "num_generations": 4, "max_completion_length": 8, "shuffle_dataset": False, **QUIET}
        same = SAME[trainer] | {"per_device_train_batch_size": 20}
        config_class = GPGConfig if trainer is GPGTrainer else scripted.GRPOConfig
        trainer(
            model=make_model(),
            reward_funcs=grade,
            args=config_class(output_dir=str(tmp_path), **config | same),
            train_dataset=Dataset.from_list(
                [{"prompt": prompt_of(group), "notes": {"seen": [0, 0]}} for group in range(5)]
            ),
            processing_class=make_tokenizer(),
            rollout_func=scripted.scripted_rollout(REWARDS),
        ).train()
    assert found[GPGTrainer] == found[GRPOTrainer] == [3] * 20


@pytest.mark.full("starts worker processes")
def test_workers_fetch_the_same_prompts(tmp_path):
    runs = []
    for workers in (0, 2):
        settings = {"max_steps": 3, "layout": (4, 2), "dataloader_num_workers": workers}
        runs.append(scripted.train(tmp_path / str(workers), GPGTrainer, REWARDS, **settings)[1])
    assert all(relative_difference(*steps) == 0 for steps in zip(*runs, strict=True))


def train_on(folder, trainer_class, dataset, resume=None, **settings):
    """Three steps on a data set of prompts; the prompts seen, and the recorded gradients."""
    seen, recorder = [], scripted.GradientRecorder()

    def rollout(prompts, trainer):
        seen.append([scripted.group_of(prompt) for prompt in prompts[::4]])
        return scripted.scripted_rollout(REWARDS)(prompts, trainer)

    config = {"max_steps": 3, "num_generations": 4, "max_completion_length": 8, "shuffle_dataset": False, **QUIET}
    config |= {"per_device_train_batch_size": 8, "max_grad_norm": 0.0} | SAME[trainer_class] | settings
    config_class = GPGConfig if trainer_class is GPGTrainer else scripted.GRPOConfig
    trainer_class(
        model=make_model(),
        reward_funcs=scripted.accuracy_reward,
        args=config_class(output_dir=str(folder), **config),
        train_dataset=dataset,
        processing_class=make_tokenizer(),
        callbacks=[recorder],
        rollout_func=rollout,
    ).train(resume_from_checkpoint=resume)
    return seen, recorder.steps


def stream() -> IterableDataset:
    return Dataset.from_dict({"prompt": [prompt_of(group) for group in range(5)]}).to_iterable_dataset()


def test_a_stream_of_prompts(tmp_path):
    """In its own order and over again, as on TRL's trainer; a resumed run goes on with the next prompts."""
    ours, gradients = train_on(tmp_path / "ours", GPGTrainer, stream(), save_strategy="steps", save_steps=1)
    theirs, expected = train_on(tmp_path / "theirs", GRPOTrainer, stream())
    assert ours[:2] == theirs[:2] == [[0, 1], [2, 3]]
    assert ours[2] == [4, 0]
    assert all(relative_difference(*steps) < 1e-4 for steps in zip(gradients[:2], expected[:2], strict=True))
    again, last = train_on(tmp_path / "again", GPGTrainer, stream(), resume=str(tmp_path / "ours" / "checkpoint-2"))
    assert again == [[4, 0]] and relative_difference(last[0], gradients[2]) < 1e-6


def test_what_a_stream_does_not_allow_is_said_at_construction(tmp_path):
    class Ordered(GPGTrainer):
        def prompt_order(self, epoch):
            return []

    with pytest.raises(ValueError, match="prompt_order names rows by number, and a stream has none"):
        args = GPGConfig(output_dir=str(tmp_path), max_steps=3, **QUIET)
        Ordered(make_model(), scripted.accuracy_reward, args, stream(), processing_class=make_tokenizer())


# Valid groups -------------------------------------------------------------------------------------------------------


def masked_rollout(prompts, trainer):
    """Group 0's completions never end."""
    done = scripted.scripted_rollout(((1, 0, 1, 0), (0, 1, 1, 1)))(prompts, trainer)
    cut = [ids[:-1] if row < 4 else ids for row, ids in enumerate(done["completion_ids"])]
    return done | {"completion_ids": cut}


def test_a_group_that_trains_nothing_is_not_valid(tmp_path):
    settings = {"rewards": ((1, 0, 1, 0), (0, 1, 1, 1)), "layout": (8, 1), "rollout": masked_rollout}
    settings |= {"mask_truncated_completions": True}
    (trainer, ours), (_, theirs) = on_both(tmp_path, ours={"age": True}, **settings)
    (log,) = [log for log in trainer.state.log_history if "loss" in log]
    assert (log["alpha_applied"], log["alpha"], log["num_groups"], log["num_valid_groups"]) == (2, 2, 2, 1)
    assert relative_difference(ours[0], {name: 2 * value for name, value in theirs[0].items()}) < 1e-5
    with_threshold, _ = scripted.train(tmp_path, GPGTrainer, beta_th=1.0, max_draws=2, **settings)
    (log,) = [log for log in with_threshold.state.log_history if "loss" in log]
    assert log["num_draws"] == 2


def test_a_completion_at_the_mean_is_no_signal():
    rewards = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.3], dtype=torch.float64)
    trained = torch.tensor([False, True, False, True, True, False])
    assert valid_groups(rewards, 3, trained=trained).tolist() == [False, True]


def test_totals_tie_where_their_decimals_do():
    """All pairs of subsets of common weights: equal sums are equal, others differ."""
    weights = (".1", ".2", ".4", ".7", ".3", "1")
    picks = list(itertools.product((0, 1), repeat=len(weights)))
    rewards = torch.tensor(picks, dtype=torch.float32)
    totals, scored = total_rewards(rewards, torch.tensor([float(w) for w in weights]))
    exact = [sum(Fraction(w) for w, taken in zip(weights, pick, strict=True) if taken) for pick in picks]
    assert scored.all() and totals.dtype == torch.float64
    ties = 0
    for (a, x), (b, y) in itertools.combinations(zip(totals.tolist(), exact, strict=True), 2):
        assert (a == b) == (x == y)
        ties += x == y
    in_float32 = (rewards * torch.tensor([float(w) for w in weights])).sum(dim=1).tolist()
    pairs = itertools.combinations(zip(in_float32, exact, strict=True), 2)
    assert ties > sum(a == b and x == y for (a, x), (b, y) in pairs)  # what float32 sums do not notice


def test_tied_weights_make_no_valid_group(tmp_path):
    """0.1 + 0.2 + 0.4 against 0.7, which differ as float32 sums: three functions of four reward, or the last."""

    def one(completion_ids, **columns):
        return [float(ids[0] == scripted.DIGIT_0 + 1) for ids in completion_ids]

    def two(completion_ids, **columns):
        return one(completion_ids)

    def three(completion_ids, **columns):
        return one(completion_ids)

    def four(completion_ids, **columns):
        return [1 - value for value in one(completion_ids)]

    trainer, _ = scripted.train(
        tmp_path,
        GPGTrainer,
        ((1, 0, 1, 0), (1, 1, 0, 0)),
        (8, 1),
        reward_funcs=[one, two, three, four],
        reward_weights=[0.1, 0.2, 0.4, 0.7],
    )
    (log,) = [log for log in trainer.state.log_history if "loss" in log]
    assert log["num_valid_groups"] == log["batch/num_valid_groups"] == 0 and log["grad_norm"] == 0


def test_an_infinite_reward_names_its_function(tmp_path):
    def endless(completion_ids, **columns):
        return [-float("inf") if row == 3 else 1.0 for row, _ in enumerate(completion_ids)]

    with pytest.raises(
        ValueError, match=r"A reward is infinite: endless \(1 of 20\)\. Expected finite numbers, or None"
    ):
        scripted.train(tmp_path, GPGTrainer, REWARDS, (20, 1), reward_funcs=endless)


# State --------------------------------------------------------------------------------------------------------------


def test_a_run_after_a_failed_one_starts_clean(tmp_path):
    """Out of memory in the second pass: started again, the same object makes the first step of a fresh one, with no
    pass of the old batch in it. Rewards turn round in between."""

    def wrong(completion_ids, **columns):
        return [1 - value for value in scripted.accuracy_reward(completion_ids)]

    _, expected = scripted.train(
        tmp_path / "fresh", GPGTrainer, REWARDS, (5, 4), skip_invalid_groups=False, reward_funcs=wrong
    )
    model, passes = make_model(), []

    def grade(completion_ids, **columns):
        return (wrong if passes else scripted.accuracy_reward)(completion_ids)

    def full(module, inputs):
        if torch.is_grad_enabled():
            passes.append(1)
            if len(passes) == 2:
                raise torch.OutOfMemoryError("no memory")

    model.register_forward_pre_hook(full)
    recorder = scripted.GradientRecorder()
    config = {"max_steps": 1, "num_generations": 4, "max_completion_length": 8, "shuffle_dataset": False, **QUIET}
    config |= {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 4, "max_grad_norm": 0.0}
    trainer = GPGTrainer(
        model=model,
        reward_funcs=grade,
        args=GPGConfig(output_dir=str(tmp_path), skip_invalid_groups=False, **config),
        train_dataset=Dataset.from_dict({"prompt": [prompt_of(group) for group in range(5)]}),
        processing_class=make_tokenizer(),
        callbacks=[recorder],
        rollout_func=scripted.scripted_rollout(REWARDS),
    )
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train()
    trainer.train()
    assert len(passes) > 3 and relative_difference(recorder.steps[0], expected[0]) < 1e-6


def test_the_table_of_completions_shows_what_is_trained_on(tmp_path):
    """Groups 0 and 3 of two draws of four: those, not the last draw, are in the table."""
    rewards = ((0, 1, 1, 0), (1, 1, 1, 1), (0, 0, 0, 0), (1, 0, 1, 1), (1, 1, 1, 1), (0, 1, 0, 0))
    trainer, _ = scripted.train(tmp_path, GPGTrainer, rewards, (8, 1), beta_th=1.0, log_completions=True)
    tokenizer = make_tokenizer()
    shown = [tokenizer(text)["input_ids"] for text in trainer._logs["completion"]]
    trained = [completion_of(group, place, rewards[group][place])[:-1] for group in (0, 3) for place in range(4)]
    assert [ids for ids in shown] == trained
    assert list(trainer._logs["prompt"]) == [prompt_of(0)] * 4 + [prompt_of(3)] * 4
    assert list(trainer._logs["rewards"]["accuracy_reward"]) == [0, 1, 1, 0, 1, 0, 1, 1]


def test_the_best_model_of_a_vision_language_run_is_loaded(tmp_path):
    """Its files have the names of the hub; the trainer's own loading finds none of its weights."""
    processor = build_processor()
    trainer = GPGTrainer(
        model=small_vision_model(processor),
        reward_funcs=lambda completion_ids, **columns: [0.0] * len(completion_ids),
        args=GPGConfig(output_dir=str(tmp_path), per_device_train_batch_size=8, **QUIET),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "a"}]}] * 8),
        processing_class=processor,
    )
    best = tmp_path / "checkpoint-1"
    trainer.save_model(str(best))
    expected = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(1.0)
    trainer.state.best_model_checkpoint, trainer.state.best_metric = str(best), 1.0
    trainer._load_best_model()
    assert all(torch.equal(value, expected[name]) for name, value in trainer.model.state_dict().items())


# Every option -------------------------------------------------------------------------------------------------------


def documented() -> dict[str, str]:
    """Option -> its status in the last table of docs/from_trl.md."""
    table = (ROOT / "docs" / "from_trl.md").read_text(encoding="utf-8").partition("## Every option")[2]
    rows = re.findall(r"^\| (works|refused|no effect) \| ([^|]*) \|", table, re.MULTILINE)
    named = [(name, status) for status, names in rows for name in re.findall(r"`(\w+)`", names)]
    assert len(named) == len(dict(named)), "named twice"
    return dict(named)


def test_every_option_of_trl_has_an_answer():
    """A new version of TRL or transformers shows here what is new."""
    assert set(documented()) == {entry.name for entry in dataclasses.fields(scripted.GRPOConfig)}


@pytest.mark.parametrize("name", [name for name, status in documented().items() if status == "refused"])
def test_an_option_that_would_be_ignored_is_refused(tmp_path, name):
    (entry,) = [entry for entry in dataclasses.fields(scripted.GRPOConfig) if entry.name == name]
    other = {"scale_rewards": "batch", "loss_type": "grpo", "generation_batch_size": 32, "steps_per_generation": 2}
    changes = {bool: not entry.default, int: 3, float: 0.75, str: "token_mask", type(None): 0.5}
    value = other.get(name, changes[type(entry.default)])
    if name in ("vllm_importance_sampling_correction", "use_bias_correction_kl"):
        value = True  # TRL's default
    with pytest.raises(ValueError, match=name):
        GPGConfig(output_dir=str(tmp_path), **QUIET | {name: value})
